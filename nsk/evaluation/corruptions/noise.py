"""Noise of the corruption sets: Gaussian, shot, impulse and speckle noise.

Images are uint8 (n, height, width, 3); `numbers` holds the random numbers of the n images. Results
are those of the scripts that made CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C, truncated to uint8.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import numpy as np

from nsk.evaluation.corruptions.chunks import in_chunks
from nsk.evaluation.corruptions.levels import LEVELS, to_levels
from nsk.evaluation.corruptions.random_numbers import RandomNumbers


@in_chunks
def gaussian_noise(images: np.ndarray, numbers: RandomNumbers, sigma: float) -> np.ndarray:
    """Adds normal noise with the standard deviation `sigma`, where pixels are in [0, 1].

    One normal number for each value is drawn.
    """
    noisy = numbers.normal(images.shape[1:])
    noisy *= sigma
    noisy += images / 255
    return to_levels(noisy)


@in_chunks
def shot_noise(images: np.ndarray, numbers: RandomNumbers, photons: float) -> np.ndarray:
    """Draws every value from the Poisson distribution of a mean of `photons` for white."""
    return to_levels(numbers.poisson(LEVELS[images] * photons) / photons)


@in_chunks
def impulse_noise(images: np.ndarray, numbers: RandomNumbers, amount: float) -> np.ndarray:
    """Sets a share `amount` of the values, channel by channel, to 0 or 255, half of them each.

    One uniform number for each value is drawn: below `amount` / 2 it becomes 255, below `amount` 0.
    """
    draws = numbers.uniform(0, 1, images.shape[1:])
    noisy = images * (draws >= amount)
    noisy[draws < amount / 2] = 255
    return noisy


@in_chunks
def speckle_noise(images: np.ndarray, numbers: RandomNumbers, sigma: float) -> np.ndarray:
    """Adds to every value itself times normal noise with the standard deviation `sigma`.

    One normal number for each value is drawn.
    """
    values = images / 255
    noisy = numbers.normal(images.shape[1:])
    noisy *= sigma
    noisy *= values
    noisy += values
    return to_levels(noisy)
