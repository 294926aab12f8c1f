"""Ingestion: what the stage of images depends on, and students without unlabelled images."""

import shutil

import numpy as np
import pytest
from PIL import Image

from nsk.data import ingest, sources
from nsk.errors import UserError
from nsk.stages.ingestion import ingest_images
from nsk.stages.runner import shard_set


def test_images_are_ingested_once(make_runner, tmp_path, caplog):
    with caplog.at_level("INFO", logger="absl"):
        images = ingest_images(make_runner(tmp_path))
    assert images.counts["images"]["labeled"] == 50 and images.counts["images"]["dev"] == 100
    assert len(shard_set(images, "labeled").class_names) == 10
    assert "50 labeled" in caplog.text
    # Neither other stages' settings nor those without effect on digits rebuild them.
    for values in ({"learning_rate": ["0.2"]}, {"test_split": "validation"}, {"first_label": 1}):
        again = ingest_images(make_runner(tmp_path, **values))
        assert again.reused and again.path == images.path
    for values in ({"seed": 1}, {"num_dev": 101}):
        assert ingest_images(make_runner(tmp_path, **values)).path != images.path
    # The seed of the splits alone counts.
    other_seed = make_runner(tmp_path, seed=7, split_seed=1)
    assert ingest_images(other_seed).path == ingest_images(make_runner(tmp_path, seed=1)).path


def write_photos(root, **counts):
    """Writes images into folders; counts by the folder's path, with _ for /."""
    random = np.random.default_rng(0)
    for name, count in counts.items():
        folder = root / name.replace("_", "/")
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return f"folder:{root}"


def test_how_a_folder_is_understood_is_said_once_before_it_is_read(
    make_runner, tmp_path, monkeypatch, caplog
):
    root = tmp_path / "photos"
    write_photos(root / "a" / "b", train_ant=20, train_bee=20, val_ant=2, test=3)
    values = {"dataset": f"folder:{root}", "num_labeled": 4, "num_dev": 2}
    note = (
        f"--dataset: Folder {root}: train (40 images of 2 classes), dev (2 images of 1 class); "
        "without class folders, so not used: test (3 images); in a/b."
    )
    content = sources.content
    monkeypatch.setattr(
        sources, "content", lambda *given: caplog.records.append("content") or content(*given)
    )
    with caplog.at_level("INFO", "absl"):
        ingest_images(make_runner(tmp_path / "run", **values))
    lines = [line if line == "content" else line.getMessage() for line in caplog.records]
    assert lines[:2] == [note, "content"]
    for start in ("--dataset: ", "Images: ", "Classes ", "Without dev images: bee", "Not used: 3 "):
        assert len([line for line in lines if line.startswith(start)]) == 1
    assert (
        len([line for line in lines if "est (3 images)" in line or "3 images of test" in line]) == 2
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_dev": 0}, "No dev split: .* give --num_dev or --dev_fraction"),
        ({"num_labeled": 0}, "No labelled split: .* give --num_labeled or --labeled_fraction"),
        ({"num_dev": 33}, "--num_dev=33 asks for more dev images than the 32 .*--dev_fraction="),
        ({"num_labeled": 31}, "--num_labeled=31 .* than the 30 .*, as --labeled_fraction="),
    ],
)
def test_wrong_numbers_of_images_are_refused_before_images_are_read(
    make_runner, tmp_path, monkeypatch, values, message
):
    photos = write_photos(tmp_path / "photos", ant=20, bee=20)
    monkeypatch.setattr(sources, "content", lambda *_: pytest.fail("images were read"))
    values = {"dataset": photos, "num_labeled": 4, "num_dev": 2, **values}
    with pytest.raises(UserError, match=message):
        ingest_images(make_runner(tmp_path / "run", **values))


