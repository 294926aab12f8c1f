"""Spatter: drops of water or spots of mud on the lens.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import numpy as np
import scipy.ndimage

from nsk.evaluation.corruptions.chunks import chunks
from nsk.evaluation.corruptions.random_numbers import RandomNumbers
from nsk.evaluation.corruptions.water import box_mean, canny, chamfer_distance, equalize, mirror_pad

# Pale turquoise and brown, red, green and blue.
WATER_COLOR = (175, 238, 238)
MUD_COLOR = (63, 42, 20)
MAX_DISTANCE = 20.0
MIN_MUD = 0.8
# Lights drops from one side: the kernel of a correlation with the distance to a drop's edge.
_LIGHT = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def spatter(
    images: np.ndarray,
    numbers: RandomNumbers,
    loc: float,
    scale: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: bool,
) -> np.ndarray:
    """Adds drops of water or covers the image with spots of mud, where smoothed noise is large.

    Args:
        images: uint8 (n, height, width, 3).
        numbers: of the n images; a normal number for each pixel is drawn.
        loc: mean of the noise.
        scale: standard deviation of the noise before smoothing.
        sigma: of the Gaussian that smooths the noise, pixels.
        threshold: where the smoothed noise is at least that, there is a drop or spot.
        strength: of water, the brightest drop's opacity; of mud, the sigma that blurs its spots,
            pixels.
        mud: True or 1 for mud, False or 0 for water.

    Returns:
        uint8 of the images' shape, truncated.
    """
    noise = loc + scale * numbers.normal(images.shape[1:3])
    spattered = np.empty_like(images)
    for part in chunks(images.shape):
        liquid = _gaussian(noise[part], sigma)
        liquid[liquid < threshold] = 0
        pixels = (images[part] / 255.0).astype(np.float32)
        if mud:
            layer = mud_layer(liquid > threshold, strength)
            pixels *= (1 - layer)[..., np.newaxis]
            color = MUD_COLOR
        else:
            layer = water_layer(liquid) * np.float32(strength)
            color = WATER_COLOR
        for channel, level in enumerate(color):
            pixels[..., channel] += layer * np.float32(level / 255.0)
        spattered[part] = pixels.clip(0, 1) * 255
    return spattered


def water_layer(liquid: np.ndarray) -> np.ndarray:
    """Opacity of drops, lit from one side.

    Args:
        liquid: float (n, height, width), 0 outside of the drops; 1 is 255 as a level.

    Returns:
        float32 (n, height, width) in [0, 1]: 1 at each image's most opaque pixel, all 0 for an
        image without drops.
    """
    # Levels above 255 start again at 0, as in the reference.
    levels = (liquid * 255).astype(np.int64).astype(np.uint8)
    distances = np.minimum(chamfer_distance(canny(levels, 50, 150)), np.float32(MAX_DISTANCE))
    smooth = equalize(box_mean(distances).astype(np.float32).astype(np.uint8))
    padded = mirror_pad(smooth.astype(np.int64))
    height, width = smooth.shape[1:]
    lit = np.zeros(smooth.shape, np.int64)
    for (row, column), weight in np.ndenumerate(_LIGHT):
        lit += weight * padded[:, row : row + height, column : column + width]
    opacity = levels * np.rint(box_mean(lit.clip(0, 255))).astype(np.float32)
    largest = opacity.max(axis=(1, 2), keepdims=True)
    return opacity / np.where(largest > 0, largest, 1)


def mud_layer(spots: np.ndarray, sigma: float) -> np.ndarray:
    """Opacity of mud: blurred spots, 0 where the blurred value is below 0.8.

    Args:
        spots: bool (n, height, width).
        sigma: of the blur, pixels.

    Returns:
        float32 (n, height, width) in [0, 1].
    """
    layer = _gaussian(spots.astype(np.float32), sigma)
    layer[layer < MIN_MUD] = 0
    return layer


def _gaussian(values, sigma):
    """Smooths (n, height, width) within images; the border's pixels are repeated."""
    return scipy.ndimage.gaussian_filter(values, (0, sigma, sigma), mode="nearest", truncate=4)
