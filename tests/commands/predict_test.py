"""The command predict: rows in order, broken files, abstention, tables of paths."""

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

from nsk import models
from nsk.commands import predict
from nsk.data.decoding import decode_image
from nsk.data.normalization import EXIF_ORIENTATION, normalize_image
from nsk.errors import UserError

NAMES = [f"digit {number}" for number in range(10)]
TEMPERATURE = 0.5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(path, network) of an exported network with names of classes and a temperature."""
    folder = tmp_path_factory.mktemp("export")
    network = models.build_model("convnet5", num_classes=10, image_size=16, seed=1)
    network.save(folder / "model.keras")
    (folder / "class_names.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "calibration.json").write_text(f'{{"temperature": {TEMPERATURE}}}')
    return folder / "model.keras", network


def save(path, row, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (load_digits().images[row] * 15).astype(np.uint8)
    Image.fromarray(pixels).resize((20, 24)).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    """Images of several kinds, and files that are none."""
    folder = tmp_path / "photos"
    for row in range(40):
        save(folder / f"{row % 3}" / f"{row}.png", row)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    save(folder / "rotated.jpg", 41, exif=exif)
    transparent = Image.new("RGBA", (16, 16), (255, 0, 0, 90))
    transparent.save(folder / "transparent.png")
    save(folder / "photo.webp", 42, lossless=True)
    (folder / "1" / "cut.png").write_bytes((folder / "0" / "0.png").read_bytes()[:-40])
    (folder / "2" / "text.jpg").write_text("no image")
    return folder


def run(model_path, images, output, **values):
    values = {"model": str(model_path), "images": str(images), "output": str(output), **values}
    return predict.execute({"strategy": "one", "eval_batch_size": 16, **values})


def expected_log_probabilities(network, path):
    with open(path, "rb") as file:
        plain = normalize_image(file.read()).encoded
    pixels = decode_image(tf.constant(plain), 16)[tf.newaxis]
    logits = network(tf.cast(pixels, tf.float32), training=False)
    return tf.nn.log_softmax(logits)[0].numpy()


def test_every_file_is_a_row_with_what_the_network_says_of_the_ingested_image(
    model, photos, tmp_path
):
    path, network = model
    counts = run(path, photos, tmp_path / "out.parquet")
    assert counts == {"images": 45, "errors": 2, "abstained": 0}
    table = pandas.read_parquet(tmp_path / "out.parquet")
    assert table.path.tolist() == sorted(map(str, filter(os.path.isfile, photos.rglob("*"))))
    broken = table[table.error.notna()]
    assert [os.path.basename(name) for name in broken.path] == ["cut.png", "text.jpg"]
    assert broken.label.isna().all() and "cannot identify" in broken.error.iloc[1]
    for _, row in table[table.error.isna()].iterrows():
        expected = expected_log_probabilities(network, row.path)
        order = np.argsort(-expected)
        assert row.label == row.top1 == NAMES[order[0]]
        for rank in range(5):
            assert row[f"top{rank + 1}"] == NAMES[order[rank]]
            probability = np.exp(expected[order[rank]])
            np.testing.assert_allclose(row[f"top{rank + 1}_probability"], probability, rtol=1e-4)
        scaled = np.exp(expected / TEMPERATURE)
        np.testing.assert_allclose(
            row.calibrated_probability, scaled.max() / scaled.sum(), rtol=1e-4
        )
        assert row.probability == row.top1_probability


def test_csv_abstention_and_a_table_of_paths(model, photos, tmp_path, caplog):
    path, _ = model
    run(path, photos, tmp_path / "all.parquet")
    table = pandas.read_parquet(tmp_path / "all.parquet")
    limit = float(table.calibrated_probability.median())
    names = ["1/4.png", "missing.png", "2/text.jpg", "1/1.png", "rotated.jpg", "1\\7.png", ""]
    (photos / "list.csv").write_text("id,file\n" + "".join(f"7,{name}\n" for name in names))
    settings = {"abstain_below": limit, "path_column": "file"}
    caplog.clear()
    counts = run(path, photos / "list.csv", tmp_path / "out.csv", **settings)
    assert "no effect" not in caplog.text
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [str(photos / name) if (photos / name).is_file() else name for name in names]
    found[5] = str(photos / "1" / "7.png")
    assert [row["path"] for row in rows] == found
    assert rows[1]["error"].startswith("the file cannot be opened: No such file")
    assert rows[6]["error"] == "its path is empty"
    for row in rows:
        if row["error"]:
            assert row["label"] == row["probability"] == row["top1"] == ""
            continue
        abstains = float(row["calibrated_probability"]) < limit
        assert row["abstained"] == str(abstains)
        assert row["label"] == ("" if abstains else row["top1"])
    assert counts["abstained"] == sum(row["abstained"] == "True" for row in rows)
    assert counts["errors"] == 3


def test_images_that_are_not_decoded_are_rows_with_an_error(model, photos, tmp_path):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    for name in ("phone.HEIC", "phone.jpg"):
        (photos / "0" / name).write_bytes(heic)
    shutil.copy(photos / "photo.webp", photos / "0" / "a.nef")
    (photos / "0" / "notes.txt").write_text("text")
    run(model[0], photos / "0", tmp_path / "out.parquet")
    errors = pandas.read_parquet(tmp_path / "out.parquet").set_index("path").error.dropna()
    assert errors.to_dict() == {
        str(photos / "0" / name): f"{kind} images are not read: convert it to JPEG or PNG"
        for name, kind in (("a.nef", "camera raw"), ("phone.HEIC", "HEIC"), ("phone.jpg", "HEIC"))
    }


def test_the_newest_export_of_a_run_is_named(photos, tmp_path):
    for age, name in ((100, "export-1"), (0, "export-2"), (200, "export-3")):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "model.keras").touch()
        os.utime(tmp_path / "work" / name / "model.keras", (1e9 - age, 1e9 - age))
    with pytest.raises(UserError, match=r"work is that of a run, .* its export, .*work/export-2\."):
        run(tmp_path / "work", photos, tmp_path / "out.csv")


def test_a_network_without_names_and_temperature(model, photos, tmp_path, caplog):
    models.build_model("convnet5", num_classes=3, image_size=16).save(tmp_path / "m.keras")
    with caplog.at_level("INFO", logger="absl"):
        run(tmp_path / "m.keras", photos / "0" / "*.png", tmp_path / "out.parquet")
    table = pandas.read_parquet(tmp_path / "out.parquet")
    assert len(table) == 14 and set(table.label) <= {"0", "1", "2"}
    assert table.calibrated_probability.isna().all() and "top4" not in table
    assert "The model has no temperature" in caplog.text


def test_names_from_a_file(photos, tmp_path):
    models.build_model("convnet5", num_classes=3, image_size=16).save(tmp_path / "m.keras")
    (tmp_path / "names.txt").write_text("ant\nbee\ncow\n")
    values = {"class_names": str(tmp_path / "names.txt")}
    run(tmp_path / "m.keras", photos / "0", tmp_path / "out.parquet", **values)
    assert set(pandas.read_parquet(tmp_path / "out.parquet").label) <= {"ant", "bee", "cow"}
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    with pytest.raises(UserError, match=r"names.txt has 2 names: the model has 3 classes"):
        run(tmp_path / "m.keras", photos / "0", tmp_path / "out.csv", **values)


def test_batches_are_small_if_files_are_large(model, photos, tmp_path, monkeypatch):
    from nsk.data import decoded_files

    path, _ = model
    run(path, photos, tmp_path / "large.csv")
    monkeypatch.setattr(decoded_files, "MAX_BYTES_IN_MEMORY", 1000)
    run(path, photos, tmp_path / "small.csv")
    large, small = (pandas.read_csv(tmp_path / f"{name}.csv") for name in ("large", "small"))
    assert (large.path == small.path).all() and large.label.equals(small.label)
    np.testing.assert_allclose(large.probability, small.probability, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "--model is not given"),
        ({"images": ""}, "--images is not given"),
        ({"output": ""}, "--output is not given"),
        (
            {"output": "out.txt"},
            r"--output=out.txt: expected a file that ends with .csv or",
        ),
        ({"images": "no/*.png"}, r"--images=no/\*.png has no images"),
        ({"model": "missing.keras"}, "missing.keras"),
    ],
)
def test_wrong_settings_are_refused(model, photos, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    values = {"images": str(photos), "output": "out.csv"} | changes
    with pytest.raises(UserError, match=message):
        run(values.pop("model", model[0]), values.pop("images"), values.pop("output"))
    assert not (tmp_path / "out.csv").exists()


def test_a_damaged_temperature_is_named(model, photos, tmp_path):
    model[1].save(tmp_path / "model.keras")
    (tmp_path / "calibration.json").write_text('{"temperature": 0}')
    with pytest.raises(UserError, match=r"calibration.json cannot be read \(ValueError: temp"):
        run(tmp_path / "model.keras", photos, tmp_path / "out.csv")


def test_a_killed_process_leaves_no_half_file(model, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (1500, 1500)).save(buffer, "PNG")
    (tmp_path / "photos").mkdir()
    for number in range(200):
        (tmp_path / "photos" / f"{number}.png").write_bytes(buffer.getvalue())
    command = [sys.executable, "-m", "nsk.main", "predict", f"--model={model[0]}"]
    output = tmp_path / "results" / "out.csv"
    command += [f"--images={tmp_path}/photos", f"--output={output}", "--eval_batch_size=8"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(output.parent.glob("out.csv.*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
