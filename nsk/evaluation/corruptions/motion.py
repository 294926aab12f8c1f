"""Motion blur and zoom blur, and their parts: a blur along an angle and an enlarged centre.

Images are uint8 (n, height, width, 3); `numbers` holds the random numbers of the n images. Results
are those of the scripts that made CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import functools
import math

import numpy as np
import scipy.sparse

from nsk.evaluation.corruptions.chunks import chunks
from nsk.evaluation.corruptions.random_numbers import RandomNumbers

# A weight below it changes a pixel by less than 3e-7 levels.
NEGLIGIBLE_WEIGHT = 1e-9
# Float64 values that are blurred at a time, so that sums and products stay in the cache.
BLUR_BLOCK = 2**14


def motion_blur(
    images: np.ndarray, numbers: RandomNumbers, radius: int, sigma: float
) -> np.ndarray:
    """Blurs each image along an angle of its own from [-45, 45) degrees.

    Args:
        images: uint8 (n, height, width, 3).
        numbers: of the n images; one uniform number is drawn.
        radius: pixels; the blur reaches over 2 * radius pixels, in one direction.
        sigma: standard deviation of the half-Gaussian, pixels.
    """
    return blur_along_angle(images, radius, sigma, numbers.uniform(-45, 45))


def blur_along_angle(
    images: np.ndarray, radius: int, sigma: float, angles: np.ndarray
) -> np.ndarray:
    """Blurs in one direction, as ImageMagick's `-motion-blur` does.

    A pixel is the weighted mean of itself and the 2 * radius pixels that follow along the angle,
    each rounded to the nearest pixel, with the weights exp(-i^2 / (2 sigma^2)). Beyond the border
    the border's pixels are repeated. Results are rounded, as by ImageMagick's builds with
    floating-point pixels; its 6.9.11 with 16-bit integers truncates when it writes 8 bits.

    Args:
        images: uint8 or float (n, height, width) or (n, height, width, channels).
        radius: pixels, 0 or more.
        sigma: pixels, positive.
        angles: degrees (n,); 0 blurs with pixels from the right, 90 with those below.

    Returns:
        Of the images' shape: uint8, rounded to the nearest level, for uint8 images; else float64.
    """
    if len(angles) != len(images):
        raise ValueError(f"{len(angles)} angles for {len(images)} images: expected as many.")
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    steps, weights = (values[weights > NEGLIGIBLE_WEIGHT] for values in (steps, weights))
    radians = np.deg2rad(np.asarray(angles, np.float64))[:, np.newaxis]
    right = np.ceil(steps * np.cos(radians) - 0.5).astype(np.int64)
    down = np.ceil(steps * np.sin(radians) - 0.5).astype(np.int64)
    is_uint8 = images.dtype == np.uint8
    blurred = np.empty(images.shape, np.uint8 if is_uint8 else np.float64)
    for row, image in enumerate(images):
        values = _weighted_sum_of_shifts(image, right[row], down[row], weights)
        blurred[row] = np.floor(values + 0.5) if is_uint8 else values
    return blurred


def _weighted_sum_of_shifts(image, right, down, weights):
    """Sums weight * pixel at (y + down, x + right) of one image, float64.

    In the padded image as a flat array each shift is a slice with another start; columns of the
    padding are summed, too, and cut off at the end.
    """
    height, width = image.shape[:2]
    channels = math.prod(image.shape[2:])
    above, left = max(0, -down.min()), max(0, -right.min())
    rows = np.arange(-above, height + max(0, down.max())).clip(0, height - 1)
    columns = np.arange(-left, width + max(0, right.max())).clip(0, width - 1)
    padded = image.take(rows, axis=0).take(columns, axis=1).astype(np.float64).ravel()
    stride = len(columns) * channels
    length = (height - 1) * stride + width * channels
    starts = (above + down) * stride + (left + right) * channels
    sums = np.zeros(height * stride)
    products = np.empty(min(length, BLUR_BLOCK))
    for begin in range(0, length, BLUR_BLOCK):
        end = min(begin + BLUR_BLOCK, length)
        block, product = sums[begin:end], products[: end - begin]
        for start, weight in zip(starts.tolist(), weights.tolist(), strict=True):
            np.multiply(padded[start + begin : start + end], weight, out=product)
            block += product
    return sums.reshape(height, stride)[:, : width * channels].reshape(image.shape)


def zoom_blur(images: np.ndarray, numbers: RandomNumbers, stop: float, step: float) -> np.ndarray:
    """Averages the image and its enlargements by the factors 1, 1 + step, ... below `stop`.

    Factor 1 is among them, so the image itself counts twice. As in the reference, enlargements and
    sums are float32, and the mean is truncated to uint8.

    Args:
        images: uint8 (n, height, width, 3).
        numbers: of the n images; none is drawn.
        stop: the factors' upper end, as in `np.arange(1, stop, step)`, which may reach it.
        step: between two factors.
    """
    factors = np.arange(1, stop, step).tolist()
    levels = (np.arange(256) / 255.0).astype(np.float32)
    height, width = images.shape[1:3]
    blurred = np.empty_like(images)
    for part in chunks(images.shape):
        pixels = levels[np.ascontiguousarray(images[part].transpose(1, 2, 0, 3))]
        shape = pixels.shape
        pixels = pixels.reshape(height * width, -1)
        exact = pixels.astype(np.float64)
        mean = np.zeros_like(pixels)
        for factor in factors:
            mean += (_zoom_matrix(height, width, factor) @ exact).astype(np.float32)
        mean += pixels
        mean /= len(factors) + 1
        np.minimum(mean, 1, out=mean)
        mean *= 255
        blurred[part] = mean.astype(np.uint8).reshape(shape).transpose(2, 0, 1, 3)
    return blurred


def clipped_zoom(images: np.ndarray, factor: float) -> np.ndarray:
    """Enlarges the centre of images to the images' size, bilinearly.

    The centre of ceil(side / factor) pixels is enlarged as by `scipy.ndimage.zoom(order=1)`, and
    what exceeds the size is trimmed on both sides.

    Args:
        images: float (n, height, width) or (n, height, width, channels).
        factor: 1 or more.

    Returns:
        float64 of the images' shape.
    """
    if factor < 1:
        raise ValueError(f"factor={factor}: expected 1 or more.")
    height, width = images.shape[1:3]
    pixels = np.moveaxis(np.asarray(images, np.float64), 0, 2)
    enlarged = _zoom_matrix(height, width, float(factor)) @ pixels.reshape(height * width, -1)
    return np.ascontiguousarray(np.moveaxis(enlarged.reshape(pixels.shape), 2, 0))


@functools.lru_cache(maxsize=64)
def _zoom_matrix(height, width, factor):
    """`clipped_zoom` of an image as a sparse matrix (height * width, height * width).

    It takes 2.5 MB at 224 pixels, where the zoom blurs of all severities have 24 factors.
    """
    sides = [_zoom_weights(side, factor) for side in (height, width)]
    return scipy.sparse.kron(*sides, format="csr")


def _zoom_weights(side, factor):
    """`clipped_zoom` along one axis as a sparse matrix (side, side): two weights in each row."""
    crop = math.ceil(side / factor)
    size = round(crop * factor)
    first_kept, first_cropped = (size - side) // 2, (side - crop) // 2
    step = (crop - 1) / (size - 1) if size > 1 else 0.0
    positions = (first_kept + np.arange(side)) * step
    before = np.minimum(np.floor(positions).astype(np.int64), crop - 1)
    after = np.minimum(before + 1, crop - 1)
    shares = positions - np.floor(positions)
    # SciPy takes a position that rounding puts beyond the last pixel for one outside of the image.
    is_inside = positions <= crop - 1
    weights = np.concatenate([(1 - shares) * is_inside, shares * is_inside])
    rows = np.tile(np.arange(side), 2)
    columns = first_cropped + np.concatenate([before, after])
    matrix = scipy.sparse.csr_array((weights, (rows, columns)), shape=(side, side))
    matrix.eliminate_zeros()
    return matrix
