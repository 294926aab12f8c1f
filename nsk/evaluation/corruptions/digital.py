"""Brightness, contrast, saturation, elastic transformation, pixelation and JPEG compression.

Images are uint8 (n, height, width, 3); `numbers` holds the random numbers of the n images. Results
are those of the scripts that made CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C, truncated to uint8.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import functools
import io
import math
from collections.abc import Callable

import numpy as np
import scipy.fft
from PIL import Image

from nsk.evaluation.corruptions.chunks import in_chunks
from nsk.evaluation.corruptions.color import hsv_to_rgb, rgb_to_hsv
from nsk.evaluation.corruptions.levels import LEVELS, to_levels
from nsk.evaluation.corruptions.random_numbers import RandomNumbers

# Standard deviations at which the kernel ends that smooths displacements.
TRUNCATE = 3
# Positions of the affine part are rounded to multiples of 1 / 1024, their sums to 1 / 32 pixel.
POSITION_STEPS, PIXEL_STEPS = 1024, 32
# Positions further outside of an image, in pixels, are taken for this one.
MAX_POSITION = 2**15


@in_chunks
def brightness(images: np.ndarray, numbers: RandomNumbers, amount: float) -> np.ndarray:
    """Adds `amount` to the value V of HSV; `numbers` is not used."""
    del numbers

    def brighten(hue, saturation, value):
        return hue, saturation, np.clip(value + amount, 0, 1)

    return _change_hsv(images, brighten)


@in_chunks
def saturate(
    images: np.ndarray, numbers: RandomNumbers, factor: float, amount: float
) -> np.ndarray:
    """Changes the saturation S of HSV to S * factor + amount; `numbers` is not used."""
    del numbers

    def change(hue, saturation, value):
        return hue, np.clip(saturation * factor + amount, 0, 1), value

    return _change_hsv(images, change)


def _change_hsv(images, change: Callable):
    channels = LEVELS[np.moveaxis(images, -1, 0)]
    changed = np.empty_like(images)
    for channel, values in enumerate(hsv_to_rgb(*change(*rgb_to_hsv(*channels)))):
        changed[..., channel] = to_levels(values)
    return changed


@in_chunks
def contrast(images: np.ndarray, numbers: RandomNumbers, factor: float) -> np.ndarray:
    """Multiplies the distance from each channel's mean by `factor`; `numbers` is not used."""
    del numbers
    changed = np.empty_like(images)
    for image, output in zip(images, changed, strict=True):
        means = (image / 255).mean(axis=(0, 1))
        tables = to_levels((LEVELS[:, np.newaxis] - means) * factor + means)
        for channel in range(3):
            output[..., channel] = tables[:, channel][image[..., channel]]
    return changed


def jpeg_compression(images: np.ndarray, numbers: RandomNumbers, quality: int) -> np.ndarray:
    """Compresses images with Pillow at a quality from 1 to 95; `numbers` is not used."""
    del numbers
    changed = np.empty_like(images)
    for row, image in enumerate(images):
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "JPEG", quality=quality)
        changed[row] = Image.open(encoded)
    return changed


def pixelate(images: np.ndarray, numbers: RandomNumbers, factor: float) -> np.ndarray:
    """Reduces the sides by `factor` and enlarges them again, by means; `numbers` is not used."""
    del numbers
    height, width = images.shape[1:3]
    small = max(1, int(width * factor)), max(1, int(height * factor))
    changed = np.empty_like(images)
    for row, image in enumerate(images):
        reduced = Image.fromarray(image).resize(small, Image.Resampling.BOX)
        changed[row] = reduced.resize((width, height), Image.Resampling.BOX)
    return changed


@in_chunks
def elastic_transform(
    images: np.ndarray, numbers: RandomNumbers, alpha: float, sigma: float, affine: float
) -> np.ndarray:
    """Moves three points of the image at random, then every pixel by a smooth random field.

    Args:
        images: uint8 (n, height, width, 3).
        numbers: of the n images; six uniform numbers are drawn, the moves of three points, then one
            for each pixel, its move along the row, and one more, along the column.
        alpha: factor of the field, pixels.
        sigma: standard deviation of the Gaussian that smooths the field, pixels.
        affine: largest move of a point, pixels.
    """
    shape = images.shape[1:3]
    moves = numbers.uniform(-affine, affine, (3, 2))
    values = LEVELS.astype(np.float32)[np.moveaxis(images, -1, 0)]
    values = _sample(values, *_affine_positions(shape, moves), "mirror")
    columns, rows = (_displacements(numbers, shape, alpha, sigma) for _ in range(2))
    rows += np.arange(shape[0])[:, np.newaxis]
    columns += np.arange(shape[1])
    values = _sample(values, rows, columns, "reflect")
    return np.ascontiguousarray(np.moveaxis(to_levels(values), 0, -1))


