"""Blurs of the corruption sets: Gaussian, defocus and glass blur.

Images are uint8 (n, height, width, 3); `numbers` holds the random numbers of the n images. Results
are those of the scripts that made CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C, truncated to uint8.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import functools
import math

import numpy as np
import scipy.fft

from nsk.evaluation.corruptions.chunks import in_chunks
from nsk.evaluation.corruptions.levels import to_levels
from nsk.evaluation.corruptions.random_numbers import RandomNumbers

# Standard deviations at which the kernel of a Gaussian blur ends.
TRUNCATE = 4
# Up to this radius a disk is drawn on 17 x 17 pixels and smoothed by 3 x 3 weights, else by 5 x 5.
SMALL_DISK_RADIUS = 8
# Smaller weights of a disk, far below the precision of its sum, are left out.
NEGLIGIBLE_WEIGHT = 1e-12
# A kernel with more weights is applied by Fourier transforms.
MAX_DIRECT_WEIGHTS = 40
# Float64 values that are blurred at a time, so that sums and products stay in the cache.
BLUR_BLOCK = 2**14


@in_chunks
def gaussian_blur(images: np.ndarray, numbers: RandomNumbers, sigma: float) -> np.ndarray:
    """Blurs with a Gaussian; borders are repeated, and the kernel ends at 4 standard deviations.

    Args:
        images: uint8 (n, height, width, 3).
        numbers: not used.
        sigma: standard deviation, pixels.
    """
    del numbers
    return to_levels(_blur(images, sigma))


@in_chunks
def glass_blur(
    images: np.ndarray, numbers: RandomNumbers, sigma: float, max_delta: int, iterations: int
) -> np.ndarray:
    """Blurs, replaces every pixel by one near it, several times, and blurs again.

    A pixel is replaced by the one at an offset from [-max_delta, max_delta) in both directions, one
    pixel after the other from the lower right to the upper left, so that a pixel may be copied
    several times. Pixels within `max_delta` of the border are not replaced.

    Args:
        images: uint8 (n, height, width, 3).
        numbers: of the n images; two integers for each pixel and iteration are drawn, the first for
            the columns, the second for the rows.
        sigma: standard deviation of the Gaussian, pixels.
        max_delta: largest offset, pixels.
        iterations: how often all pixels are replaced.
    """
    count, height, width, _ = images.shape
    pixels = to_levels(_blur(images, sigma)).reshape(-1, 3)
    # Rows and columns of the pixels that are replaced, in the order in which they are.
    rows = np.arange(height - max_delta, max_delta, -1)
    columns = np.arange(width - max_delta, max_delta, -1)
    sources = np.arange(count * height * width)
    for _ in range(iterations):
        offsets = numbers.integers(-max_delta, max_delta, (len(rows), len(columns), 2))
        moves = np.zeros((count, height, width), np.int64)
        moves[:, rows[:, np.newaxis], columns] = offsets[..., 1] * width + offsets[..., 0]
        sources = sources[_replaced_one_after_another(moves.ravel())]
    return to_levels(_blur(pixels[sources].reshape(images.shape), sigma))


def _replaced_one_after_another(moves):
    """Indices of the pixels whose values are everywhere after the replacements.

    A pixel takes the value of the one `moves` further. If that one comes first, it has been
    replaced already: its source is followed in turn, until a pixel comes later or stays as it is.

    Args:
        moves: int (pixels,), 0 for pixels that are not replaced; the last pixel comes first.
    """
    sources = moves + np.arange(len(moves))
    final = sources.copy()
    is_forward = moves > 0
    pixels = np.flatnonzero(is_forward)
    reached = sources[pixels]
    while len(pixels):
        final[pixels] = sources[reached]
        goes_on = is_forward[reached]
        pixels, reached = pixels[goes_on], sources[reached[goes_on]]
    return final


@in_chunks
def defocus_blur(
    images: np.ndarray, numbers: RandomNumbers, radius: float, alias: float
) -> np.ndarray:
    """Blurs with a smoothed disk; at the borders images are mirrored about the last pixel.

    Args:
        images: uint8 (n, height, width, 3).
        numbers: not used.
        radius: of the disk, pixels.
        alias: standard deviation of the Gaussian that smooths the disk, pixels.
    """
    del numbers
    kernel = disk_kernel(radius, alias)
    reach = len(kernel) // 2
    rows, columns = (np.pad(np.arange(side), reach, mode="reflect") for side in images.shape[1:3])
    padded = images.take(rows, axis=1).take(columns, axis=2)
    if np.count_nonzero(kernel) <= MAX_DIRECT_WEIGHTS:
        blurred = _weighted_sums(padded, kernel)
    else:
        blurred = np.stack([_filter_by_transforms(image, kernel) for image in padded])
    return np.clip(blurred, 0, 255, out=blurred).astype(np.uint8)


@functools.cache
def disk_kernel(radius: float, alias: float) -> np.ndarray:
    """A smoothed disk, float64 (side, side) with an odd side, without empty margins.

    As in the reference, it is computed in float32: where the sum is just below 1, images lose a
    level in constant areas. A disk that fills its grid is mirrored at the margin by the smoothing:
    those of radius 8 and 10 have the sums 1.013 and 1.011.
    """
    reach = max(SMALL_DISK_RADIUS, math.floor(radius))
    steps = np.arange(-reach, reach + 1)
    disk = (steps[:, np.newaxis] ** 2 + steps**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    half = 1 if radius <= SMALL_DISK_RADIUS else 2
    weights = np.exp(-(np.arange(half + 1) ** 2) / (2 * alias**2))
    weights = (weights / (2 * weights.sum() - weights[0])).astype(np.float32)
    side = len(disk)
    for _ in range(2):
        # The rows, then, transposed, the columns.
        padded = np.pad(disk, ((0, 0), (half, half)), mode="reflect")
        disk = weights[0] * padded[:, half : half + side]
        for step in range(1, half + 1):
            pair = padded[:, half - step :][:, :side] + padded[:, half + step :][:, :side]
            disk += weights[step] * pair
        disk = np.ascontiguousarray(disk.T)
    disk[disk < NEGLIGIBLE_WEIGHT] = 0
    used = np.flatnonzero(disk.any(axis=0))
    return disk[used[0] : used[-1] + 1, used[0] : used[-1] + 1].astype(np.float64)


def _weighted_sums(padded, kernel):
    """Correlation of images with a kernel, float64, at the pixels where the kernel fits in.

    Pixels with the same weight are added before they are multiplied.
    """
    height, width = (side - len(kernel) + 1 for side in padded.shape[1:3])
    padded = padded.astype(np.uint16)
    total = np.zeros((len(padded), height, width, padded.shape[3]))
    for weight in np.unique(kernel[kernel > 0]):
        shifted = [
            padded[:, row : row + height, column : column + width]
            for row, column in np.argwhere(kernel == weight)
        ]
        total += weight * functools.reduce(np.add, shifted)
    return total


def _filter_by_transforms(padded, kernel):
    """`_weighted_sums` of one image and a symmetric kernel by Fourier transforms.

    Image by image, as the last digits of transforms depend on how many are computed together.
    """
    reach, shape = len(kernel) - 1, padded.shape[:2]
    sides = tuple(scipy.fft.next_fast_len(side, real=True) for side in shape)
    spectrum = scipy.fft.rfft2(np.moveaxis(padded, -1, 0).astype(np.float64), sides)
    spectrum *= _transformed_kernel(kernel.tobytes(), sides)
    values = scipy.fft.irfft2(spectrum, sides)[:, reach : shape[0], reach : shape[1]]
    return np.moveaxis(values, 0, -1)


@functools.lru_cache(maxsize=16)
def _transformed_kernel(kernel, sides):
    kernel = np.frombuffer(kernel)
    side = math.isqrt(len(kernel))
    return scipy.fft.rfft2(kernel.reshape(side, side), sides)


def _blur(images, sigma):
    """Images, blurred with a Gaussian, as float64 in [0, 1]."""
    values = images / 255
    radius = int(TRUNCATE * sigma + 0.5)
    if radius == 0:
        return values
    weights = _gaussian_weights(sigma, radius)
    for axis in (1, 2):
        side = values.shape[axis]
        indices = np.arange(-radius, side + radius).clip(0, side - 1)
        padded = values.take(indices, axis=axis)
        stride = math.prod(padded.shape[axis + 1 :])
        sums = _symmetric_sums(padded.ravel(), stride, weights).reshape(padded.shape)
        values = sums[:, :side] if axis == 1 else sums[:, :, :side]
    return np.ascontiguousarray(values)


def _gaussian_weights(sigma, radius):
    """Weights of a Gaussian at distances 0 to radius, which add up to 1 over both sides."""
    weights = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2)
    return (weights / weights.sum())[radius:]


def _symmetric_sums(flat, stride, weights):
    """Weighted sums of values and of the pairs at equal distances from them.

    Args:
        flat: float64 (values,).
        stride: between neighbours in `flat`.
        weights: of the distances 0, 1, ...

    Returns:
        float64 (values,): entry i is the sum around value i + stride * (len(weights) - 1); the last
        ones are not set. Sums are computed in SciPy's order, so that they are equal to the bit.
    """
    radius = len(weights) - 1
    first = radius * stride
    length = len(flat) - 2 * first
    sums, pairs = np.empty_like(flat), np.empty(min(length, BLUR_BLOCK))
    for begin in range(0, length, BLUR_BLOCK):
        end = min(begin + BLUR_BLOCK, length)
        total, pair = sums[begin:end], pairs[: end - begin]
        np.multiply(flat[begin + first : end + first], weights[0], out=total)
        for distance in range(radius, 0, -1):
            before, after = first - distance * stride, first + distance * stride
            np.add(flat[begin + before : end + before], flat[begin + after : end + after], out=pair)
            pair *= weights[distance]
            total += pair
    return sums
