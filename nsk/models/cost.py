"""What a training image costs a network: multiply-adds, and the memory of its activations."""

import collections
import dataclasses
import itertools
import math

import keras

from nsk.models.layers import Dropout, PaddedShortcut, StochasticDepth

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
# Layers that multiply by a kernel, once for each place of their output.
WITH_KERNEL = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
# What a gradient needs: the inputs, the outputs or a tensor inside that is as large as the outputs.
# Where it needs none of them, it needs shapes alone.
NOTHING, INPUTS, OUTPUTS, INSIDE = map(frozenset, ((), ("inputs",), ("outputs",), ("inside",)))
NEEDS = {
    keras.layers.Activation: NOTHING,  # But what its function needs.
    keras.layers.Add: NOTHING,
    keras.layers.BatchNormalization: INPUTS,
    keras.layers.Concatenate: NOTHING,
    keras.layers.Conv2D: INPUTS,
    keras.layers.Dense: INPUTS,
    keras.layers.DepthwiseConv2D: INPUTS,
    keras.layers.Flatten: NOTHING,
    keras.layers.GlobalAveragePooling2D: NOTHING,
    keras.layers.InputLayer: NOTHING,
    keras.layers.MaxPooling2D: INPUTS | OUTPUTS,
    keras.layers.Multiply: INPUTS,
    keras.layers.Permute: NOTHING,
    keras.layers.ReLU: OUTPUTS,
    keras.layers.Rescaling: NOTHING,
    keras.layers.Reshape: NOTHING,
    keras.layers.ZeroPadding2D: NOTHING,
    Dropout: INSIDE,  # The mask.
    PaddedShortcut: NOTHING,
    StochasticDepth: NOTHING,
}
ACTIVATION_NEEDS = {
    "linear": NOTHING,
    "relu": OUTPUTS,
    "sigmoid": OUTPUTS,
    "silu": INPUTS,
    "softmax": OUTPUTS,
    "tanh": OUTPUTS,
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one image costs.

    Attributes:
        forward: int, multiply-adds of a forward pass.
        training: int, multiply-adds of a forward and a backward pass.
        activation_bytes: int, what a training step keeps of the forward pass for the backward one.
        unknown: dict from kinds of layers of which nothing is known, and nothing counted, to how
            many the network has.
    """

    forward: int
    training: int
    activation_bytes: int
    unknown: dict


def cost_of(model, segments=()):
    """Counts what an image costs, layer by layer.

    Multiply-adds are counted as the EfficientNet paper counts what it calls FLOPs: those of
    convolutions and dense layers, padding included, and no others. A layer's backward pass costs
    two forward passes, for the gradients of its inputs and of its kernel.

    Activations are the tensors that gradients need, each once, however many layers need it:

    - inputs of convolutions, dense layers, products, swish, max pooling and BatchNorm, in the dtype
      that the layer computes in; for BatchNorm this is float32 under mixed precision, too;
    - outputs of max pooling and of all other activations, and the mask of dropout;
    - nothing of sums, means, padding, rescaling and stochastic depth.

    Frozen layers (`trainable` is False), which stand before all others, have no backward pass.
    Where `segments` are computed again, one more forward pass is counted, and of activations what
    comes into each segment and what the layers of the largest one need.

    Gradients of activations and the work space of kernels come on top. What the peak memory of
    training steps on a CPU grows by for each image of the batch is between 0.75 and 1.33 of this
    for EfficientNet-B0 and ResNet-20 (`pytest -m slow tests/models/cost_test.py`); with segments,
    within which gradients weigh more, it is more.

    Args:
        model: a built functional `keras.Model` for images of one size.
        segments: the model as a list of models, one after another, each of which the backward pass
            computes again from its input (`rematerialization.segments`); empty: nothing is.

    Returns:
        A `Cost`.

    Raises:
        ValueError: the model takes images of any size.
    """
    if None in model.input.shape[1:]:
        raise ValueError(f"The model takes {model.input.shape}: expected images of one size.")
    unknown = collections.Counter(_kind(one) for one in model.layers if _needs(one) is None)
    forward = sum(map(_multiply_adds, model.layers))
    backward = sum(map(_multiply_adds, _trained(model)))
    kept = _kept_between(segments) if segments else sum(_kept(_trained(model)).values())
    passes = 3 if segments else 2
    return Cost(forward, forward + passes * backward, kept, dict(unknown))


def _trained(model):
    """The layers that have a backward pass and are known."""
    known = [layer for layer in model.layers if _needs(layer) is not None]
    return [one for one in known if one.trainable and not isinstance(one, keras.layers.InputLayer)]


def _multiply_adds(layer):
    if type(layer) not in WITH_KERNEL:
        return 0
    return math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])


def _kind(layer):
    """Name of a layer's kind, with that of its activation."""
    activation = getattr(layer, "activation", None)
    return type(layer).__name__ + (f"({activation.__name__})" if activation else "")


def _needs(layer):
    """What a layer's gradient needs, as in `NEEDS`; None: not known."""
    needs, activation = NEEDS.get(type(layer)), getattr(layer, "activation", None)
    if needs is None or activation is None:
        return needs
    of_activation = ACTIVATION_NEEDS.get(activation.__name__)
    if of_activation is None:
        return None
    if type(layer) in WITH_KERNEL and of_activation == INPUTS:
        of_activation = INSIDE  # What goes into the function is not what goes into the layer.
    return needs | of_activation


def _kept(layers):
    """What the gradients of layers need: dict from a key of each tensor to its bytes."""
    return dict(pair for layer in layers for pair in _tensors(layer))


def _kept_between(segments):
    """Bytes of what comes into the segments, and of what the largest one needs beside that."""
    entering, largest = {}, 0
    for segment in segments:
        layers = _trained(segment)
        made = {id(layer.output) for layer in layers}
        for tensor in itertools.chain(*map(_inputs, layers)):
            if id(tensor) not in made:
                entering[id(tensor), tensor.dtype] = _bytes(tensor, tensor.dtype)
        inside = sum(size for key, size in _kept(layers).items() if key not in entering)
        largest = max(largest, inside)
    return sum(entering.values()) + largest


def _tensors(layer):
    """Yields (key, bytes) of each tensor that a layer's gradient needs."""
    needs = _needs(layer)
    if needs >= INPUTS:
        dtype = layer.compute_dtype
        if isinstance(layer, keras.layers.BatchNormalization):
            dtype = keras.backend.result_type(dtype, "float32")
        for tensor in _inputs(layer):
            yield (id(tensor), dtype), _bytes(tensor, dtype)
    tensor = layer.output
    for name in needs - INPUTS:
        key = tensor.dtype if name == "outputs" else name
        yield (id(tensor), key), _bytes(tensor, tensor.dtype)


def _inputs(layer):
    return layer.input if isinstance(layer.input, list) else [layer.input]


def _bytes(tensor, dtype):
    return math.prod(tensor.shape[1:]) * BYTES[dtype]
