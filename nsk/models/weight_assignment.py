"""Assigns weights from files to a network, matching its layers by name."""

import keras
import numpy as np

from nsk.errors import UserError, list_names
from nsk.models.weights import CLASSIFIER, Weights

MAX_LISTED_LAYERS = 10


def assign(model: keras.Model, weights: Weights) -> bool:
    """Assigns weights to a network, layer by layer.

    If the weights have a classifier for another number of classes, or none, the network keeps its
    own classifier.

    Args:
        model: a network that `build_model` returned.
        weights: the weights.

    Returns:
        Whether the network kept its own classifier.

    Raises:
        UserError: another layer or variable is missing, unexpected or of another shape; the network
            is unchanged.
    """
    expected = variables_by_layer(model)
    received = {
        layer: _name_positions(arrays, expected.get(layer, {}))
        for layer, arrays in weights.layers.items()
    }
    keeps_classifier = _is_for_other_classes(received.get(CLASSIFIER), expected.get(CLASSIFIER))
    if keeps_classifier:
        received.pop(CLASSIFIER, None)
        del expected[CLASSIFIER]
    mismatches = [
        mismatch
        for layer in [*expected, *(layer for layer in received if layer not in expected)]
        if (mismatch := _mismatch(layer, expected.get(layer, {}), received.get(layer, {})))
    ]
    if mismatches:
        num_unlisted = len(mismatches) - MAX_LISTED_LAYERS
        more = f"; and {num_unlisted} more layers" if num_unlisted > 0 else ""
        raise UserError(
            f"The weights {weights.path} do not fit {model.name}: "
            f"{'; '.join(mismatches[:MAX_LISTED_LAYERS])}{more}. Give weights of this network, or "
            "name the network of these weights instead."
        )
    for layer, variables in expected.items():
        for name, variable in variables.items():
            variable.assign(received[layer][name])
    return keeps_classifier


def variables_by_layer(model: keras.Model) -> dict[str, dict[str, keras.Variable]]:
    """A network's variables by the name of their layer and their own name."""
    layers = {}
    for variable in model.weights:
        layer, _, name = variable.path.rpartition("/")
        if name in layers.setdefault(layer, {}):
            raise ValueError(f"Two variables of {model.name} have the path {variable.path}.")
        layers[layer][name] = variable
    return layers


def describe_pixel_mismatch(model: keras.Model, weights: Weights) -> str:
    """Describes how weights and a network normalise pixels, if they do so differently.

    Args:
        model: a network that `build_model` returned.
        weights: the weights.

    Returns:
        A fragment of a message; "" if the normalisation is the same or the weights' is not known.
    """
    if weights.normalization is None:
        return ""
    rescale = model.get_layer("rescale")
    deviation = np.broadcast_to(1 / (255 * np.array(rescale.scale)), 3)
    mean, variance = -np.array(rescale.offset) * deviation, np.square(deviation)
    # The published weights hold standard deviations as variances; a second layer corrects this:
    # https://github.com/tensorflow/tensorflow/issues/49930
    for known in ((mean, variance), (mean, deviation)):
        if all(
            expected.shape == received.shape and np.allclose(expected, received, atol=1e-3)
            for expected, received in zip(known, weights.normalization, strict=True)
        ):
            return ""
    return (
        f"{_describe(*weights.normalization)}; {model.name} normalises by "
        f"{_describe(mean, variance)}"
    )


def _describe(mean, variance):
    mean, variance = (
        ", ".join(f"{value:.3f}" for value in values[:3]) for values in (mean, variance)
    )
    return f"mean {mean} and variance {variance}"


def _name_positions(arrays, variables):
    """Arrays of a layer by the names of its variables, if a file has only their positions."""
    names = list(variables)
    return {
        names[int(key)] if key.isdecimal() and int(key) < len(names) else key: array
        for key, array in arrays.items()
    }


def _is_for_other_classes(received, expected):
    """Whether the weights' classifier is missing, or complete but for another number of classes."""
    if received is None or expected is None:
        return expected is not None
    received_shapes, expected_shapes = (
        {name: tuple(variable.shape) for name, variable in variables.items()}
        for variables in (received, expected)
    )
    features, num_classes = expected_shapes["kernel"]
    other_classes = received_shapes.get("bias", (num_classes,))[-1:]
    return other_classes != (num_classes,) and received_shapes == {
        "kernel": (features, *other_classes),
        "bias": other_classes,
    }


def _mismatch(layer, variables, arrays):
    """Describes why arrays do not fit a layer's variables; "" if they do."""
    if not arrays:
        return f"{layer} is missing"
    if not variables:
        return f"{layer} is not in the network"
    missing = [f"{name} is missing" for name in variables.keys() - arrays.keys()]
    unexpected = [f"{name} is not in the network" for name in arrays.keys() - variables.keys()]
    wrong_shapes = [
        f"{name} is {arrays[name].shape} and not {tuple(variable.shape)}"
        for name, variable in variables.items()
        if name in arrays and arrays[name].shape != tuple(variable.shape)
    ]
    problems = list_names([*sorted(missing), *sorted(unexpected), *wrong_shapes])
    return f"{layer}: {problems}" if problems else ""
