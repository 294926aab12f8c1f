import cv2
import numpy as np
import pytest
from skimage.filters import gaussian

from nsk.evaluation.corruptions.random_numbers import RandomNumbers
from nsk.evaluation.corruptions.spatter import mud_layer, spatter, water_layer
from tests.evaluation.corruptions.photographs import numbers_of, photographs

PARAMETERS = [
    (32, (0.62, 0.1, 0.7, 0.7, 0.5, 0)),
    (32, (0.65, 0.3, 1, 0.69, 0.5, 0)),
    (32, (0.65, 0.1, 0.5, 0.68, 0.6, 1)),
    (64, (0.65, 0.1, 0.8, 0.7, 0.6, 0)),
    (224, (0.65, 0.3, 4, 0.69, 0.6, 0)),
    (224, (0.65, 0.3, 2, 0.68, 0.5, 0)),
    (224, (0.67, 0.4, 1, 0.65, 1.5, 1)),
]


def reference_water(layer):
    levels = (layer * 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(levels, 50, 150), cv2.DIST_L2, 5)
    _, distance = cv2.threshold(distance, 20, 20, cv2.THRESH_TRUNC)
    distance = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    kernel = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)
    distance = cv2.filter2D(distance, cv2.CV_8U, kernel)
    opacity = levels * cv2.blur(distance, (3, 3)).astype(np.float32)
    return opacity / opacity.max()


def reference_spatter(image, noise, sigma, threshold, strength, mud):
    pixels = np.array(image, dtype=np.float32) / 255.0
    layer = gaussian(noise, sigma=sigma)
    layer[layer < threshold] = 0
    if mud:
        opacity = gaussian((layer > threshold).astype(np.float32), sigma=strength)
        opacity[opacity < 0.8] = 0
        pixels *= 1 - opacity[..., np.newaxis]
        color = np.float32(np.array([63, 42, 20]) / 255)
    else:
        opacity = reference_water(layer) * strength
        color = np.float32(np.array([175, 238, 238]) / 255)
    return np.uint8(np.clip(pixels + opacity[..., np.newaxis] * color, 0, 1) * 255)


@pytest.mark.parametrize(("side", "parameters"), PARAMETERS)
def test_spatter_is_the_references(side, parameters):
    loc, scale, *others = parameters
    images = photographs(side)
    spattered = spatter(images, numbers_of(images), *parameters)
    noise = loc + scale * numbers_of(images).normal((side, side))
    for row, image in enumerate(images):
        np.testing.assert_array_equal(spattered[row], reference_spatter(image, noise[row], *others))
    assert (spattered != images).any((1, 2, 3))[[0, 1, 2, 3, 5]].all()  # Water leaves white white.


def test_images_without_drops_are_unchanged():
    images = photographs(32)
    unchanged = spatter(images, numbers_of(images), 0.1, 0.1, 0.7, 0.7, 0.5, 0)
    assert np.abs(unchanged.astype(int) - images).max() <= 1
    assert not water_layer(np.zeros((1, 8, 8))).any()
    assert not mud_layer(np.zeros((1, 8, 8), bool), 0.5).any()


@pytest.mark.parametrize(("side", "parameters"), PARAMETERS[1:3] + PARAMETERS[-2:])
def test_an_image_does_not_depend_on_its_batch(side, parameters):
    images = photographs(side)
    whole = spatter(images, numbers_of(images), *parameters)
    for start, stop in ((0, 1), (1, 3), (3, 6)):
        names = [f"image {index}" for index in range(start, stop)]
        part = spatter(images[start:stop], RandomNumbers(3, names, "test"), *parameters)
        np.testing.assert_array_equal(part, whole[start:stop])


@pytest.mark.parametrize("parameters", [parameters for _, parameters in PARAMETERS[1:3]])
@pytest.mark.parametrize("shape", [(0, 32, 32, 3), (1, 8, 8, 3), (2, 20, 33, 3), (3, 1, 1, 3)])
def test_any_number_and_size_of_images(parameters, shape):
    images = np.random.default_rng(8).integers(0, 256, shape, np.uint8)
    changed = spatter(images, numbers_of(images), *parameters)
    assert changed.shape == shape
    assert changed.dtype == np.uint8
