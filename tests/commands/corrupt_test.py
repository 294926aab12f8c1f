"""The command corrupt on digits: its files are what `corrupt` makes, and it resumes."""

import json

import numpy as np
import pytest
from PIL import Image

from nsk.commands import corrupt, evaluate
from nsk.data import pipeline
from nsk.data.shards import ShardSet
from nsk.errors import UserError
from nsk.evaluation import corruption_files, corruptions
from nsk.evaluation.corruption_files import open_corruption_files

COUNT = 40
VALUES = {
    "dataset": "digits",
    "corruptions": "fog,shot_noise",
    "evaluation_images": COUNT,
    "evaluation_seed": 3,
    "strategy": "one",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays") / "Digits-C"
    return folder, corrupt.execute({**VALUES, "output": str(folder)})


def read_images(folder):
    """All test images by their ids."""
    (stage,) = (folder / "ingested").glob("images-*")
    batches = pipeline.clean_batches(ShardSet.load(stage / "test"), 8, 50).as_numpy_iterator()
    return {
        id.decode(): (label, image)
        for batch in batches
        for id, label, image in zip(batch["id"], batch["label"], batch["image"], strict=True)
    }


def test_the_arrays_hold_the_corrupted_images(written):
    folder, content = written
    ids = (folder / "ids.txt").read_text().splitlines()
    found = read_images(folder)
    assert len(set(ids)) == COUNT and len(found) == 359
    files = open_corruption_files(folder, num_classes=10)
    assert (files.names, files.num_images) == (("shot_noise", "fog"), COUNT)
    np.testing.assert_array_equal(files.labels, [found[id][0] for id in ids])
    pixels = np.stack([found[id][1] for id in ids])
    for name in files.names:
        for severity in range(1, 6):
            expected = corruptions.corrupt(pixels, name, severity, ids, seed=3)
            (batch,) = files.batches(name, severity, COUNT)
            np.testing.assert_array_equal(batch["image"], expected)
    assert json.loads((folder / "settings.json").read_text()) == content
    described = {"constants": "cifar", "image_size": 8, "frost": "procedural", "layout": "npy"}
    assert {name: content[name] for name in described} == described
    assert {path.name for path in folder.iterdir()} == {
        *("fog.npy", "shot_noise.npy", "labels.npy", "ids.txt", "settings.json", "ingested")
    }
    assert not list(folder.parent.glob("*.lock"))


def test_more_corruptions_are_added_and_nothing_is_written_twice(written, monkeypatch):
    folder, _ = written
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("[fs]*.npy")}
    made, make = [], corruptions.corrupt

    def count(images, name, *args, **options):
        made.append(name)
        return make(images, name, *args, **options)

    monkeypatch.setattr(corruptions, "corrupt", count)
    (folder / "fog.npy.0123.unfinished").touch()
    values = {**VALUES, "output": str(folder), "corruptions": "fog,contrast,shot_noise"}
    corrupt.execute(values)
    assert set(made) == {"contrast"}
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("[fs]*.npy")}
    assert after == before
    assert open_corruption_files(folder).names == ("shot_noise", "fog", "contrast")
    assert not list(folder.glob("*.unfinished"))

    for changed, message in (
        ({"evaluation_seed": 4}, "was written with evaluation_seed=3, not 4: give another folder"),
        ({"image_size": [6]}, "was written with image_size=8, not 6"),
        ({"layout": "folders"}, "was written with layout=npy, not folders"),
        ({"resize_mode": "pad"}, "was written with resize_mode=crop, not pad"),
    ):
        with pytest.raises(UserError, match=message):
            corrupt.execute({**values, **changed})


