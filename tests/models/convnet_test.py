"""ConvNet5 and ConvNet6."""

import keras
import numpy as np
import pytest

from nsk.models.convnet import build_convnet
from nsk.models.layers import Builder


def build(name, image_size=32, **arguments):
    return build_convnet(Builder(), name, num_classes=10, image_size=image_size, **arguments)


@pytest.mark.parametrize("name, parameters", [("convnet5", 104_042), ("convnet6", 113_322)])
def test_trainable_parameters(name, parameters):
    assert sum(np.prod(w.shape) for w in build(name).trainable_variables) == parameters


@pytest.mark.parametrize(
    "name, sizes", [("convnet5", [16, 16, 8, 4]), ("convnet6", [32, 16, 16, 8, 4])]
)
def test_layer_kinds_and_feature_map_sizes(name, sizes):
    layers = build(name).layers
    relus = [layer for layer in layers if isinstance(layer, keras.layers.ReLU)]
    assert [layer.output.shape[1] for layer in relus] == sizes
    kinds = [type(layer).__name__ for layer in layers if "pad" not in layer.name]
    assert kinds == (
        ["InputLayer", "Rescaling"]
        + ["Conv2D", "BatchNormalization", "ReLU"] * len(sizes)
        + ["GlobalAveragePooling2D", "Dropout", "Dense"]
    )
