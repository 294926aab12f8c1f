"""ResNet6n+2, ResNet9 and ResNet6."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk import noise
from nsk.models.layers import Builder, StochasticDepth
from nsk.models.resnet import (
    build_imagenet_resnet,
    build_resnet6,
    build_resnet6n2,
    build_resnet9,
)
from nsk.models.wide_resnet import build_wide_resnet

SIZES = {"num_classes": 10, "image_size": 32}


def trainable_parameters(model):
    return sum(np.prod(weight.shape) for weight in model.trainable_variables)


def survival(model):
    return [x.survival_probability for x in model.layers if isinstance(x, StochasticDepth)]


@pytest.mark.parametrize(
    "depth, parameters", [(20, 269_818), (26, 367_034), (32, 464_250), (38, 561_466)]
)
def test_trainable_parameters_of_resnet6n2(depth, parameters):
    model = build_resnet6n2(Builder(), depth, **SIZES, survival_probability=0.8)
    assert trainable_parameters(model) == parameters
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    assert len(convolutions) + 1 == depth
    blocks = (depth - 2) // 2
    assert survival(model) == pytest.approx([1 - 0.2 * i / blocks for i in range(blocks)])


def test_trainable_parameters_of_resnet9_and_resnet6():
    assert trainable_parameters(build_resnet9(Builder(), **SIZES)) == 317_930
    assert trainable_parameters(build_resnet6(Builder(), **SIZES)) == 215_146


@pytest.mark.parametrize(
    ("depth", "parameters", "blocks"),
    [(18, 11_689_512, (2, 2, 2, 2)), (26, 17_960_232, (3,) * 4), (34, 21_797_672, (3, 4, 6, 3))],
)
def test_imagenet_resnets(depth, parameters, blocks):
    """The paper's sizes; only blocks with an identity skip have stochastic depth."""
    model = build_imagenet_resnet(
        Builder(), depth, num_classes=1000, image_size=64, survival_probability=0.5
    )
    assert trainable_parameters(model) == parameters
    assert model.get_layer("pool").input.shape[1:] == (2, 2, 512)
    expected = [1 - 0.5 * i / sum(blocks) for i in range(sum(blocks))]
    for first in np.cumsum(blocks)[:-1]:
        expected[first] = 1.0
    assert survival(model) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("depth", "width", "parameters"), [(28, 2, 1_467_610), (28, 10, 36_479_194), (10, 1, None)]
)
def test_wide_resnets(depth, width, parameters):
    model = build_wide_resnet(Builder(), depth, width, **SIZES, survival_probability=0.5)
    if parameters:
        assert trainable_parameters(model) == parameters
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    shortcuts = [x for x in convolutions if x.name.endswith("shortcut_conv")]
    assert len(convolutions) - len(shortcuts) + 3 == depth  # The paper counts three shortcuts.
    blocks = (depth - 4) // 2
    expected = [1 - 0.5 * i / blocks for i in range(blocks)]
    for shortcut in shortcuts:  # In the first block of a stage, if its shape changes.
        stage = int(shortcut.name[len("stage")])
        expected[(stage - 1) * blocks // 3] = 1.0
    assert survival(model) == pytest.approx(expected)
    assert len(shortcuts) == (3 if width > 1 else 2)


@pytest.mark.parametrize(("depth", "width"), [(27, 2), (4, 2), (28, 0)])
def test_invalid_sizes_of_wide_resnets_are_refused(depth, width):
    with pytest.raises(ValueError, match="expected"):
        build_wide_resnet(Builder(), depth, width, **SIZES)


@pytest.mark.parametrize("depth", [0, 2, 9, 21, -4])
def test_depths_other_than_6n_plus_2_are_refused(depth):
    with pytest.raises(ValueError, match="6n \\+ 2"):
        build_resnet6n2(Builder(), depth, **SIZES)


def numpy_batch_norm(x, gamma, beta, mean, variance):
    return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta


def convolution(x, kernel, strides):
    """3x3 convolution centred on every `strides`-th pixel, computed in NumPy."""
    batch, height, width, _ = x.shape
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    result = np.zeros((batch, height, width, kernel.shape[-1]))
    for i in range(3):
        for j in range(3):
            result += padded[:, i : i + height, j : j + width] @ kernel[i, j]
    return result[:, ::strides, ::strides]


def randomize_weights(model, seed=0):
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.1, 0.5, w.shape) - 0.25 * (w.ndim > 1) for w in model.weights])


