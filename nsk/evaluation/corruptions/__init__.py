"""The 19 corruptions of CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C on arrays.

`corrupt` makes what those sets contain, for images of any size; docs/corruptions.md lists the
corruptions and where they differ from the published files.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nsk.evaluation.corruptions import blur, digital, motion, noise, spatter, weather
from nsk.evaluation.corruptions.constants import CONSTANTS, Severities
from nsk.evaluation.corruptions.frost_textures import read_textures
from nsk.evaluation.corruptions.random_numbers import RandomNumbers

__all__ = [
    "BENCHMARK",
    "CORRUPTIONS",
    "EXTRAS",
    "Corruption",
    "check_images",
    "choose_constants",
    "corrupt",
    "read_textures",
]

SEVERITIES = (1, 2, 3, 4, 5)
# Largest shorter side, in pixels, for which `constants="auto"` takes them.
MAX_SIDES = {"cifar": 48, "tiny": 128}


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A corruption.

    Attributes:
        name: as the published sets name it.
        kernel: function of uint8 images (n, height, width, 3), the images' `RandomNumbers` and the
            parameters of a severity that returns uint8 images of the same shape.
        parameters: for each of "cifar", "tiny" and "imagenet" the parameters of severity 1 to 5.
        group: noise, blur, weather, digital or extra.
    """

    name: str
    kernel: Callable[..., np.ndarray]
    parameters: Mapping[str, Severities]
    group: str


def _table(group, **kernels):
    return {
        name: Corruption(
            name, kernel, {key: constants[name] for key, constants in CONSTANTS.items()}, group
        )
        for name, kernel in kernels.items()
    }


CORRUPTIONS: dict[str, Corruption] = {
    **_table(
        "noise",
        gaussian_noise=noise.gaussian_noise,
        shot_noise=noise.shot_noise,
        impulse_noise=noise.impulse_noise,
    ),
    **_table(
        "blur",
        defocus_blur=blur.defocus_blur,
        glass_blur=blur.glass_blur,
        motion_blur=motion.motion_blur,
        zoom_blur=motion.zoom_blur,
    ),
    **_table(
        "weather",
        snow=weather.snow,
        frost=weather.frost,
        fog=weather.fog,
        brightness=digital.brightness,
    ),
    **_table(
        "digital",
        contrast=digital.contrast,
        elastic_transform=digital.elastic_transform,
        pixelate=digital.pixelate,
        jpeg_compression=digital.jpeg_compression,
    ),
    **_table(
        "extra",
        speckle_noise=noise.speckle_noise,
        gaussian_blur=blur.gaussian_blur,
        spatter=spatter.spatter,
        saturate=digital.saturate,
    ),
}
EXTRAS = tuple(name for name, corruption in CORRUPTIONS.items() if corruption.group == "extra")
BENCHMARK = tuple(name for name in CORRUPTIONS if name not in EXTRAS)


def corrupt(
    images: np.ndarray,
    name: str,
    severity: int,
    ids: Sequence[str],
    *,
    seed: int = 0,
    constants: str = "auto",
    textures: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Corrupts images.

    Pixels depend on the image, its id, the seed and the constants alone, in any batch.

    Args:
        images: uint8 (n, height, width, 3).
        name: key of `CORRUPTIONS`.
        severity: 1 to 5.
        ids: n strings; random numbers depend on them.
        seed: int.
        constants: "cifar", "tiny" or "imagenet"; "auto" chooses by the shorter side.
        textures: of frost, uint8 arrays (height, width, 3), see `read_textures`; None: procedural
            ones, with which frost is not that of the published sets.

    Returns:
        uint8 array of the images' shape.

    Raises:
        ValueError: an unknown name, severity or constants, or images of another shape or type.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption {name!r}: expected one of {', '.join(CORRUPTIONS)}.")
    if severity not in SEVERITIES:
        raise ValueError(f"severity={severity!r}: expected 1 to {len(SEVERITIES)}.")
    check_images(images, ids)
    corruption = CORRUPTIONS[name]
    chosen = choose_constants(images.shape[1:3], constants)
    numbers = RandomNumbers(seed, ids, f"corruption/{name}/{severity}")
    options = {"textures": textures} if name == "frost" else {}
    parameters = corruption.parameters[chosen][severity - 1]
    return corruption.kernel(images, numbers, *parameters, **options)


def choose_constants(shape: tuple[int, int], constants: str = "auto") -> str:
    """The name of the constants for images of a shape (height, width), see `corrupt`.

    "auto" chooses by the shorter side: "cifar" up to 48 pixels, "tiny" up to 128, else "imagenet".
    """
    if constants == "auto":
        fitting = (name for name, max_side in MAX_SIDES.items() if min(shape) <= max_side)
        return next(fitting, "imagenet")
    if constants not in CONSTANTS:
        raise ValueError(f"constants={constants!r}: expected auto or {', '.join(CONSTANTS)}.")
    return constants


def check_images(images: np.ndarray, ids: Sequence[str]) -> None:
    """Checks the arguments of `corrupt`.

    Raises:
        ValueError: `images` are not uint8 (n, height, width, 3) with pixels, or `ids` are not n
            strings.
    """
    is_array = isinstance(images, np.ndarray)
    if not is_array or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        found = f"{images.dtype} {images.shape}" if is_array else type(images).__name__
        raise ValueError(f"images {found}: expected uint8 (n, height, width, 3).")
    if 0 in images.shape[1:3]:
        raise ValueError(f"images {images.shape}: expected sides of at least one pixel.")
    if len(ids) != len(images):
        raise ValueError(f"{len(ids)} ids for {len(images)} images: expected one each.")
    if not all(isinstance(image_id, str) for image_id in ids):
        raise ValueError("ids: expected strings, such as the names of the images.")
