"""Images that are not square, of 12 bits in 16-bit files, through a whole run and after it.

What tells the classes apart is outside of the central square, so that a stage that crops images is
right by chance alone.
"""

import csv
import io
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from nsk.commands import evaluate, plan, predict, run
from nsk.errors import UserError
from nsk.models.model_files import read_decoding

SIZE, HEIGHT, WIDTH = 8, 8, 24
COUNTS = {"labeled": 24, "dev": 20, "unlabeled": 20, "test": 20}


def deep_pixels(number, label, bits):
    """Levels, uint16 (8, 24), of so many bits; class 1 has one bright end."""
    pixels = np.random.default_rng(number).integers(0, 400, (HEIGHT, WIDTH))
    pixels[:, :4] += 1600 * label
    pixels[-1, -1] = 2**bits - 1
    return pixels.astype(np.uint16)


def encode(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in class folders; those of dev and test have 11 bits, and others 12."""
    folder, number = tmp_path_factory.mktemp("framing"), 0
    for split, count in COUNTS.items():
        for index in range(count):
            label, number = index % 2, number + 1
            parent = (
                folder
                / "images"
                / split
                / ("" if split == "unlabeled" else ["dark", "bright"][label])
            )
            parent.mkdir(parents=True, exist_ok=True)
            bits = 11 if split in ("dev", "test") else 12
            (parent / f"{number}.png").write_bytes(encode(deep_pixels(number, label, bits)))
    return folder


def values(folder, resize_mode, **others):
    return {
        "dataset": f"folder:{folder / 'images'}",
        "workdir": str(folder / resize_mode),
        "labeled_fraction": 1.0,
        "image_size": [SIZE],
        "models": ["convnet5"],
        "train_steps": ["40"],
        "labeled_batch_size": ["16"],
        "ratio": ["1"],
        "randaugment_num_ops": ["0"],
        "crop_padding": ["0"],
        "flip": "off",
        "min_confidence": ["0"],
        "strategy": "one",
        "chance_p_value": 1.0,
        "resize_mode": resize_mode,
        **others,
    }


@pytest.fixture(scope="module", params=["pad", "squash"])
def finished(folder, request):
    """(folder, mode, summary) of a run; one of them with a student and random resized crops."""
    others = {"min_crop_area": ["0.8"], "models": ["convnet5"] * 2}
    run.execute(values(folder, request.param, **(others if request.param == "pad" else {})))
    summary = json.loads((folder / request.param / "summary.json").read_text())
    return folder, request.param, summary


def test_every_stage_sees_the_ends_of_the_images(finished):
    folder, mode, summary = finished
    for generation in summary["generations"]:
        for split in ("dev", "test"):
            assert generation[split]["accuracy"] > 0.9, (mode, split)
    for generation in summary["generations"][1:]:  # Half of the unlabelled images are bright.
        assert generation["pseudo"]["per_class_candidates"] == [10, 10]
    for stage in (folder / mode).glob("gen?/[st][te][ua]*-*/stage.json"):
        counts = json.loads(stage.read_text())["counts"]
        assert (counts["resize_mode"], counts["significant_bits"]) == (mode, 12)
        assert counts["dev"]["accuracy"] > 0.9  # Measured during the training.


def expected_square(number, label, mode):
    levels = np.round(deep_pixels(number, label, 11) * 255.0 / 4095).astype(np.uint8)
    image = Image.fromarray(levels).convert("RGB")
    if mode == "squash":
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return np.asarray(
        ImageOps.pad(image, (SIZE, SIZE), Image.Resampling.BILINEAR, color=(128,) * 3)
    )


def test_the_export_decodes_files_as_the_run_did(finished):
    folder, mode, _ = finished
    (export,) = (folder / mode).glob("export-*")
    files = sorted((folder / "images" / "test").glob("*/*.png"))
    classify = tf.saved_model.load(str(export / "saved_model")).signatures["serving_default"]
    outputs = classify(encoded=tf.constant([file.read_bytes() for file in files]))
    squares = np.stack(
        [expected_square(int(file.stem), int(file.parent.name == "bright"), mode) for file in files]
    )
    model = keras.models.load_model(export / "model.keras", compile=False)
    expected = tf.nn.softmax(model(squares.astype(np.float32), training=False)).numpy()
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=0.02)
    assert np.ptp(expected[:, 0]) > 0.5


def test_a_model_is_evaluated_as_it_was_trained(finished, tmp_path, caplog):
    """Without being told the mode, nor the bits that training images used."""
    folder, mode, summary = finished
    (export,) = (folder / mode).glob("export-*")
    common = {
        "dataset": f"folder:{folder / 'images'}",
        "suites": "clean,natural",
        "natural_sets": f"same={folder / 'images' / 'test'}",
        "strategy": "one",
    }
    best = summary["generations"][summary["best"]["index"]]["test"]
    for name, model in (("keras", export), ("saved", export / "saved_model")):
        content = evaluate.execute({**common, "model": str(model), "output": str(tmp_path / name)})
        assert content["suites"]["clean"]["test"]["nll"] == pytest.approx(best["nll"], rel=1e-3)
        assert content["suites"]["natural"]["sets"]["same"]["accuracy"] == best["accuracy"]
    assert "was trained with" not in caplog.text
    other = "crop" if mode == "pad" else "pad"
    content = evaluate.execute(
        {**common, "model": str(export), "output": str(tmp_path / "other"), "resize_mode": other}
    )
    assert content["suites"]["clean"]["test"]["nll"] != pytest.approx(best["nll"], rel=1e-3)
    assert f"was trained with --resize_mode={mode}" in caplog.text


def test_a_copied_export_predicts_as_the_run_did(finished, tmp_path):
    folder, mode, _ = finished
    (export,) = (folder / mode).glob("export-*")
    for name in ("model.keras", "decoding.json"):
        shutil.copyfile(export / name, tmp_path / name)
    output = tmp_path / "predicted.csv"
    images = folder / "images" / "test"
    predict.execute(
        {"model": str(tmp_path), "images": str(images), "output": str(output), "strategy": "one"}
    )
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file))
    files = [row["path"] for row in rows]
    classify = tf.saved_model.load(str(export / "saved_model")).signatures["serving_default"]
    encoded = [Path(file).read_bytes() for file in files]
    expected = classify(encoded=tf.constant(encoded))["probabilities"].numpy().min(axis=1)
    found = [float(row["top2_probability"]) for row in rows]  # Of the other one of two classes.
    assert len(files) == COUNTS["test"]
    np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_a_damaged_file_on_decoding_is_named(tmp_path):
    path = tmp_path / "decoding.json"
    for content in ("{}", '{"resize_mode": "fit", "significant_bits": null}', "["):
        path.write_text(content)
        with pytest.raises(UserError, match=r"decoding\.json cannot be read"):
            read_decoding(tmp_path / "model.keras")


def test_cropped_images_trigger_a_warning_in_a_plan(folder, caplog, capsys):
    plan.execute(values(folder, "crop"))
    assert "on average 67% of an image's pixels are outside of its central square" in caplog.text
    assert "100% of the images lose more than half" in caplog.text
    assert "16-bit images: 84, levels up to 4,095: they use 12 bits" in capsys.readouterr().out
