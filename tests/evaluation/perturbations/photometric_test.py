"""Noise, motion blur, snow and brightness against formulas, SciPy, OpenCV and scikit-image."""

import math

import cv2
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from skimage.color import hsv2rgb, rgb2hsv

from nsk.evaluation.corruptions.random_numbers import RandomNumbers
from nsk.evaluation.perturbations import perturb
from tests.evaluation.perturbations.photos import photographs

CONSTANTS = ["cifar", "tiny", "imagenet"]
SHAPES = [(32, 32), (31, 44)]

parametrize_constants = pytest.mark.parametrize("constants", CONSTANTS)
parametrize_shapes = pytest.mark.parametrize(("height", "width"), SHAPES)


def all_frames(images, name, constants):
    ids = [f"image {index}" for index in range(len(images))]
    return np.stack(list(perturb(images, name, ids, constants=constants)))


@parametrize_constants
def test_gaussian_noise_has_the_standard_deviation_of_its_set(constants):
    images = np.full((2, 40, 40, 3), 127, np.uint8)
    sigma = {"cifar": 0.02, "tiny": 0.025, "imagenet": 0.03}[constants] * 255
    frames = all_frames(images, "gaussian_noise", constants)
    np.testing.assert_array_equal(frames[0], images)
    # Truncation: the probability of a level is that of the interval above it.
    levels = np.arange(100, 156)
    probabilities = np.diff(scipy.stats.norm.cdf([*levels, levels[-1] + 1], 127, sigma))
    counts = np.bincount(frames[1:].ravel(), minlength=256)[levels]
    likely = probabilities > 1e-4
    expected = probabilities[likely] / probabilities[likely].sum() * counts[likely].sum()
    assert scipy.stats.chisquare(counts[likely], expected).pvalue > 1e-3


@parametrize_constants
def test_shot_noise_has_the_distribution_of_its_set(constants):
    images = np.full((2, 40, 40, 3), 60, np.uint8)
    photons = {"cifar": 700, "tiny": 500, "imagenet": 300}[constants]
    frames = all_frames(images, "shot_noise", constants)
    np.testing.assert_array_equal(frames[0], images)
    numbers = np.arange(photons + 1)
    levels = (255 * (numbers / photons)).astype(int)
    probabilities = np.bincount(levels, scipy.stats.poisson.pmf(numbers, 60 / 255 * photons), 256)
    counts = np.bincount(frames[1:].ravel(), minlength=256)
    likely = probabilities > 1e-4
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities[likely] / probabilities[likely].sum() * counts[likely].sum()
    assert scipy.stats.chisquare(counts[likely], expected).pvalue > 1e-3


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise"])
def test_noises_of_frames_pixels_and_channels_are_independent(name):
    images = np.full((1, 40, 40, 3), 127, np.uint8)
    noise = all_frames(images, name, "imagenet")[1:, 0].astype(float) - 127
    for one, other in [
        (noise[:-1], noise[1:]),
        (noise[:, :-1], noise[:, 1:]),
        (noise[:, :, :-1], noise[:, :, 1:]),
        (noise[..., :-1], noise[..., 1:]),
    ]:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


def test_gaussian_noise_continues_the_numbers_of_each_image():
    images = photographs(9, 11)
    frames = all_frames(images, "gaussian_noise", "cifar")
    for row, image in enumerate(images):
        numbers = RandomNumbers(0, [f"image {row}"], "perturbation/gaussian_noise")
        for frame in frames[1:, row]:
            noisy = image / 255 + 0.02 * numbers.normal((9, 11, 3))[0]
            np.testing.assert_array_equal(frame, np.trunc(np.clip(noisy, 0, 1) * 255))


def test_noise_is_clipped():
    images = np.zeros((2, 20, 20, 3), np.uint8)
    images[1] = 255
    for name in ("gaussian_noise", "shot_noise"):
        black, white = all_frames(images, name, "imagenet")[1:].swapaxes(0, 1)
        assert black.min() == 0 and np.mean(black == 0) > 0.5
        assert white.max() == 255 and np.mean(white >= 254) > 0.4


