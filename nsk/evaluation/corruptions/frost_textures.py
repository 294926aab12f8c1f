"""Textures of frost: photographs from a folder, or procedural ones.

The published sets blend photographs of frost into the images. They are not part of this project;
`read_textures` reads them from a folder of the user's. `procedural_textures` stands in for them:
results with it are not comparable with those on the published sets.
"""

import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nsk.errors import UserError
from nsk.evaluation.corruptions.motion import blur_along_angle
from nsk.evaluation.corruptions.plasma import plasma_map
from nsk.evaluation.corruptions.random_numbers import RandomNumbers

# To be printed with every result of frost without photographs.
PROCEDURAL_FROST_NOTE = "frost with procedural textures, not the published photographs"
# The published sets were made from the first five of six files.
NUM_TEXTURES = 5

_SUFFIXES = {".jpg", ".jpeg", ".png"}
_HEIGHT, _WIDTH = 384, 512
# Mean and standard deviation of the levels of each procedural texture; mean colors of frost.
_LEVELS = ((120, 36), (135, 24), (150, 28), (170, 26), (205, 20))
_TINT = (-22, 4, 18)


def read_textures(folder: str | Path) -> list[np.ndarray]:
    """Reads the first five JPEG or PNG files of a folder, in the order of their names.

    Returns:
        list of uint8 arrays (height, width, 3), without alpha channel.

    Raises:
        UserError: there is no such file, or one cannot be read as an image.
    """
    folder = Path(folder)
    files = folder.iterdir() if folder.is_dir() else []
    paths = sorted(path for path in files if path.suffix.lower() in _SUFFIXES)[:NUM_TEXTURES]
    if not paths:
        raise UserError(
            f"{folder} has no JPEG or PNG files: expected photographs of frost. Give the folder of "
            "the published ones (frost1.png ...), or none for procedural textures."
        )
    return [_read_texture(path) for path in paths]


@functools.cache
def procedural_textures() -> tuple[np.ndarray, ...]:
    """Makes five textures, always the same: needles of ice in all directions on a rough cloud.

    Their levels have means and standard deviations near those of the published photographs.

    Returns:
        five uint8 arrays (384, 512, 3).
    """
    names = [f"texture {index}" for index in range(NUM_TEXTURES)]
    numbers = RandomNumbers(0, names, "procedural frost")
    cloud = plasma_map(numbers, 512, 1.6)[:, :_HEIGHT, :_WIDTH]
    needles = np.zeros_like(cloud)
    for length in (6, 10, 16, 24) * 3:
        seeds = np.maximum(numbers.normal(cloud.shape[1:]) - 2.4, 0)
        angles = numbers.uniform(0, 360)
        # Blurred to both sides, so that needles are brightest in the middle.
        blurred = [blur_along_angle(seeds, length, length / 2, angles + turn) for turn in (0, 180)]
        needles = np.maximum(needles, sum(blurred) * length)
    heights = 1.5 * _standardized(cloud) + _standardized(needles)
    means, deviations = (np.reshape(values, (-1, 1, 1)) for values in zip(*_LEVELS, strict=True))
    levels = means + deviations * _standardized(heights)
    return tuple((levels[..., np.newaxis] + _TINT).clip(0, 255).astype(np.uint8))


def resize_texture(texture: np.ndarray, scale: float) -> np.ndarray:
    """Resizes bilinearly, without averaging: only the four nearest pixels count.

    As OpenCV's `resize`, with its fixed-point arithmetic: at the scales of the published sets (0.2
    and 0.3) all levels agree.

    Args:
        texture: uint8 (height, width, 3).
        scale: new size by old size, positive.

    Returns:
        uint8 (round(height * scale), round(width * scale), 3).
    """
    if scale == 1:
        return texture
    (top, bottom, down), (left, right, across) = (
        _neighbors(side, scale) for side in texture.shape[:2]
    )
    down, across = down[:, np.newaxis, np.newaxis], across[:, np.newaxis]
    upper, lower = (
        texture[np.ix_(rows, left)] * (2048 - across) + texture[np.ix_(rows, right)] * across
        for rows in (top, bottom)
    )
    sums = ((2048 - down) * (upper >> 4) >> 16) + (down * (lower >> 4) >> 16)
    return (sums + 2 >> 2).astype(np.uint8)


def _read_texture(path):
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(
            f"{path} cannot be read as an image ({error}): expected a photograph of frost. Remove "
            "or replace the file."
        ) from error


def _standardized(values):
    """Shifts and scales each of (n, height, width) to the mean 0 and standard deviation 1."""
    values = values - values.mean(axis=(1, 2), keepdims=True)
    return values / values.std(axis=(1, 2), keepdims=True)


def _neighbors(side, scale):
    """Two nearest pixels of each new one along an axis, and the second's share of 2048."""
    positions = (np.arange(round(side * scale)) + 0.5) / scale - 0.5
    positions = positions.clip(0, side - 1)
    before = np.floor(positions).astype(np.int64)
    shares = np.rint((positions - before) * 2048).astype(np.int64)
    return before, np.minimum(before + 1, side - 1), shares
