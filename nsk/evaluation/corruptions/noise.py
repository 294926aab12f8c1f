"""Noise of the corruption sets: Gaussian, shot, impulse and speckle noise.

Images are uint8 (n, height, width, 3); `numbers` holds the random numbers of the n images. Results
are those of the scripts that made CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C, truncated to uint8.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import numpy as np

from nsk.evaluation.corruptions.levels import LEVELS, to_levels
from nsk.evaluation.corruptions.random_numbers import RandomNumbers


def gaussian_noise(images: np.ndarray, numbers: RandomNumbers, sigma: float) -> np.ndarray:
    """Adds normal noise with the standard deviation `sigma`, where pixels are in [0, 1]."""
    noisy = numbers.normal(images.shape[1:])
    noisy *= sigma
    noisy += LEVELS[images]
    return to_levels(noisy)


def shot_noise(images: np.ndarray, numbers: RandomNumbers, photons: float) -> np.ndarray:
    """Draws every value from the Poisson distribution of a mean of `photons` for white."""
    return to_levels(numbers.poisson(LEVELS[images] * photons) / float(photons))


def impulse_noise(images: np.ndarray, numbers: RandomNumbers, amount: float) -> np.ndarray:
    """Sets a share `amount` of the values, channel by channel, to 0 or 255, half of them each."""
    draws = numbers.uniform(0, 1, images.shape[1:])
    noisy = np.where(draws < amount, np.uint8(0), images)
    noisy[draws < amount / 2] = 255
    return noisy


def speckle_noise(images: np.ndarray, numbers: RandomNumbers, sigma: float) -> np.ndarray:
    """Multiplies every value by 1 plus normal noise with the standard deviation `sigma`."""
    noisy = numbers.normal(images.shape[1:])
    noisy *= sigma
    noisy += 1
    noisy *= LEVELS[images]
    return to_levels(noisy)
