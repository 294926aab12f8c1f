import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nsk.evaluation.corruptions.water import box_mean, canny, chamfer_distance, equalize


def drops(side, sigma, count=6):
    """Smoothed noise with a threshold, as spatter's, and noise without any smoothness."""
    rng = np.random.default_rng(side)
    layers = gaussian_filter(rng.normal(0.65, 0.3, (count, side, side)), (0, sigma, sigma))
    layers[layers < 0.68] = 0
    noise = rng.integers(0, 256, (2, side, side), np.uint8)
    return np.concatenate([(layers * 255).clip(0, 255).astype(np.uint8), noise])


@pytest.mark.parametrize(("side", "sigma"), [(1, 1), (8, 1), (32, 0.8), (64, 1), (224, 3)])
@pytest.mark.parametrize(("low", "high"), [(50, 150), (100, 700)])
def test_edges_are_those_of_opencv(side, sigma, low, high):
    images = drops(side, sigma)
    expected = np.stack([cv2.Canny(image, low, high) for image in images])
    np.testing.assert_array_equal(canny(images, low, high), expected == 255)
    assert side < 8 or 0 < np.mean(expected[:6] == 255) < 0.5


def test_edges_do_not_continue_in_the_next_image():
    images = np.zeros((2, 8, 8), np.uint8)
    images[0, :, 4:], images[1, :, 4:] = 255, 20
    edges = canny(images, 50, 150)
    assert edges[0].any()
    assert not edges[1].any()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (32, 32), (40, 23), (224, 224)])
def test_distances_are_those_of_opencv(height, width):
    rng = np.random.default_rng(height)
    edges = rng.random((5, height, width)) < np.array([0.5, 0.01, 0.002, 0.1, 0])[:, None, None]
    edges[1:4, height // 2, width // 3] = True
    distances = chamfer_distance(edges)
    assert (distances[4] > 16_000).all()
    for row in range(1, 4):
        expected = cv2.distanceTransform(255 - 255 * edges[row].astype(np.uint8), cv2.DIST_L2, 5)
        np.testing.assert_allclose(distances[row], expected, atol=2e-3)


def test_levels_are_equalized_as_by_opencv():
    images = np.concatenate([drops(64, 1), np.full((1, 64, 64), 9, np.uint8)])
    for image, equalized in zip(images, equalize(images), strict=True):
        np.testing.assert_array_equal(equalized, cv2.equalizeHist(image))


@pytest.mark.parametrize("side", [2, 8, 33])
def test_box_mean_is_opencvs(side):
    values = np.random.default_rng(9).random((2, side, side)).astype(np.float32) * 20
    for image, mean in zip(values, box_mean(values), strict=True):
        np.testing.assert_allclose(mean, cv2.blur(image, (3, 3)), rtol=1e-6)
