"""Blurs of the corruption sets: Gaussian, defocus and glass blur.

Images are uint8 (n, height, width, 3); `numbers` holds the random numbers of the n images. Results
are those of the scripts that made CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C, truncated to uint8.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import functools

import numpy as np
import scipy.fft
import scipy.ndimage

from nsk.evaluation.corruptions.chunks import chunks
from nsk.evaluation.corruptions.levels import LEVELS, to_levels
from nsk.evaluation.corruptions.random_numbers import RandomNumbers

# Up to this radius a disk is computed on a grid of 17 x 17 pixels and smoothed by 3 x 3 weights.
SMALL_DISK_RADIUS = 8
# A kernel with more weights than this is applied by Fourier transforms.
MAX_DIRECT_WEIGHTS = 64


def gaussian_blur(images: np.ndarray, numbers: RandomNumbers, sigma: float) -> np.ndarray:
    """Blurs with a Gaussian; borders are repeated, and the kernel ends at 4 standard deviations.

    Args:
        images: uint8 (n, height, width, 3).
        numbers: not used.
        sigma: standard deviation, pixels.
    """
    del numbers
    return to_levels(_blur(images, sigma))


def glass_blur(
    images: np.ndarray, numbers: RandomNumbers, sigma: float, max_delta: int, iterations: int
) -> np.ndarray:
    """Blurs, replaces every pixel by one near it, several times, and blurs again.

    A pixel is replaced by the one at an offset from [-max_delta, max_delta) in both directions,
    from the lower right to the upper left corner, so that a pixel may be copied several times.

    Args:
        images: uint8 (n, height, width, 3).
        numbers: of the n images; two integers for each pixel and iteration are drawn, the first one
            of the column, the second of the row.
        sigma: standard deviation of the Gaussian, pixels.
        max_delta: largest offset, pixels.
        iterations: how often all pixels are replaced.
    """
    count, height, width, _ = images.shape
    pixels = to_levels(_blur(images, sigma))
    flat = pixels.reshape(-1, 3)
    rows = np.arange(height - max_delta, max_delta, -1)
    columns = np.arange(width - max_delta, max_delta, -1)
    first_pixels = np.arange(count) * (height * width)
    for _ in range(iterations):
        shape = (len(rows), len(columns), 2)
        offsets = numbers.integers(-max_delta, max_delta, shape)
        moves = np.moveaxis(offsets[..., 1] * width + offsets[..., 0], 0, -1)
        for row, moves_of_row in zip(rows.tolist(), moves, strict=True):
            for column, move in zip(columns.tolist(), moves_of_row, strict=True):
                targets = first_pixels + (row * width + column)
                flat[targets] = flat[targets + move]
    return to_levels(_blur(pixels, sigma))


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
    return to_levels(_filter(images, disk_kernel(radius, alias)))


@functools.cache
def disk_kernel(radius: float, alias: float) -> np.ndarray:
    """A smoothed disk without empty margins, float64 (side, side): an odd side, the sum 1."""
    reach = max(SMALL_DISK_RADIUS, int(radius))
    steps = np.arange(-reach, reach + 1)
    disk = (steps[:, np.newaxis] ** 2 + steps**2 <= radius**2).astype(np.float64)
    disk /= disk.sum()
    half = 1 if radius <= SMALL_DISK_RADIUS else 2
    weights = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * alias**2))
    weights /= weights.sum()
    for axis in (0, 1):
        disk = scipy.ndimage.correlate1d(disk, weights, axis, mode="mirror")
    used = np.flatnonzero(disk.max(axis=0) > 0)
    return disk[used[0] : used[-1] + 1, used[0] : used[-1] + 1]


def _blur(images, sigma):
    """Blurred images as floats in [0, 1]."""
    values = LEVELS[images]
    return scipy.ndimage.gaussian_filter(values, sigma, mode="nearest", axes=(1, 2))


def _filter(images, kernel):
    """Correlation of every channel with a kernel, as floats in [0, 1]."""
    filtered = np.empty(images.shape)
    apply = _filter_directly if np.count_nonzero(kernel) <= MAX_DIRECT_WEIGHTS else _filter_by_fft
    reach = len(kernel) // 2
    margins = [(0, 0), (reach, reach), (reach, reach), (0, 0)]
    for part in chunks(images.shape):
        padded = np.pad(LEVELS[images[part]], margins, mode="reflect")
        filtered[part] = apply(padded, kernel)
    return filtered


def _filter_directly(padded, kernel):
    height, width = (side - len(kernel) + 1 for side in padded.shape[1:3])
    total = np.zeros((len(padded), height, width, padded.shape[3]))
    for row, column in np.argwhere(kernel):
        total += kernel[row, column] * padded[:, row : row + height, column : column + width]
    return total


def _filter_by_fft(padded, kernel):
    """Kernels are symmetric, so that convolution and correlation are the same."""
    reach, shape = len(kernel) - 1, padded.shape[1:3]
    sides = [scipy.fft.next_fast_len(side, real=True) for side in shape]
    spectrum = scipy.fft.rfft2(padded, sides, axes=(1, 2))
    spectrum *= scipy.fft.rfft2(kernel, sides)[np.newaxis, :, :, np.newaxis]
    values = scipy.fft.irfft2(spectrum, sides, axes=(1, 2))
    return values[:, reach : shape[0], reach : shape[1]]
