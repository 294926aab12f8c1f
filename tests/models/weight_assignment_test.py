"""Assigning weights to networks that they fit, and errors for those that they do not fit."""

import re

import h5py
import numpy as np
import pytest

from nsk.errors import UserError
from nsk.models import build_model, efficientnet, weight_assignment, weights
from tests.models.checkpoint_files import official_tensors, randomize, write_checkpoint

# NumPy 2 warns of the way in which Keras 3.15 reads variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(
    ("mean", "variance", "differs"),
    [
        (efficientnet.MEAN, np.square(efficientnet.DEVIATION), False),
        (efficientnet.MEAN, efficientnet.DEVIATION, False),  # As published.
        ((0, 0, 0), (1, 1, 1), True),
        (efficientnet.MEAN, (0.25, 0.25, 0.25), True),
        ((0.5, 0.5, 0.5), efficientnet.DEVIATION, True),
    ],
)
def test_other_normalisation_of_pixels_is_described(mean, variance, differs, network, tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["normalization_1/normalization_1/mean:0"] = mean
        file["normalization_1/normalization_1/variance:0"] = variance
        file["normalization_1/normalization_1/count:0"] = 0
    read = weights.read(tmp_path / "weights.h5")
    assert read.layers == {}
    description = weight_assignment.describe_pixel_mismatch(network, read)
    assert description.startswith("mean ") == differs
    # All of them differ from pixels in [-1, 1].
    convnet = build_model("convnet5", num_classes=10, image_size=8)
    expected = "convnet5 normalises by mean 0.500, 0.500, 0.500 and"
    assert expected in weight_assignment.describe_pixel_mismatch(convnet, read)


def test_missing_misshapen_and_unexpected_tensors_are_named(reference, network, tmp_path):
    tensors = official_tensors(reference[0])
    scope = "efficientnet-b0"
    del tensors[f"{scope}/blocks_1/tpu_batch_normalization_1/moving_mean"]
    tensors[f"{scope}/blocks_0/se/conv2d/bias"] = np.ones(9, np.float32)
    tensors[f"{scope}/blocks_2/attention/kernel"] = np.ones(9, np.float32)
    write_checkpoint(tmp_path / "model", tensors)
    before = network.get_weights()
    with pytest.raises(UserError) as error:
        weight_assignment.assign(network, weights.read(tmp_path / "model"))
    assert str(error.value) == (
        f"The weights {tmp_path}/model do not fit efficientnet_b0: block1a_se_reduce: bias is (9,) "
        "and not (8,); block2a_bn: moving_mean is missing; blocks_2/attention is not in the "
        "network. Give weights of this network, or name the network of these weights instead."
    )
    for array, expected in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_weights_of_another_network_are_refused_layer_by_layer(tmp_path):
    build_model("resnet8", num_classes=3, image_size=8).save(tmp_path / "resnet.keras")
    model = build_model("convnet5", num_classes=3, image_size=8)
    with pytest.raises(UserError) as error:
        weight_assignment.assign(model, weights.read(tmp_path / "resnet.keras"))
    message = str(error.value)
    assert "\n" not in message and message.count(";") == weight_assignment.MAX_LISTED_LAYERS
    assert "do not fit convnet5: layer1_conv is missing; layer1_bn is missing; " in message
    assert "logits: kernel is (64, 3) and not (128, 3); " in message
    assert re.search(r"; and \d+ more layers\. Give weights of this network", message)


@pytest.mark.parametrize("name", ["convnet5", "resnet6", "resnet9", "resnet8", "wrn10_1"])
def test_networks_of_this_project(name, tmp_path):
    """Images may have another size; only a classifier for other classes stays initialised."""
    trained = build_model(name, num_classes=3, image_size=32, seed=1, dropout_rate=0.5)
    randomize(trained)
    trained.save(tmp_path / "model.keras")
    read = weights.read(tmp_path / "model.keras")
    same_classes = build_model(name, num_classes=3, image_size=16)
    assert not weight_assignment.assign(same_classes, read)
    for array, expected in zip(same_classes.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(array, expected)
    more_classes = build_model(name, num_classes=4, image_size=16, seed=2)
    classifier = more_classes.get_layer("logits").get_weights()
    assert weight_assignment.assign(more_classes, read)
    expected_weights = [*trained.get_weights()[:-2], *classifier]
    for array, expected in zip(more_classes.get_weights(), expected_weights, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_weights_without_a_classifier_do_not_change_it(tmp_path):
    model = build_model("convnet5", num_classes=3, image_size=8)
    layers = {
        layer: {name: variable.numpy() for name, variable in variables.items()}
        for layer, variables in weight_assignment.variables_by_layer(model).items()
    }
    classifier = layers.pop("logits")
    assert weight_assignment.assign(model, weights.Weights(layers, tmp_path))
    kernel, bias = classifier["kernel"], classifier["bias"]
    for wrong in (
        {"kernel": kernel[:64], "bias": bias},
        {"kernel": kernel[:, :2]},
        {"bias": bias[:2]},
    ):
        with pytest.raises(UserError, match="do not fit convnet5: logits: "):
            weight_assignment.assign(model, weights.Weights({**layers, "logits": wrong}, tmp_path))
