"""Multiply-adds and activations against published numbers, manual counts and measured memory."""

import subprocess
import sys

import keras
import pytest

from nsk.models import blocks, build_model
from nsk.models.cost import estimate_cost
from nsk.training.rematerialization import segments

FLOAT = 4
# Prints the peak memory of two training steps in KiB.
TRAINING_PROGRAM = """
import pathlib, sys
import numpy as np, tensorflow as tf
from nsk import models, noise
from nsk.distributed import strategy
from nsk.distributed.runtime import Runtime
from nsk.training import recipe, trainer
name, size, batch, precision = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
def build(synchronized):
    return models.build_model(name, num_classes=10, image_size=size, dropout_rate=0.2,
                              survival_probability=0.8, precision=precision)
settings = recipe.Recipe(np.full(2, 0.01, np.float32), {"labeled": batch})
runtime = Runtime.from_strategy(strategy.make_strategy("one"))
model_trainer = trainer.Trainer(build, settings, noise.key(0), runtime)
stream = {"image": tf.zeros((batch, size, size, 3), tf.uint8), "target": tf.ones((batch, 10)),
          "weight": tf.ones(batch)}
model_trainer.call_steps(iter(tf.data.Dataset.from_tensors((stream,)).repeat()), 0, 2)
# Not ru_maxrss, which a process inherits from its parent.
print(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def cost(name, image_size, num_classes=10, rematerialize=False, **arguments):
    model = build_model(name, num_classes=num_classes, image_size=image_size, **arguments)
    return estimate_cost(model, segments(model) if rematerialize else ())


@pytest.mark.parametrize(
    "name, image_size, num_classes, published",
    [
        ("efficientnet_b0", 224, 1000, 0.39e9),
        pytest.param("efficientnet_b7", 600, 1000, 37e9, marks=pytest.mark.slow),
        ("imagenet_resnet18", 224, 1000, 1.8e9),
        ("imagenet_resnet34", 224, 1000, 3.6e9),
        ("wrn28_10", 32, 10, 5.2e9),
    ],
)
def test_published_multiply_adds(name, image_size, num_classes, published):
    counted = cost(name, image_size, num_classes).forward
    assert counted == pytest.approx(published, rel=0.025)


def test_multiply_adds_of_a_small_network():
    images = keras.Input((9, 9, 4))
    features = keras.layers.Conv2D(6, 3, strides=2, groups=2, padding="same")(images)
    features = keras.layers.DepthwiseConv2D((2, 3))(features)
    features = keras.layers.BatchNormalization()(features)
    model = keras.Model(images, keras.layers.Dense(7)(features))
    convolved, depthwise = 5 * 5 * 6 * (3 * 3 * 2), 4 * 3 * 6 * (2 * 3)
    assert estimate_cost(model).forward == convolved + depthwise + 4 * 3 * 6 * 7


def test_activations_of_a_small_network():
    maps = [(4, 32), (4, 32), (2, 64), (1, 128)]
    sizes = [side * side * filters for side, filters in maps]
    padded = [10 * 10 * 3, 6 * 6 * 32, 4 * 4 * 64]
    # A convolution with strides needs its padded input; one without needs the ReLU's output, which
    # the ReLU needs, too. BatchNorm needs the convolution's output.
    needed = sum(padded) + 2 * sum(sizes)
    needed += 2 * 128  # Dropout's mask and the input of the dense layer.
    assert cost("convnet5", 8).activation_bytes == needed * FLOAT


def test_mixed_precision_halves_all_activations_but_batch_norms():
    sizes = [4 * 4 * 32, 4 * 4 * 32, 2 * 2 * 64, 128]
    padded = [10 * 10 * 3, 6 * 6 * 32, 4 * 4 * 64]
    assert cost("convnet5", 8, precision="bf16").activation_bytes == (
        2 * (sum(padded) + sum(sizes)) + FLOAT * (sum(sizes) + 2 * 128)
    )


def residual(activation="relu"):
    """conv, three blocks of conv-relu-add, mean."""
    images = keras.Input((8, 8, 3), name="pixels")
    features = keras.layers.Conv2D(4, 3, padding="same", name="stem")(images)
    for name in ("block1", "stage1_block2", "block3a"):
        branch = keras.layers.Conv2D(4, 3, padding="same", name=f"{name}_conv")(features)
        branch = keras.layers.Activation(activation, name=f"{name}_activation")(branch)
        features = keras.layers.Add(name=f"{name}_add")([branch, features])
    return keras.Model(images, keras.layers.GlobalAveragePooling2D(name="pool")(features))


IMAGE, FEATURES = 8 * 8 * 3 * FLOAT, 8 * 8 * 4 * FLOAT
STEM, BLOCK = 8 * 8 * 4 * (9 * 3), 8 * 8 * 4 * (9 * 4)


def test_a_training_image_costs_three_forward_passes():
    counted = estimate_cost(residual())
    assert counted.forward == STEM + 3 * BLOCK and counted.training == 3 * counted.forward
    # The input and the ReLU's output of each block.
    assert counted.activation_bytes == IMAGE + 3 * (FEATURES + FEATURES)


def test_segments_keep_their_inputs_and_the_largest_its_activations():
    model = residual()
    counted = estimate_cost(model, segments(model))
    assert counted.forward == STEM + 3 * BLOCK and counted.training == 4 * counted.forward
    # Inputs of stem, three blocks and mean; the ReLU's output within a block.
    assert counted.activation_bytes == IMAGE + 4 * FEATURES + FEATURES


@pytest.mark.parametrize("rematerialize", [False, True])
def test_frozen_layers_have_no_backward_pass(rematerialize):
    model = residual()
    for layer in blocks.shallow_layers(model, 2):
        layer.trainable = False
    counted = estimate_cost(model, segments(model) if rematerialize else ())
    assert counted.forward == STEM + 3 * BLOCK
    assert counted.training == STEM + 3 * BLOCK + (3 if rematerialize else 2) * BLOCK
    # The last block's input, the ReLU's output, and the input of the mean if it is recomputed.
    assert counted.activation_bytes == (3 if rematerialize else 2) * FEATURES


@pytest.mark.parametrize(
    "name",
    [
        "convnet6",
        "resnet6",
        "resnet9",
        "resnet20",
        "wrn10_1",
        "imagenet_resnet18",
        "efficientnet_b0",
    ],
)
def test_every_layer_of_the_networks_is_known(name):
    assert cost(name, 32).unknown == {}
    rematerialized = cost(name, 32, rematerialize=True)
    assert rematerialized.unknown == {}
    assert 0 < rematerialized.activation_bytes < cost(name, 32).activation_bytes


def test_unknown_layers_are_named_and_cost_nothing():
    model = residual(activation="gelu")
    outputs = keras.layers.Lambda(lambda features: features + 1)(model.output)
    counted = estimate_cost(keras.Model(model.input, outputs))
    assert counted.unknown == {"Activation(gelu)": 3, "Lambda": 1}
    assert counted.activation_bytes == IMAGE + 3 * FEATURES


def test_images_of_any_size_are_refused():
    images = keras.Input((None, None, 3))
    with pytest.raises(ValueError, match=r"\(None, None, None, 3\).*fixed size"):
        estimate_cost(keras.Model(images, keras.layers.Conv2D(4, 3)(images)))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    "name, image_size, batches", [("efficientnet_b0", 128, (16, 48)), ("resnet20", 32, (128, 512))]
)
def test_activations_against_the_memory_of_training_steps(name, image_size, batches, precision):
    peaks = []
    for batch in batches:
        arguments = (name, str(image_size), str(batch), precision)
        done = subprocess.run(
            [sys.executable, "-c", TRAINING_PROGRAM, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(1024 * int(done.stdout))
    measured = (peaks[1] - peaks[0]) / (batches[1] - batches[0])
    estimated = cost(name, image_size, precision=precision).activation_bytes
    # Memory that the allocator keeps from the smaller batch varies it by a fifth between runs.
    assert 0.75 * estimated < measured < 1.33 * estimated