def motion_blur(image, radius, sigma, degrees):
    """ImageMagick's motion blur of (height, width, ...) by an OpenCV filter."""
    reach = 2 * radius
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    angle = math.radians(degrees)
    for distance in range(reach + 1):
        row = reach + math.ceil(distance * math.sin(angle) - 0.5)
        column = reach + math.ceil(distance * math.cos(angle) - 0.5)
        kernel[row, column] += math.exp(-(distance**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    values = cv2.filter2D(image.astype(np.float64), -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return np.floor(values + 0.5).astype(np.uint8)


@parametrize_shapes
@parametrize_constants
def test_motion_blur_equals_a_filter_of_opencv(height, width, constants):
    images = photographs(height, width)
    radius, sigma, middle, step = {
        "cifar": (6, 1.8, 20, 9),
        "tiny": (14, 3, 30, 5),
        "imagenet": (10, 3, 30, 4),
    }[constants]
    for index, frame in enumerate(all_frames(images, "motion_blur", constants)):
        for image, blurred in zip(images, frame, strict=True):
            expected = motion_blur(image, radius, sigma, (index - middle) * step)
            np.testing.assert_array_equal(blurred, expected)


@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 45)])
def test_snow_equals_the_published_steps(height, width, constants):
    images = photographs(height, width)
    sigma, zoom, radius, blur_sigma = {
        "cifar": (0.3, 2, 10, 2),
        "tiny": (0.28, 2, 10, 2.5),
        "imagenet": (0.3, 3, 14, 4),
    }[constants]
    frames = all_frames(images, "snow", constants)
    num_different = 0
    for row, image in enumerate(images):
        numbers = RandomNumbers(0, [f"image {row}"], "perturbation/snow")
        layer = 0.05 + sigma * numbers.normal((height, width))[0]
        inner = -(-height // zoom), -(-width // zoom)
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        layer = layer[top : top + inner[0], left : left + inner[1]]
        layer = scipy.ndimage.zoom(layer, zoom, order=1)
        top, left = (layer.shape[0] - height) // 2, (layer.shape[1] - width) // 2
        layer = layer[top : top + height, left : left + width]
        layer[layer < 0.5] = 0
        layer = (np.clip(layer, 0, 1) * 255).astype(np.uint8)
        values = image / 255
        gray = cv2.cvtColor(np.float32(values), cv2.COLOR_RGB2GRAY)[..., np.newaxis]
        values = 0.85 * values + (1 - 0.85) * np.maximum(values, gray * 1.5 + 0.5)
        for index in range(31):
            flakes = motion_blur(layer, radius, blur_sigma, index * 4 - 150)[..., np.newaxis] / 255
            snowy = np.clip(values + flakes + np.rot90(flakes, k=2), 0, 1) * 255
            difference = np.abs(frames[index, row].astype(int) - snowy.astype(np.uint8))
            num_different += difference.sum()
            assert difference.max() <= 1
    # OpenCV may add the products of its gray value in another order.
    assert num_different < 1e-5 * np.size(frames)


def test_snow_moves_and_covers_a_part():
    images = np.full((1, 32, 32, 3), 40, np.uint8)
    frames = all_frames(images, "snow", "cifar")[:, 0].astype(int)
    plain = frames.min()
    assert 0.1 < np.mean(frames > plain) < 0.95
    changes = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    assert np.mean(changes > 0) > 0.9
    np.testing.assert_array_equal(frames, frames[:, ::-1, ::-1])


@parametrize_constants
def test_brightness_equals_scikit_image(constants):
    images = photographs(40, 50)
    # Gray, black, white and saturated colours: hue and saturation have special cases there.
    images[0, :2, :8] = np.indices((2, 2, 2)).reshape(3, 8).T * 255
    images[0, 2] = np.linspace(0, 255, 50)[:, np.newaxis]
    images[1] = np.random.default_rng(0).integers(0, 256, images[1].shape)
    step = {"cifar": 1.5, "tiny": 2, "imagenet": 2}[constants]
    frames = all_frames(images, "brightness", constants)
    for index, frame in enumerate(frames):
        hsv = rgb2hsv(images / 255)
        hsv[..., 2] = np.clip(hsv[..., 2] + (index - 15) * step / 100, 0, 1)
        np.testing.assert_array_equal(frame, np.uint8(hsv2rgb(hsv) * 255))
    middle = images.astype(int) - frames[15]
    assert middle.min() >= 0 and middle.max() <= 1
