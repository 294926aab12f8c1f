"""Zoom blur, translation, rotation, tilt and scale: frames of images under a moving camera.

Each function takes uint8 images (n, height, width, 3) and yields uint8 frames (n, side, side, 3),
or (n, height, width, 3) without `crop_side`. A frame's pixels depend on the image alone. What lies
outside of the image is black.

With `crop_side`, frames are centre crops of the moved images, so that content from outside of the
crop moves into it, as in ImageNet-P: images whose shorter side is 256, crops of 224.

Bilinear values are computed as Pillow's `Image.transform(size, AFFINE, matrix, BILINEAR)` computes
them, in float64 and truncated, and those of `tilt` in OpenCV's fixed point; the tests check that
both are equal bit for bit. Images are turned and scaled around their centre, (width / 2, height /
2). The published sets were made with a torchvision in which that point was half a pixel further
right and further down (corrected in pytorch/vision#2468).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Values that are interpolated at a time: they stay in the processor's cache.
CHUNK_VALUES = 2**15
# OpenCV's positions are multiples of 1/32 pixel.
OPENCV_STEPS = 32


class Sampling(NamedTuple):
    """Which pixels of the input each pixel of a frame lies between.

    Attributes:
        neighbours: int64 (4, pixels), of the flat image: top left, top right, bottom left and
            bottom right; height * width stands for black.
        right: float64 (pixels, 1) in [0, 1], share of the right neighbours.
        down: float64 (pixels, 1) in [0, 1], share of the bottom neighbours.
    """

    neighbours: np.ndarray
    right: np.ndarray
    down: np.ndarray


def zoom_blur(
    images: np.ndarray, *, num_frames: int, step: float, crop_side: int | None = None
) -> Iterator[np.ndarray]:
    """Yields the image, then the mean of it and of all enlarged images so far.

    Args:
        images: uint8 (n, height, width, 3).
        num_frames: int.
        step: growth of the scale from frame to frame: frame i adds the image enlarged by
            1 + i * step.
        crop_side: int or None, see the module.
    """
    rows, columns = center_crop_slices(images, crop_side)
    image = images[:, rows, columns]
    yield image.copy()
    # float32 and this order of operations, as in the reference: the mean is truncated.
    intensities = np.arange(256, dtype=np.float32) / 255
    total = intensities[_to_pixel_major(image)]
    motions = [(1 + step * frame, 0.0) for frame in range(1, num_frames)]
    for frame, moved in enumerate(_move(images, crop_side, motions), start=2):
        total += intensities[moved]
        yield _to_images((total / frame * 255).astype(np.uint8), image.shape)


def translate(
    images: np.ndarray, *, num_frames: int, start: int, crop_side: int | None = None
) -> Iterator[np.ndarray]:
    """Yields the image moved to the right by `start`, `start` + 1, ... pixels.

    Args:
        images: uint8 (n, height, width, 3).
        num_frames: int.
        start: pixels; negative: to the left.
        crop_side: int or None, see the module.
    """
    rows, columns = center_crop_slices(images, crop_side)
    width = images.shape[2]
    for shift in np.clip(range(start, start + num_frames), -width, width):
        moved = np.zeros_like(images)
        inner = images[:, :, max(-shift, 0) : width - max(shift, 0)]
        moved[:, :, max(shift, 0) : width - max(-shift, 0)] = inner
        yield moved[:, rows, columns].copy()


def rotate(
    images: np.ndarray, *, num_frames: int, start: float, crop_side: int | None = None
) -> Iterator[np.ndarray]:
    """Yields the image rotated clockwise by `start`, `start` + 1, ... degrees.

    Args:
        images: uint8 (n, height, width, 3).
        num_frames: int.
        start: degrees.
        crop_side: int or None, see the module.
    """
    motions = [(1.0, start + frame) for frame in range(num_frames)]
    shape = frame_shape(images, crop_side)
    for moved in _move(images, crop_side, motions):
        yield _to_images(moved, shape)


def scale(
    images: np.ndarray,
    *,
    num_frames: int,
    start_percent: float,
    step_percent: float,
    crop_side: int | None = None,
) -> Iterator[np.ndarray]:
    """Yields the image scaled to `start_percent` + i * `step_percent` of its size.

    Args:
        images: uint8 (n, height, width, 3).
        num_frames: int.
        start_percent: scale of frame 0; below 100 the image has a black frame.
        step_percent: growth from frame to frame.
        crop_side: int or None, see the module.
    """
    percents = [frame * step_percent + start_percent for frame in range(num_frames)]
    shape = frame_shape(images, crop_side)
    for moved in _move(images, crop_side, [(percent / 100, 0.0) for percent in percents]):
        yield _to_images(moved, shape)


def tilt(
    images: np.ndarray, *, num_frames: int, step: float, crop_side: int | None = None
) -> Iterator[np.ndarray]:
    """Yields the image turned in space about its horizontal and its vertical axis.

    The camera's focal length f is the image's diagonal in pixels. As in the reference, the image
    lies at the distance f + 1 before it is turned, so that the middle frame, turned by 0 degrees,
    is smaller than the image by the factor f / (f + 1).

    Args:
        images: uint8 (n, height, width, 3).
        num_frames: int, odd.
        step: degrees from frame to frame.
        crop_side: int or None, see the module.
    """
    canvas, shape = _to_canvas(images), frame_shape(images, crop_side)
    for frame in range(num_frames):
        homography = tilt_matrix(*images.shape[1:3], step * (frame - num_frames // 2))
        sampling = _perspective_sampling(images, crop_side, homography)
        yield _to_images(_interpolate(canvas, sampling, rounding=0.5), shape)


def tilt_matrix(height: int, width: int, degrees: float) -> np.ndarray:
    """The homography of `tilt`, float64 (3, 3), from the image's (x, y, 1) to the frame's."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    focal_length = np.hypot(width, height)
    about_x = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    about_y = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
    # A pixel of the plane z = 1 is turned, moved away by the focal length and projected.
    pose = about_x @ about_y
    pose[2, 2] += focal_length
    project = np.array([[focal_length, 0, width / 2], [0, focal_length, height / 2], [0, 0, 1]])
    to_center = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    return project @ pose @ to_center


