"""Writes the files of weights that the tests read, and checks what is read from them."""

import keras
import numpy as np
import tensorflow as tf

from nsk.models import weight_assignment, weights

NUM_CLASSES, IMAGE_SIZE = 5, 32


def random_pixels():
    shape = (2, IMAGE_SIZE, IMAGE_SIZE, 3)
    return np.random.default_rng(0).uniform(0, 255, shape).astype("float32")


def randomize(model):
    """Changes all weights, BatchNorm's statistics included."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights(
                [random.uniform(0.5, 1.5, array.shape) for array in layer.get_weights()]
            )
        elif isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            layer.set_weights(
                [array + random.normal(0, 0.02, array.shape) for array in layer.get_weights()]
            )


def assert_reads(path, network, reference, **expected):
    """Checks that the network returns the reference's logits with the weights of a file.

    Args:
        path: path of the weights.
        network: the network, whose weights are replaced.
        reference: (model, its logits for `random_pixels`).
        **expected: expected attributes of the `Weights`.

    Returns:
        The `Weights`.
    """
    network.set_weights([np.zeros(array.shape) for array in network.get_weights()])
    read = weights.read(path)
    assert not weight_assignment.assign(network, read)
    logits, expected_logits = network(random_pixels()).numpy(), reference[1]
    scale = np.abs(expected_logits).max()
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5 * scale)
    assert np.ptp(expected_logits) > 0.1
    assert {name: getattr(read, name) for name in expected} == expected
    return read


def write_checkpoint(prefix, tensors):
    """Writes a TensorFlow 1 checkpoint of arrays by their names."""
    prefix.parent.mkdir(exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )


def official_name(layer, variable, block):
    """Name of a tensor in the official checkpoints, by the rules of their code."""
    norm = "tpu_batch_normalization"
    variable = "depthwise_kernel" if layer.endswith("_dwconv") else variable
    outside_blocks = {
        "stem_conv": "stem/conv2d",
        "stem_bn": f"stem/{norm}",
        "top_conv": "head/conv2d",
        "top_bn": f"head/{norm}",
        "predictions": "head/dense",
    }
    if layer in outside_blocks:
        return f"{outside_blocks[layer]}/{variable}"
    names = ["dwconv", "bn", "se_reduce", "se_expand", "project_conv", "project_bn"]
    official = ["depthwise_conv2d", norm, "se/conv2d", "se/conv2d_1", "conv2d", f"{norm}_1"]
    if not layer.startswith("block1"):
        names = ["expand_conv", "expand_bn", *names]
        official = ["conv2d", norm, "depthwise_conv2d", f"{norm}_1", *official[2:4]]
        official += ["conv2d_1", f"{norm}_2"]
    layer_in_block = official[names.index(layer.partition("_")[2])]
    return f"blocks_{block}/{layer_in_block}/{variable}"


def official_tensors(model, scope="efficientnet-b0/"):
    """Arrays of a `keras.applications` EfficientNet by their names in an official checkpoint."""
    blocks, tensors = [], {}
    for layer in model.layers:
        if not layer.weights or isinstance(layer, keras.layers.Normalization):
            continue
        block = layer.name.partition("_")[0]
        if block.startswith("block") and block not in blocks:
            blocks.append(block)
        for variable in layer.weights:
            name = official_name(layer.name, variable.name, len(blocks) - 1)
            tensors[scope + name] = variable.numpy()
    return tensors
