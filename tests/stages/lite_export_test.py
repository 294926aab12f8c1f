"""Models for LiteRT: the same probabilities as those of the Keras model."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from nsk import models
from nsk.errors import UserError
from nsk.stages import lite_export
from tests.models.checkpoint_files import randomize


@pytest.mark.parametrize(
    "name",
    [
        "convnet5",
        pytest.param("resnet9", marks=pytest.mark.slow),
        pytest.param("resnet20", marks=pytest.mark.slow),
        pytest.param("wrn16_2", marks=pytest.mark.slow),
        pytest.param("imagenet_resnet18", marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
    ],
)
def test_probabilities_are_equal(name, tmp_path):
    model = models.build_model(name, num_classes=5, image_size=32)
    if name != "efficientnet_b0":  # Of which random weights would make a constant function.
        randomize(model)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6, 32, 32, 3)) * np.linspace(0, 1, 6).reshape(-1, 1, 1, 1)
    images = images.astype(np.uint8)
    # So that the probabilities differ between images.
    logits = model(images.astype(np.float32), training=False).numpy()
    spread, classifier = np.std(logits, axis=0).mean(), model.layers[-1]
    classifier.kernel.assign(classifier.kernel / spread)
    classifier.bias.assign((classifier.bias - logits.mean(axis=0)) / spread)
    difference = lite_export.write_lite_model(model, images, tmp_path / "model.tflite")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(model_path=str(tmp_path / "model.tflite"))
    run = interpreter.get_signature_runner("serving_default")
    pixels = images.astype(np.float32)
    expected = tf.nn.softmax(model(pixels, training=False)).numpy()
    found = np.concatenate([run(images=image[np.newaxis])["probabilities"] for image in pixels])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 0.01 and difference <= 1e-4


def test_a_model_that_differs_is_refused(tmp_path, monkeypatch):
    model = models.build_model("convnet5", num_classes=5, image_size=8)
    images = np.zeros((1, 8, 8, 3), np.uint8)
    monkeypatch.setattr(lite_export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"differ by .* from those of the Keras model, allowed"):
        lite_export.write_lite_model(model, images, tmp_path / "model.tflite")
    assert not (tmp_path / "model.tflite").exists()


def test_a_model_without_finite_probabilities_is_refused(tmp_path):
    model = models.build_model("convnet5", num_classes=5, image_size=8)
    model.layers[-1].bias.assign([np.nan, 0, 0, 0, 0])
    images = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="differ by nan from those of the Keras model, allowed"):
        lite_export.write_lite_model(model, images, tmp_path / "model.tflite")
    assert not (tmp_path / "model.tflite").exists()


def test_a_model_that_cannot_be_converted_is_refused(tmp_path, monkeypatch):
    def fail(self):
        raise ValueError("no such op\nand more")

    monkeypatch.setattr(tf.lite.TFLiteConverter, "convert", fail, raising=False)
    converter = type("Converter", (), {"convert": fail})
    monkeypatch.setattr(tf.lite.TFLiteConverter, "from_saved_model", lambda folder: converter())
    model = models.build_model("convnet5", num_classes=5, image_size=8)
    with pytest.raises(UserError, match=r"convnet5 cannot be converted \(no such op\): leave tfl"):
        lite_export.write_lite_model(model, np.zeros((0, 8, 8, 3), np.uint8), tmp_path / "m")
