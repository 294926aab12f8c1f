import math

import numpy as np
import pytest
from imagecorruptions import corruptions as peer
from scipy.ndimage import zoom

from nsk.evaluation.corruptions.motion import (
    blur_along_angle,
    clipped_zoom,
    motion_blur,
    zoom_blur,
)
from tests.evaluation.corruptions.photographs import numbers_of, photographs


def pixel_by_pixel_blur(image, radius, sigma, angle):
    """ImageMagick's motion blur as its manual describes it, before rounding."""
    height, width = image.shape[:2]
    length = 2 * radius + 1
    kernel = [math.exp(-i * i / (2 * sigma * sigma)) for i in range(length)]
    x, y = length * math.cos(math.radians(angle)), length * math.sin(math.radians(angle))
    blurred = np.zeros(image.shape)
    for row in range(height):
        for column in range(width):
            for i, weight in enumerate(kernel):
                other_row = row + math.ceil(i * y / math.hypot(x, y) - 0.5)
                other_column = column + math.ceil(i * x / math.hypot(x, y) - 0.5)
                other_row = min(max(other_row, 0), height - 1)
                other_column = min(max(other_column, 0), width - 1)
                blurred[row, column] += weight / sum(kernel) * image[other_row, other_column]
    return blurred


def reference_zoom(image, factor):
    """The centre of a square image, enlarged by SciPy and trimmed."""
    side = len(image)
    crop = int(np.ceil(side / factor))
    top = (side - crop) // 2
    centre = image[top : top + crop, top : top + crop]
    large = zoom(centre, (factor, factor, 1), order=1)
    top = (len(large) - side) // 2
    return large[top : top + side, top : top + side]


@pytest.mark.parametrize("angle", [0, 20, -45, -67.3, 90, -135, 180])
@pytest.mark.parametrize(("radius", "sigma"), [(6, 1), (9, 2.5)])
def test_blur_is_that_of_a_loop_over_pixels(angle, radius, sigma):
    image = np.random.default_rng(1).integers(0, 256, (9, 12, 3), np.uint8)
    expected = pixel_by_pixel_blur(image, radius, sigma, angle)
    exact = blur_along_angle(image[np.newaxis].astype(float), radius, sigma, [angle])
    np.testing.assert_allclose(exact[0], expected, atol=1e-6)
    rounded = blur_along_angle(image[np.newaxis], radius, sigma, [angle])
    np.testing.assert_array_equal(rounded[0], np.floor(expected + 0.5))
    gray = blur_along_angle(image[np.newaxis, ..., 1], radius, sigma, [angle])
    np.testing.assert_array_equal(gray[0], rounded[0, ..., 1])


@pytest.mark.parametrize(("side", "radius", "sigma"), [(64, 12, 3), (224, 20, 15)])
def test_motion_blur_is_that_of_imagecorruptions(side, radius, sigma):
    """It truncates where ImageMagick rounds, and its sums are float32."""
    images = photographs(side)
    blurred = motion_blur(images, numbers_of(images), radius, sigma)
    angles = numbers_of(images).uniform(-45, 45)
    for row, angle in enumerate(angles):
        expected = np.round(peer._motion_blur(images[row], radius, sigma, angle))
        assert np.mean(blurred[row] != expected) < 1e-4
        assert np.abs(blurred[row] - expected).max() <= 1
    assert len(np.unique(angles)) == len(images)


def test_blur_needs_an_angle_for_each_image():
    with pytest.raises(ValueError, match="2 angles for 3 images"):
        blur_along_angle(np.zeros((3, 8, 8), np.uint8), 6, 1, [0.0, 1.0])


@pytest.mark.parametrize("side", [1, 2, 5, 8, 31, 32, 64, 224])
@pytest.mark.parametrize("factor", [1, 1.01, 1.07, 1.25, 1.3, 1.75, 2, 2.25, 4.5])
def test_clipped_zoom_is_scipys(side, factor):
    image = np.random.default_rng(2).random((1, side, side, 2))
    np.testing.assert_allclose(
        clipped_zoom(image, factor)[0], reference_zoom(image[0], factor), rtol=0, atol=1e-14
    )


def test_clipped_zoom_handles_gray_and_oblong_images():
    image = np.random.default_rng(3).random((2, 20, 30))
    both = clipped_zoom(image, 1.3)
    large = zoom(image[1, 2:18, 3:27], (1.3, 1.3), order=1)
    top, left = (large.shape[0] - 20) // 2, (large.shape[1] - 30) // 2
    np.testing.assert_allclose(both[1], large[top : top + 20, left : left + 30], atol=1e-14)
    with pytest.raises(ValueError, match=r"factor=0\.9: expected 1 or more"):
        clipped_zoom(image, 0.9)


@pytest.mark.parametrize(
    ("side", "stop", "step", "num_factors"),
    [(32, 1.06, 0.01, 7), (32, 1.26, 0.01, 26), (64, 1.16, 0.01, 16), (224, 1.31, 0.03, 11)],
)
def test_zoom_blur_is_the_references_in_float32(side, stop, step, num_factors):
    images = photographs(side)
    blurred = zoom_blur(images, numbers_of(images), stop, step)
    factors = np.arange(1, stop, step)
    assert len(factors) == num_factors
    differences = []
    for row in (0, 1, 4, 5) if side < 224 else (1, 4):
        pixels = (images[row] / 255.0).astype(np.float32)
        total = np.zeros_like(pixels)
        for factor in factors:
            total += reference_zoom(pixels, factor)
        mean = (pixels + total) / (len(factors) + 1)
        differences.append(blurred[row].astype(int) - np.uint8(np.clip(mean, 0, 1) * 255))
    # The last bit of a float32 differs where a product is halfway between two.
    assert np.abs(differences).max() <= 1
    assert np.mean(np.array(differences) != 0) < 2e-5


@pytest.mark.parametrize(
    ("kernel", "parameters"), [(motion_blur, (6, 1.5)), (zoom_blur, (1.11, 0.01))]
)
@pytest.mark.parametrize("shape", [(0, 32, 32, 3), (1, 8, 8, 3), (2, 20, 33, 3), (3, 1, 1, 3)])
def test_any_number_and_size_of_images(kernel, parameters, shape):
    images = np.random.default_rng(4).integers(0, 256, shape, np.uint8)
    changed = kernel(images, numbers_of(images), *parameters)
    assert changed.shape == shape
    assert changed.dtype == np.uint8


@pytest.mark.parametrize(
    ("kernel", "parameters"), [(motion_blur, (10, 3)), (zoom_blur, (1.11, 0.01))]
)
@pytest.mark.parametrize("side", [32, 224])
def test_an_image_does_not_depend_on_its_batch(kernel, parameters, side):
    images = photographs(side)
    whole = kernel(images, numbers_of(images), *parameters)
    names = [f"image {index}" for index in range(len(images))]
    for start, stop in ((0, 1), (1, 3), (3, 6)):
        numbers = type(numbers_of(images))(3, names[start:stop], "test")
        part = kernel(images[start:stop], numbers, *parameters)
        np.testing.assert_array_equal(part, whole[start:stop])
