"""A classifier and images that are small enough for every suite, for the tests of suites."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk.evaluation.predictor import Predictor
from nsk.evaluation.suites.suite import SplitImages

COUNT, SIDE, CLASSES = 24, 12, 7
BATCH_SIZE = 10


def make_images(count=COUNT, seed=0, batch_size=BATCH_SIZE, split="test"):
    """Random smooth images and labels as a `SplitImages`, and the same as arrays."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (count, 4, 4, 3))
    pixels = small.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2).astype(np.uint8)
    labels = random.integers(0, CLASSES, count)
    ids = [f"{split}/{seed}/{row}" for row in range(count)]
    rows = {"id": np.array(ids, "S"), "label": labels, "image": pixels}
    dataset = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)
    return SplitImages(split, dataset), pixels, labels, ids


@pytest.fixture(scope="module")
def predictor():
    """A predictor with a network of one layer."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((SIDE, SIDE, 3))
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(CLASSES)(features))
    return Predictor(model, 32)


class CountingPredictor:
    """Passes predictions on and counts the images."""

    def __init__(self, predictor):
        self._predictor, self.images = predictor, 0
        self.model, self.batch_size = predictor.model, predictor.batch_size

    def __call__(self, batches):
        for predictions in self._predictor(batches):
            self.images += len(predictions.ids)
            yield predictions

    def log_probabilities(self, images):
        self.images += len(images)
        return self._predictor.log_probabilities(images)
