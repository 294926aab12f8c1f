"""Networks by name."""

import contextlib
import dataclasses
import re
import sys

import keras

from nsk.errors import UserError, similar_names
from nsk.models import convnet, efficientnet, kerascv, resnet, wide_resnet
from nsk.models.layers import Builder

# Keras walks through a network by recursion, a call for each layer on its longest path. For
# EfficientNet-L2 this takes nearly the 1,000 calls that Python by itself allows.
sys.setrecursionlimit(max(10_000, sys.getrecursionlimit()))
# What weights and layers compute in: Keras' names of the precisions.
PRECISIONS = {"float32": "float32", "bf16": "mixed_bfloat16"}


@dataclasses.dataclass(frozen=True)
class Family:
    """Networks whose names follow one pattern.

    Attributes:
        pattern: regular expression of a whole name; its groups are numbers or words.
        names: the usual names, for messages and tests.
        described: what names there are, for messages; None: `names` and no others.
        build: function of (builder, *groups, **arguments) that returns the network.
        stride: int, by what the side of an image is divided; the least side.
        accepts: function of the groups, whether there is such a network.
        check_size: function of (*groups, image_size, flag) that raises a UserError where the
            network cannot take images of this side, or None.
        has_stochastic_depth: bool.
    """

    pattern: str
    names: tuple
    build: object
    stride: int
    described: str | None = None
    accepts: object = lambda *groups: True
    check_size: object = None
    has_stochastic_depth: bool = True


FAMILIES = (
    Family(
        "(convnet[56])",
        ("convnet5", "convnet6"),
        convnet.build_convnet,
        stride=8,
        has_stochastic_depth=False,
    ),
    Family("resnet6", ("resnet6",), resnet.build_resnet6, stride=8, has_stochastic_depth=False),
    Family("resnet9", ("resnet9",), resnet.build_resnet9, stride=8, has_stochastic_depth=False),
    Family(
        "resnet([1-9][0-9]*)",
        ("resnet20", "resnet26", "resnet32", "resnet38"),
        resnet.build_resnet6n2,
        stride=4,
        described="resnetN with any N = 6n + 2",
        accepts=lambda depth: depth >= 8 and depth % 6 == 2,
    ),
    Family(
        "wrn([1-9][0-9]*)_([1-9][0-9]*)",
        ("wrn28_2", "wrn28_10"),
        wide_resnet.build_wide_resnet,
        stride=4,
        described="wrnN_K with any N = 6n + 4",
        accepts=lambda depth, width: depth >= 10 and depth % 6 == 4,
    ),
    Family(
        "imagenet_resnet([1-9][0-9]*)",
        tuple(f"imagenet_resnet{depth}" for depth in resnet.BLOCKS_IMAGENET),
        resnet.build_imagenet_resnet,
        stride=32,
        accepts=lambda depth: depth in resnet.BLOCKS_IMAGENET,
    ),
    Family(
        "efficientnet_([bl][0-9])",
        tuple(f"efficientnet_{variant}" for variant in efficientnet.VARIANTS),
        efficientnet.build_efficientnet,
        stride=32,
        described="efficientnet_b0 to b8 and l0 to l2",
        accepts=lambda variant: variant in efficientnet.VARIANTS,
    ),
    Family(
        "efficientnet_([bl][0-9])_small",
        ("efficientnet_b0_small",),
        efficientnet.build_small_efficientnet,
        stride=8,
        described="the same with _small behind it",
        accepts=lambda variant: variant in efficientnet.VARIANTS,
    ),
    Family(
        "kerascv:(.+)",
        (),  # Building one takes seconds.
        kerascv.build_kerascv,
        stride=32,
        described="kerascv:NAME (docs/kerascv.md)",
        accepts=kerascv.parse,
        check_size=kerascv.check_image_size,
    ),
)


def model_names():
    """The usual names that `build_model` knows.

    Besides these there are `resnetN` with any N = 6n + 2, `wrnN_K` with any N = 6n + 4 and any K,
    and `_small` behind the name of any EfficientNet, and `kerascv:NAME` with any name that
    `kerascv.parse` knows.
    """
    return tuple(name for family in FAMILIES for name in family.names)


def build_model(
    name,
    *,
    num_classes,
    image_size,
    dropout_rate=0.0,
    survival_probability=1.0,
    batch_norm_momentum=0.9,
    precision="float32",
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
            `layers.survival_probabilities`; 1: off. Networks without an identity skip over a block
            (ConvNets, ResNet6, ResNet9) have none; for those of KerasCV see `build_kerascv`.
        batch_norm_momentum: float in [0, 1), momentum of BatchNorm's moving statistics.
        precision: float32 | bf16: what layers compute in. Weights, pixels, noise and logits are
            float32 in both.
        synchronized: bool, whether BatchNorm takes its statistics over all replicas.
        seed: int, of the initial weights.

    Returns:
        keras.Model from float32 pixels in [0, 255], shape (batch, image_size, image_size, 3), to
        float32 logits, shape (batch, num_classes). Normalisation is inside.

    Raises:
        UserError: `name` is unknown or the images are too small for the network's strides.
        ValueError: a rate or probability is out of its range.
    """
    family, groups = _find(name)
    check_image_size(name, image_size)
    arguments = {
        "num_classes": num_classes,
        "image_size": image_size,
        "dropout_rate": dropout_rate,
    }
    if family.has_stochastic_depth:
        arguments["survival_probability"] = survival_probability
    with _computing_in(precision):
        return family.build(Builder(seed, batch_norm_momentum, synchronized), *groups, **arguments)


def check_image_size(name, image_size, flag="image_size"):
    """UserError where a network's images, of the side that a flag gives, are too small for it."""
    family, groups = _find(name)
    if family.check_size:
        family.check_size(*groups, image_size, flag)
    if image_size < family.stride:
        raise UserError(
            f"--{flag}={image_size} is too small for {name}, which divides the side by "
            f"{family.stride}: give at least {family.stride}."
        )


def is_for_small_images(name):
    """Whether a network divides the side of an image by so little that large ones cost much."""
    return _find(name)[0].stride < 32


def check_name(name):
    """UserError where `build_model` does not know the name."""
    _find(name)


def _find(name):
    """(family, groups of its pattern) of a name; UserError where there is none."""
    for family in FAMILIES:
        match = re.fullmatch(family.pattern, name, re.ASCII)
        if match:
            groups = [int(one) if one.isdigit() else one for one in match.groups()]
            if family.accepts(*groups):
                return family, groups
    spellings = {}
    for one in (*model_names(), *kerascv.names()):
        for spelling in {one, one.removeprefix("imagenet_").removeprefix("kerascv:")}:
            spellings.setdefault(spelling, []).append(one)
    near = similar_names(name, spellings)
    described = (family.described or ", ".join(family.names) for family in FAMILIES)
    expected = "those or another one of docs/models.md" if near else ", ".join(described)
    raise UserError(f"--models names {name!r}, which is not known{near}: expected {expected}.")


@contextlib.contextmanager
def _computing_in(precision):
    """Layers that are made within compute in this precision."""
    before = keras.config.dtype_policy()
    if precision != "float32":
        keras.config.set_dtype_policy(PRECISIONS[precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
