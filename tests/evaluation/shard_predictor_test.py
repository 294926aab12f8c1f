"""Predictions of a saved model for the images of shards."""

import numpy as np
import pytest
import tensorflow as tf

from nsk import models
from nsk.data.records import image_example
from nsk.data.shards import ShardSet, ShardWriter
from nsk.evaluation.shard_predictor import load_predictor

# NumPy 2 warns of the way in which Keras 3.15 reads variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("shards", [None, [2, 0]])
def test_predictions_are_those_of_the_model_in_the_order_of_the_shards(shards, tmp_path):
    model = models.build_model("convnet5", num_classes=3, image_size=8)
    model.save(tmp_path / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    with ShardWriter(tmp_path / "shards", "images", list("abc"), 4) as writer:
        for number, pixels in enumerate(images):
            encoded = tf.io.encode_png(pixels).numpy()
            writer.write(image_example(str(number), encoded, number % 3))
    predict = load_predictor(tmp_path / "model.keras", 3, None, "image")
    predictions = list(predict(ShardSet.load(tmp_path / "shards"), shards))
    order = [8, 9, 0, 1, 2, 3] if shards else range(10)
    assert [id for batch in predictions for id in batch.ids] == [str(number) for number in order]
    received = np.concatenate([batch.log_probabilities for batch in predictions])
    expected = tf.nn.log_softmax(model(images[list(order)].astype(np.float32)))
    np.testing.assert_allclose(received, expected, atol=1e-5)
    features = np.concatenate([batch.features for batch in predictions])
    kernel, bias = model.get_layer("logits").get_weights()
    np.testing.assert_allclose(tf.nn.log_softmax(features @ kernel + bias), expected, atol=1e-5)
