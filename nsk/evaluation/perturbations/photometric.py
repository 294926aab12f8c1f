"""Noise, motion blur, snow and brightness: frames of images whose content does not move.

Each function takes uint8 images (n, height, width, 3) and yields uint8 frames of the same shape.
Values are truncated to uint8, as in the reference; only the results of motion blurs are rounded.
"""

from collections.abc import Iterator

import numpy as np

from nsk.evaluation.corruptions.motion import blur_along_angle
from nsk.evaluation.corruptions.random_numbers import RandomNumbers
from nsk.evaluation.corruptions.weather import add_snow, snowflakes

# Constants of snow that all sets have in common; noise below the threshold is no flake.
SNOW_IMAGE_SHARE = 0.85
SNOW_MEAN = 0.05
SNOW_THRESHOLD = 0.5
SNOW_FIRST_DEGREES = -150
SNOW_STEP_DEGREES = 4


def gaussian_noise(
    images: np.ndarray, random_numbers: RandomNumbers, *, num_frames: int, sigma: float
) -> Iterator[np.ndarray]:
    """Yields the image, then the image with independent Gaussian noise for each frame.

    Args:
        images: uint8 (n, height, width, 3).
        random_numbers: of the n images.
        num_frames: int.
        sigma: standard deviation, in units of the range of values.
    """
    yield images.copy()
    for _ in range(num_frames - 1):
        noisy = random_numbers.normal(images.shape[1:])
        noisy *= sigma * 255
        noisy += images
        yield np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)


def shot_noise(
    images: np.ndarray, random_numbers: RandomNumbers, *, num_frames: int, photons: float
) -> Iterator[np.ndarray]:
    """Yields the image, then the image with independent Poisson noise for each frame.

    Args:
        images: uint8 (n, height, width, 3).
        random_numbers: of the n images.
        num_frames: int.
        photons: expected number for a value of 255.
    """
    yield images.copy()
    expected = images / 255 * photons
    for _ in range(num_frames - 1):
        noisy = np.minimum(random_numbers.poisson(expected) / photons, 1)
        yield (255 * noisy).astype(np.uint8)


def motion_blur(
    images: np.ndarray,
    *,
    num_frames: int,
    radius: int,
    sigma: float,
    start: float,
    step: float,
) -> Iterator[np.ndarray]:
    """Yields the image with a one-sided motion blur whose direction turns.

    Args:
        images: uint8 (n, height, width, 3).
        num_frames: int.
        radius: the blur takes in 2 * radius + 1 pixels.
        sigma: pixels, of the half Gaussian of the weights.
        start: degrees, direction in frame 0.
        step: degrees from frame to frame.
    """
    for frame in range(num_frames):
        angles = np.full(len(images), start + step * frame)
        yield blur_along_angle(images, radius, sigma, angles)


def snow(
    images: np.ndarray,
    random_numbers: RandomNumbers,
    *,
    num_frames: int,
    sigma: float,
    zoom: float,
    blur_radius: int,
    blur_sigma: float,
) -> Iterator[np.ndarray]:
    """Yields the whitened image under flakes whose direction turns.

    Args:
        images: uint8 (n, height, width, 3).
        random_numbers: of the n images.
        num_frames: int.
        sigma: standard deviation of the Gaussian noise whose highest values are flakes.
        zoom: enlargement of the noise.
        blur_radius: of the flakes' motion blur, see `motion_blur`.
        blur_sigma: of the flakes' motion blur, in pixels.
    """
    noise = random_numbers.normal(images.shape[1:3]) * sigma + SNOW_MEAN
    flakes = snowflakes(noise, zoom, SNOW_THRESHOLD)
    for frame in range(num_frames):
        angles = np.full(len(images), SNOW_FIRST_DEGREES + SNOW_STEP_DEGREES * frame)
        falling = blur_along_angle(flakes, blur_radius, blur_sigma, angles)
        yield add_snow(images, falling, SNOW_IMAGE_SHARE, np.float64)


def brightness(images: np.ndarray, *, num_frames: int, step_percent: float) -> Iterator[np.ndarray]:
    """Yields the image with a changed value V of HSV. The middle frame has the image's own.

    Args:
        images: uint8 (n, height, width, 3).
        num_frames: int, odd.
        step_percent: change of V from frame to frame, in percent of its range.
    """
    value, factors = _split_value(images / 255)
    for frame in range(num_frames):
        change = (frame - num_frames // 2) * step_percent / 100
        changed = np.clip(value + change, 0, 1)
        pixels = np.repeat(changed.ravel(), 3).reshape(images.shape)
        pixels *= factors
        pixels *= 255
        yield pixels.astype(np.uint8)


def _split_value(images):
    """Separates HSV's value: images == value[..., np.newaxis] * factors up to rounding errors.

    The factors depend on hue and saturation alone. They are computed as a conversion to HSV and
    back computes them, because the result is truncated.

    Args:
        images: float64 (..., 3) in [0, 1].

    Returns:
        (value, factors), float64 (...) and (..., 3) in [0, 1].
    """
    value, low = images.max(axis=-1), images.min(axis=-1)
    span = value - low
    safe_span = np.where(span > 0, span, 1)
    saturation = span / np.where(span > 0, value, 1)
    red, green, blue = np.moveaxis(images, -1, 0)
    # Where two channels are the largest, the later one counts.
    hue = np.select(
        [blue == value, green == value],
        [4 + (red - green) / safe_span, 2 + (blue - red) / safe_span],
        (green - blue) / safe_span,
    )
    sextant = hue / 6 % 1 * 6
    whole = np.floor(sextant)
    share = sextant - whole
    candidates = np.stack(
        [
            np.ones_like(value),
            1 - saturation,
            1 - share * saturation,
            1 - (1 - share) * saturation,
        ],
        axis=-1,
    )
    # For each sextant: largest 0, smallest 1, falling 2, rising 3.
    order = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])
    index = order[whole.astype(np.int64) % 6]
    return value, np.take_along_axis(candidates, index, axis=-1)
