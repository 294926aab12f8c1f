"""Decoding to squares, eagerly and in a dataset."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from nsk.data.decoding import decode_image, decode_images


def asymmetric(height=6, width=10, seed=0):
    """uint8 RGB noise: every flip, rotation or change of channels shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def encode(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(mode="RGB"):
    return Image.fromarray(load_sample_image("flower.jpg")[200:240, 300:350]).convert(mode)


def eagerly(encoded, image_size):
    return decode_image(tf.constant(encoded), image_size).numpy()


def in_map(encoded, image_size):
    dataset = tf.data.Dataset.from_tensors(encoded)
    dataset = dataset.map(lambda image: decode_image(image, image_size))
    assert dataset.element_spec.shape == (image_size, image_size, 3)
    assert dataset.element_spec.dtype == tf.uint8
    return next(dataset.as_numpy_iterator())


@pytest.mark.parametrize("run", [eagerly, in_map])
def test_an_image_of_the_size_keeps_its_pixels(run):
    pixels = asymmetric(12, 12)
    np.testing.assert_array_equal(run(encode(pixels), 12), pixels)
    gray = run(encode(pixels[..., 0]), 12)
    np.testing.assert_array_equal(gray, np.repeat(pixels[..., :1], 3, axis=2))


@pytest.mark.parametrize("run", [eagerly, in_map])
def test_the_longer_side_is_cropped_to_its_centre(run):
    pixels = asymmetric(8, 14)
    np.testing.assert_array_equal(run(encode(pixels), 8), pixels[:, 3:11])
    upright = pixels.transpose(1, 0, 2)
    np.testing.assert_array_equal(run(encode(upright), 8), upright[3:11])


@pytest.mark.parametrize("run", [eagerly, in_map])
def test_the_central_square_is_resized(run):
    ramp = np.tile(np.arange(40, dtype=np.uint8)[:, None, None] * 6, (1, 20, 3))
    small = run(encode(ramp), 10)
    # Rows 10..29 of 40 remain; a row is the mean of two of them, except at the border.
    expected = (2 * np.arange(5, 15) + 0.5) * 6
    np.testing.assert_allclose(small[1:-1, 4, 1], expected[1:-1], atol=0.5)
    np.testing.assert_allclose(small[:, 4, 1], expected, atol=2)
    large = run(encode(np.full((5, 7, 3), 200, np.uint8)), 33)
    np.testing.assert_array_equal(large, np.full((33, 33, 3), 200))


@pytest.mark.parametrize("resize_mode", ["pad", "squash"])
def test_whole_images_agree_with_pillow(resize_mode):
    expected = {
        "pad": ImageOps.pad(photo(), (33, 33), Image.Resampling.BILINEAR, color=(128,) * 3),
        "squash": photo().resize((33, 33), Image.Resampling.BILINEAR),
    }[resize_mode]
    encoded = encode(photo())
    received = decode_image(tf.constant(encoded), 33, resize_mode).numpy()
    np.testing.assert_allclose(received, np.asarray(expected).astype(int), atol=1)
    batch = decode_images(tf.constant([encoded]), 33, resize_mode=resize_mode)
    np.testing.assert_array_equal(batch[0], received)


def test_resizing_agrees_with_pillow():
    pixels = np.asarray(photo())  # 40 x 50.
    for size in (7, 33, 90):
        square = photo().crop((5, 0, 45, 40))
        expected = square.resize((size, size), Image.Resampling.BILINEAR)
        received = eagerly(encode(pixels), size)
        np.testing.assert_allclose(received, np.asarray(expected).astype(int), atol=1)


def test_a_thin_image_is_cropped_before_it_is_resized():
    """Resized whole, it would be 224 x 22,400,000 pixels."""
    thin = eagerly(encode(np.full((1, 100_000, 3), 9, np.uint8)), 224)
    np.testing.assert_array_equal(thin, np.full((224, 224, 3), 9))


def test_resizing_is_antialiased():
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::4] = 252
    small = eagerly(encode(stripes), 8)[:, 2:-2]
    assert np.abs(small.astype(int) - 63).max() <= 2
