"""Crops of published evaluations, against Pillow and formulas of their own."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from nsk.data.decoding import decode_image
from nsk.data.evaluation_decoding import (
    Crop,
    decode_uncropped,
    decode_with_crop,
    default_crop,
    resize_pixels,
)

BOXES = {"wide": (0, 0, 640, 427), "upright": (100, 50, 331, 427), "small": (9, 9, 60, 49)}
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def photo(box="wide"):
    return Image.fromarray(load_sample_image("flower.jpg")).crop(BOXES[box])


def encode(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return tf.constant(buffer.getvalue())


def encode_array(pixels):
    return encode(Image.fromarray(pixels))


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def assert_close(received, expected, worst):
    """Pillow rounds and clips the rows before it resizes the columns."""
    difference = np.abs(received.numpy().astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= worst and difference.mean() < 0.2


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [33, 224])
def test_the_whole_square_is_that_of_training(box, size):
    encoded = encode(photo(box))
    received = decode_with_crop(encoded, Crop(size))
    np.testing.assert_array_equal(received, decode_image(encoded, size))


@pytest.mark.parametrize("rule", ["crop", "resize", "tf1"])
def test_an_image_of_the_size_keeps_its_pixels(rule):
    pixels = noise(12, 12)
    crop = Crop(12, 0.5, "bicubic", antialias=False, rule=rule)
    np.testing.assert_array_equal(decode_with_crop(encode_array(pixels), crop), pixels)


@pytest.mark.parametrize(
    ("rule", "top", "left"),
    # Of 16 x 25 pixels 11 x 11 remain: the margins are 5 and 14.
    [("crop", 2, 7), ("tf1", 3, 7)],
)
def test_offsets_of_a_crop(rule, top, left):
    """A crop of as many pixels as the result is not resized."""
    pixels = noise(16, 25)
    crop = Crop(11, 0.7, antialias=False, rule=rule)  # 11.2 pixels, rounded down.
    expected = pixels[top : top + 11, left : left + 11]
    np.testing.assert_array_equal(decode_with_crop(encode_array(pixels), crop), expected)
    upright = decode_with_crop(encode_array(pixels.transpose(1, 0, 2)), crop)
    np.testing.assert_array_equal(upright, expected.transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    # Of round(8 / 0.75) = 11 pixels 8 remain; halves are rounded to even numbers.
    [(11, 12, 2, 2), (11, 13, 2, 2), (17, 11, 4, 2), (11, 19, 2, 6)],
)
def test_offsets_after_resizing(height, width, top, left):
    """An image whose shorter side has the size already is not resized."""
    pixels = noise(height, width)
    received = decode_with_crop(encode_array(pixels), Crop(8, 0.75, rule="resize"))
    np.testing.assert_array_equal(received, pixels[top : top + 8, left : left + 8])


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(("interpolation", "worst"), [("bilinear", 1), ("bicubic", 6)])
def test_resizing_before_the_crop_agrees_with_pillow(box, interpolation, worst):
    image = photo(box)
    for size in (28, 112):
        shorter = round(size / 0.875)
        width, height = (shorter * side // min(image.size) for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        resized = image.resize((width, height), RESAMPLING[interpolation])
        expected = resized.crop((left, top, left + size, top + size))
        crop = Crop(size, 0.875, interpolation, rule="resize")
        assert_close(decode_with_crop(encode(image), crop), expected, worst)


@pytest.mark.parametrize(("interpolation", "worst"), [("bilinear", 1), ("bicubic", 6)])
def test_resizing_after_the_crop_agrees_with_pillow(interpolation, worst):
    for size in (28, 300):  # Of 427 x 640 pixels, a square of 341 remains.
        square = photo().crop((149, 43, 149 + 341, 43 + 341))
        expected = square.resize((size, size), RESAMPLING[interpolation])
        crop = Crop(size, 0.8, interpolation)
        assert_close(decode_with_crop(encode(photo()), crop), expected, worst)


@pytest.mark.parametrize("rule", ["crop", "resize"])
def test_without_antialiasing_only_the_nearest_pixels_count(rule):
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::4] = 252
    encoded = encode_array(stripes)
    # The centre of each result, 4i + 1.5, is between columns that are black.
    aliased = decode_with_crop(encoded, Crop(8, antialias=False, rule=rule))
    np.testing.assert_array_equal(aliased, np.zeros((8, 8, 3)))
    smooth = decode_with_crop(encoded, Crop(8, rule=rule)).numpy()[:, 2:-2]
    assert np.abs(smooth.astype(int) - 63).max() <= 2


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(("interpolation", "worst"), [("bilinear", 1), ("bicubic", 6)])
@pytest.mark.parametrize("size", [28, 117, 300])
def test_padded_images_agree_with_pillow(box, interpolation, worst, size):
    expected = ImageOps.pad(
        photo(box), (size, size), RESAMPLING[interpolation], color=(128, 128, 128)
    )
    received = decode_with_crop(encode(photo(box)), Crop(size, 1.0, interpolation, rule="pad"))
    assert_close(received, expected, worst)


@pytest.mark.parametrize(
    ("height", "width", "top", "left"), [(6, 12, 3, 0), (12, 9, 0, 2), (12, 5, 0, 4), (1, 12, 6, 0)]
)
def test_padding_keeps_the_pixels_of_an_image_of_the_size(height, width, top, left):
    """Margins of an odd number of pixels are divided as in Pillow: halves are rounded to even."""
    expected = np.full((12, 12, 3), 128, np.uint8)
    expected[top : top + height, left : left + width] = noise(height, width)
    received = decode_with_crop(encode_array(noise(height, width)), Crop(12, rule="pad"))
    np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [28, 117, 300])
def test_squashed_images_agree_with_pillow(box, size):
    expected = photo(box).resize((size, size), RESAMPLING["bilinear"])
    received = decode_with_crop(encode(photo(box)), Crop(size, rule="squash"))
    assert_close(received, expected, 1)


def test_the_middle_of_both_sides_is_squashed_or_padded():
    pixels = noise(16, 25)  # Of 16 x 25 pixels, 11 x 17 remain.
    middle = Image.fromarray(pixels[2:13, 4:21])
    received = decode_with_crop(encode_array(pixels), Crop(10, 0.7, rule="squash"))
    expected = middle.resize((10, 10), RESAMPLING["bilinear"])
    np.testing.assert_allclose(received, np.asarray(expected).astype(int), atol=1)
    received = decode_with_crop(encode_array(pixels), Crop(10, 0.7, rule="pad"))
    padded = ImageOps.pad(middle, (10, 10), RESAMPLING["bilinear"], color=(128, 128, 128))
    np.testing.assert_allclose(received, np.asarray(padded).astype(int), atol=1)


def legacy_bicubic(line, size):
    """TensorFlow 1's: sample i is at i * scale, and the kernel's a is -0.75."""
    a = -0.75

    def kernel(distance):
        x = abs(distance)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    matrix = np.zeros((size, len(line)))
    for row in range(size):
        position = row * len(line) / size
        for tap in range(int(position) - 1, int(position) + 3):
            matrix[row, min(max(tap, 0), len(line) - 1)] += kernel(position - tap)
    return np.tensordot(matrix, line, 1)


@pytest.mark.parametrize("box", ["wide", "upright"])
def test_the_crop_of_efficientnets_official_code(box):
    size, pixels = 224, np.asarray(photo(box))
    side = int(np.float32(size / (size + 32)) * np.float32(min(pixels.shape[:2])))
    assert side == {"wide": 373, "upright": 202}[box]
    top, left = ((length - side + 1) // 2 for length in pixels.shape[:2])
    square = pixels[top : top + side, left : left + side].astype(float)
    rows = legacy_bicubic(square, size)
    expected = legacy_bicubic(rows.transpose(1, 0, 2), size).transpose(1, 0, 2)
    crop = default_crop("efficientnet_b0", "tf1", image_size=size, num_classes=1000)
    received = decode_with_crop(encode(photo(box)), crop)
    np.testing.assert_allclose(received, np.clip(np.rint(expected), 0, 255), atol=1)
    assert np.abs(received.numpy() - np.clip(np.rint(expected), 0, 255)).mean() < 0.02


def test_default_crops():
    def crop(name, weights_format, num_classes=1000):
        return default_crop(name, weights_format, image_size=224, num_classes=num_classes)

    official = Crop(224, 224 / 256, "bicubic", antialias=False, rule="tf1")
    assert crop("efficientnet_b7", "tf1") == official
    assert crop("efficientnetb0", "keras.applications") == official
    assert crop("resnet50", "keras.applications") == Crop(224, 0.875, rule="resize")
    for weights_format in ("nsk", "keras", "saved_model"):
        assert crop("efficientnet_b0", weights_format) == Crop(224)
    # Trained for other images with the code of the published networks.
    assert crop("efficientnet_b0", "tf1", num_classes=10) == Crop(224)


def test_a_thin_image_does_not_become_long():
    """Resized whole, it would be 256 x 25,600,000 pixels."""
    thin = encode_array(np.full((1, 100_000, 3), 9, np.uint8))
    padded = decode_with_crop(thin, Crop(224, rule="pad")).numpy()
    assert (padded != 128).any(axis=(1, 2)).sum() == 1  # A row of the image.
    for rule in ("crop", "resize", "tf1", "squash"):
        crop = Crop(224, 0.875, antialias=rule != "tf1", rule=rule)
        received = decode_with_crop(thin, crop)
        np.testing.assert_array_equal(received, np.full((224, 224, 3), 9))


def test_in_a_dataset():
    crop = Crop(16, 0.875, "bicubic", rule="resize")
    dataset = tf.data.Dataset.from_tensors(encode(photo("small")))
    dataset = dataset.map(lambda encoded: decode_with_crop(encoded, crop))
    assert dataset.element_spec == tf.TensorSpec((16, 16, 3), tf.uint8)
    (received,) = dataset
    np.testing.assert_array_equal(received, decode_with_crop(encode(photo("small")), crop))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size=0: expected at least 1"),
        ({"crop_fraction": 0.0}, r"crop_fraction=0\.0: expected above 0"),
        ({"crop_fraction": 1.1}, r"crop_fraction=1\.1: expected above 0, at most 1"),
        ({"interpolation": "nearest"}, "interpolation='nearest': expected one of bilinear"),
        ({"rule": "timm"}, "rule='timm': expected one of crop, resize, tf1, pad, squash"),
        ({"rule": "tf1"}, "antialias=False"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Crop(**{"image_size": 8, **arguments})


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("box", BOXES)
def test_uncropped_images_are_torchvisions(box, image_format):
    """Resize(256) of torchvision's transforms on Pillow images: the longer side is truncated."""
    buffer = io.BytesIO()
    photo(box).save(buffer, image_format)
    image = Image.open(io.BytesIO(buffer.getvalue()))
    width, height = image.size
    longer = int(256 * max(width, height) / min(width, height))
    size = (256, longer) if width < height else (longer, 256)
    expected = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode_uncropped(buffer.getvalue(), 256), expected)