def center_crop_slices(images: np.ndarray, side: int | None) -> tuple[slice, slice]:
    """Rows and columns of the centre crop of `side` x `side` pixels; None: the whole images."""
    if side is None:
        return slice(None), slice(None)
    top, left = (round((length - side) / 2) for length in images.shape[1:3])
    return slice(top, top + side), slice(left, left + side)


def frame_shape(images: np.ndarray, crop_side: int | None) -> tuple[int, ...]:
    """Shape of a frame of the images."""
    if crop_side is None:
        return images.shape
    return (len(images), crop_side, crop_side, 3)


def _move(images, crop_side, motions):
    """Yields images scaled and rotated by (factor, degrees): uint8 (pixels, n * 3)."""
    canvas = _to_canvas(images)
    for motion in motions:
        yield _interpolate(canvas, _affine_sampling(images, crop_side, *motion))


def _affine_sampling(images, crop_side, factor, degrees):
    """Pillow's bilinear sampling: the border of the image reaches half a pixel outwards."""
    _, height, width, _ = images.shape
    angle = math.radians(degrees)
    along, across = math.cos(angle) / factor, math.sin(angle) / factor
    middle_x, middle_y = width * 0.5, height * 0.5
    shift_x = along * -middle_x + across * -middle_y + middle_x
    shift_y = -across * -middle_x + along * -middle_y + middle_y
    x, y = (position + 0.5 for position in _positions(images, crop_side))
    x, y = along * x + across * y + shift_x, -across * x + along * y + shift_y
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = np.floor(x), np.floor(y)

    def pixel(row, column):
        row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
        return np.where(is_inside, row * width + column, height * width).astype(np.int64)

    return _sampling(pixel, left, top, x - left, y - top)


def _perspective_sampling(images, crop_side, homography):
    """OpenCV's bilinear sampling: beyond the border's pixel centres the image fades to black."""
    _, height, width, _ = images.shape
    x, y = _positions(images, crop_side)
    inverse = np.linalg.inv(homography)
    x, y, depth = (row[0] * x + row[1] * y + row[2] for row in inverse)
    x, y = (np.rint(position * (OPENCV_STEPS / depth)) / OPENCV_STEPS for position in (x, y))
    left, top = np.floor(x), np.floor(y)

    def pixel(row, column):
        is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return np.where(is_inside, row * width + column, height * width).astype(np.int64)

    return _sampling(pixel, left, top, x - left, y - top)


def _sampling(pixel, left, top, right, down):
    corners = [(top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)]
    neighbours = np.stack([pixel(*corner).ravel() for corner in corners])
    return Sampling(neighbours, right.reshape(-1, 1), down.reshape(-1, 1))


def _positions(images, crop_side):
    """Columns and rows of the crop's pixels, float64 (1, columns) and (rows, 1)."""
    rows, columns = center_crop_slices(images, crop_side)
    y, x = (np.arange(length, dtype=np.float64) for length in images.shape[1:3])
    return x[np.newaxis, columns], y[rows, np.newaxis]


def _interpolate(canvas, sampling, rounding=0.0):
    """Interpolates along rows, then along columns; adds `rounding` and truncates to uint8."""
    num_pixels, num_values = sampling.neighbours.shape[1], canvas.shape[1]
    chunk = max(1, CHUNK_VALUES // max(1, num_values))
    result = np.empty((num_pixels, num_values), np.uint8)
    for first in range(0, num_pixels, chunk):
        part = slice(first, first + chunk)
        top, top_right, bottom, bottom_right = (
            canvas[pixels] for pixels in sampling.neighbours[:, part]
        )
        top += _times(top_right, top, sampling.right[part])
        bottom += _times(bottom_right, bottom, sampling.right[part])
        top += _times(bottom, top, sampling.down[part])
        top += rounding
        result[part] = top
    return result


def _times(end, start, share):
    """(end - start) * share, in place of `end`."""
    end -= start
    end *= share
    return end


def _to_pixel_major(images):
    """Images (n, height, width, 3) as (height * width, n * 3): a pixel's values lie together."""
    num_images, height, width, _ = images.shape
    return images.transpose(1, 2, 0, 3).reshape(height * width, num_images * 3)


def _to_canvas(images):
    """Pixel-major float64 values, with a black pixel behind the last one."""
    pixels = _to_pixel_major(images)
    canvas = np.zeros((len(pixels) + 1, pixels.shape[1]))
    canvas[:-1] = pixels
    return canvas


def _to_images(pixels, shape):
    """Inverse of `_to_pixel_major`."""
    num_images, height, width, _ = shape
    values = pixels.reshape(height, width, num_images, 3).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(values)
