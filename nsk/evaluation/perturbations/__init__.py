"""The ten perturbations of CIFAR-10-P, Tiny-ImageNet-P and ImageNet-P on arrays.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from nsk.evaluation.corruptions import check_images, choose_constants
from nsk.evaluation.corruptions.random_numbers import RandomNumbers
from nsk.evaluation.perturbations import geometric, photometric

ALL_CONSTANTS = ("cifar", "tiny", "imagenet")
# Pixels in ImageNet-P: the shorter side of the images, and the side of the frames.
IMAGENET_SHORTER_SIDE, IMAGENET_FRAME_SIDE = 256, 224


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """A sequence of frames that is made from an image.

    Attributes:
        name: as the published sets name it.
        function: from images, random numbers if `is_random`, and the parameters to frames.
        parameters: for each of "cifar", "tiny" and "imagenet" the function's keyword arguments.
        is_noise: whether the frames are independent of each other, so that predictions are compared
            with that of frame 0, the image itself, rather than with that of the frame before.
        is_random: whether the function draws random numbers.
        is_geometric: whether content moves, so that images may be larger than the frames.
    """

    name: str
    function: Callable[..., Iterator[np.ndarray]]
    parameters: Mapping[str, Mapping[str, float]]
    is_noise: bool = False
    is_random: bool = False
    is_geometric: bool = False

    def num_frames(self, constants: str) -> int:
        """Frames for each image with the constants "cifar", "tiny" or "imagenet"."""
        return self.parameters[constants]["num_frames"]


def _by_set(cifar, tiny, imagenet, *, frames=(31, 31, 31), **common):
    """Parameters by set of constants: those of one set, and what all have in common."""
    own = (cifar, tiny, imagenet)
    return {
        constants: {"num_frames": num_frames, **common, **parameters}
        for constants, num_frames, parameters in zip(ALL_CONSTANTS, frames, own, strict=True)
    }


_ALL = (
    Perturbation(
        "gaussian_noise",
        photometric.gaussian_noise,
        _by_set({"sigma": 0.02}, {"sigma": 0.025}, {"sigma": 0.03}),
        is_noise=True,
        is_random=True,
    ),
    Perturbation(
        "shot_noise",
        photometric.shot_noise,
        _by_set({"photons": 700}, {"photons": 500}, {"photons": 300}),
        is_noise=True,
        is_random=True,
    ),
    Perturbation(
        "motion_blur",
        photometric.motion_blur,
        _by_set(
            {"radius": 6, "sigma": 1.8, "start": -180, "step": 9},
            {"radius": 14, "sigma": 3.0, "start": -150, "step": 5},
            {"radius": 10, "sigma": 3.0, "start": -120, "step": 4},
            frames=(21, 31, 31),
        ),
    ),
    Perturbation(
        "zoom_blur", geometric.zoom_blur, _by_set({}, {}, {}, step=0.004), is_geometric=True
    ),
    Perturbation(
        "snow",
        photometric.snow,
        _by_set(
            {"sigma": 0.3, "zoom": 2, "blur_radius": 10, "blur_sigma": 2.0},
            {"sigma": 0.28, "zoom": 2, "blur_radius": 10, "blur_sigma": 2.5},
            {"sigma": 0.3, "zoom": 3, "blur_radius": 14, "blur_sigma": 4.0},
        ),
        is_random=True,
    ),
    Perturbation(
        "brightness",
        photometric.brightness,
        _by_set({"step_percent": 1.5}, {"step_percent": 2}, {"step_percent": 2}),
    ),
    Perturbation(
        "translate",
        geometric.translate,
        _by_set({"start": -7}, {"start": -15}, {"start": -20}, frames=(16, 31, 41)),
        is_geometric=True,
    ),
    Perturbation("rotate", geometric.rotate, _by_set({}, {}, {}, start=-15), is_geometric=True),
    Perturbation(
        "tilt",
        geometric.tilt,
        _by_set({"step": 0.75}, {"step": 1}, {"step": 1}),
        is_geometric=True,
    ),
    Perturbation(
        "scale",
        geometric.scale,
        _by_set(
            {"start_percent": 70, "step_percent": 2},
            {"start_percent": 40, "step_percent": 2.5},
            {"start_percent": 40, "step_percent": 2.5},
        ),
        is_geometric=True,
    ),
)
PERTURBATIONS: dict[str, Perturbation] = {perturbation.name: perturbation for perturbation in _ALL}


def perturb(
    images: np.ndarray,
    name: str,
    ids: Sequence[str],
    *,
    seed: int = 0,
    constants: str = "auto",
    crop_side: int | None = None,
) -> Iterator[np.ndarray]:
    """Makes the frames of images one after another.

    Pixels depend on the image, its id, the seed and the constants alone, in any batch.

    Args:
        images: uint8 (n, height, width, 3).
        name: key of `PERTURBATIONS`.
        ids: n strings; random numbers depend on them.
        seed: int.
        constants: "cifar", "tiny" or "imagenet"; "auto" chooses by the frames' shorter side, see
            `corruptions.choose_constants`.
        crop_side: None, or the side of the frames: centre crops, taken before noise, blur, snow and
            brightness, after the others. With ImageNet's constants, images whose shorter side is
            256 and 224 make the frames of ImageNet-P.

    Returns:
        Iterator over uint8 frames (n, height, width, 3), or (n, crop_side, crop_side, 3).

    Raises:
        ValueError: unknown names, images of another shape or type, or a crop larger than them.
    """
    if name not in PERTURBATIONS:
        raise ValueError(f"perturbation {name!r}: expected one of {', '.join(PERTURBATIONS)}.")
    perturbation = PERTURBATIONS[name]
    check_images(images, ids)
    _check_crop(images, crop_side)
    chosen = choose_constants(geometric.frame_shape(images, crop_side)[1:3], constants)
    parameters = perturbation.parameters[chosen]
    if perturbation.is_geometric:
        return perturbation.function(images, crop_side=crop_side, **parameters)
    rows, columns = geometric.center_crop_slices(images, crop_side)
    inputs = [images[:, rows, columns]]
    if perturbation.is_random:
        inputs.append(RandomNumbers(seed, ids, f"perturbation/{name}"))
    return perturbation.function(*inputs, **parameters)


def uncropped_side(side: int, constants: str) -> int | None:
    """The side of images from which frames are cropped as in the published set.

    Args:
        side: of the frames, `crop_side` of `perturb`, in pixels.
        constants: "cifar", "tiny" or "imagenet".

    Returns:
        The shorter side of the images in pixels, in ImageNet-P 256 for frames of 224; None: frames
        are not cropped.
    """
    if constants != "imagenet":
        return None
    return round(side * IMAGENET_SHORTER_SIDE / IMAGENET_FRAME_SIDE)


def _check_crop(images, crop_side):
    if crop_side is not None and not 1 <= crop_side <= min(images.shape[1:3]):
        raise ValueError(
            f"crop_side={crop_side}: expected 1 to {min(images.shape[1:3])}, the images' shorter "
            "side."
        )
