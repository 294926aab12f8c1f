"""Hue, saturation and value of pixels, in the order of scikit-image's operations.

A round trip does not return every value exactly, and truncation makes a level of the difference.
"""

import numpy as np

# Which of (largest, smallest, falling, rising) red, green and blue are in the sextants of the hue.
_CHANNELS = np.array([[0, 2, 1, 1, 3, 0], [3, 0, 0, 2, 1, 1], [1, 1, 3, 0, 0, 2]])


def rgb_to_hsv(
    red: np.ndarray, green: np.ndarray, blue: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in [0, 1), saturation and value in [0, 1] of float64 channels in [0, 1], of any shape."""
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    is_gray = spread == 0
    spread[is_gray] = 1
    # Where two channels are the largest, the later one counts.
    difference, sextant = green - blue, np.zeros_like(value)
    for first, other, largest, number in ((blue, red, green, 2), (red, green, blue, 4)):
        is_largest = largest == value
        np.subtract(first, other, out=difference, where=is_largest)
        sextant[is_largest] = number
    difference /= spread
    difference += sextant
    difference /= 6
    difference[difference < 0] += 1
    spread /= np.where(value > 0, value, 1)
    difference[is_gray] = 0
    spread[is_gray] = 0
    return difference, spread, value


def hsv_to_rgb(
    hue: np.ndarray, saturation: np.ndarray, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float64 red, green and blue of hue in [0, 1), saturation and value, as of `rgb_to_hsv`."""
    share = hue * 6
    sextant = share.astype(np.intp)
    share -= sextant
    largest = value
    smallest = value * (1 - saturation)
    falling = value * (1 - share * saturation)
    rising = value * (1 - (1 - share) * saturation)
    candidates = (largest, smallest, falling, rising)
    return tuple(np.choose(channel[sextant % 6], candidates) for channel in _CHANNELS)
