"""The cost of training a network: multiply-adds and activations of an image, variables."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Sequence

import keras

from nsk.models.layers import BatchNormalization, Dropout, PaddedShortcut, StochasticDepth

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
# Layers that multiply by a kernel, once for each position of their output.
KERNEL_LAYERS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
# What a layer's gradient needs: the inputs, the outputs or an internal tensor of the outputs' size.
# A gradient that needs none of them needs only shapes.
NOTHING, INPUTS, OUTPUTS, INTERNAL = map(frozenset, ((), ("inputs",), ("outputs",), ("internal",)))
NEEDS = {
    keras.layers.Activation: NOTHING,  # Except for what its function needs.
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
    BatchNormalization: INPUTS,
    Dropout: INTERNAL,  # The mask.
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
    """The cost of a network; the first three are of one image.

    Attributes:
        forward: multiply-adds of a forward pass.
        training: multiply-adds of a forward and a backward pass.
        activation_bytes: bytes that a training step keeps from the forward pass for the backward
            pass.
        unknown: number of layers of each unknown kind, whose cost is not included.
        variables: number of values of all variables, BatchNorm's moving averages included.
        trained: number of values of the variables that are trained.
    """

    forward: int
    training: int
    activation_bytes: int
    unknown: dict[str, int]
    variables: int
    trained: int


def estimate_cost(model: keras.Model, segments: Sequence[keras.Model] = ()) -> Cost:
    """Estimates the cost of an image, layer by layer.

    Multiply-adds are counted as the EfficientNet paper counts its FLOPs: only those of
    convolutions and dense layers, padding included. A layer's backward pass costs two forward
    passes, for the gradients of its inputs and of its kernel.

    Activations are the tensors that gradients need. A tensor that several layers need counts once:

    - inputs of convolutions, dense layers, products, swish, max pooling and BatchNorm, in the
      layer's compute dtype; for BatchNorm this is float32 under mixed precision, too;
    - outputs of max pooling and of all other activations, and the mask of dropout;
    - nothing for sums, means, padding, rescaling and stochastic depth.

    Frozen layers (`trainable` is False), which come before all others, have no backward pass.
    Recomputed segments (gradient checkpointing) cost one more forward pass; their activations are
    the inputs of all segments and what the layers of the largest segment need.

    Gradients of activations and the workspace of kernels are not included. The peak memory of
    training steps on a CPU grows per image of the batch by 0.75 to 1.33 of this estimate for
    EfficientNet-B0 and ResNet-20 (`pytest -m slow tests/models/cost_test.py`); with segments,
    within which gradients weigh more, it grows by more.

    Args:
        model: a built functional model for images of a fixed size.
        segments: the model as a sequence of models, each of which the backward pass recomputes
            from its input (`rematerialization.segments`); empty: nothing is recomputed.

    Raises:
        ValueError: the model takes images of any size.

    Reference:
        [Tan and Le, 2019](https://arxiv.org/abs/1905.11946);
        [Chen et al., 2016](https://arxiv.org/abs/1604.06174) for recomputed segments.
    """
    if None in model.input.shape[1:]:
        raise ValueError(f"The model takes {model.input.shape}: expected images of a fixed size.")
    unknown = collections.Counter(_kind(layer) for layer in model.layers if _needs(layer) is None)
    forward = sum(map(_multiply_adds, model.layers))
    backward = sum(map(_multiply_adds, _trained_layers(model)))
    if segments:
        kept_bytes = _kept_bytes_of_segments(segments)
    else:
        kept_bytes = sum(_kept_bytes(_trained_layers(model)).values())
    passes = 3 if segments else 2
    return Cost(
        forward,
        forward + passes * backward,
        kept_bytes,
        dict(unknown),
        _number_of_values(model.variables),
        _number_of_values(model.trainable_variables),
    )


def _number_of_values(variables):
    return sum(math.prod(variable.shape) for variable in variables)


def _trained_layers(model):
    """The layers that have a backward pass and are known."""
    known = [layer for layer in model.layers if _needs(layer) is not None]
    return [
        layer
        for layer in known
        if layer.trainable and not isinstance(layer, keras.layers.InputLayer)
    ]


def _multiply_adds(layer):
    if type(layer) not in KERNEL_LAYERS:
        return 0
    return math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])


def _kind(layer):
    """Class name of a layer, with its activation."""
    activation = getattr(layer, "activation", None)
    return type(layer).__name__ + (f"({activation.__name__})" if activation else "")


def _needs(layer):
    """What a layer's gradient needs, as in `NEEDS`; None: not known."""
    layer_needs, activation = NEEDS.get(type(layer)), getattr(layer, "activation", None)
    if layer_needs is None or activation is None:
        return layer_needs
    activation_needs = ACTIVATION_NEEDS.get(activation.__name__)
    if activation_needs is None:
        return None
    if type(layer) in KERNEL_LAYERS and activation_needs == INPUTS:
        activation_needs = INTERNAL  # The activation's input is not the layer's input.
    return layer_needs | activation_needs


def _kept_bytes(layers):
    """What the gradients of layers need: dict from a key of each tensor to its bytes."""
    return dict(item for layer in layers for item in _kept_tensors(layer))


def _kept_bytes_of_segments(segments):
    """Bytes of the segments' inputs, and of what else the largest segment needs."""
    segment_inputs, largest = {}, 0
    for segment in segments:
        layers = _trained_layers(segment)
        internal = {id(layer.output) for layer in layers}
        for tensor in itertools.chain(*map(_inputs, layers)):
            if id(tensor) not in internal:
                segment_inputs[id(tensor), tensor.dtype] = _bytes(tensor, tensor.dtype)
        inside = sum(size for key, size in _kept_bytes(layers).items() if key not in segment_inputs)
        largest = max(largest, inside)
    return sum(segment_inputs.values()) + largest


def _kept_tensors(layer):
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
    """Bytes of a tensor's values for one image, in a dtype."""
    return math.prod(tensor.shape[1:]) * BYTES[dtype]
