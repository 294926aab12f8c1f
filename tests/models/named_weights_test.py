"""Networks by name with all weights of a file, against `keras.applications`."""

import contextlib

import h5py
import keras
import numpy as np
import pytest

from nsk.errors import UserError
from nsk.models import build_model, efficientnet, named_weights
from tests.models.checkpoint_files import (
    IMAGE_SIZE,
    NUM_CLASSES,
    official_tensors,
    random_pixels,
    randomize,
    write_checkpoint,
)

# NumPy 2 warns of the way in which Keras 3.15 reads variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def assert_equal_logits(network, logits):
    scale = np.abs(logits).max()
    np.testing.assert_allclose(network.model(random_pixels()), logits, atol=1e-5 * scale)


@contextlib.contextmanager
def moments(model, mean, variance):
    """The model with another normalisation of pixels, within it."""
    (layer,) = (layer for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    before = layer.get_weights()
    layer.set_weights([np.array(mean), np.array(variance), np.array(0)])
    layer.finalize_state()
    yield
    layer.set_weights(before)
    layer.finalize_state()


@pytest.mark.parametrize("file", ["b0.weights.h5", "b0.h5", "b0.keras"])
def test_weights_of_keras_applications(file, reference, tmp_path):
    model, logits = reference
    save = model.save_weights if file.endswith("weights.h5") else model.save
    save(tmp_path / file)
    stored_size = IMAGE_SIZE if file.endswith("weights.h5") else 0
    network = named_weights.load("efficientnet_b0", tmp_path / file, stored_size)
    assert_equal_logits(network, logits)
    assert network.weights_format == "keras.applications"
    assert network.model.input_shape == (None, IMAGE_SIZE, IMAGE_SIZE, 3)


@pytest.mark.parametrize(
    ("mean", "variance"), [((0, 0, 0), (1, 1, 1)), ((0.3, 0.5, 0.6), (0.04, 0.09, 0.05))]
)
def test_pixels_are_normalised_as_the_weights_expect(mean, variance, reference, tmp_path):
    model, logits = reference
    with moments(model, mean, variance):
        model.save_weights(tmp_path / "b0.weights.h5")
        expected = model(random_pixels()).numpy()
    # Far above the tolerance, although random weights depend little on the pixels.
    assert np.abs(expected - logits).max() > 5e-5 * np.abs(logits).max()
    network = named_weights.load("efficientnet_b0", tmp_path / "b0.weights.h5", IMAGE_SIZE)
    assert_equal_logits(network, expected)
    normalized = (random_pixels() / 255 - mean) / np.sqrt(variance)
    received = network.model.get_layer("rescale")(random_pixels())
    np.testing.assert_allclose(received, normalized, atol=1e-5)


def test_deviations_stored_as_variances_are_known(reference, tmp_path):
    """As in the published files, for which `keras.applications` has one more layer."""
    model, logits = reference
    with moments(model, efficientnet.MEAN, efficientnet.DEVIATION):
        model.save_weights(tmp_path / "b0.weights.h5")
    network = named_weights.load("efficientnet_b0", tmp_path / "b0.weights.h5", IMAGE_SIZE)
    assert_equal_logits(network, logits)


@pytest.mark.parametrize("averaged", [False, True])
def test_official_checkpoints(averaged, reference, tmp_path):
    model, logits = reference
    tensors = official_tensors(model)
    if averaged:
        averages = {f"{name}/ExponentialMovingAverage": array for name, array in tensors.items()}
        tensors = {**{name: array + 1 for name, array in tensors.items()}, **averages}
    write_checkpoint(tmp_path / "b0" / "model.ckpt", tensors)
    network = named_weights.load("efficientnet_b0", tmp_path / "b0", IMAGE_SIZE)
    assert_equal_logits(network, logits)
    assert network.weights_format == "tf1"
    assert network.model.output_shape == (None, NUM_CLASSES)


def test_networks_of_this_project_have_the_size_of_the_file(tmp_path):
    trained = build_model("resnet8", num_classes=3, image_size=IMAGE_SIZE, dropout_rate=0.5)
    randomize(trained)
    trained.save(tmp_path / "model.keras")
    network = named_weights.load("resnet8", tmp_path)
    assert_equal_logits(network, trained(random_pixels(), training=False).numpy())
    assert network.weights_format == "nsk"
    larger = named_weights.load("resnet8", tmp_path / "model.keras", 48).model
    assert larger.input_shape == (None, 48, 48, 3)
    for array, expected in zip(larger.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_the_published_size_is_that_of_the_tests():
    sizes = named_weights.PUBLISHED_SIZES
    assert [sizes[f"efficientnet_b{n}"] for n in range(8)] == [
        *(224, 240, 260, 300),
        *(380, 456, 528, 600),
    ]
    assert sizes["efficientnet_l2"] == 800


def test_without_a_stored_size_the_published_one_is_taken(reference, tmp_path, monkeypatch):
    reference[0].save_weights(tmp_path / "b0.weights.h5")
    monkeypatch.setitem(named_weights.PUBLISHED_SIZES, "efficientnet_b0", 64)
    network = named_weights.load("efficientnet_b0", tmp_path / "b0.weights.h5")
    assert network.model.input_shape == (None, 64, 64, 3)


def test_weights_that_are_incomplete_are_refused(reference, tmp_path):
    path = tmp_path / "model.weights.h5"
    build_model("resnet8", num_classes=3, image_size=8).save_weights(path)
    with pytest.raises(UserError, match=r"size of resnet8 is not known from .*--image_size=PIXELS"):
        named_weights.load("resnet8", path)
    with pytest.raises(UserError, match="do not fit resnet6: stem1_conv is missing"):
        named_weights.load("resnet6", path, 8)
    with pytest.raises(UserError, match="--image_size=4 is too small for resnet6"):
        named_weights.load("resnet6", path, 4)
    with h5py.File(path, "a") as file:
        (dense,) = (name for name in file["layers"] if name.startswith("dense"))
        del file["layers"][dense]
    with pytest.raises(UserError, match=r"have no classifier .* with its top") as error:
        named_weights.load("resnet8", path, 8)
    assert "\n" not in str(error.value)


def test_a_batch_norm_that_is_missing_is_named(tmp_path):
    path = tmp_path / "model.weights.h5"
    build_model("resnet8", num_classes=3, image_size=8).save_weights(path)
    with h5py.File(path, "a") as file:
        del file["layers"]["batch_normalization"]["vars"]["2"]
    with pytest.raises(UserError, match=r"_bn: moving_mean is missing"):
        named_weights.load("resnet8", path, 8)
