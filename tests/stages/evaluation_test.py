"""The evaluation stage on handwritten digits and an untrained network."""

import dataclasses
import io
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn import datasets

from nsk import models
from nsk.data import pipeline, records
from nsk.data.evaluation_decoding import Crop
from nsk.data.resident_images import load_images
from nsk.data.shards import ShardSet, ShardWriter
from nsk.errors import UserError
from nsk.evaluation import metrics, suites
from nsk.evaluation.prediction_files import read_classes, read_predictions
from nsk.evaluation.predictor import Predictor
from nsk.stages.evaluation import (
    _evaluate_splits,
    evaluate_generations,
    evaluate_model,
    suite_settings,
)

NAMES = [str(digit) for digit in range(10)]


def write_digits(folder, first, count):
    digits = datasets.load_digits()
    with ShardWriter(folder, "images", NAMES, 10) as writer:
        for row in range(first, first + count):
            buffer = io.BytesIO()
            Image.fromarray((digits.images[row] * 15).astype(np.uint8)).save(buffer, "PNG")
            example = records.image_example(
                f"digits/{row}", buffer.getvalue(), int(digits.target[row])
            )
            writer.write(example)
    return ShardSet.load(folder)


@pytest.fixture
def model(tmp_path):
    model = models.build_model("resnet8", num_classes=10, image_size=8, seed=1)
    model.save(tmp_path / "model.keras")
    return model


@pytest.fixture
def splits(tmp_path):
    return {
        "dev": write_digits(tmp_path / "dev", 0, 25),
        "test": write_digits(tmp_path / "test", 100, 33),
    }


def expected_predictions(model, shard_set, flip=False):
    images = load_images(shard_set, 8)
    pixels = images.images.numpy()[:, :, ::-1] if flip else images.images
    return Predictor(model, 64).log_probabilities(tf.constant(pixels)), images.labels


def test_metrics_of_both_splits_and_their_prediction_files(tmp_path, model, splits):
    folder = tmp_path / "evaluation"
    folder.mkdir()
    counts = evaluate_model(tmp_path / "model.keras", splits, folder, batch_size=16)
    assert list(counts) == ["dev", "test"]
    assert sorted(path.name for path in folder.iterdir()) == ["dev.parquet", "test.parquet"]
    for split, shard_set in splits.items():
        log_probabilities, labels = expected_predictions(model, shard_set)
        expected = metrics.summarize(log_probabilities, labels)
        assert list(counts[split]) == list(expected)
        assert counts[split] == pytest.approx(expected, rel=1e-4)
        stored = read_predictions(folder / f"{split}.parquet")
        assert stored.ids == list(load_images(shard_set, 8).ids)
        np.testing.assert_array_equal(stored.labels, log_probabilities.argmax(axis=1))


def evaluate_digits(tmp_path, model, make_runner, **values):
    """The stages of the suites of `--evaluate` for an untrained model in a workdir."""
    runner = make_runner(tmp_path / "run", eval_batch_size=16, **values)

    def write_images(folder):
        write_digits(folder / "dev", 0, 25)
        write_digits(folder / "test", 100, 33)
        return {"images": {"dev": 25, "test": 33}, "class_names": NAMES}

    images = runner.build_or_reuse("data/images", write_images)
    trained = runner.build_or_reuse(
        "gen1/student",
        lambda folder: (
            model.save(folder / "model.keras") or {"image_size": 8, "resize_mode": "crop"}
        ),
    )
    return evaluate_generations(runner, images, {1: trained})


def test_suites_are_stages_beside_their_model(tmp_path, model, make_runner):
    values = {"evaluate": "calibration,corruptions", "corruptions": "contrast"}
    found = evaluate_digits(tmp_path, model, make_runner, **values)
    assert list(found) == [1] and list(found[1]) == ["calibration", "corruptions"]
    corruptions = found[1]["corruptions"]
    assert corruptions.path.parent == tmp_path / "run" / "gen1"
    assert list(corruptions.counts["errors"]) == ["contrast"]
    assert corruptions.counts["images"] == 33 and found[1]["calibration"].counts["dev_images"] == 25

    again = evaluate_digits(tmp_path, model, make_runner, **values)
    assert all(stage.reused for stage in again[1].values())
    # A setting of one suite evaluates that suite alone again, beside the old results.
    other = evaluate_digits(tmp_path, model, make_runner, **values, evaluation_seed=1)
    assert other[1]["calibration"].reused and not other[1]["corruptions"].reused
    assert other[1]["corruptions"].path != corruptions.path


def test_without_suites_nothing_is_evaluated(tmp_path, model, make_runner):
    assert evaluate_digits(tmp_path, model, make_runner) == {}


