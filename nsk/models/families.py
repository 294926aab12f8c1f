"""The families of networks: their names, their limits, and building a network by its name."""

import contextlib
import dataclasses
import re
from collections.abc import Callable

import keras

from nsk.errors import UserError, suggest_names
from nsk.models import convnet, efficientnet, kerascv, resnet, wide_resnet
from nsk.models.layers import Builder

# Keras' dtype policies of the precisions in which layers compute.
PRECISIONS = {"float32": "float32", "bf16": "mixed_bfloat16"}


@dataclasses.dataclass(frozen=True)
class Family:
    """Networks whose names match one pattern.

    Attributes:
        pattern: regular expression of a full name; its groups are integers or words.
        names: common names, for messages and tests.
        build: function of (builder, *groups, num_classes=, image_size=, dropout_rate=) and, if the
            family has stochastic depth, survival_probability=, that returns the network.
        stride: factor by which the side of an image is divided, and so the smallest side in pixels.
        description: the names of the family, for messages; None: exactly `names`.
        accepts: function of the groups: whether the family has such a network.
        check_image_size: function of (*groups, image_size, flag) that raises a UserError if the
            network cannot take images of this size; None: `stride` is the only limit.
        has_stochastic_depth: whether networks have blocks with stochastic depth.
    """

    pattern: str
    names: tuple[str, ...]
    build: Callable[..., keras.Model]
    stride: int
    description: str | None = None
    accepts: Callable[..., bool] = lambda *groups: True
    check_image_size: Callable[..., None] | None = None
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
        description="resnetN with any N = 6n + 2",
        accepts=lambda depth: depth >= 8 and depth % 6 == 2,
    ),
    Family(
        "wrn([1-9][0-9]*)_([1-9][0-9]*)",
        ("wrn28_2", "wrn28_10"),
        wide_resnet.build_wide_resnet,
        stride=4,
        description="wrnN_K with any N = 6n + 4",
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
        description="efficientnet_b0 to b8 and l0 to l2",
        accepts=lambda variant: variant in efficientnet.VARIANTS,
    ),
    Family(
        "efficientnet_([bl][0-9])_small",
        ("efficientnet_b0_small",),
        efficientnet.build_small_efficientnet,
        stride=8,
        description="any EfficientNet with the suffix _small",
        accepts=lambda variant: variant in efficientnet.VARIANTS,
    ),
    Family(
        "kerascv:(.+)",
        (),  # Building one takes seconds, so tests do not go through them.
        kerascv.build_kerascv,
        stride=32,
        description="kerascv:NAME (docs/kerascv.md)",
        accepts=lambda name: bool(kerascv.parse_name(name)),  # Raises a more specific UserError.
        check_image_size=kerascv.check_image_size,
    ),
)


def model_names() -> tuple[str, ...]:
    """Common names of networks; for the others see `Family.description`."""
    return tuple(name for family in FAMILIES for name in family.names)


def build_model(  # noqa: PLR0913 (keyword arguments only)
    name: str,
    *,
    num_classes: int,
    image_size: int,
    dropout_rate: float = 0.0,
    survival_probability: float = 1.0,
    batch_norm_momentum: float = 0.9,
    precision: str = "float32",
    synchronized: bool = False,
    seed: int = 0,
) -> keras.Model:
    """Builds a network whose initial weights are a pure function of `seed` and its layers' names.

    Args:
        name: name of a network, see `FAMILIES`.
        num_classes: number of classes.
        image_size: side of the square images in pixels.
        dropout_rate: rate in [0, 1) of the dropout before the classifier.
        survival_probability: in (0, 1], end of the linear decay of stochastic depth, see
            `layers.survival_probabilities`; 1: off. Ignored by networks without stochastic depth
            (ConvNets, ResNet6, ResNet9); for those of KerasCV see `build_kerascv`.
        batch_norm_momentum: in [0, 1), momentum of BatchNorm's moving statistics.
        precision: "float32" or "bf16": what layers compute in. Weights, pixels, noise and logits
            are float32 in both.
        synchronized: whether BatchNorm computes its statistics over all replicas.
        seed: seed of the initial weights.

    Returns:
        keras.Model from float32 pixels in [0, 255], shape (batch, image_size, image_size, 3), to
        float32 logits, shape (batch, num_classes). The network normalises the pixels itself.

    Raises:
        UserError: `name` is unknown or the images are too small for the network's strides.
        ValueError: a rate or probability is out of its range.
    """
    family, groups = _find_family(name)
    check_image_size(name, image_size)
    arguments = {
        "num_classes": num_classes,
        "image_size": image_size,
        "dropout_rate": dropout_rate,
    }
    if family.has_stochastic_depth:
        arguments["survival_probability"] = survival_probability
    with _dtype_policy(PRECISIONS[precision]):
        return family.build(Builder(seed, batch_norm_momentum, synchronized), *groups, **arguments)


def check_image_size(name: str, image_size: int, flag: str = "image_size") -> None:
    """Raises a UserError that names `flag` if images of this side, in pixels, are too small."""
    family, groups = _find_family(name)
    if family.check_image_size:
        family.check_image_size(*groups, image_size, flag)
    if image_size < family.stride:
        raise UserError(
            f"--{flag}={image_size} is too small for {name}, which divides the side by "
            f"{family.stride}: give at least {family.stride}."
        )


def is_for_small_images(name: str) -> bool:
    """Whether a network has a small total stride, so that large images are expensive."""
    return _find_family(name)[0].stride < 32


def check_name(name: str) -> None:
    """Raises a UserError if `build_model` does not know the name."""
    _find_family(name)


def _find_family(name):
    """(family, groups of its pattern) of a name; UserError if there is none."""
    for family in FAMILIES:
        match = re.fullmatch(family.pattern, name, re.ASCII)
        if match:
            groups = [int(group) if group.isdigit() else group for group in match.groups()]
            if family.accepts(*groups):
                return family, groups
    spellings = {}
    for known_name in (*model_names(), *kerascv.names()):
        short_name = known_name.removeprefix("imagenet_").removeprefix("kerascv:")
        for spelling in {known_name, short_name}:
            spellings.setdefault(spelling, []).append(known_name)
    similar = suggest_names(name, spellings)
    all_names = (family.description or ", ".join(family.names) for family in FAMILIES)
    expected = "a name from docs/models.md" if similar else ", ".join(all_names)
    raise UserError(f"--models: unknown network {name!r}{similar}: expected {expected}.")


@contextlib.contextmanager
def _dtype_policy(name):
    """Sets Keras' default dtype policy within it."""
    previous = keras.config.dtype_policy()
    if name != "float32":
        keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
