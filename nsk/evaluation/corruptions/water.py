"""Edges, distances and histograms as OpenCV computes them; spatter draws its drops with them.

All functions take batches (n, height, width).

References:
    [Canny, 1986](https://doi.org/10.1109/TPAMI.1986.4767851)
    [Borgefors, 1986](https://doi.org/10.1016/S0734-189X(86)80047-0)
"""

import numpy as np
import scipy.ndimage

# Tangent of 22.5 degrees and lengths of the steps (1, 0), (1, 1) and (2, 1), as 16-bit fractions.
_TANGENT_SHIFT, _TANGENT = 15, 13573
_STEP_SHIFT = 16
_STRAIGHT, _DIAGONAL, _KNIGHT = (round(length * 2**_STEP_SHIFT) for length in (1, 1.4, 2.1969))
_FAR = 2**30


def canny(images: np.ndarray, low: int, high: int) -> np.ndarray:
    """Finds edges: maxima of the gradient above `low` that are connected to one above `high`.

    Gradients are Sobel's, their norm is |x| + |y|, the border's pixels are repeated.

    Args:
        images: uint8 (n, height, width).
        low: least norm of an edge, exclusive.
        high: least norm in a connected edge, exclusive.

    Returns:
        bool (n, height, width).
    """
    padded = np.pad(images.astype(np.int64), ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = padded[:, :, 2:] - padded[:, :, :-2]
    x = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    down = padded[:, 2:] - padded[:, :-2]
    y = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    norm = np.abs(x) + np.abs(y)
    edges = (norm > low) & _is_maximum(norm, x, y)
    # Neighbours are connected within an image, also diagonally.
    neighbors = np.zeros((3, 3, 3), bool)
    neighbors[1] = True
    labels, count = scipy.ndimage.label(edges, neighbors)
    is_strong = np.zeros(count + 1, bool)
    is_strong[labels[edges & (norm > high)]] = True
    return is_strong[labels]


def _is_maximum(norm, x, y):
    """Whether the gradient's norm is largest among the two neighbours along the gradient."""
    padded = np.pad(norm, ((0, 0), (1, 1), (1, 1)))
    height, width = norm.shape[1:]

    def neighbor(down, right):
        return padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    horizontal = (norm > neighbor(0, -1)) & (norm >= neighbor(0, 1))
    vertical = (norm > neighbor(-1, 0)) & (norm >= neighbor(1, 0))
    falling = (norm > neighbor(-1, -1)) & (norm > neighbor(1, 1))
    rising = (norm > neighbor(-1, 1)) & (norm > neighbor(1, -1))
    steepness = np.abs(y) << _TANGENT_SHIFT
    tangent = np.abs(x) * _TANGENT
    return np.select(
        [steepness < tangent, steepness > tangent + (np.abs(x) << (_TANGENT_SHIFT + 1))],
        [horizontal, vertical],
        np.where((x ^ y) < 0, rising, falling),
    )


def chamfer_distance(edges: np.ndarray) -> np.ndarray:
    """Length of the shortest path to an edge in steps (1, 0), (1, 1) and (2, 1).

    The steps have the lengths 1, 1.4 and 2.1969, so that the length is within 2% of the Euclidean
    distance.

    Args:
        edges: bool (n, height, width).

    Returns:
        float32 (n, height, width), pixels; above 16,000 in an image without edges.
    """
    number, height, width = edges.shape
    distances = np.full((height + 2, number, width + 4), _FAR)
    distances[2:, :, 2:-2] = np.where(edges, 0, _FAR).transpose(1, 0, 2)
    _sweep(distances)
    # The second sweep starts from the last row's end.
    turned = np.full_like(distances, _FAR)
    turned[2:] = distances[:1:-1, :, ::-1]
    _sweep(turned)
    result = turned[:1:-1, :, 2:-2][:, :, ::-1].transpose(1, 0, 2)
    return (result / 2**_STEP_SHIFT).astype(np.float32)


def _sweep(distances):
    """Shortens distances (2 + height, n, 2 + width + 2) by paths from above and from the left."""
    width = distances.shape[2] - 4
    left_steps = np.arange(width) * _STRAIGHT
    for row in range(2, len(distances)):
        upper, above, own = distances[row - 2 : row + 1]
        nearest = own[:, 2:-2]
        for source, shift, length in (
            (upper, -1, _KNIGHT),
            (upper, 1, _KNIGHT),
            (above, -2, _KNIGHT),
            (above, -1, _DIAGONAL),
            (above, 0, _STRAIGHT),
            (above, 1, _DIAGONAL),
            (above, 2, _KNIGHT),
        ):
            np.minimum(nearest, source[:, 2 + shift : 2 + shift + width] + length, out=nearest)
        # Steps from the left: the least of nearest[j] + (i - j) steps for all j <= i.
        np.minimum.accumulate(nearest - left_steps, axis=1, out=nearest)
        nearest += left_steps


def equalize(images: np.ndarray) -> np.ndarray:
    """Spreads the levels so that each has as many pixels; the darkest becomes 0.

    Args:
        images: uint8 (n, height, width); one with a single level is left as it is.

    Returns:
        uint8 (n, height, width).
    """
    equalized = np.empty_like(images)
    for row, image in enumerate(images):
        counts = np.bincount(image.ravel(), minlength=256)
        darkest = np.flatnonzero(counts)[0]
        others = image.size - counts[darkest]
        if others == 0:
            equalized[row] = image
            continue
        counts[darkest] = 0
        levels = np.cumsum(counts).astype(np.float32) * (np.float32(255) / np.float32(others))
        equalized[row] = np.rint(levels).astype(np.uint8)[image]
    return equalized


def box_mean(values: np.ndarray) -> np.ndarray:
    """Mean of 3 x 3 pixels, float64; the image is mirrored about its border's pixels."""
    padded = mirror_pad(values.astype(np.float64))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) * (1 / 9)


def mirror_pad(values: np.ndarray) -> np.ndarray:
    """Adds a pixel on each side, the one beside the border's pixel."""
    return np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="reflect")
