"""Plasma maps, the clouds of fog: fractal noise by the diamond-square algorithm.

Reference:
    [Fournier et al., 1982](https://doi.org/10.1145/358523.358553)
"""

import numpy as np

from nsk.evaluation.corruptions.chunks import chunks
from nsk.evaluation.corruptions.random_numbers import RandomNumbers

# Largest noise of the first level. Its unit is arbitrary, as maps are scaled to [0, 1].
FIRST_NOISE = 100.0**2


def plasma_map(numbers: RandomNumbers, side: int, decay: float) -> np.ndarray:
    """Makes maps that continue periodically beyond their borders.

    Each level halves the distance of the map's points: a new point is the mean of its four
    neighbours plus uniform noise, which is decay^2 times smaller than that of the level before.

    Args:
        numbers: of n images; side^2 - 1 uniform numbers are drawn.
        side: of the maps, a power of two.
        decay: above 1; the smaller, the rougher.

    Returns:
        float64 (n, side, side); each map has the minimum 0 and the maximum 1 (all 0 at side 1).
    """
    if side < 1 or side & (side - 1):
        raise ValueError(f"side={side}: expected a power of two.")
    noise = numbers.uniform(-1, 1, (side**2 - 1,))
    maps = np.empty((len(numbers), side, side))
    for part in chunks(maps.shape):
        heights = _diamond_square(noise[part], side, decay)
        heights -= heights.min(axis=(1, 2), keepdims=True)
        largest = heights.max(axis=(1, 2), keepdims=True)
        np.divide(heights, np.where(largest > 0, largest, 1), out=maps[part])
    return maps


def _diamond_square(noise, side, decay):
    """Heights (n, side, side) from noise (n, side^2 - 1) in [-1, 1)."""
    grid = np.zeros((len(noise), 1, 1))
    amplitude, used = FIRST_NOISE, 0
    while grid.shape[1] < side:
        points = grid.shape[1]
        new = np.empty((3, *grid.shape))
        for kind in range(3):
            level = noise[:, used : used + points**2]
            np.multiply(level.reshape(grid.shape), amplitude, out=new[kind])
            used += points**2
        centers, tops, lefts = new
        below = grid + np.roll(grid, -1, axis=1)
        centers += (below + np.roll(below, -1, axis=2)) / 4
        right = grid + np.roll(grid, -1, axis=2)
        tops += ((centers + np.roll(centers, 1, axis=1)) + right) / 4
        lefts += ((centers + np.roll(centers, 1, axis=2)) + below) / 4
        finer = np.empty((len(noise), 2 * points, 2 * points))
        finer[:, ::2, ::2], finer[:, 1::2, 1::2] = grid, centers
        finer[:, ::2, 1::2], finer[:, 1::2, ::2] = tops, lefts
        grid, amplitude = finer, amplitude / decay**2
    return grid
