"""Reads the official EfficientNet and Noisy Student checkpoints of TensorFlow 1.

Reference: https://github.com/google-research/noisystudent and
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet
"""

import glob
import math
import re
from pathlib import Path

import numpy as np
import tensorflow as tf

from nsk.models import efficientnet

AVERAGE = "/ExponentialMovingAverage"
IN_BLOCK = re.compile("blocks_(0|[1-9][0-9]{0,3})/(.+)")
# Names of layers in the checkpoints and in this project.
STEM_AND_HEAD = {
    "stem/conv2d": "stem_conv",
    "stem/batch_normalization": "stem_bn",
    "head/conv2d": "top_conv",
    "head/batch_normalization": "top_bn",
    "head/dense": "logits",
}
SQUEEZE_EXCITE = {"se/conv2d": "se_reduce", "se/conv2d_1": "se_expand"}
# Layers are numbered per kind, so the number of a layer depends on whether its block expands.
BLOCK = {
    "depthwise_conv2d": "dwconv",
    "batch_normalization": "bn",
    "conv2d": "project_conv",
    "batch_normalization_1": "project_bn",
    **SQUEEZE_EXCITE,
}
EXPANDING_BLOCK = {
    "conv2d": "expand_conv",
    "batch_normalization": "expand_bn",
    "depthwise_conv2d": "dwconv",
    "batch_normalization_1": "bn",
    "conv2d_1": "project_conv",
    "batch_normalization_2": "project_bn",
    **SQUEEZE_EXCITE,
}


def data_files(prefix: Path) -> list[str]:
    """Paths of the data files of the checkpoint with a prefix."""
    return sorted(glob.glob(f"{glob.escape(str(prefix))}.data-*-of-*"))


def read(prefix: Path, max_bytes: int) -> tuple[dict[str, dict[str, np.ndarray]], int, int]:
    """Reads the weights of an EfficientNet.

    If a tensor has a moving average, BatchNorm's moving statistics included, this is read instead.

    Args:
        prefix: path of the `.index` file without this suffix.
        max_bytes: limit for the size that the tensors claim, in bytes.

    Returns:
        (layers, averaged, ignored): arrays by the name of the layer, as in this project's networks,
        and of the variable; the number of moving averages; the number of tensors that do not belong
        to the network, such as an optimizer's.

    Raises:
        ValueError: it is not a checkpoint of an EfficientNet, or claims too many bytes.
        tf.errors.OpError: it is damaged.
    """
    # Other readers follow a path in a folder's file `checkpoint`, which may lead to any file.
    reader = tf.compat.v1.train.NewCheckpointReader(str(prefix))
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    averages = {name.removesuffix(AVERAGE) for name in shapes if name.endswith(AVERAGE)}
    variables = averages | set(shapes)
    # An optimizer's slots have names VARIABLE/SLOT.
    variables = {name for name in variables if name.rpartition("/")[0] not in variables}
    scope = _scope(variables)
    sources = {
        name.removeprefix(scope): f"{name}{AVERAGE}" if name in averages else name
        for name in sorted(variables)
        if name.startswith(scope)
    }
    if not scope:
        sources.pop("global_step", None)
    size = sum(math.prod(shapes[name]) * dtypes[name].size for name in sources.values())
    if size > max_bytes:
        raise ValueError(f"it claims {size:,} bytes, expected {max_bytes:,} at most")
    blocks = _blocks(sources)
    layers = {}
    for name, source in sources.items():
        layer, _, variable = name.rpartition("/")
        arrays = layers.setdefault(_layer_name(layer, blocks), {})
        if variable in arrays:
            raise ValueError(f"{name} is duplicated under another name")
        arrays[variable] = reader.get_tensor(source)
    averaged = sum(source.endswith(AVERAGE) for source in sources.values())
    replaced = sum(name in shapes for name in averages)  # Plain variables with an average.
    return layers, averaged, len(shapes) - len(sources) - replaced


def _scope(variables):
    """Prefix of the names of the network's tensors, such as `efficientnet-b0/`."""
    matches = [re.fullmatch("(.*/)?stem/conv2d/kernel", name) for name in sorted(variables)]
    scopes = [match[1] or "" for match in matches if match]
    if len(scopes) != 1:
        raise ValueError(
            "expected one tensor SCOPE/stem/conv2d/kernel, as in the official checkpoints of "
            f"EfficientNet, found {len(scopes)} among {len(variables)}"
        )
    return scopes[0]


def _blocks(names):
    """(name in this project, whether it expands) of each block, from the number of blocks."""
    matches = [IN_BLOCK.fullmatch(name) for name in names]
    count = max((int(match[1]) + 1 for match in matches if match), default=0)
    for variant in efficientnet.VARIANTS.values():
        blocks = [
            (f"block{number}{chr(ord('a') + repeat)}", stage.expansion > 1)
            for number, stage in enumerate(efficientnet.BASE, start=1)
            for repeat in range(efficientnet.round_repeats(stage.repeats, variant.depth))
        ]
        if len(blocks) == count:
            return blocks
    known = sorted({efficientnet.num_blocks(variant) for variant in efficientnet.VARIANTS})
    raise ValueError(f"it has {count} blocks, expected one of {', '.join(map(str, known))}")


def _layer_name(layer, blocks):
    """This project's name of a layer, such as `stem_conv` of `stem/conv2d`; its own if unknown."""
    layer = layer.replace("tpu_batch_normalization", "batch_normalization")
    match = IN_BLOCK.fullmatch(layer)
    if not match:
        return STEM_AND_HEAD.get(layer, layer)
    block, expands = blocks[int(match[1])]
    part = (EXPANDING_BLOCK if expands else BLOCK).get(match[2])
    return f"{block}_{part}" if part else layer
