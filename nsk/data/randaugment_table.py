"""RandAugment's table of operations: kernel, amount, unit and caption of each.

Everything else derives from `OPERATIONS`: the values of `--randaugment_operations`, the captions of
`tools.show_augment`, the contenders of `tools.benchmark_augment` and the documentation's table. To
add an operation, add a row here and its kernel to `nsk.data.image_kernels`.

Amounts are written for any array module `xp` with `floor`, `round`, `minimum` and `maximum`: NumPy
for captions and documents, TensorFlow in training. So this file imports neither, and `--help`,
which lists the operations, stays fast.

Reference: RandAugment (https://arxiv.org/abs/1909.13719). The profile "reference" is the arithmetic
of the official Noisy Student code, "linear" that of PyTorch implementations (UDA, FixMatch), which
CIFAR-10 systems use.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

PROFILES = ("increasing", "reference", "linear")
# Those whose amounts are defined up to level 1 only.
BOUNDED_PROFILES = ("increasing", "linear")


class Strength(NamedTuple):
    """What an amount is computed from; numbers, arrays or tensors.

    Attributes:
        level: magnitude / max_level, >= 0; at most 1 under `BOUNDED_PROFILES`.
        sign: -1 or 1.
        height, width: of the images, pixels.
        translate_share: translation at level 1 under "increasing", as a share of the side.
    """

    level: Any
    sign: Any
    height: Any
    width: Any
    translate_share: float

    def shorter_side(self, xp: ModuleType) -> Any:
        """The smaller of height and width, pixels."""
        return xp.minimum(self.height, self.width)


AmountFunction = Callable[[ModuleType, Strength], Any]


@dataclasses.dataclass(frozen=True)
class Amount:
    """How strength translates into the number that an operation's kernel takes.

    Attributes:
        unit: of the amount.
        caption: format string of one number, for a person.
        increasing: the amount under the profile "increasing", where every operation changes the
            image more at a higher level.
        reference: the amount under the profile "reference"; None: as under "increasing".
        linear: the amount under the profile "linear", where it runs linearly over the operation's
            range, whether the change grows or not; None: as under "increasing".
        signed: the profiles under which the sign matters.
    """

    unit: str
    caption: str
    increasing: AmountFunction
    reference: AmountFunction | None = None
    linear: AmountFunction | None = None
    signed: tuple[str, ...] = ()

    def function(self, profile: str) -> AmountFunction:
        """The function that computes the amount under a profile."""
        return getattr(self, profile) or self.increasing


@dataclasses.dataclass(frozen=True)
class Operation:
    """A row of the table.

    Attributes:
        kernel: name of a function of `nsk.data.image_kernels`. It takes the images, the amount if
            there is one, and `kernel_arguments` by name.
        amount: None if the operation has no strength.
        kernel_arguments: what the kernel takes besides, out of `fill` and `center`.
        fills: the gray level or (red, green, blue) of what is left empty, for profiles that
            prescribe it.
        in_all: the profiles under which `all` operations include this one.
    """

    kernel: str
    amount: Amount | None = None
    kernel_arguments: tuple[str, ...] = ()
    fills: Mapping[str, int | tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    in_all: tuple[str, ...] = PROFILES

    def is_signed(self, profile: str) -> bool:
        """Whether the two signs differ under a profile."""
        return self.amount is not None and profile in self.amount.signed

    def caption(self, amount: float) -> str:
        """The amount with its unit, for a person; "" if there is none."""
        return "" if self.amount is None else self.amount.caption.format(float(amount))


def _factor_from_gray(xp: ModuleType, strength: Strength) -> Any:
    """From 0.1, almost the degenerate image, over 1, no change, to 1.9."""
    return 1.8 * strength.level + 0.1


_GEOMETRIC_FILLS = {"linear": 0}
_ENHANCEMENT = Amount(
    unit="factor",
    caption="x {:.2f}",
    increasing=lambda xp, strength: 1.0 + 0.9 * strength.level * strength.sign,
    reference=_factor_from_gray,
    linear=_factor_from_gray,
    signed=("increasing",),
)
_SHEAR = Amount(
    unit="pixels per pixel",
    caption="{:+.2f} per pixel",
    increasing=lambda xp, strength: 0.3 * strength.level * strength.sign,
    signed=PROFILES,
)


def _translation(side_of: Callable[[Strength], Any]) -> Amount:
    """The amount of a translation along the axis with this side."""

    def increasing(xp, strength):
        return strength.translate_share * strength.level * side_of(strength) * strength.sign

    def reference(xp, strength):
        return xp.minimum(100.0 * strength.level, side_of(strength)) * strength.sign

    def linear(xp, strength):
        return 0.33 * strength.level * side_of(strength) * strength.sign

    return Amount("pixels", "{:+.1f} pixels", increasing, reference, linear, signed=PROFILES)


OPERATIONS = {
    "auto_contrast": Operation("auto_contrast"),
    "equalize": Operation("equalize"),
    "invert": Operation("invert"),
    "rotate": Operation(
        "rotate",
        Amount(
            unit="degrees",
            caption="{:+.0f} degrees",
            increasing=lambda xp, strength: 30.0 * strength.level * strength.sign,
            signed=PROFILES,
        ),
        kernel_arguments=("fill",),
        fills=_GEOMETRIC_FILLS,
    ),
    "posterize": Operation(
        "posterize",
        Amount(
            unit="bits kept",
            caption="{:.0f} bits",
            increasing=lambda xp, strength: 8.0 - xp.round(4.0 * strength.level),
            reference=lambda xp, strength: xp.minimum(
                xp.maximum(xp.floor(4.0 * strength.level), 1.0), 8.0
            ),
            linear=lambda xp, strength: xp.maximum(xp.floor(4.0 * strength.level), 1.0),
        ),
    ),
    "solarize": Operation(
        "solarize",
        Amount(
            unit="threshold",
            caption="from {:.0f}",
            increasing=lambda xp, strength: 256.0 * (1.0 - strength.level),
            reference=lambda xp, strength: xp.minimum(xp.floor(256.0 * strength.level), 256.0),
            linear=lambda xp, strength: 256.0 * strength.level,
        ),
    ),
    "color": Operation("color", _ENHANCEMENT),
    "contrast": Operation("contrast", _ENHANCEMENT),
    "brightness": Operation("brightness", _ENHANCEMENT),
    "sharpness": Operation("sharpness", _ENHANCEMENT),
    "shear_x": Operation("shear_x", _SHEAR, kernel_arguments=("fill",), fills=_GEOMETRIC_FILLS),
    "shear_y": Operation("shear_y", _SHEAR, kernel_arguments=("fill",), fills=_GEOMETRIC_FILLS),
    "translate_x": Operation(
        "translate_x",
        _translation(lambda strength: strength.width),
        kernel_arguments=("fill",),
        fills=_GEOMETRIC_FILLS,
    ),
    "translate_y": Operation(
        "translate_y",
        _translation(lambda strength: strength.height),
        kernel_arguments=("fill",),
        fills=_GEOMETRIC_FILLS,
    ),
    "solarize_add": Operation(
        "solarize_add",
        Amount(
            unit="levels added below 128",
            caption="+{:.0f} below 128",
            increasing=lambda xp, strength: xp.floor(110.0 * strength.level),
        ),
    ),
    "cutout": Operation(
        "cutout",
        Amount(
            unit="pixels of the side",
            caption="{:.0f} pixels",
            increasing=lambda xp, strength: xp.round(
                0.36 * strength.level * strength.shorter_side(xp)
            ),
            reference=lambda xp, strength: xp.minimum(
                2.0 * xp.floor(40.0 * strength.level), strength.shorter_side(xp)
            ),
            linear=lambda xp, strength: xp.floor(40.0 * strength.level),
        ),
        kernel_arguments=("fill", "center"),
        fills={"linear": (125, 123, 114)},  # The mean colour of CIFAR-10.
    ),
    "identity": Operation("identity", in_all=("linear",)),
}


def all_operations(profile: str) -> tuple[str, ...]:
    """The names of `all` operations under a profile."""
    return tuple(name for name, operation in OPERATIONS.items() if profile in operation.in_all)


def amounts_as_markdown(
    xp: ModuleType, levels: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 1.0), side: int = 224
) -> list[str]:
    """The documentation's table: every operation's amount at several levels, for each profile.

    Args:
        xp: `numpy`.
        levels: magnitudes as shares of the largest one.
        side: of the square images, pixels; some amounts depend on it.

    Returns:
        Lines of a Markdown table, with a column for each level. A row's sign is positive.
    """
    header = ["operation", "unit", "profile", *(f"{level:g}" for level in levels)]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, operation in OPERATIONS.items():
        if operation.amount is None:
            lines.append("| " + " | ".join([name, "none", "all", *("" for _ in levels)]) + " |")
            continue
        profiles_of = {}
        for profile in PROFILES:
            profiles_of.setdefault(operation.amount.function(profile), []).append(profile)
        for function, profiles in profiles_of.items():
            strengths = [Strength(level, 1.0, side, side, 0.45) for level in levels]
            is_same = len(profiles) == len(PROFILES)
            cells = [name, operation.amount.unit, "all" if is_same else ", ".join(profiles)]
            cells += [operation.caption(function(xp, strength)) for strength in strengths]
            lines.append("| " + " | ".join(cells) + " |")
    return lines
