import numpy as np
import pytest
import scipy.stats
from skimage.util import random_noise

from nsk.evaluation.corruptions.noise import (
    gaussian_noise,
    impulse_noise,
    shot_noise,
    speckle_noise,
)
from tests.evaluation.corruptions.photographs import numbers_of, photographs


def truncated(values):
    return np.uint8(np.clip(values, 0, 1) * 255)


@pytest.mark.parametrize(("side", "sigma"), [(32, 0.04), (64, 0.18), (224, 0.38)])
def test_normal_noise_is_added_or_multiplied_as_in_the_reference(side, sigma):
    images = photographs(side)
    scaled = images / 255.0
    noise = sigma * numbers_of(images).normal(images.shape[1:])
    np.testing.assert_array_equal(
        gaussian_noise(images, numbers_of(images), sigma), truncated(scaled + noise)
    )
    np.testing.assert_array_equal(
        speckle_noise(images, numbers_of(images), sigma), truncated(scaled + scaled * noise)
    )


@pytest.mark.parametrize(
    ("side", "photons"), [(32, 500), (32, 75), (64, 15), (224, 60), (224, 3), (32, 0.7)]
)
def test_shot_noise_is_the_references(side, photons):
    """Its Poisson numbers are SciPy's, which inverts the distribution value by value."""
    images = photographs(side)[: 6 if side < 224 else 1]
    scaled = images / 255.0
    draws = numbers_of(images).uniform(0, 1, images.shape[1:])
    counts = scipy.stats.poisson.ppf(draws, scaled * photons)
    noisy = shot_noise(images, numbers_of(images), photons)
    np.testing.assert_array_equal(noisy, truncated(counts / float(photons)))


@pytest.mark.parametrize(
    ("kernel", "parameter", "mode", "options"),
    [
        (gaussian_noise, 0.1, "gaussian", {"var": 0.1**2}),
        (speckle_noise, 0.2, "speckle", {"var": 0.2**2}),
        (impulse_noise, 0.17, "s&p", {"amount": 0.17}),
        (shot_noise, 60, None, {}),
    ],
)
def test_noise_has_the_distribution_of_scikit_image(kernel, parameter, mode, options):
    """On constant images, by the share of values up to each level (Kolmogorov-Smirnov)."""
    rng = np.random.default_rng(1)
    for level in (20, 128, 230):
        image = np.full((100, 100, 3), level, np.uint8)
        noisy = kernel(image[np.newaxis], numbers_of([0]), parameter)
        if mode:
            expected = truncated(random_noise(image / 255.0, mode, rng, **options))
        else:
            expected = truncated(rng.poisson(image / 255.0 * parameter) / parameter)
        shares = [
            np.bincount(values.ravel(), minlength=256).cumsum() / image.size
            for values in (noisy, expected)
        ]
        # 1.95 * sqrt(2 / 30000): exceeded by chance once in a thousand times.
        assert np.abs(shares[0] - shares[1]).max() < 0.016


@pytest.mark.parametrize("amount", [0.01, 0.07, 0.27])
def test_impulses_are_independent_in_each_channel(amount):
    images = photographs(224)[5:]
    noisy = impulse_noise(images, numbers_of(images), amount)
    assert set(np.unique(noisy)) == {0, 77, 255}
    hit = noisy != 77
    size, spread = hit.size, 5 * (amount / hit.size) ** 0.5
    assert abs(hit.mean() - amount) < spread
    assert abs(np.count_nonzero(noisy == 255) / size - amount / 2) < spread
    assert abs(hit.all(axis=-1).mean() - amount**3) < 5 * (3 * amount**3 / size) ** 0.5 + 1 / size


@pytest.mark.parametrize("amount", [0, 0.01, 0.27, 1])
def test_impulses_are_the_lowest_draws(amount):
    images = photographs(64)
    draws = numbers_of(images).uniform(0, 1, images.shape[1:])
    expected = np.where(draws < amount / 2, 255, np.where(draws < amount, 0, images))
    np.testing.assert_array_equal(impulse_noise(images, numbers_of(images), amount), expected)
