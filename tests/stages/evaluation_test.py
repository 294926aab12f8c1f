"""The evaluation stage on handwritten digits and an untrained network."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn import datasets

from nsk import models
from nsk.data import records
from nsk.data.resident_images import load_images
from nsk.data.shards import ShardSet, ShardWriter
from nsk.errors import UserError
from nsk.evaluation import metrics, suites
from nsk.evaluation.prediction_files import read_predictions
from nsk.evaluation.predictor import Predictor, collect
from nsk.stages.evaluation import evaluate_model, suite_settings

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


def test_the_metrics_of_another_suite_are_added_under_its_name(
    tmp_path, model, splits, monkeypatch
):
    def evaluate(predictor, images, folder):
        assert predictor.model.output_shape == (None, 10)
        mirrored = images.batches.map(
            lambda batch: {**batch, "image": tf.reverse(batch["image"], axis=[2])}
        )
        predictions = collect(predictor(mirrored))
        (folder / f"mirrored-{images.split}.txt").write_text("for later analysis")
        return {
            "nll": metrics.negative_log_likelihood(
                predictions.log_probabilities, predictions.labels
            )
        }

    (tmp_path / "evaluation").mkdir()
    arguments = (tmp_path / "model.keras", splits, tmp_path / "evaluation", 16)
    before, settings_before = evaluate_model(*arguments), suite_settings()
    monkeypatch.setitem(suites.SUITES, "mirrored", suites.Suite(evaluate, splits=("test",)))
    counts = evaluate_model(*arguments)
    log_probabilities, labels = expected_predictions(model, splits["test"], flip=True)
    nll = metrics.negative_log_likelihood(log_probabilities, labels)
    assert nll != pytest.approx(before["test"]["nll"], rel=1e-3)
    assert counts["dev"] == before["dev"]
    assert counts["test"] == {**before["test"], "mirrored/nll": pytest.approx(nll, rel=1e-4)}
    assert (tmp_path / "evaluation" / "mirrored-test.txt").exists()
    assert settings_before == {"suites": {"clean": 1}}
    assert suite_settings() == {"suites": {"clean": 1, "mirrored": 1}}


def test_a_broken_shard_is_named(tmp_path, model, splits):
    path = splits["dev"].paths[1]
    path.write_bytes(path.read_bytes()[:-5])
    (tmp_path / "evaluation").mkdir()
    with pytest.raises(UserError, match=path.name):
        evaluate_model(tmp_path / "model.keras", splits, tmp_path / "evaluation", 16)
