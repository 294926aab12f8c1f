"""Predictions of a saved model for the images of shards."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk import models, noise
from nsk.data.augment import ImageNoise
from nsk.data.label_noise import LabelNoise
from nsk.data.records import image_example
from nsk.data.shards import ShardSet, ShardWriter
from nsk.evaluation.shard_predictor import load_predictor
from nsk.hashing import stable_key

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


def write_images(folder, count=10, images_per_shard=4, side=8):
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    with ShardWriter(folder, "images", list("abc"), images_per_shard) as writer:
        for number, pixels in enumerate(images):
            writer.write(image_example(f"id-{number}", tf.io.encode_png(pixels).numpy()))
    return images, ShardSet.load(folder)


KEY = noise.key(3, "gen1/scores")


def keys_of(count):
    """The key of each image, from the hash of its id, by TensorFlow's own operations."""
    hashes = [np.array(stable_key(f"id-{number}")).view(np.int64) for number in range(count)]
    return [noise.fold_in(KEY, number) for number in hashes]


def test_noisy_predictions_are_those_of_each_images_own_noise(tmp_path):
    """Flipped, and with dropout, by draws of TensorFlow's own operations for each image."""
    model = models.build_model("convnet5", num_classes=3, image_size=8, dropout_rate=0.5)
    model.save(tmp_path / "model.keras")
    images, shard_set = write_images(tmp_path / "shards")
    label_noise = LabelNoise(KEY, ImageNoise(flip=True))
    predict = load_predictor(
        tmp_path / "model.keras", 3, None, "image", label_noise=label_noise, noisy_network=None
    )
    received = np.concatenate([batch.log_probabilities for batch in predict(shard_set)])

    expected, flips = [], []
    for pixels, key in zip(images, keys_of(10), strict=True):
        flips.append(bool(noise.uniform(noise.named(key, "flip"), [1])[0] < 0.5))
        seen = pixels[:, ::-1] if flips[-1] else pixels
        features = keras.Model(model.input, model.get_layer("pool").output)(
            seen[None].astype(np.float32)
        )
        kept = noise.uniform(noise.named(key, "dropout"), features.shape[1:]).numpy() < 0.5
        kernel, bias = model.get_layer("logits").get_weights()
        expected.append(tf.nn.log_softmax(features * kept * 2 @ kernel + bias)[0])
    assert set(flips) == {False, True}
    np.testing.assert_allclose(received, expected, atol=1e-5)


def test_noise_does_not_depend_on_batches_or_shards(tmp_path):
    model = models.build_model(
        "resnet8", num_classes=3, image_size=8, dropout_rate=0.5, survival_probability=0.5
    )
    model.save(tmp_path / "model.keras")
    label_noise, received = LabelNoise(KEY, ImageNoise(crop_padding=2, cutout_side=3)), []
    for batch_size, images_per_shard, shards in ((3, 4, [2, 1, 0]), (32, 10, None)):
        folder = tmp_path / f"{batch_size}-{images_per_shard}"
        _, shard_set = write_images(folder, images_per_shard=images_per_shard)
        predict = load_predictor(
            tmp_path / "model.keras", batch_size, None, "image", label_noise=label_noise
        )
        batches = list(predict(shard_set, shards))
        assert all(batch.features is None for batch in batches)
        rows = {
            id: row
            for batch in batches
            for id, row in zip(batch.ids, batch.log_probabilities, strict=True)
        }
        received.append([rows[f"id-{number}"] for number in range(10)])
    np.testing.assert_allclose(received[1], received[0], atol=1e-5)
