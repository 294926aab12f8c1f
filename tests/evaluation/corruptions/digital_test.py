import io

import cv2
import numpy as np
import pytest
import skimage.color
from imagecorruptions import corrupt as corrupt_of_peer
from PIL import Image
from scipy.ndimage import map_coordinates
from skimage.filters import gaussian

from nsk.evaluation.corruptions import digital
from nsk.evaluation.corruptions.constants import CONSTANTS
from tests.evaluation.corruptions.photographs import numbers_of, photographs

SIDES = [(32, "cifar"), (64, "tiny"), (224, "imagenet")]


def truncate(values):
    return np.uint8(np.clip(values, 0, 1) * 255)


# The reference's formulas for one image, with these random numbers.


def brightness(image, numbers, amount):
    hsv = skimage.color.rgb2hsv(image / 255.0)
    hsv[..., 2] = np.clip(hsv[..., 2] + amount, 0, 1)
    return truncate(skimage.color.hsv2rgb(hsv))


def saturate(image, numbers, factor, amount):
    hsv = skimage.color.rgb2hsv(image / 255.0)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + amount, 0, 1)
    return truncate(skimage.color.hsv2rgb(hsv))


def contrast(image, numbers, factor):
    pixels = image / 255.0
    means = np.mean(pixels, axis=(0, 1), keepdims=True)
    return truncate((pixels - means) * factor + means)


def jpeg_compression(image, numbers, quality):
    output = io.BytesIO()
    Image.fromarray(image).save(output, "JPEG", quality=quality)
    return np.array(Image.open(output))


def pixelate(image, numbers, factor):
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((int(width * factor), int(height * factor)), Image.BOX)
    return np.array(small.resize((width, height), Image.BOX))


def rounded_positions(forward, shape):
    """Where OpenCV before version 5 takes pixels from, in 1/32 pixel: (x, y)."""
    backward = cv2.invertAffineTransform(forward)
    height, width = shape
    positions = []
    for a, b, c in backward:
        first = np.rint((b * np.arange(height) + c) * 1024).astype(int) + 16
        steps = np.rint(a * np.arange(width) * 1024).astype(int)
        positions.append(((first[:, np.newaxis] + steps) >> 5).astype(np.float32) / 32)
    return positions


