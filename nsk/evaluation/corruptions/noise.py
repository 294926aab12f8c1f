"""Noise of the corruption sets: Gaussian, shot, impulse and speckle noise.

Images are uint8 (n, height, width, 3); `numbers` holds the random numbers of the n images. Results
are those of the scripts that made CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C, truncated to uint8.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import functools
import math

import numpy as np
import scipy.special

from nsk.evaluation.corruptions.chunks import in_chunks
from nsk.evaluation.corruptions.levels import LEVELS, to_levels
from nsk.evaluation.corruptions.random_numbers import RandomNumbers

# Equal intervals of uniform numbers in which the inverse of a distribution is looked up at once.
GUIDE_CELLS = 2048


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
    """Draws every value from the Poisson distribution of a mean of `photons` for white.

    One uniform number for each value is drawn, in which the inverse distribution is looked up.
    """
    draws = numbers.uniform(0, 1, images.shape[1:])
    levels, cumulative, guide = _shot_tables(photons)
    cells = (draws * GUIDE_CELLS).astype(np.int32)
    cells += images * np.int32(GUIDE_CELLS)
    places = guide.take(cells)
    is_open = places < 0
    # The rows of `cumulative` lie one after another between 0 and 256.
    found = np.searchsorted(cumulative, images[is_open] + draws[is_open], side="right")
    places[is_open] = found - images[is_open].astype(np.int64) * len(levels)
    return levels.take(places, mode="clip")


@functools.lru_cache(maxsize=16)
def _shot_tables(photons):
    """Distributions of the levels that Poisson numbers become, for each of the 256 levels.

    Returns:
        `levels`, uint8 (m,), those that are possible, in order; `cumulative`, float64 (256 * m,):
        the entry m * level + i is level + P(result <= levels[i]); `guide`, int16 (256 *
        GUIDE_CELLS,): i for all uniform numbers in an interval, or -1 if they have several.
    """
    counts = np.arange(math.ceil(photons) + 1)
    levels, first = np.unique(to_levels(counts / photons), return_index=True)
    rows = np.arange(256)[:, np.newaxis]
    cumulative = np.ones((256, len(levels)))
    cumulative[:, :-1] = scipy.special.pdtr(first[1:] - 1, LEVELS[:, np.newaxis] * photons)
    cumulative = (rows + cumulative).ravel()
    ends = rows + np.arange(GUIDE_CELLS + 1) / GUIDE_CELLS
    lowest = np.searchsorted(cumulative, ends[:, :-1], side="right")
    highest = np.searchsorted(cumulative, ends[:, 1:], side="left")
    guide = np.where(lowest == highest, lowest - rows * len(levels), -1)
    return levels, cumulative, guide.astype(np.int16).ravel()


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