def test_uncropped_images_are_rgb_and_not_too_long():
    pixels = noise(9, 6)[..., 0]
    gray = decode_uncropped(encode(Image.fromarray(pixels)).numpy(), 6)
    np.testing.assert_array_equal(gray, pixels[..., np.newaxis].repeat(3, axis=2))
    pixels = noise(3, 101)  # The middle 24 of 101 columns.
    received = decode_uncropped(encode_array(pixels).numpy(), 3)
    np.testing.assert_array_equal(received, pixels[:, 38:63][:, : received.shape[1]])
    assert abs(received.shape[1] - 24) <= 1
    assert decode_uncropped(encode_array(noise(50, 2)).numpy(), 8).shape == (64, 8, 3)


@pytest.mark.parametrize("rule", ["pad", "squash"])
def test_uncropped_images_are_squares_with_the_other_rules(rule):
    expected = decode_with_crop(encode(photo("upright")), Crop(37, rule=rule))
    received = decode_uncropped(encode(photo("upright")).numpy(), 37, rule)
    np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("rule", ["crop", "resize", "tf1", "pad", "squash"])
def test_pixels_are_resized_as_files_are(rule):
    crop = Crop(20, 0.9, "bicubic", antialias=False, rule=rule)
    pixels = noise(33, 41)
    expected = decode_with_crop(encode_array(pixels), crop)
    np.testing.assert_array_equal(resize_pixels(pixels, crop), expected)
