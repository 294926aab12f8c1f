"""Applies RandAugment's operations (`nsk.data.randaugment_table`) to batches of images.

Images are uint8 (batch, height, width, 3), with any batch size, unknown and zero included.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from nsk.data import image_kernels
from nsk.data.image_tensors import checked, like, sizes
from nsk.data.randaugment_table import (
    BOUNDED_PROFILES,
    OPERATIONS,
    PROFILES,
    Operation,
    Strength,
    all_operations,
)

GROWING_MODES = ("growing", "growing_uniform")
MAGNITUDE_MODES = ("constant", "uniform", *GROWING_MODES)


@dataclasses.dataclass(frozen=True)
class RandAugmentOptions:
    """The settings of RandAugment.

    Attributes:
        num_ops: operations applied to each image; 0: off.
        magnitude: >= 0, the strength; level = magnitude / max_level.
        max_level: the magnitude of full strength; the largest one under "increasing" and "linear".
        profile: "increasing", where every operation grows with the level, "reference", the
            official code's arithmetic (made for max_level=10), or "linear", the arithmetic of
            PyTorch implementations (made for max_level=30).
        operations: names of the operations to draw from; None becomes `all` of the profile.
        magnitude_mode: "constant", or "uniform": each operation of each image draws its level
            uniformly in [0, magnitude / max_level). In "growing" and "growing_uniform" it is the
            same with a share of the magnitude that each image is given.
        growth_steps: training steps over which the magnitude grows in these modes.
        translate_share: translation at full strength under "increasing", as a share of the side.
        fill: gray level in 0..255 of what geometric operations and cutout leave empty; "linear"
            prescribes its own.

    Raises:
        ValueError: a value is out of range or unknown.
    """

    num_ops: int = 0
    magnitude: float = 0.0
    max_level: float = 30.0
    profile: str = "increasing"
    operations: tuple[str, ...] | None = None
    magnitude_mode: str = "constant"
    growth_steps: int = 1
    translate_share: float = 0.45
    fill: int = 128

    @property
    def grows(self) -> bool:
        """Whether the magnitude grows over the training."""
        return self.num_ops > 0 and self.magnitude_mode in GROWING_MODES

    def __post_init__(self):
        if (
            self.num_ops < 0
            or self.magnitude < 0
            or self.max_level <= 0
            or not 0 <= self.fill <= 255
        ):
            raise ValueError(
                f"num_ops={self.num_ops}, magnitude={self.magnitude}, max_level={self.max_level}, "
                f"fill={self.fill}: expected num_ops >= 0, magnitude >= 0, max_level > 0 and fill "
                "in 0..255."
            )
        if self.profile not in PROFILES or self.magnitude_mode not in MAGNITUDE_MODES:
            raise ValueError(
                f"profile={self.profile!r}, magnitude_mode={self.magnitude_mode!r}: expected one "
                f"of {PROFILES} and one of {MAGNITUDE_MODES}."
            )
        if self.profile in BOUNDED_PROFILES and self.magnitude > self.max_level:
            raise ValueError(f"magnitude={self.magnitude} is above max_level={self.max_level}.")
        if self.operations is None:
            object.__setattr__(self, "operations", all_operations(self.profile))
        if not self.operations or set(self.operations) - set(OPERATIONS):
            raise ValueError(f"operations={self.operations}: expected some of {tuple(OPERATIONS)}.")


DEFAULT_OPTIONS = RandAugmentOptions()


def operation_amount(
    name: str,
    level: float | tf.Tensor,
    sign: float | tf.Tensor,
    height: int | tf.Tensor,
    width: int | tf.Tensor,
    options: RandAugmentOptions = DEFAULT_OPTIONS,
) -> tf.Tensor:
    """The number that an operation's kernel takes at a level.

    Args:
        name: of an operation.
        level: float tensor or number >= 0; at most 1 under `BOUNDED_PROFILES`.
        sign: float tensor or number, -1 or 1.
        height: of the images, pixels; int or scalar tensor.
        width: of the images, pixels; int or scalar tensor.
        options: only `profile` and `translate_share` are used.

    Returns:
        float64 tensor of the shape of `level`, broadcast with `sign` if it matters; 0 if the
        operation has no amount.
    """
    operation = _find(name)
    numbers = [_float64(number) for number in (level, sign, height, width)]
    if operation.amount is None:
        return tf.zeros_like(numbers[0])
    function = operation.amount.function(options.profile)
    return function(tf, Strength(*numbers, options.translate_share))


@tf.autograph.experimental.do_not_convert
def apply_operation(
    name: str,
    images: tf.Tensor,
    level: float | tf.Tensor,
    sign: float | tf.Tensor = 1.0,
    center: float | tf.Tensor = 0.5,
    options: RandAugmentOptions = DEFAULT_OPTIONS,
) -> tf.Tensor:
    """Applies one operation to every image of a batch.

    A positive sign rotates counter-clockwise and, as in Pillow's matrices, takes what the output
    shows from further right (shear_x, translate_x) or further down (shear_y, translate_y).

    Args:
        name: of an operation.
        images: uint8 (batch, height, width, 3).
        level: float or (batch,), see `operation_amount`.
        sign: float or (batch,), -1 or 1.
        center: float or (batch, 2) in [0, 1), cutout's row and column as a share of the sides.
        options: only `profile`, `translate_share` and `fill` are used.

    Returns:
        uint8 tensor of the same shape.
    """
    images = checked(images)
    batch, height, width = sizes(images)
    operation = _find(name)
    inputs = [images]
    if operation.amount is not None:
        amount = operation_amount(name, level, sign, height, width, options)
        inputs.append(tf.broadcast_to(tf.cast(amount, tf.float32), [batch]))
    available = {
        "fill": operation.fills.get(options.profile, options.fill),
        "center": tf.broadcast_to(tf.cast(center, tf.float32), [batch, 2]),
    }
    kernel = getattr(image_kernels, operation.kernel)
    arguments = {argument: available[argument] for argument in operation.kernel_arguments}
    return like(kernel(*inputs, **arguments), images)


def _find(name: str) -> Operation:
    if name not in OPERATIONS:
        raise ValueError(f"operation {name!r}: expected one of {tuple(OPERATIONS)}.")
    return OPERATIONS[name]


def _float64(number: float | np.ndarray | tf.Tensor) -> tf.Tensor:
    # tf.cast of a Python float goes through float32, where int(110 * 0.9) is 98.
    return tf.cast(number if tf.is_tensor(number) else tf.constant(number, tf.float64), tf.float64)