def test_folders_hold_the_corrupted_images_as_jpeg(written, tmp_path):
    arrays = open_corruption_files(written[0])
    ids = (written[0] / "ids.txt").read_text().splitlines()
    values = {**VALUES, "layout": "folders", "corruptions": "fog", "output": str(tmp_path / "C")}
    corrupt.execute(values)
    assert (tmp_path / "C" / "ids.txt").read_text().splitlines() == ids
    files = open_corruption_files(tmp_path / "C")
    assert files.class_folders == [str(digit) for digit in range(10)]
    (batch,) = arrays.batches("fog", 4, COUNT)
    for row, (label, pixels) in enumerate(zip(batch["label"], batch["image"], strict=True)):
        path = tmp_path / "C" / "fog" / "4" / str(label) / f"{row:05d}.JPEG"
        Image.fromarray(pixels).save(tmp_path / "expected.jpg", quality=85, optimize=True)
        assert path.read_bytes() == (tmp_path / "expected.jpg").read_bytes()
    assert not (tmp_path / "C" / "labels.npy").exists()


def test_an_interrupted_command_goes_on(tmp_path, monkeypatch):
    values = {**VALUES, "output": str(tmp_path)}
    make = corruption_files.write_npy_files

    def interrupt(folder, name, *args):
        if name == "fog":
            raise KeyboardInterrupt
        make(folder, name, *args)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(corruption_files, "write_npy_files", interrupt)
        corrupt.execute(values)
    assert [path.name for path in tmp_path.glob("[fs]*.npy")] == ["shot_noise.npy"]
    corrupt.execute(values)
    assert open_corruption_files(tmp_path).names == ("shot_noise", "fog")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output": ""}, "--output is not given"),
        ({"workdir": "runs"}, "--workdir is for runs: corrupt writes to"),
        ({"corruption_files": "C"}, "--corruption_files is what evaluate reads"),
        ({"corruptions": "rain"}, "'rain' is not known"),
        ({"evaluation_images": 999}, "--evaluation_images=999: the split test has 359 images"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        corrupt.execute({**VALUES, "output": str(tmp_path / "C"), **values})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fog.npy", b"", r"holds download.unfinished, fog.npy, not written by corrupt: give a new"),
        ("settings.json", b"{}", r"settings.json was not written by corrupt: give a new"),
        ("settings.json", b"[1]", r"settings.json was not written by corrupt: give a new"),
        ("settings.json", b'{"constants"', r"settings.json cannot be read \(JSONDecodeError\)"),
        ("settings.json", b"\xff\xfe", r"settings.json cannot be read \(UnicodeDecodeError\)"),
    ],
)
def test_other_folders_are_not_written_to(tmp_path, name, content, message):
    files = {name: content, "download.unfinished": b"of another program"}
    for file, text in files.items():
        (tmp_path / file).write_bytes(text)
    with pytest.raises(UserError, match=message):
        corrupt.execute({**VALUES, "output": str(tmp_path)})
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*")} == files


def test_files_beside_the_output_are_kept(tmp_path, monkeypatch):
    """Also those of tools, and the locks of other processes, whose names start alike."""
    kept = [tmp_path / "poetry.lock", tmp_path / "p2.lock", tmp_path / "p.lock"]
    for path in kept:
        path.touch()
    monkeypatch.setattr(corrupt, "_write", lambda *_: {})
    corrupt.execute({**VALUES, "output": str(tmp_path / "p")})
    assert sorted(tmp_path.glob("*.lock")) == sorted(kept)


def test_settings_of_corruptions_have_an_effect(tmp_path, caplog):
    corrupt.execute({**VALUES, "output": str(tmp_path), "corruptions": "contrast"})
    assert "has no effect" not in caplog.text


@pytest.mark.slow
def test_evaluate_finds_the_same_errors_in_the_files(written, tmp_path):
    from nsk import models

    folder = tmp_path / "Digits-C"
    path = tmp_path / "model.keras"
    models.build_model("convnet5", num_classes=10, image_size=8, seed=1).save(path)
    values = {**VALUES, "evaluation_images": 0}
    corrupt.execute({**values, "output": str(folder)})
    values |= {"model": str(path), "suites": "corruptions"}
    made = evaluate.execute({**values, "output": str(tmp_path / "made")})
    values |= {"corruption_files": str(folder), "output": str(tmp_path / "read")}
    read = evaluate.execute(values)
    for name in ("errors", "clean_error", "mean_error", "images"):
        assert read["suites"]["corruptions"][name] == made["suites"]["corruptions"][name]
