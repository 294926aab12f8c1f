"""The noise on training images."""

import dataclasses
from typing import Self

from nsk.config.fields import Section, above_zero, equals, per_generation, setting
from nsk.data.randaugment_table import BOUNDED_PROFILES, OPERATIONS, PROFILES, all_operations
from nsk.errors import UserError, list_names

RANDAUGMENT_OPERATIONS = tuple(OPERATIONS)
# Data sets whose classes change under mirroring.
NEVER_FLIPPED = ("digits", "tfds:mnist", "tfds:svhn_cropped", "tfds:emnist", "tfds:kmnist")

# Values that switch all noise off; settings with a condition of use follow those that they need.
NO_NOISE = {
    "randaugment_num_ops": 0,
    "crop_padding": 0,
    "min_crop_area": 0.0,
    "cutout_side": 0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "flip": "off",
}
WITH_RANDAUGMENT = above_zero("randaugment_num_ops")


@dataclasses.dataclass(frozen=True)
class NoiseConfig(Section):
    """The noise on training images."""

    randaugment_num_ops: int = per_generation(
        2, help="RandAugment operations per image; 0: off.", minimum=0, maximum=16
    )
    randaugment_magnitude: float = per_generation(
        9.0,
        help="RandAugment magnitude, from 0 to --randaugment_max_level.",
        minimum=0.0,
        used_if=WITH_RANDAUGMENT,
    )
    randaugment_max_level: float = setting(
        30.0, "The magnitude of full strength.", minimum=0.001, used_if=WITH_RANDAUGMENT
    )
    randaugment_profile: str = setting(
        "increasing",
        "increasing: every operation gets stronger with the magnitude | reference: the official "
        "code's arithmetic | linear: every amount runs linearly over its range, as in PyTorch "
        "implementations (UDA, FixMatch, CIFAR-10 systems).",
        choices=PROFILES,
        used_if=WITH_RANDAUGMENT,
    )
    randaugment_operations: str = setting(
        "all",
        "Comma list of the operations to draw from, or all (with identity only under the profile "
        "linear): " + ",".join(RANDAUGMENT_OPERATIONS),
        used_if=WITH_RANDAUGMENT,
    )
    translate_share: float = setting(
        0.45,
        "Translation at full strength, as a share of the side (SVHN: 0.125).",
        minimum=0.0,
        maximum=1.0,
        used_if=WITH_RANDAUGMENT & equals("randaugment_profile", "increasing"),
    )
    magnitude_mode: str = setting(
        "constant",
        "constant: every operation uses the magnitude | uniform: each image draws a magnitude "
        "below it | growing: the magnitude grows linearly over the training, from 0 in the first "
        "step to --randaugment_magnitude in the last | growing_uniform: each image draws a "
        "magnitude below one that grows so.",
        choices=("constant", "uniform", "growing", "growing_uniform"),
        used_if=WITH_RANDAUGMENT,
    )
    fill: int = setting(
        128,
        "Gray level of pixels that a geometric operation or Cutout leaves empty. The profile "
        "linear has its own for RandAugment: black, and for Cutout the colour 125, 123, 114.",
        minimum=0,
        maximum=255,
        used_if=(WITH_RANDAUGMENT & equals("randaugment_profile", "increasing", "reference"))
        | above_zero("cutout_side"),
    )
    crop_padding: int = per_generation(
        4, help="Random crop after padding by this many pixels on each side; 0: off.", minimum=0
    )
    crop_mode: str = setting(
        "constant",
        "Padding of --crop_padding: constant (black) | reflect (the mirrored image).",
        choices=("constant", "reflect"),
        used_if=above_zero("crop_padding"),
    )
    min_crop_area: float = per_generation(
        0.0,
        help="Random resized crop of at least this share of the image (ImageNet: 0.08), with an "
        "aspect ratio from 3:4 to 4:3; with --resize_mode=pad or squash this ratio is relative to "
        "the image's, and the crop takes the place of the whole image; 0: off.",
        minimum=0.0,
        maximum=1.0,
    )
    cutout_side: int = per_generation(
        0,
        help="Cutout: side of the square cut out of every image, pixels; 0: off.",
        minimum=0,
    )
    mixup_alpha: float = per_generation(
        0.0,
        help="Mixup of pairs of images with weights drawn from Beta(alpha, alpha); 0: off.",
        minimum=0.0,
    )
    cutmix_alpha: float = per_generation(
        0.0,
        help="CutMix with areas drawn from Beta(alpha, alpha); 0: off. Together with mixup, each "
        "step draws one of the two.",
        minimum=0.0,
    )
    flip: str = setting(
        "auto",
        f"Random horizontal flip: on | off | auto (off for {', '.join(NEVER_FLIPPED)}, on "
        "otherwise).",
        choices=("auto", "on", "off"),
    )

    def without_noise(self) -> Self:
        """The section with all noise switched off."""
        return self.with_values(**NO_NOISE)

    @property
    def operations(self) -> tuple[str, ...]:
        """The RandAugment operations to draw from."""
        if self.randaugment_operations == "all":
            return all_operations(self.randaugment_profile)
        return tuple(name.strip() for name in self.randaugment_operations.split(","))

    def __post_init__(self):
        super().__post_init__()
        if not self.randaugment_operations:
            raise UserError(
                "--randaugment_operations is empty: name some, or give --randaugment_num_ops=0 for "
                "none."
            )
        unknown = sorted(set(self.operations) - set(RANDAUGMENT_OPERATIONS))
        if unknown:
            raise UserError(
                f"--randaugment_operations names {list_names(list(map(repr, unknown)))}: expected "
                f"all or some of {', '.join(RANDAUGMENT_OPERATIONS)}."
            )
        strongest = max(self.randaugment_magnitude)
        if self.randaugment_profile in BOUNDED_PROFILES and strongest > self.randaugment_max_level:
            raise UserError(
                f"--randaugment_magnitude={strongest} is above "
                f"--randaugment_max_level={self.randaugment_max_level}: lower the magnitude or "
                "raise the level."
            )
