"""Pixels as floats in [0, 1], and back to levels as the published sets were made."""

import numpy as np

# The float64 value in [0, 1] of each of the 256 levels.
LEVELS = np.arange(256) / 255.0


def to_levels(values: np.ndarray) -> np.ndarray:
    """Clips floats to [0, 1], in place, and truncates them to levels: uint8 of the same shape.

    A value that rounding errors put below its level becomes the level before, as in the reference.
    """
    np.clip(values, 0, 1, out=values)
    values *= 255
    return values.astype(np.uint8)
