import numpy as np
import pytest
import skimage.color

from nsk.evaluation.corruptions.color import hsv_to_rgb, rgb_to_hsv

# Every combination of 18 levels: all orders of the channels, ties, grays, black and white.
LEVELS = np.arange(0, 256, 15)
PIXELS = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS), axis=-1) / 255


def channels_of(pixels):
    return [np.ascontiguousarray(channel) for channel in np.moveaxis(pixels, -1, 0)]


def test_conversion_is_scikit_images_to_the_bit():
    hsv = np.stack(rgb_to_hsv(*channels_of(PIXELS)), axis=-1)
    np.testing.assert_array_equal(hsv, skimage.color.rgb2hsv(PIXELS))


@pytest.mark.parametrize(("factor", "added"), [(1, 0), (0.3, 0), (1, -0.25), (5, 0.1)])
def test_conversion_back_is_scikit_images_to_the_bit(factor, added):
    hsv = skimage.color.rgb2hsv(PIXELS)
    hsv[..., 1:] = np.clip(hsv[..., 1:] * factor + added, 0, 1)
    rgb = np.stack(hsv_to_rgb(*channels_of(hsv)), axis=-1)
    np.testing.assert_array_equal(rgb, skimage.color.hsv2rgb(hsv))


def test_channels_are_left_as_they_are():
    channels = channels_of(PIXELS)
    hsv_to_rgb(*rgb_to_hsv(*channels))
    np.testing.assert_array_equal(np.stack(channels, axis=-1), PIXELS)
