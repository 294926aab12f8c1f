"""Images and predictions of conditions, with a predictor that counts its calls."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.special
import tensorflow as tf

from nsk.evaluation.predictor import Predictions
from nsk.evaluation.subsets import choose_subset
from nsk.evaluation.suites import conditions
from nsk.evaluation.suites.conditions import (
    ChosenImages,
    predict_condition,
    read_condition,
    transform_batches,
)
from nsk.evaluation.suites.suite import SplitImages

COUNT, CLASSES = 23, 4
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 2, 3, 3)).astype(np.uint8)
IDS = np.array([f"test/{row}" for row in range(COUNT)])
LABELS = np.arange(COUNT) % CLASSES


def split_images(batch_size=5):
    rows = {"id": IDS.astype("S"), "label": LABELS, "image": PIXELS}
    return SplitImages("test", tf.data.Dataset.from_tensor_slices(rows).batch(batch_size))


class CountingPredictor:
    """Predicts the class of the brightest of the first pixels."""

    def __init__(self):
        self.images = 0

    def __call__(self, batches):
        for batch in batches:
            self.images += len(batch["id"])
            pixels = np.asarray(batch["image"]).reshape(len(batch["id"]), -1)[:, :CLASSES]
            log_probabilities = scipy.special.log_softmax(pixels.astype(np.float32), axis=1)
            ids = [image_id.decode() for image_id in batch["id"]]
            yield Predictions(ids, batch["label"].astype(np.int32), log_probabilities)


def rows_of(batches):
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("max_bytes", [2**31, 50])
def test_all_images_are_yielded_in_order_in_every_iteration(monkeypatch, max_bytes):
    monkeypatch.setattr(conditions, "MAX_BYTES_IN_MEMORY", max_bytes)
    images = ChosenImages(split_images())
    for _ in range(2):
        rows = rows_of(images)
        np.testing.assert_array_equal(rows["id"], IDS.astype("S"))
        np.testing.assert_array_equal(rows["image"], PIXELS)
        np.testing.assert_array_equal(rows["label"], LABELS)


def test_small_images_are_decoded_once(monkeypatch):
    decoded = []

    def count(batch):
        tf.py_function(lambda: decoded.append(1), [], [])
        return batch

    given = split_images()
    images = ChosenImages(SplitImages("test", given.batches.map(count)))
    list(images), list(images)
    assert len(decoded) == 5


@pytest.mark.parametrize("number", [1, 7, 22, 23])
def test_a_subset_holds_the_chosen_images_in_full_batches(number):
    batches = list(ChosenImages(split_images(), number, seed=3))
    rows = choose_subset(IDS.tolist(), number, 3)
    np.testing.assert_array_equal(rows_of(batches)["image"], PIXELS[rows])
    np.testing.assert_array_equal(rows_of(batches)["id"], IDS[rows].astype("S"))
    assert [len(batch["id"]) for batch in batches[:-1]] == [5] * (len(batches) - 1)


def test_images_are_transformed_with_their_ids_in_order():
    def transform(images, ids):
        numbers = np.array([int(image_id.removeprefix("test/")) for image_id in ids])
        return images + numbers[:, np.newaxis, np.newaxis, np.newaxis].astype(np.uint8)

    rows = rows_of(transform_batches(ChosenImages(split_images(3)), transform))
    expected = PIXELS + np.arange(COUNT, dtype=np.uint8)[:, np.newaxis, np.newaxis, np.newaxis]
    np.testing.assert_array_equal(rows["image"], expected)
    np.testing.assert_array_equal(rows["label"], LABELS)


def test_an_error_of_a_transformation_is_raised():
    def transform(images, ids):
        raise ValueError("severity 6")

    with pytest.raises(ValueError, match="severity 6"):
        list(transform_batches(ChosenImages(split_images()), transform))


def test_a_condition_is_predicted_once_and_its_file_holds_every_image(tmp_path):
    predictor, images = CountingPredictor(), ChosenImages(split_images())
    path = tmp_path / "fog-3.parquet"
    found = predict_condition(predictor, lambda: images, path)
    assert predictor.images == COUNT
    predicted = PIXELS.reshape(COUNT, -1)[:, :CLASSES].argmax(axis=1)
    np.testing.assert_array_equal(found.predicted, predicted)
    np.testing.assert_array_equal(found.is_correct, predicted == LABELS)
    assert found.ids == IDS.tolist()
    assert pq.read_table(path)["truth"].to_pylist() == LABELS.tolist()

    again = predict_condition(predictor, lambda: images, path)
    assert predictor.images == COUNT, "the file was not used"
    np.testing.assert_array_equal(again.predicted, read_condition(path).predicted)


def test_few_classes_are_stored_of_many(tmp_path, monkeypatch):
    monkeypatch.setattr(conditions, "MAX_STORED_CLASSES", 3)
    monkeypatch.setattr(conditions, "STORED_CLASSES", 2)
    path = tmp_path / "clean.parquet"
    images = ChosenImages(split_images())
    predict_condition(CountingPredictor(), lambda: images, path)
    table = pq.read_table(path)
    assert len(table["classes"][0]) == 2 and "remaining_probability" in table.column_names