def test_results_depend_on_the_files_of_a_setting(tmp_path, model, make_runner):
    textures = tmp_path / "frost"
    textures.mkdir()
    Image.new("RGB", (200, 200), (120, 130, 140)).save(textures / "frost1.png")
    values = {"evaluate": "corruptions", "corruptions": "frost", "frost_textures": str(textures)}
    first = evaluate_digits(tmp_path, model, make_runner, **values)[1]["corruptions"]
    assert first.counts["frost"] == "photographs"
    Image.new("RGB", (200, 200), (220, 230, 240)).save(textures / "frost1.png")
    again = evaluate_digits(tmp_path, model, make_runner, **values)[1]["corruptions"]
    assert again.path != first.path


def test_perturbations_are_of_larger_images_with_imagenets_constants(tmp_path, model, make_runner):
    values = {"evaluate": "perturbations", "perturbations": "translate"}
    small = evaluate_digits(tmp_path, model, make_runner, **values)[1]["perturbations"]
    assert small.counts["constants"] == "cifar" and "uncropped_side" not in small.counts
    values["corruption_constants"] = "imagenet"
    large = evaluate_digits(tmp_path, model, make_runner, **values)[1]["perturbations"]
    assert large.counts["uncropped_side"] == 9  # 8 * 256 / 224
    _, classes = read_classes(large.path / "translate.parquet")
    network = Predictor(model, 64)
    for row, encoded in enumerate(encoded_digits(tmp_path / "run")):
        image = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB").resize((9, 9), 2))
        moved = np.zeros_like(image)
        moved[:, 3:] = image[:, :-3]
        crops = np.stack([image[:8, :8], moved[:8, :8]])
        expected = network.log_probabilities(crops).argmax(axis=1)
        np.testing.assert_array_equal(classes[row, [20, 23], 0], expected)


def encoded_digits(workdir):
    (folder,) = (workdir / "data").glob("images-*/test")
    for batch in pipeline.encoded_batches(ShardSet.load(folder), 7).as_numpy_iterator():
        yield from batch["image"]


def test_published_frames_are_resized_without_a_crop(tmp_path, model, splits):
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 16, 3)).astype(np.uint8)
    (tmp_path / "P").mkdir(), (tmp_path / "results").mkdir()
    np.save(tmp_path / "P" / "translate.npy", frames)
    settings = {"corruption_constants": "auto", "perturbation_files": str(tmp_path / "P")}
    subset = {"evaluation_images": 0, "evaluation_seed": 0}
    _evaluate_splits(
        suites.SUITES["perturbations"],
        Predictor(model, 64),
        splits,
        Crop(8, 0.5),
        16,
        tmp_path / "results",
        perturbations=("all",),
        **settings,
        **subset,
    )
    _, classes = read_classes(tmp_path / "results" / "translate.parquet")
    resized = tf.image.resize(frames.reshape(-1, 16, 16, 3), (8, 8), antialias=True)
    pixels = tf.saturate_cast(tf.round(resized), tf.uint8)
    expected = Predictor(model, 64).log_probabilities(pixels).argmax(axis=1)
    np.testing.assert_array_equal(classes[..., 0].ravel(), expected)


def test_results_depend_on_the_labels_beside_an_array(tmp_path, model, make_runner):
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    np.save(tmp_path / "other_data.npy", pixels)
    np.save(tmp_path / "other_labels.npy", np.arange(4))
    values = {"evaluate": "natural", "natural_sets": f"s={tmp_path / 'other_data.npy'}"}
    first = evaluate_digits(tmp_path, model, make_runner, **values)[1]["natural"]
    assert evaluate_digits(tmp_path, model, make_runner, **values)[1]["natural"].reused
    np.save(tmp_path / "other_labels.npy", np.full(4, 9))
    os.utime(tmp_path / "other_labels.npy", ns=(1, 1))
    again = evaluate_digits(tmp_path, model, make_runner, **values)[1]["natural"]
    assert again.path != first.path


def test_a_changed_suite_has_another_fingerprint(monkeypatch):
    assert suite_settings("clean") == {"suites": {"clean": 1}}
    newer = dataclasses.replace(suites.SUITES["attacks"], version=2)
    monkeypatch.setitem(suites.SUITES, "attacks", newer)
    assert suite_settings("attacks") == {"suites": {"attacks": 2}}


def test_a_broken_shard_is_named(tmp_path, model, splits):
    path = splits["dev"].paths[1]
    path.write_bytes(path.read_bytes()[:-5])
    (tmp_path / "evaluation").mkdir()
    with pytest.raises(UserError, match=path.name):
        evaluate_model(tmp_path / "model.keras", splits, tmp_path / "evaluation", 16)
