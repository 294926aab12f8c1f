"""Hue, saturation and value of pixels, vectorised over batches, with scikit-image's formulas."""

import numpy as np


def rgb_to_hsv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in [0, 1), saturation and value in [0, 1] of float64 pixels (..., 3) in [0, 1]."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    value = rgb.max(axis=-1)
    spread = value - rgb.min(axis=-1)
    is_grey = spread == 0
    divisor = np.where(is_grey, 1, spread)
    saturation = np.where(is_grey, 0, spread / np.where(value == 0, 1, value))
    hue = np.select(
        [blue == value, green == value],
        [4 + (red - green) / divisor, 2 + (blue - red) / divisor],
        (green - blue) / divisor,
    )
    return np.where(is_grey, 0, (hue / 6) % 1), saturation, value


def hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Float64 pixels (..., 3) of hue, saturation and value, as `rgb_to_hsv` returns them."""
    sector = np.floor(hue * 6)
    fraction = hue * 6 - sector
    low = value * (1 - saturation)
    falling = value * (1 - fraction * saturation)
    rising = value * (1 - (1 - fraction) * saturation)
    sector = sector.astype(np.uint8) % 6
    channels = (
        (value, falling, low, low, rising, value),
        (rising, value, value, falling, low, low),
        (low, low, rising, value, value, falling),
    )
    return np.stack([np.choose(sector, choices) for choices in channels], axis=-1)
