"""Geometric perturbations against Pillow and OpenCV, as the published scripts call them."""

import math

import cv2
import numpy as np
import pytest
from PIL import Image

from nsk.evaluation.perturbations import perturb
from nsk.evaluation.perturbations.geometric import tilt_matrix
from tests.evaluation.perturbations.photos import photographs

BILINEAR = Image.Resampling.BILINEAR
SHAPES = [(32, 32), (31, 44)]

parametrize_shapes = pytest.mark.parametrize(("height", "width"), SHAPES)
parametrize_constants = pytest.mark.parametrize("constants", ["cifar", "tiny", "imagenet"])


def all_frames(images, name, constants):
    ids = [str(index) for index in range(len(images))]
    return list(perturb(images, name, ids, constants=constants))


def pillow_affine(image, degrees=0.0, scale=1.0, shift=0, resample=BILINEAR):
    """torchvision's `affine` of today: clockwise, about the centre, then to the right."""
    height, width = image.shape[:2]
    angle = math.radians(degrees)
    matrix = [math.cos(angle), math.sin(angle), 0.0, -math.sin(angle), math.cos(angle), 0.0]
    matrix = [value / scale for value in matrix]
    center_x, center_y = width * 0.5, height * 0.5
    matrix[2] += matrix[0] * (-center_x - shift) + matrix[1] * -center_y
    matrix[5] += matrix[3] * (-center_x - shift) + matrix[4] * -center_y
    matrix[2] += center_x
    matrix[5] += center_y
    moved = Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, matrix, resample
    )
    return np.asarray(moved)


@parametrize_shapes
@parametrize_constants
def test_translate_equals_pillow(height, width, constants):
    images = photographs(height, width)
    start = {"cifar": -7, "tiny": -15, "imagenet": -20}[constants]
    for index, frame in enumerate(all_frames(images, "translate", constants)):
        for image, moved in zip(images, frame, strict=True):
            expected = pillow_affine(image, shift=start + index, resample=Image.Resampling.NEAREST)
            np.testing.assert_array_equal(moved, expected)


def test_translate_beyond_the_image_is_black():
    images = photographs(5, 6)
    frames = all_frames(images, "translate", "imagenet")
    np.testing.assert_array_equal(frames[20], images)
    np.testing.assert_array_equal(frames[21][:, :, 1:], images[:, :, :-1])
    assert not frames[0].any() and not frames[14].any() and not frames[26].any()
    assert frames[15].any() and frames[25].any()


@parametrize_shapes
def test_rotate_equals_pillow(height, width):
    images = photographs(height, width)
    frames = all_frames(images, "rotate", "cifar")
    num_different = 0
    for index, frame in enumerate(frames):
        for image, moved in zip(images, frame, strict=True):
            np.testing.assert_array_equal(moved, pillow_affine(image, degrees=index - 15))
            # Pillow's own rotation is counter-clockwise and rounds its matrix to 15 digits.
            rotated = np.asarray(Image.fromarray(image).rotate(15 - index, BILINEAR))
            np.testing.assert_allclose(moved.astype(int), rotated, atol=1)
            num_different += np.sum(moved != rotated)
    assert num_different < 1e-3 * np.size(frames)
    np.testing.assert_array_equal(frames[15], images)


@parametrize_shapes
@parametrize_constants
def test_scale_equals_pillow(height, width, constants):
    images = photographs(height, width)
    first, step = {"cifar": (70, 2), "tiny": (40, 2.5), "imagenet": (40, 2.5)}[constants]
    frames = all_frames(images, "scale", constants)
    for index, frame in enumerate(frames):
        factor = (index * step + first) / 100
        for image, moved in zip(images, frame, strict=True):
            np.testing.assert_array_equal(moved, pillow_affine(image, scale=factor))
    np.testing.assert_array_equal(frames[15 if constants == "cifar" else 24], images)
    assert not frames[0][:, 0].any()


@parametrize_shapes
@parametrize_constants
def test_zoom_blur_is_the_running_mean_of_pillows_enlargements(height, width, constants):
    images = photographs(height, width)
    frames = all_frames(images, "zoom_blur", constants)
    np.testing.assert_array_equal(frames[0], images)
    for row, image in enumerate(images):
        total = image.astype(np.float32) / 255
        exact = image.astype(np.float64)
        for index in range(1, 31):
            enlarged = pillow_affine(image, scale=1 + 0.004 * index)
            total = total + enlarged.astype(np.float32) / 255
            expected = total / np.float32(index + 1) * np.float32(255)
            np.testing.assert_array_equal(frames[index][row], np.trunc(expected))
            exact += enlarged
            # float32 lowers some means that are whole numbers.
            difference = exact // (index + 1) - frames[index][row]
            assert difference.min() >= 0 and difference.max() <= 1


def reference_homography(height, width, degrees):
    """The homography as a product of 4 x 4 matrices."""
    theta = phi = np.deg2rad(degrees)
    focal = np.sqrt(width**2 + height**2)
    lift = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1], [0, 0, 1]])
    about_x, about_y, away = np.eye(4), np.eye(4), np.eye(4)
    about_x[1:3, 1:3] = [[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]]
    about_y[0:3:2, 0:3:2] = [[np.cos(phi), -np.sin(phi)], [np.sin(phi), np.cos(phi)]]
    away[2, 3] = focal
    project = np.array([[focal, 0, width / 2, 0], [0, focal, height / 2, 0], [0, 0, 1, 0]])
    return project @ away @ about_x @ about_y @ lift


def fixed_point_warp(image, homography):
    """OpenCV's `warpPerspective` before version 5: positions in steps of 1/32 pixel."""
    height, width = image.shape[:2]
    grid = np.stack([*np.meshgrid(np.arange(width), np.arange(height)), np.ones((height, width))])
    x, y, depth = np.tensordot(np.linalg.inv(homography), grid, axes=1)
    x, y = (np.rint(position * 32 / depth).astype(int) for position in (x, y))
    pixels = np.stack([x >> 5, y >> 5], axis=-1).astype(np.int16)
    fractions = ((y & 31) * 32 + (x & 31)).astype(np.uint16)
    return cv2.remap(image, pixels, fractions, cv2.INTER_LINEAR)


@parametrize_shapes
@parametrize_constants
def test_tilt_equals_opencv_in_fixed_point(height, width, constants):
    images = photographs(height, width)
    step = {"cifar": 0.75, "tiny": 1, "imagenet": 1}[constants]
    frames = all_frames(images, "tilt", constants)
    for index, frame in enumerate(frames):
        homography = reference_homography(height, width, step * (index - 15))
        for image, tilted in zip(images, frame, strict=True):
            np.testing.assert_array_equal(tilted, fixed_point_warp(image, homography))
            # OpenCV 5 interpolates at unrounded positions.
            exact = cv2.warpPerspective(image, homography, (width, height))
            difference = np.abs(tilted.astype(int) - exact)
            assert difference.max() <= 8 and difference.mean() < 0.7


def test_tilt_by_no_degrees_makes_the_image_smaller():
    """The published scripts put the image one unit behind the plane of its own size."""
    homography = tilt_matrix(30, 40, 0.0)
    center, corner = homography @ [20, 15, 1], homography @ [40, 30, 1]
    np.testing.assert_allclose(center[:2] / center[2], [20, 15])
    np.testing.assert_allclose(corner[:2] / corner[2], [20 + 20 * 50 / 51, 15 + 15 * 50 / 51])
