import numpy as np
import pytest
from imagecorruptions import corrupt as corrupt_of_peer

from nsk.evaluation.corruptions import noise
from nsk.evaluation.corruptions.constants import CONSTANTS
from tests.evaluation.corruptions.photographs import numbers_of, photographs

SIDES = [(32, "cifar"), (64, "tiny"), (224, "imagenet")]
KERNELS = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "speckle_noise": noise.speckle_noise,
}


def truncate(values):
    return np.uint8(np.clip(values, 0, 1) * 255)


# The reference's formulas for one image, with these random numbers.


def gaussian_noise(image, numbers, sigma):
    return truncate(image / 255.0 + sigma * numbers.normal(image.shape)[0])


def shot_noise(image, numbers, photons):
    expected = image / 255.0 * photons
    return truncate(numbers.poisson(expected[np.newaxis])[0] / float(photons))


def impulse_noise(image, numbers, amount):
    draws, noisy = numbers.uniform(0, 1, image.shape)[0], image / 255.0
    is_flipped, is_salt = draws < amount, draws < amount / 2
    noisy[is_flipped & is_salt], noisy[is_flipped & ~is_salt] = 1, 0
    return truncate(noisy)


def speckle_noise(image, numbers, sigma):
    pixels = image / 255.0
    return truncate(pixels + pixels * (sigma * numbers.normal(image.shape)[0]))


@pytest.mark.parametrize("reference", [gaussian_noise, shot_noise, impulse_noise, speckle_noise])
@pytest.mark.parametrize(("side", "constants"), SIDES)
def test_noise_is_the_references(reference, side, constants):
    images = photographs(side)
    for severity, parameters in enumerate(CONSTANTS[constants][reference.__name__]):
        noisy = KERNELS[reference.__name__](images, numbers_of(images), *parameters)
        row = severity % len(images)
        numbers = numbers_of(images)[row : row + 1]
        np.testing.assert_array_equal(noisy[row], reference(images[row], numbers, *parameters))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noise_has_the_distribution_of_imagecorruptions(name, severity):
    """It has ImageNet's constants at every size."""
    images = photographs(224, 2)[[0, 1, 3]]
    parameters = CONSTANTS["imagenet"][name][severity - 1]
    noisy = KERNELS[name](images, numbers_of(images), *parameters)
    peers = np.stack([corrupt_of_peer(image, severity, name) for image in images])
    changes, peer_changes = noisy - images.astype(float), peers - images.astype(float)
    bands = np.digitize(images, [40, 90, 140, 190])
    for band in range(5):
        ours, theirs = changes[bands == band], peer_changes[bands == band]
        error = max(theirs.std(), 1) / np.sqrt(len(theirs))
        assert abs(ours.mean() - theirs.mean()) < 6 * error
        assert ours.std() == pytest.approx(theirs.std(), rel=0.06, abs=0.1)
        np.testing.assert_allclose(
            np.mean(ours == 0), np.mean(theirs == 0), atol=5 / np.sqrt(len(theirs))
        )


def test_impulses_are_independent_in_the_channels_and_as_often_black_as_white():
    images = np.full((4, 100, 100, 3), 77, np.uint8)
    noisy = noise.impulse_noise(images, numbers_of(images), 0.2)
    is_changed = noisy != 77
    assert set(np.unique(noisy)) == {0, 77, 255}
    np.testing.assert_allclose([np.mean(noisy == 0), np.mean(noisy == 255)], 0.1, atol=0.006)
    assert np.mean(is_changed.all(axis=-1)) == pytest.approx(0.2**3, abs=0.003)
