"""Random resized crops: the boxes' distribution, and the pixels inside them."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_image

from nsk import noise
from nsk.data import crops

KEY = noise.key(0, "crops test")


def photograph(height, width):
    return load_sample_image("china.jpg")[60 : 60 + height, 100 : 100 + width]


def encode(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def boxes(height, width, count, min_area=0.08, max_area=1.0, ratios=crops.RATIOS):
    draws = noise.uniform(KEY, [count, crops.ATTEMPTS + 1, 2])
    return tf.map_fn(
        lambda one: crops.crop_box(one, height, width, min_area, max_area, ratios),
        draws,
        fn_output_signature=tf.int32,
    ).numpy()


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 500), (500, 1), (2, 3), (37, 8), (375, 500)]
)
def test_boxes_lie_within_the_image(height, width):
    top, left, box_height, box_width = boxes(height, width, 300).T
    assert min(top.min(), left.min()) >= 0
    assert min(box_height.min(), box_width.min()) >= 1
    assert np.all(top + box_height <= height)
    assert np.all(left + box_width <= width)


def test_areas_are_uniform_and_ratios_log_uniform_where_every_box_fits():
    _, _, height, width = boxes(1000, 1000, 2000, 0.1, 0.6).T.astype(float)
    areas = height * width / 1e6
    assert stats.kstest(areas, stats.uniform(0.1, 0.5).cdf).pvalue > 1e-3
    ratios = np.log(width / height)
    span = stats.uniform(np.log(3 / 4), np.log(16 / 9))
    assert stats.kstest(ratios, span.cdf).pvalue > 1e-3


def test_places_are_uniform():
    top, left, height, width = boxes(1000, 1000, 2000, 0.1, 0.3).T
    for first, size in ((top, height), (left, width)):
        shares = (first + 0.5) / (1000 - size + 1)
        assert stats.kstest(shares, stats.uniform().cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 1000, [0, 433, 100, 133]), (1000, 100, [433, 0, 133, 100])],
)
def test_where_nothing_fits_the_middle_is_taken(height, width, expected):
    received = boxes(height, width, 20, min_area=0.9)
    np.testing.assert_array_equal(received, np.tile(expected, [20, 1]))


def test_both_formats_give_the_resized_part_of_the_image():
    """The same boxes for PNG and JPEG of one size; pixels as Pillow crops and resizes them."""
    pixels = photograph(90, 130)
    png, jpeg = encode(pixels, "PNG"), encode(pixels, "JPEG", quality=95)
    decoded = tf.io.decode_jpeg(jpeg, channels=3).numpy()
    draws = noise.uniform(noise.named(KEY, "resized_crop"), [6, crops.ATTEMPTS + 1, 2])
    for kind, whole in ((png, pixels), (jpeg, decoded)):
        received = crops.random_resized_crop(tf.constant([kind] * 6), KEY, 24).numpy()
        for i in range(6):
            box = crops.crop_box(draws[i], 90, 130, 0.08, 1.0).numpy()
            top, left, height, width = box.tolist()
            part = Image.fromarray(whole[top : top + height, left : left + width])
            expected = np.asarray(part.resize((24, 24), Image.Resampling.BILINEAR)).astype(int)
            assert np.abs(received[i] - expected).mean() < 1.0, (i, box)


def test_a_fused_crop_is_the_decoded_image_cropped():
    encoded = encode(photograph(75, 101), "JPEG", quality=80)
    whole = tf.io.decode_jpeg(encoded, channels=3)
    for top, left, height, width in boxes(75, 101, 20).tolist():
        part = tf.image.decode_and_crop_jpeg(encoded, [top, left, height, width], channels=3)
        difference = np.abs(
            part.numpy().astype(int) - whole[top : top + height, left : left + width].numpy()
        )
        # Chroma is interpolated over the box's border: a few levels there, none inside.
        assert difference.mean() < 1.0
        assert difference[2:-2, 2:-2].max(initial=0) <= 2


def test_gray_images_become_three_channels():
    gray = encode(photograph(30, 40)[:, :, 0], "PNG")
    received = crops.random_resized_crop(tf.constant([gray]), KEY, 10)
    assert received.shape == (1, 10, 10, 3)
    np.testing.assert_array_equal(received[..., 0], received[..., 2])


def test_a_pure_function_of_key_and_place():
    encoded = tf.constant([encode(photograph(60, 60), "JPEG")] * 3)
    first = crops.random_resized_crop(encoded, KEY, 16)
    dataset = tf.data.Dataset.from_tensor_slices(encoded).batch(3)
    mapped = dataset.map(lambda one: crops.random_resized_crop(one, tf.constant(KEY), 16))
    np.testing.assert_array_equal(next(iter(mapped)), first)
    assert np.any(first[0] != first[1])
    assert np.any(crops.random_resized_crop(encoded, noise.key(1), 16) != first)


def test_an_empty_batch():
    assert crops.random_resized_crop(tf.constant([], tf.string), KEY, 16).shape == (0, 16, 16, 3)