def test_resnet8_equals_a_numpy_implementation():
    """Checks the order of operations, shortcuts and padding with one block per stage."""
    model = build_resnet6n2(Builder(), 8, num_classes=3, image_size=9, survival_probability=0.5)
    randomize_weights(model)
    weights = {layer.name: [np.float64(w) for w in layer.get_weights()] for layer in model.layers}
    pixels = np.random.default_rng(1).uniform(0, 255, (2, 9, 9, 3))
    x = convolution(pixels / 127.5 - 1, *weights["stem_conv"], 1)
    for stage, filters, strides in ((1, 16, 1), (2, 32, 2), (3, 64, 2)):
        name = f"stage{stage}_block1"
        branch = convolution(x, *weights[f"{name}_1_conv"], strides)
        branch = np.maximum(numpy_batch_norm(branch, *weights[f"{name}_1_bn"]), 0)
        branch = convolution(branch, *weights[f"{name}_2_conv"], 1)
        branch = numpy_batch_norm(branch, *weights[f"{name}_2_bn"])
        zeros = (filters - x.shape[-1]) // 2
        shortcut = np.pad(x[:, ::strides, ::strides], [(0, 0), (0, 0), (0, 0), (zeros, zeros)])
        x = np.maximum(branch + shortcut, 0)
    x = np.maximum(numpy_batch_norm(x, *weights["final_bn"]), 0)
    kernel, bias = weights["logits"]
    expected = x.mean(axis=(1, 2)) @ kernel + bias
    np.testing.assert_allclose(model(pixels.astype(np.float32)), expected, rtol=1e-4)


def test_the_output_of_a_dropped_block_is_its_shortcut():
    """The last block is dropped for some samples; only for these its output is the shortcut."""
    model = build_resnet6n2(Builder(), 8, num_classes=3, image_size=8, survival_probability=0.4)
    pixels = tf.random.uniform((16, 8, 8, 3), maxval=255)
    names = ("stage3_block1_depth", "stage3_block1_shortcut", "stage3_block1_relu")
    features = keras.Model(model.input, [model.get_layer(name).output for name in names])
    with noise.scope(noise.key(0), tf.range(16), 16):
        branch, shortcut, output = (x.numpy() for x in features(pixels, training=True))
    dropped = np.all(branch == 0, axis=(1, 2, 3))
    assert survival(model) == pytest.approx([1, 0.8, 0.6]) and 0 < dropped.sum() < 16
    np.testing.assert_array_equal(
        output[dropped], shortcut[dropped]
    )  # The shortcut is not negative.
    assert np.all(np.any(output != shortcut, axis=(1, 2, 3)) == ~dropped)


def test_resnet6_sums_two_branches():
    model = build_resnet6(Builder(), **SIZES)
    adds = [layer for layer in model.layers if isinstance(layer, keras.layers.Add)]
    inputs = [[x._keras_history.operation.name for x in layer.input] for layer in adds]
    assert inputs == [[f"block{i}_left_bn", f"block{i}_right_bn"] for i in (1, 2, 3)]


def test_resnet9_has_projection_shortcuts_except_in_the_first_block():
    model = build_resnet9(Builder(), **SIZES)
    adds = [layer for layer in model.layers if isinstance(layer, keras.layers.Add)]
    inputs = [[x._keras_history.operation.name for x in layer.input] for layer in adds]
    assert inputs == [
        ["block1_2_bn", "stem2_relu"],
        ["block2_2_bn", "block2_shortcut_bn"],
        ["block3_2_bn", "block3_shortcut_bn"],
    ]
    assert [layer.output.shape[1] for layer in adds] == [16, 8, 4]
