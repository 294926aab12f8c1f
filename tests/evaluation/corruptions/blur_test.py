import cv2
import numpy as np
import pytest
from imagecorruptions import corruptions as peer
from skimage.filters import gaussian

from nsk.evaluation.corruptions.blur import defocus_blur, disk_kernel, gaussian_blur, glass_blur
from nsk.evaluation.corruptions.constants import IMAGENET
from tests.evaluation.corruptions.photographs import numbers_of, photographs

DISKS = [
    *[(32, 0.3, 0.4), (32, 0.5, 0.6), (32, 1, 0.2), (32, 1.5, 0.1)],
    *[(64, 0.5, 0.6), (64, 2.5, 0.01), (64, 3, 0.1)],
    *[(224, 3, 0.1), (224, 4, 0.5), (224, 8, 0.5), (224, 10, 0.5)],
]


def truncated(values):
    return np.uint8(np.clip(values, 0, 1) * 255)


def blurred(image, sigma):
    return gaussian(image / 255.0, sigma=sigma, channel_axis=-1)


def reference_disk(radius, alias):
    steps = np.arange(-8, 9) if radius <= 8 else np.arange(-radius, radius + 1)
    columns, rows = np.meshgrid(steps, steps)
    disk = np.array(columns**2 + rows**2 <= radius**2, dtype=np.float32)
    disk /= np.sum(disk)
    size = (3, 3) if radius <= 8 else (5, 5)
    return cv2.GaussianBlur(disk, ksize=size, sigmaX=alias)


@pytest.mark.parametrize(
    ("side", "sigma"), [(32, 0.4), (32, 0.05), (32, 1), (64, 0.5), (64, 1.25), (224, 1), (224, 6)]
)
def test_gaussian_blur_is_scikit_images(side, sigma):
    """In its order of sums, too, which decides the level of constant images (64 pixels, 0.5)."""
    images = photographs(side)
    changed = gaussian_blur(images, numbers_of(images), sigma)
    for image, ours in zip(images, changed, strict=True):
        np.testing.assert_array_equal(ours, truncated(blurred(image, sigma)))


@pytest.mark.parametrize(
    ("side", "sigma", "max_delta", "iterations", "count"),
    [(32, 0.05, 1, 1, 6), (32, 0.4, 1, 2, 6), (64, 0.9, 2, 2, 3), (224, 1.5, 4, 1, 1)],
)
def test_glass_blur_is_that_of_a_loop_over_pixels(side, sigma, max_delta, iterations, count):
    images = photographs(side)[:count]
    changed = glass_blur(images, numbers_of(images), sigma, max_delta, iterations)
    numbers = numbers_of(images)
    steps = range(side - max_delta, max_delta, -1)
    shape = (len(steps), len(steps), 2)
    draws = [numbers.integers(-max_delta, max_delta, shape) for _ in range(iterations)]
    for row, image in enumerate(images):
        pixels = np.uint8(blurred(image, sigma) * 255)
        for offsets in draws:
            moves = iter(offsets[row].reshape(-1, 2).tolist())
            for y in steps:
                for x in steps:
                    dx, dy = next(moves)
                    # Not a swap: both sides are views, so that the first copy changes the second.
                    pixels[y, x], pixels[y + dy, x + dx] = pixels[y + dy, x + dx], pixels[y, x]
        np.testing.assert_array_equal(changed[row], truncated(blurred(pixels, sigma)))


@pytest.mark.parametrize("severity", range(1, 6))
def test_glass_blur_is_that_of_imagecorruptions(monkeypatch, severity):
    """With these random numbers, which its loop draws only if it is not compiled."""
    images = photographs(64)[:1]
    sigma, max_delta, iterations = IMAGENET["glass_blur"][severity - 1]
    numbers, steps = numbers_of(images), 64 - 2 * max_delta
    draws = [
        draw
        for _ in range(iterations)
        for draw in numbers.integers(-max_delta, max_delta, (steps, steps, 2)).reshape(-1, 2)
    ]
    monkeypatch.setattr(np.random, "randint", lambda low, high, size: draws.pop(0))
    loop = peer._shuffle_pixels_njit_glass_blur.py_func
    monkeypatch.setattr(peer, "_shuffle_pixels_njit_glass_blur", loop)
    expected = np.uint8(peer.glass_blur(images[0], severity, seed=0))
    assert not draws
    changed = glass_blur(images, numbers_of(images), sigma, max_delta, iterations)
    np.testing.assert_array_equal(changed[0], expected)


@pytest.mark.parametrize(("radius", "alias"), sorted({disk[1:] for disk in DISKS}))
def test_disk_is_opencvs(radius, alias):
    expected = reference_disk(radius, alias)
    kernel = disk_kernel(radius, alias)
    margin = (len(expected) - len(kernel)) // 2
    assert margin >= 0
    np.testing.assert_allclose(np.pad(kernel, margin), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("side", "radius", "alias"), DISKS)
def test_defocus_blur_is_opencvs(side, radius, alias):
    """A sum that is a level but for the last digits of a float is truncated to either side."""
    images = photographs(side)
    changed = defocus_blur(images, numbers_of(images), radius, alias)
    kernel = reference_disk(radius, alias)
    expected = [truncated(cv2.filter2D(image / 255.0, -1, kernel)) for image in images]
    differences = changed.astype(int) - np.stack(expected)
    assert np.abs(differences).max() <= 1
    assert np.mean(differences[:4] != 0) < 1e-5
    # Constant images: either all values or none.
    assert set((differences[4:] != 0).mean(axis=(1, 2, 3))) <= {0, 1}


def test_gaussian_and_defocus_blur_of_oblong_images():
    images = np.random.default_rng(9).integers(0, 256, (2, 20, 33, 3), np.uint8)
    ours = gaussian_blur(images, numbers_of(images), 1.3)
    np.testing.assert_array_equal(ours[1], truncated(blurred(images[1], 1.3)))
    ours = defocus_blur(images, numbers_of(images), 3, 0.1)
    theirs = truncated(cv2.filter2D(images[1] / 255.0, -1, reference_disk(3, 0.1)))
    assert np.mean(ours[1] != theirs) < 1e-3