def warp(pixels, forward):
    x, y = rounded_positions(forward, pixels.shape[:2])
    return cv2.remap(pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def exact_warp(pixels, forward):
    size = pixels.shape[1::-1]
    return cv2.warpAffine(pixels, forward, size, borderMode=cv2.BORDER_REFLECT_101)


def elastic_transform(image, numbers, alpha, sigma, affine, warp=warp):
    pixels = image.astype(np.float32) / np.float32(255)
    height, width = shape = image.shape[:2]
    center, reach = np.float32([width, height]) // 2, min(shape) // 3
    corner = [center[0] + reach, center[1] - reach]
    points = np.float32([center + reach, corner, center - reach])
    moved = points + numbers.uniform(-affine, affine, (3, 2))[0].astype(np.float32)
    pixels = warp(pixels, cv2.getAffineTransform(points, moved))
    fields = []
    for _ in range(2):
        field = numbers.uniform(-1, 1, shape)[0]
        field = gaussian(field, sigma, mode="reflect", truncate=3) * alpha
        fields.append(field.astype(np.float32))
    rows, columns = np.mgrid[:height, :width]
    channels = [
        map_coordinates(channel, (rows + fields[1], columns + fields[0]), order=1, mode="reflect")
        for channel in np.moveaxis(pixels, -1, 0)
    ]
    return truncate(np.stack(channels, axis=-1))


def compare(reference, images, parameters):
    """Absolute differences from the reference, in levels."""
    kernel = getattr(digital, reference.__name__)
    corrupted = kernel(images, numbers_of(images), *parameters)
    numbers = numbers_of(images)
    expected = [
        reference(image, numbers[row : row + 1], *parameters) for row, image in enumerate(images)
    ]
    assert corrupted.dtype == np.uint8
    return np.abs(corrupted.astype(int) - np.stack(expected))


@pytest.mark.parametrize("reference", [brightness, saturate, contrast, jpeg_compression, pixelate])
@pytest.mark.parametrize(("side", "constants"), SIDES)
def test_corruption_is_the_references(reference, side, constants):
    images = photographs(side, 2)
    for parameters in CONSTANTS[constants][reference.__name__]:
        assert compare(reference, images, parameters).max() == 0


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize(("side", "constants"), SIDES)
def test_elastic_transform_is_the_references(side, constants, severity):
    # A kernel of 1025 weights, at severity 1 of ImageNet's constants, is slow in SciPy.
    images = photographs(side, 2)[: 1 if side == 224 else 4]
    differences = compare(
        elastic_transform, images, CONSTANTS[constants]["elastic_transform"][severity - 1]
    )
    assert differences.max() <= 1
    # The affine part is computed in float32, whose last digit depends on the order.
    assert np.mean(differences > 0) < 1e-3


def test_affine_part_is_opencvs_but_for_rounded_positions():
    images = photographs(224, 2)
    numbers = numbers_of(images)
    moved = digital.elastic_transform(images, numbers, 0, 0, 244 * 0.2)
    numbers = numbers_of(images)
    for row, image in enumerate(images):
        exact = elastic_transform(image, numbers[row : row + 1], 0, 0, 244 * 0.2, exact_warp)
        differences = np.abs(moved[row].astype(int) - exact)
        # A difference of 1/64 pixel at most, where neighbours differ by up to 255 levels.
        assert differences.max() <= 8
        assert differences.mean() < 0.5


@pytest.mark.parametrize("shape", [(24, 41), (41, 24), (8, 8), (3, 9), (1, 6)])
@pytest.mark.parametrize("constants", ["cifar", "imagenet"])
def test_elastic_transform_of_other_shapes(shape, constants):
    images = photographs(64, 3)[:3, 7 : 7 + shape[0], 11 : 11 + shape[1]]
    for parameters in CONSTANTS[constants]["elastic_transform"]:
        if min(shape) < 20:
            # Points are moved by more than their distance: positions are far outside.
            digital.elastic_transform(images, numbers_of(images), *parameters)
        elif constants == "cifar":
            assert np.mean(compare(elastic_transform, images, parameters) > 0) < 3e-3


@pytest.mark.parametrize("shape", [(24, 41), (8, 8), (3, 9), (1, 6)])
def test_pixels_of_other_shapes(shape):
    images = photographs(64, 3)[:3, 7 : 7 + shape[0], 11 : 11 + shape[1]]
    for reference in (brightness, saturate, contrast, jpeg_compression):
        for parameters in CONSTANTS["tiny"][reference.__name__]:
            assert compare(reference, images, parameters).max() == 0
    assert compare(pixelate, images, (1,)).max() == 0
    # One pixel at least is left.
    pixels = digital.pixelate(images[:, :1, :1], numbers_of(images), 0.25)
    np.testing.assert_array_equal(pixels, images[:, :1, :1])


def test_points_on_a_line_give_one_pixel():
    # All three points are moved to the same place, so that nothing can be inverted.
    rows, columns = digital._affine_positions((6, 6), np.array([[[0, 0], [0, 4], [4, 4]]]))
    assert np.ptp(rows) == np.ptp(columns) == 0


@pytest.mark.parametrize(
    "name", ["brightness", "saturate", "contrast", "jpeg_compression", "pixelate"]
)
@pytest.mark.parametrize("side", [64, 224])
def test_corruption_is_that_of_imagecorruptions(name, side):
    """It has ImageNet's constants at every size. Its pixels are enlarged by nearest neighbours.

    That is the same, as means over less than a pixel are that pixel.
    """
    images = photographs(side, 2)
    for severity, parameters in enumerate(CONSTANTS["imagenet"][name], start=1):
        corrupted = getattr(digital, name)(images, numbers_of(images), *parameters)
        expected = [corrupt_of_peer(image, severity, name) for image in images]
        np.testing.assert_array_equal(corrupted, expected)
