import cv2
import numpy as np
import pytest
from imagecorruptions import corrupt as corrupt_of_peer
from imagecorruptions import corruptions as peer
from skimage.filters import gaussian

from nsk.evaluation.corruptions import blur
from nsk.evaluation.corruptions.constants import CONSTANTS
from tests.evaluation.corruptions.photographs import numbers_of, photographs

SIDES = [(32, "cifar"), (64, "tiny"), (224, "imagenet")]
KERNELS = {
    "gaussian_blur": blur.gaussian_blur,
    "glass_blur": blur.glass_blur,
    "defocus_blur": blur.defocus_blur,
}


def truncate(values):
    return np.uint8(np.clip(values, 0, 1) * 255)


# The reference's formulas for one image, with these random numbers.


def gaussian_blur(image, numbers, sigma):
    return truncate(gaussian(image / 255.0, sigma, channel_axis=-1))


def glass_blur(image, numbers, sigma, max_delta, iterations):
    pixels = np.uint8(gaussian(image / 255.0, sigma, channel_axis=-1) * 255)
    rows, columns = (range(side - max_delta, max_delta, -1) for side in image.shape[:2])
    for _ in range(iterations):
        moves = numbers.integers(-max_delta, max_delta, (len(rows), len(columns), 2))[0].tolist()
        for row, moves_of_row in zip(rows, moves, strict=True):
            for column, (right, down) in zip(columns, moves_of_row, strict=True):
                # The swap of two views: the first one is overwritten, then copied to itself.
                pixels[row, column] = pixels[row + down, column + right]
    return truncate(gaussian(pixels / 255.0, sigma, channel_axis=-1))


def reference_disk(radius, alias):
    reach, size = (8, 3) if radius <= 8 else (radius, 5)
    x, y = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    disk = np.array(x**2 + y**2 <= radius**2, np.float32)
    return cv2.GaussianBlur(disk / disk.sum(), (size, size), alias)


def defocus_blur(image, numbers, radius, alias):
    kernel = reference_disk(radius, alias)
    channels = [cv2.filter2D(image[..., index] / 255.0, -1, kernel) for index in range(3)]
    return truncate(np.stack(channels, axis=-1))


def check(reference, images, parameters):
    """Compares every image; sums in another order may cost a level in few values."""
    blurred = KERNELS[reference.__name__](images, numbers_of(images), *parameters)
    numbers = numbers_of(images)
    expected = np.stack(
        [reference(image, numbers[row : row + 1], *parameters) for row, image in enumerate(images)]
    )
    differences = np.abs(blurred.astype(int) - expected)
    assert differences.max() <= 1
    assert np.mean(differences > 0) < 1e-4


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize(("side", "constants"), SIDES)
@pytest.mark.parametrize("reference", [gaussian_blur, defocus_blur])
def test_blur_is_the_references(reference, side, constants, severity):
    # Constant images, too: a kernel whose sum is less than 1 costs them a level.
    check(reference, photographs(side, 2), CONSTANTS[constants][reference.__name__][severity - 1])


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize(("side", "constants"), SIDES)
def test_glass_blur_is_the_references(side, constants, severity):
    images = photographs(side, 2)[: 1 if side == 224 else 4]
    check(glass_blur, images, CONSTANTS[constants]["glass_blur"][severity - 1])


@pytest.mark.parametrize("shape", [(24, 41), (8, 8), (3, 9), (1, 1)])
@pytest.mark.parametrize("constants", ["cifar", "imagenet"])
@pytest.mark.parametrize("reference", [gaussian_blur, defocus_blur, glass_blur])
def test_images_of_other_shapes(reference, shape, constants):
    images = photographs(64, 3)[:3, 7 : 7 + shape[0], 11 : 11 + shape[1]]
    for parameters in CONSTANTS[constants][reference.__name__]:
        check(reference, images, parameters)


@pytest.mark.parametrize("constants", ["cifar", "tiny", "imagenet"])
def test_disks_are_opencvs(constants):
    for radius, alias in CONSTANTS[constants]["defocus_blur"]:
        expected = reference_disk(radius, alias)
        kernel = blur.disk_kernel(radius, alias)
        margin = (len(expected) - len(kernel)) // 2
        np.testing.assert_allclose(np.pad(kernel, margin), expected, atol=2e-8)
        # The sum decides whether constant images keep their level.
        assert kernel.sum() - 1 == pytest.approx(expected.astype(float).sum() - 1, abs=3e-8)


@pytest.mark.parametrize("name", ["defocus_blur", "gaussian_blur"])
@pytest.mark.parametrize("severity", [1, 5])
def test_blur_is_that_of_imagecorruptions(name, severity):
    """It has ImageNet's constants at every size."""
    for side in (64, 224):
        images = photographs(side, 2)
        parameters = CONSTANTS["imagenet"][name][severity - 1]
        blurred = KERNELS[name](images, numbers_of(images), *parameters)
        expected = np.stack([corrupt_of_peer(image, severity, name) for image in images])
        assert np.abs(blurred.astype(int) - expected).max() <= 1
        assert np.mean(blurred != expected) < 1e-4


@pytest.mark.parametrize("severity", range(1, 6))
def test_glass_blur_is_that_of_imagecorruptions(monkeypatch, severity):
    """With these random numbers, which its loop draws only if it is not compiled."""
    images = photographs(64, 1)[:1]
    sigma, max_delta, iterations = CONSTANTS["imagenet"]["glass_blur"][severity - 1]
    numbers, side = numbers_of(images), 64 - 2 * max_delta
    draws = [
        draw
        for _ in range(iterations)
        for draw in numbers.integers(-max_delta, max_delta, (side, side, 2)).reshape(-1, 2)
    ]
    monkeypatch.setattr(np.random, "randint", lambda low, high, size: draws.pop(0))
    loop = peer._shuffle_pixels_njit_glass_blur.py_func
    monkeypatch.setattr(peer, "_shuffle_pixels_njit_glass_blur", loop)
    expected = np.uint8(peer.glass_blur(images[0], severity, seed=0))
    assert not draws
    blurred = blur.glass_blur(images, numbers_of(images), sigma, max_delta, iterations)
    np.testing.assert_array_equal(blurred[0], expected)


def test_replaced_pixels_are_replaced_again():
    # Pixels 4, 3, 2, 1 take the values of 5, 4, 1 and 3: 3 takes what 4 has taken, so does 1.
    moves = np.array([0, 2, -1, 1, 1, 0])
    np.testing.assert_array_equal(blur._replaced_one_after_another(moves), [0, 5, 1, 5, 5, 5])
