import io

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates
from skimage.color import hsv2rgb, rgb2hsv
from skimage.filters import gaussian

from nsk.evaluation.corruptions.digital import (
    _affine_positions,
    brightness,
    contrast,
    elastic_transform,
    jpeg_compression,
    pixelate,
    saturate,
)
from tests.evaluation.corruptions.photographs import numbers_of, photographs

# Side, alpha, sigma, affine: severities 1, 2 and 5 of each set.
ELASTIC = [
    *[(32, 0, 0, 2.56), (32, 1.6, 6.4, 2.24), (32, 3.2, 0.96, 0.96)],
    *[(64, 3.2, 19.2, 3.84), (64, 10.24, 1.92, 1.28)],
    *[(224, 488, 170.8, 24.4), (224, 488, 19.52, 48.8), (224, 29.28, 2.44, 4.88)],
]


def truncated(values):
    return np.uint8(np.clip(values, 0, 1) * 255)


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("amount", [0.05, 0.3, 0.5])
def test_brightness_is_scikit_images(side, amount):
    images = photographs(side)
    hsv = rgb2hsv(images / 255.0)
    hsv[..., 2] = np.clip(hsv[..., 2] + amount, 0, 1)
    changed = brightness(images, numbers_of(images), amount)
    np.testing.assert_array_equal(changed, truncated(hsv2rgb(hsv)))


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize(("factor", "amount"), [(0.1, 0), (2, 0.1), (30, 0.2)])
def test_saturation_is_scikit_images(side, factor, amount):
    images = photographs(side)
    hsv = rgb2hsv(images / 255.0)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + amount, 0, 1)
    changed = saturate(images, numbers_of(images), factor, amount)
    np.testing.assert_array_equal(changed, truncated(hsv2rgb(hsv)))


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("factor", [0.75, 0.3, 0.05])
def test_contrast_is_the_references(side, factor):
    images = photographs(side)
    for image, changed in zip(images, contrast(images, numbers_of(images), factor), strict=True):
        pixels = image / 255.0
        means = np.mean(pixels, axis=(0, 1), keepdims=True)
        np.testing.assert_array_equal(changed, truncated((pixels - means) * factor + means))


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("quality", [80, 25, 7])
def test_jpeg_compression_is_pillows(side, quality, tmp_path):
    images = photographs(side)
    changed = jpeg_compression(images, numbers_of(images), quality)
    for image, ours in zip(images, changed, strict=True):
        Image.fromarray(image).save(tmp_path / "image.jpg", quality=quality)
        with Image.open(tmp_path / "image.jpg") as compressed:
            np.testing.assert_array_equal(ours, np.asarray(compressed))
    encoded = io.BytesIO()
    Image.fromarray(images[0]).save(encoded, "JPEG", quality=quality + 5)
    assert (np.asarray(Image.open(encoded)) != changed[0]).any()


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("factor", [0.95, 0.65, 0.3])
def test_pixelate_is_pillows(side, factor):
    images = photographs(side)
    changed = pixelate(images, numbers_of(images), factor)
    small = int(side * factor)
    for image, ours in zip(images, changed, strict=True):
        reduced = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
        expected = reduced.resize((side, side), Image.Resampling.BOX)
        np.testing.assert_array_equal(ours, np.asarray(expected))


def test_pixelate_reduces_oblong_images_to_means_of_blocks():
    images = np.random.default_rng(2).integers(0, 256, (2, 8, 12, 3), np.uint8)
    means = images.reshape(2, 4, 2, 6, 2, 3).mean(axis=(2, 4))
    expected = np.rint(means).repeat(2, axis=1).repeat(2, axis=2)
    assert np.abs(pixelate(images, numbers_of(images), 0.5) - expected).max() <= 1


def elastic_draws(images, affine):
    numbers = numbers_of(images)
    moves = numbers.uniform(-affine, affine, (3, 2)).astype(np.float32)
    return moves, *(numbers.uniform(-1, 1, images.shape[1:3]) for _ in range(2))


def affine_matrix(side, moves):
    center, reach = np.float32([side // 2, side // 2]), side // 3
    points = np.float32([center + reach, [center[0] + reach, center[1] - reach], center - reach])
    return cv2.getAffineTransform(points, points + moves)


def rounded_affine(pixels, matrix):
    """OpenCV 4's `warpAffine`: positions in 1/1024 pixel, their sums rounded to 1/32 pixel."""
    side = len(pixels)
    inverse = cv2.invertAffineTransform(matrix)
    y, x = np.mgrid[:side, :side]
    positions = []
    for row in inverse[::-1]:
        fixed = np.rint(1024 * row[0] * x) + np.rint(1024 * (row[1] * y + row[2]))
        positions.append(np.floor((fixed + 16) / 32) / 32)
    return np.stack(
        [map_coordinates(pixels[..., k], positions, order=1, mode="mirror") for k in range(3)],
        axis=-1,
    )


def displaced(pixels, dx, dy, alpha, sigma):
    shape = pixels.shape
    dx, dy = (
        (gaussian(field, sigma, mode="reflect", truncate=3) * alpha).astype(np.float32)[..., None]
        for field in (dx, dy)
    )
    x, y, z = np.meshgrid(np.arange(shape[1]), np.arange(shape[0]), np.arange(3))
    indices = [np.reshape(values, (-1, 1)) for values in (y + dy, x + dx, z)]
    return map_coordinates(pixels, indices, order=1, mode="reflect").reshape(shape)


@pytest.mark.parametrize(("side", "alpha", "sigma", "affine"), ELASTIC)
def test_elastic_transform_is_the_references(side, alpha, sigma, affine):
    images = photographs(side)[:: 1 if side < 224 else 3]
    changed = elastic_transform(images, numbers_of(images), alpha, sigma, affine)
    moves, dx, dy = elastic_draws(images, affine)
    exact, opencv = [], []
    for row, image in enumerate(images):
        pixels = np.array(image, dtype=np.float32) / 255.0
        matrix = affine_matrix(side, moves[row])
        warped = cv2.warpAffine(pixels, matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
        for results, moved in ((exact, rounded_affine(pixels, matrix)), (opencv, warped)):
            results.append(truncated(displaced(moved, dx[row], dy[row], alpha, sigma)))
    differences = np.abs(changed.astype(int) - np.stack(exact))
    assert differences.max() <= 1
    assert np.mean(differences != 0) < 1e-5
    # OpenCV 5 does not round positions: up to 1/64 pixel, up to 3 levels at sharp edges.
    differences = np.abs(changed.astype(int) - np.stack(opencv))
    assert differences.max() <= 4
    assert differences.mean() < 0.15


def test_points_that_are_moved_to_a_line_give_one_pixel():
    moves = np.array([[[0, 0], [0, 4], [4, 4]]])  # All three are at the same place.
    rows, columns = _affine_positions((6, 6), moves)
    assert np.ptp(rows) == np.ptp(columns) == 0


def test_images_may_be_moved_by_more_than_their_size():
    images = photographs(32)
    changed = elastic_transform(images, numbers_of(images), 500, 0, 0)
    _, dx, dy = elastic_draws(images, 0)
    expected = displaced(np.float32(images[1] / 255), dx[1], dy[1], 500, 0)
    assert np.mean(changed[1] != truncated(expected)) < 2e-3
