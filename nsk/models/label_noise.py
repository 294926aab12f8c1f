"""Networks that label images with the noise of a training, but normalise as in inference."""

from collections.abc import Mapping
from typing import Any

import keras

from nsk.errors import UserError
from nsk.models.families import build_model
from nsk.models.layers import Dropout, StochasticDepth


def prepare_for_noise(model: keras.Model, network: Mapping[str, Any] | None = None) -> None:
    """Prepares a network to be called with `training=True` for its noise alone.

    BatchNorm is frozen: it normalises by its averages and does not change them.

    Args:
        model: a network, which is changed.
        network: arguments of `build_model` of the same network with other rates of dropout and
            stochastic depth, which the model gets; None: it keeps its own.

    Raises:
        UserError: it has a layer whose noise is not a function of a key.
    """
    rates = build_model(**network) if network else None
    for layer in _layers(model):
        if getattr(layer, "seed_generator", None) is not None:
            raise UserError(
                f"--label_with_noise: the noise of the teacher's layer {layer.name} cannot be "
                "repeated: leave it out, or give a teacher that was trained by nsk."
            )
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
        elif rates and isinstance(layer, Dropout):
            layer.rate = rates.get_layer(layer.name).rate
        elif rates and isinstance(layer, StochasticDepth):
            layer.survival_probability = rates.get_layer(layer.name).survival_probability
    _name_noise(model, "")


def _layers(model):
    """All layers of a network, with those of an ensemble's members."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def _name_noise(model, prefix):
    """Names the layers with noise after the ensemble's member, so that each draws its own."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _name_noise(layer, f"{prefix}{layer.name}_")
        elif isinstance(layer, Dropout | StochasticDepth):
            layer.name = f"{prefix}{layer.name}"
