"""Pixels as floats in [0, 1], and back to levels as the published sets were made."""

import numpy as np

# The float64 value in [0, 1] of each of the 256 levels.
LEVELS = np.arange(256) / 255.0
# Sums of weights that should be 1 miss it by rounding errors; without it, white would become 254.
TOLERANCE = 1e-6


def to_levels(values: np.ndarray) -> np.ndarray:
    """Clips floats to [0, 1] and truncates them, in place, to levels: uint8 of the same shape."""
    values *= 255
    values += TOLERANCE
    return np.clip(values, 0, 255, out=values).astype(np.uint8)
