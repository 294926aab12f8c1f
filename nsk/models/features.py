"""The features of a classifier: the inputs of its last layer with weights, usually pooled ones."""

import keras

from nsk.models.layers import LogMeanProbability


def with_features(model: keras.Model) -> keras.Model | None:
    """A model that also returns the features from which a classifier computes its logits.

    Args:
        model: from images to (batch, num_classes).

    Returns:
        A model with the same layers that returns (the outputs of `model`, features of shape (batch,
        channels)), those of its first member if it is an ensemble. None: the features are not
        known, since the model is not a graph of layers or its last layer with weights has other
        inputs than a matrix.
    """
    if len(getattr(model, "inputs", None) or ()) != 1:  # None: a subclass of keras.Model.
        return None
    features = _features(model)
    return None if features is None else keras.Model(model.inputs[0], [model.outputs[0], features])


def _features(model):
    """The tensor that the last layer with weights of a graph of layers takes; None: unknown."""
    tensor = model.outputs[0]
    while True:
        layer = tensor._keras_history.operation
        inputs = getattr(layer, "input", None)
        if isinstance(layer, LogMeanProbability):
            tensor = inputs[0]
            continue
        if isinstance(layer, keras.Model) or not isinstance(inputs, keras.KerasTensor):
            return None
        if getattr(layer, "weights", None):
            return inputs if len(inputs.shape) == 2 else None
        if tensor is inputs:
            return None
        tensor = inputs