def _affine_positions(shape, moves):
    """Where the pixels of an image come from whose three points are moved.

    Args:
        shape: (height, width).
        moves: float (n, 3, 2), of each point along (x, y), pixels.

    Returns:
        (rows, columns), float64 (n, height, width), multiples of 1 / 32 pixel, as in OpenCV before
        version 5.
    """
    height, width = shape
    reach = min(shape) // 3
    points = np.array([width // 2, height // 2]) + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = (points + moves.astype(np.float32)).astype(np.float32)
    # The matrix [a b; d e; c f] for which [x y 1] @ matrix are the positions of the pixel (x, y).
    matrices = _solve(np.concatenate([moved, np.ones((len(moves), 3, 1))], axis=2), points)
    positions = []
    for axis in (1, 0):
        along_x, along_y, constant = matrices[:, :, axis].T[:, :, np.newaxis]
        first = np.rint((along_y * np.arange(height) + constant) * POSITION_STEPS)
        step = np.rint(along_x * np.arange(width) * POSITION_STEPS)
        total = first[:, :, np.newaxis] + step[:, np.newaxis]
        positions.append(np.floor(total * (PIXEL_STEPS / POSITION_STEPS) + 0.5) / PIXEL_STEPS)
    return positions


def _solve(triangles, points):
    """Solves triangle @ matrix == points by Cramer's rule; zeros if the corners are on a line."""
    # The rows of the adjugate's transpose are cross products of the corners.
    cofactors = np.stack(
        [np.cross(triangles[:, (row + 1) % 3], triangles[:, (row + 2) % 3]) for row in range(3)],
        axis=2,
    )
    determinants = np.einsum("nk,nk->n", triangles[:, 0], cofactors[:, :, 0])
    inverse = np.divide(1, determinants, where=determinants != 0, out=np.zeros(len(triangles)))
    return inverse[:, np.newaxis, np.newaxis] * (cofactors @ points)


def _displacements(numbers, shape, alpha, sigma):
    """A smooth field of displacements along one axis, pixels, float64 (n, height, width).

    As borders are reflected, the cosine transform of the field is multiplied by that of the kernel.
    """
    field = numbers.uniform(-1, 1, shape)
    if sigma:
        response = _frequency_response(shape[0], sigma)[:, np.newaxis]
        response = response * _frequency_response(shape[1], sigma)
        field = scipy.fft.idctn(scipy.fft.dctn(field, axes=(1, 2)) * response, axes=(1, 2))
    field *= alpha
    return field.astype(np.float32).astype(np.float64)


@functools.lru_cache(maxsize=32)
def _frequency_response(side, sigma):
    """By what a Gaussian filter with reflected borders multiplies frequencies of cosines."""
    radius = int(TRUNCATE * sigma + 0.5)
    steps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 / sigma**2 * steps**2)
    weights /= weights.sum()
    return np.cos(math.pi / side * np.arange(side)[:, np.newaxis] * steps) @ weights


def _sample(planes, rows, columns, border):
    """Bilinear interpolation.

    Args:
        planes: float32 (channels, n, height, width).
        rows: float64 (n, height, width), pixels.
        columns: float64 (n, height, width), pixels.
        border: how images continue: "reflect" (c b a | a b c) or "mirror" (d c b | a b c).

    Returns:
        float32 of the planes' shape.
    """
    height, width = planes.shape[2:]
    tops, below = _split(rows, height, border)
    lefts, right = _split(columns, width, border)
    first = (np.arange(len(rows)) * (height * width))[:, np.newaxis, np.newaxis]
    tops = [first + row * width for row in tops]
    corners = [row + column for row in tops for column in lefts]
    above, left = 1 - below, 1 - right
    weights = [above * left, above * right, below * left, below * right]
    sampled = np.empty_like(planes)
    for plane, output in zip(planes, sampled, strict=True):
        values = plane.ravel()
        total = values.take(corners[0]) * weights[0]
        for corner, weight in zip(corners[1:], weights[1:], strict=True):
            total += values.take(corner) * weight
        output[:] = total
    return sampled


def _split(positions, side, border):
    """The two pixels around positions along an axis, and the share of the second one."""
    positions = positions.clip(-MAX_POSITION, MAX_POSITION)
    first = np.floor(positions)
    shares = positions - first
    first = first.astype(np.intp)
    low, high = (int(end) for end in (first.min(initial=0), first.max(initial=0)))
    # np.pad continues images in all directions as often as it takes.
    mode = "symmetric" if border == "reflect" else "reflect"
    continued = np.pad(np.arange(side), (-low, max(0, high + 2 - side)), mode=mode)
    first -= low
    return (continued.take(first), continued.take(first + 1)), shares
