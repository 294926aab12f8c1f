"""Networks by name."""

import re

from nsk.errors import UserError
from nsk.models import convnet, resnet
from nsk.models.layers import Builder


def model_names():
    """Names that `build_model` knows; besides these, `resnetN` with any N = 6n + 2."""
    return (
        "convnet5",
        "convnet6",
        "resnet6",
        "resnet9",
        "resnet20",
        "resnet26",
        "resnet32",
        "resnet38",
    )


def build_model(
    name,
    *,
    num_classes,
    image_size,
    dropout_rate=0.0,
    survival_probability=1.0,
    batch_norm_momentum=0.9,
    synchronized=False,
    seed=0,
):
    """Builds a network with fresh weights, a pure function of `seed` and the layers' names.

    Args:
        name: string, see `model_names`.
        num_classes: int.
        image_size: int, side of the square images in pixels.
        dropout_rate: float in [0, 1), dropout before the classifier.
        survival_probability: float in (0, 1], where the line of stochastic depth ends, see
            `layers.survival_probabilities`; 1: off. Only the 6n+2 ResNets have it.
        batch_norm_momentum: float in [0, 1), momentum of BatchNorm's moving statistics.
        synchronized: bool, whether BatchNorm takes its statistics over all replicas.
        seed: int, of the initial weights.

    Returns:
        keras.Model from float32 pixels in [0, 255], shape (batch, image_size, image_size, 3), to
        float32 logits, shape (batch, num_classes). Normalisation is inside.

    Raises:
        UserError: `name` is unknown or the images are too small for the network's strides.
        ValueError: a rate or probability is out of its range.
    """
    check_name(name)
    depth = _depth_6n2(name)
    total_stride = 8 if depth is None else 4
    if image_size < total_stride:
        raise UserError(
            f"--image_size={image_size} is too small for {name}, which divides the side by "
            f"{total_stride}: give at least {total_stride}."
        )
    builder = Builder(seed, batch_norm_momentum, synchronized)
    arguments = {
        "num_classes": num_classes,
        "image_size": image_size,
        "dropout_rate": dropout_rate,
    }
    if depth is not None:
        return resnet.build_resnet6n2(
            builder, depth, survival_probability=survival_probability, **arguments
        )
    if name == "resnet9":
        return resnet.build_resnet9(builder, **arguments)
    if name == "resnet6":
        return resnet.build_resnet6(builder, **arguments)
    return convnet.build_convnet(builder, name, **arguments)


def check_name(name):
    """UserError where `build_model` does not know the name."""
    if _depth_6n2(name) is None and name not in model_names():
        raise UserError(
            f"--models names {name!r}: expected one of {', '.join(model_names())}, or resnetN with "
            "another N = 6n + 2."
        )


def _depth_6n2(name):
    """N of "resnetN" where N = 6n + 2 and n of 1 or more, otherwise None."""
    match = re.fullmatch(r"resnet([1-9][0-9]*)", name)
    depth = int(match[1]) if match else 0
    return depth if depth >= 8 and depth % 6 == 2 else None
