import numpy as np
from skimage.color import hsv2rgb, rgb2hsv

from nsk.evaluation.corruptions.color import hsv_to_rgb, rgb_to_hsv
from tests.evaluation.corruptions.photographs import photographs


def pixels():
    """Photographs, grays, primary colors and all orders of equal channels: (n, 1, 3)."""
    steps = np.stack(np.meshgrid(*[np.linspace(0, 1, 6)] * 3), axis=-1)
    return np.concatenate([(photographs(32) / 255).reshape(-1, 3), steps.reshape(-1, 3)])[:, None]


def test_hue_saturation_and_value_are_scikit_images():
    rgb = pixels()
    hsv = np.stack(rgb_to_hsv(*np.moveaxis(rgb, -1, 0)), axis=-1)
    np.testing.assert_array_equal(hsv, rgb2hsv(rgb))
    assert 0 <= hsv.min() <= hsv.max() <= 1


def test_the_way_back_is_scikit_images():
    hsv = np.concatenate([rgb2hsv(pixels()), np.random.default_rng(1).random((999, 1, 3))])
    rgb = np.stack(hsv_to_rgb(*np.moveaxis(hsv, -1, 0)), axis=-1)
    np.testing.assert_array_equal(rgb, hsv2rgb(hsv))
