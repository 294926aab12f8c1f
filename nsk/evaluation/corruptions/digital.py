"""Brightness, contrast, saturation, elastic transformation, pixelation and JPEG compression.

Images are uint8 (n, height, width, 3); `numbers` holds the random numbers of the n images. Results
are those of the scripts that made CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C, truncated to uint8.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import io

import numpy as np
import scipy.ndimage
from PIL import Image

from nsk.evaluation.corruptions.chunks import chunks
from nsk.evaluation.corruptions.color import hsv_to_rgb, rgb_to_hsv
from nsk.evaluation.corruptions.levels import LEVELS, to_levels
from nsk.evaluation.corruptions.random_numbers import RandomNumbers

ELASTIC_TRUNCATE = 3  # Standard deviations at which the kernel of displacements ends.


def brightness(images: np.ndarray, numbers: RandomNumbers, amount: float) -> np.ndarray:
    """Adds `amount` to the value of hue, saturation and value; `numbers` is not used."""
    del numbers

    def brighten(hue, saturation, value):
        return hue, saturation, np.clip(value + amount, 0, 1)

    return _change_hsv(images, brighten)


def saturate(
    images: np.ndarray, numbers: RandomNumbers, factor: float, amount: float
) -> np.ndarray:
    """Saturation s becomes s * factor + amount; `numbers` is not used."""
    del numbers

    def change(hue, saturation, value):
        return hue, np.clip(saturation * factor + amount, 0, 1), value

    return _change_hsv(images, change)


def _change_hsv(images, change):
    changed = np.empty_like(images)
    for part in chunks(images.shape):
        changed[part] = to_levels(hsv_to_rgb(*change(*rgb_to_hsv(LEVELS[images[part]]))))
    return changed


def contrast(images: np.ndarray, numbers: RandomNumbers, factor: float) -> np.ndarray:
    """Multiplies the distance from each channel's mean by `factor`; `numbers` is not used."""
    del numbers
    values = LEVELS[images]
    means = values.mean(axis=(1, 2), keepdims=True)
    values -= means
    values *= factor
    values += means
    return to_levels(values)


def jpeg_compression(images: np.ndarray, numbers: RandomNumbers, quality: int) -> np.ndarray:
    """Compresses images with Pillow at a quality from 1 to 95; `numbers` is not used."""
    del numbers
    changed = np.empty_like(images)
    for row, image in enumerate(images):
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "JPEG", quality=quality)
        changed[row] = np.asarray(Image.open(encoded))
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


def elastic_transform(
    images: np.ndarray, numbers: RandomNumbers, alpha: float, sigma: float, affine: float
) -> np.ndarray:
    """Moves three points of the image at random, then every pixel by a smooth random field.

    Args:
        images: uint8 (n, height, width, 3).
        numbers: of the n images; the moves of three points, then those of all pixels along columns,
            then along rows are drawn.
        alpha: factor of the field, pixels.
        sigma: standard deviation of the Gaussian that smooths the field, pixels.
        affine: largest move of a point, pixels.
    """
    shape = images.shape[1:3]
    matrices = _affine_matrices(shape, numbers.uniform(-affine, affine, (3, 2)))
    rows, columns = np.meshgrid(*map(np.arange, shape), indexing="ij")
    points = np.stack([columns, rows, np.ones(shape)]).reshape(3, -1)
    fields = [_displacements(numbers, shape, alpha, sigma) for _ in range(2)]
    changed = np.empty_like(images)
    for part in chunks(images.shape, 2**18):
        x, y = np.moveaxis((matrices[part] @ points).reshape(-1, 2, *shape), 1, 0)
        moved = sample(LEVELS[images[part]], y, x, "mirror")
        if alpha:
            y, x = rows + fields[1][part], columns + fields[0][part]
            moved = sample(moved, y, x, "reflect")
        changed[part] = to_levels(moved)
    return changed


def _displacements(numbers, shape, alpha, sigma):
    """A smooth field of displacements along one axis, pixels, float64 (n, height, width)."""
    field = numbers.uniform(-1, 1, shape)
    if sigma:
        field = scipy.ndimage.gaussian_filter(
            field, sigma, mode="reflect", truncate=ELASTIC_TRUNCATE, axes=(1, 2)
        )
    return field * alpha


def _affine_matrices(shape, moves):
    """Matrices (n, 2, 3) from pixels (x, y, 1) of the result to those of the image."""
    height, width = shape
    center, reach = np.array([height // 2, width // 2]), min(shape) // 3
    points = center + np.array([[reach, reach], [reach, -reach], [-reach, -reach]])
    targets = points + moves
    ones = np.ones((len(moves), 3, 1))
    # target = [matrix] @ (x, y, 1), and its inverse maps pixels of the result to the image.
    homogeneous = np.concatenate([targets, ones], axis=2)
    return np.swapaxes(np.linalg.solve(homogeneous, np.broadcast_to(points, targets.shape)), 1, 2)


def sample(images: np.ndarray, rows: np.ndarray, columns: np.ndarray, border: str) -> np.ndarray:
    """Bilinear interpolation.

    Args:
        images: float64 (n, height, width, channels).
        rows: float64 (n, height', width'), pixels.
        columns: float64 of the same shape, pixels.
        border: how images continue: "mirror" (d c b | a b c d) or "reflect" (c b a | a b c d).

    Returns:
        float64 (n, height', width', channels).
    """
    count, height, width, channels = images.shape
    pixels = images.reshape(-1, channels)
    first = (np.arange(count) * height * width)[:, np.newaxis, np.newaxis]
    top, left = np.floor(rows), np.floor(columns)
    below, right = (rows - top)[..., np.newaxis], (columns - left)[..., np.newaxis]
    row_pair = [first + _inside(top + step, height, border) * width for step in (0, 1)]
    column_pair = [_inside(left + step, width, border) for step in (0, 1)]
    upper, lower = (
        pixels[row + column_pair[0]] * (1 - right) + pixels[row + column_pair[1]] * right
        for row in row_pair
    )
    return upper * (1 - below) + lower * below


def _inside(positions, side, border):
    """Indices of the pixels that positions outside of an image stand for."""
    positions = positions.astype(np.int64)
    if side == 1:
        return np.zeros_like(positions)
    if border == "mirror":
        period = 2 * side - 2
        positions = np.abs(positions) % period
        return np.minimum(positions, period - positions)
    positions = positions % (2 * side)
    return np.minimum(positions, 2 * side - 1 - positions)