def test_images_that_another_source_reads_are_not_called_unused(make_runner, tmp_path, caplog):
    photos = write_photos(tmp_path / "photos", train_ant=20, train_bee=20, test=3)
    values = {"dataset": photos, "num_labeled": 4, "num_dev": 2}
    with caplog.at_level("INFO", "absl"):
        ingest_images(make_runner(tmp_path / "run", **values))
    hint = "--unlabeled_dataset=folder:PATH of them, with --keep_remaining, makes them unlabelled"
    assert "Not used: 3 images of test" in caplog.text and hint in caplog.text
    caplog.clear()
    values |= {"unlabeled_dataset": f"{photos}/test", "keep_remaining": True}
    with caplog.at_level("INFO", "absl"):
        images = ingest_images(make_runner(tmp_path / "run", **values))
    assert "Not used" not in caplog.text and images.counts["images"]["unlabeled"] == 29


def test_the_data_set_is_named(make_runner, tmp_path, caplog):
    with caplog.at_level("INFO", "absl"):
        ingest_images(make_runner(tmp_path))
    assert "--dataset: Digits bundled with scikit-learn: 1,797 images of 10 classes." in caplog.text


def test_words_for_classes_are_shown_and_change_nothing(make_runner, tmp_path, caplog):
    photos = write_photos(tmp_path / "photos", n01=20, n02=20)
    values = {"dataset": photos, "num_labeled": 4, "num_dev": 4}
    images = ingest_images(make_runner(tmp_path / "run", **values))
    words = tmp_path / "words.txt"
    words.write_text("n01\tant, emmet\nn02\tbee\nn03\tcow\n")
    with caplog.at_level("INFO", "absl"):
        runner = make_runner(tmp_path / "run", class_descriptions=str(words), **values)
        again = ingest_images(runner)
    assert again.reused and again.path == images.path
    (line,) = (line for line in caplog.messages if line.startswith("Classes "))
    assert line.endswith(": n01 (ant): 4/2/2, n02 (bee): 4/2/2.")
    expected = "--class_descriptions: words for 2 of 2 classes; 1 other names in the file."
    assert caplog.messages.count(expected) == 1


def test_a_teacher_alone_may_use_every_label(make_runner, tmp_path):
    everything = {"num_labeled": 0, "labeled_fraction": 1.0}
    images = ingest_images(make_runner(tmp_path, models=["convnet5"], **everything))
    assert images.counts["images"]["unlabeled"] == 0
    assert sum(images.counts["images"].values()) == 1797
    with pytest.raises(UserError, match=r"No unlabelled images of --dataset=digits remain.* lower"):
        ingest_images(make_runner(tmp_path, **everything))


def test_a_source_of_unlabelled_images_without_any_is_named(make_runner, tmp_path):
    """Every image of the second source is one of the first, too."""
    random = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "photos" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    photos = f"folder:{tmp_path / 'photos'}"
    runner = make_runner(
        tmp_path / "run",
        dataset=photos,
        unlabeled_dataset=photos,
        num_labeled=0,
        labeled_fraction=1.0,
        num_dev=2,
    )
    with pytest.raises(UserError, match=r"--unlabeled_dataset=folder:.* has no images for student"):
        ingest_images(runner)


def test_a_copy_of_a_folder_is_the_same_and_files_that_change_meanwhile_are_refused(
    make_runner, tmp_path, monkeypatch
):
    for number in range(12):
        folder = tmp_path / "photos" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number}.png")
    values = {"num_labeled": 4, "num_dev": 2}
    photos = f"folder:{tmp_path / 'photos'}"
    images = ingest_images(make_runner(tmp_path / "run", dataset=photos, **values))
    shutil.copytree(tmp_path / "photos", tmp_path / "copy", copy_function=shutil.copyfile)
    copy = f"folder:{tmp_path / 'copy'}"
    again = ingest_images(make_runner(tmp_path / "run", dataset=copy, **values))
    assert again.reused and again.path == images.path

    def change_meanwhile(*arguments):
        (tmp_path / "copy/class0/0.png").write_bytes((tmp_path / "copy/class1/1.png").read_bytes())
        return ingest_function(*arguments)

    ingest_function = ingest.ingest
    monkeypatch.setattr(ingest, "ingest", change_meanwhile)
    with pytest.raises(UserError, match=r"--dataset=folder:.*copy changed while they were read"):
        ingest_images(make_runner(tmp_path / "other", dataset=copy, **values))
