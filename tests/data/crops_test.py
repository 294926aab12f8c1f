"""Random resized crops: the boxes' distribution, and the pixels inside them."""

import io
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_image

from nsk import noise
from nsk.data import crops
from nsk.data.decoding import decode_image

KEY = noise.key(0, "crops test")
SIZES = [(1, 1), (1, 500), (500, 1), (2, 3), (37, 8), (375, 500), (90, 10_000)]


def photograph(height, width):
    return load_sample_image("china.jpg")[60 : 60 + height, 100 : 100 + width]


def encode(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def draw(count, key=KEY):
    return noise.uniform(key, [count, crops.ATTEMPTS + 1, 2])


def boxes(height, width, count, **settings):
    """(count, 4): boxes of `count` images with the same size."""
    sizes = [tf.fill([count], side) for side in (height, width)]
    return crops.crop_boxes(draw(count), *sizes, **settings).numpy()


def inside(pixels, box):
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


# Parts of padded and squashed images.


@pytest.mark.parametrize(("height", "width"), [(90, 30), (20, 100), (64, 64)])
def test_parts_of_the_images_shape(height, width):
    """They are those of a square image, stretched to this one."""
    sides = np.array([height, width])
    found = boxes(height, width, 2000, of_image=True, min_area=0.3)[:, 2:] / sides
    square = boxes(6400, 6400, 2000, min_area=0.3)[:, 2:] / 6400
    # A box that is just too large may fit into the smaller image, rounded.
    assert (np.abs(found - square).max(axis=1) < 0.51 / sides.min()).mean() > 0.95
    shapes = found[:, 1] / found[:, 0]
    assert shapes.min() > 0.65 and shapes.max() < 1.5


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("resize_mode", ["pad", "squash"])
def test_the_whole_image_takes_its_usual_place(kind, resize_mode):
    encoded = encode(photograph(60, 131), kind)
    whole = decode_image(tf.constant(encoded), 32, resize_mode).numpy()
    received = crops.random_resized_crop(
        [encoded], KEY, 32, min_area=1.0, ratio=(1.0, 1.0), resize_mode=resize_mode
    )
    np.testing.assert_array_equal(received[0], whole)


def test_parts_of_padded_images_fill_the_place_of_the_image():
    image = np.full((30, 90, 3), 200, np.uint8)
    received = crops.random_resized_crop(
        [encode(image, "PNG")] * 9, KEY, 18, min_area=0.1, resize_mode="pad"
    )
    expected = np.full((18, 18, 3), 128, np.uint8)
    expected[6:12] = 200
    np.testing.assert_array_equal(received, np.stack([expected] * 9))


# Boxes.


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_boxes_lie_within_the_image(height, width):
    top, left, box_height, box_width = boxes(height, width, 300).T
    assert min(top.min(), left.min()) >= 0
    assert min(box_height.min(), box_width.min()) >= 1
    assert np.all(top + box_height <= height)
    assert np.all(left + box_width <= width)


def expected_box(draws, height, width, min_area, max_area, ratio):
    """All attempts in sequence, in Python's floats."""
    for share, position in draws[:-1]:
        area = height * width * (min_area + (max_area - min_area) * share)
        shape = math.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * position)
        box_width, box_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(draws[-1, 0] * (height - box_height + 1))
            left = int(draws[-1, 1] * (width - box_width + 1))
            return top, left, box_height, box_width
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return top, left, max(box_height, 1), max(box_width, 1)


@pytest.mark.parametrize(
    "settings", [(0.08, 1.0, (3 / 4, 4 / 3)), (0.9, 1.0, (3 / 4, 4 / 3)), (0.3, 0.5, (0.5, 1.5))]
)
def test_the_first_attempt_that_fits_is_taken(settings):
    random = np.random.default_rng(0)
    sizes = np.concatenate([SIZES, random.integers(1, 600, (400, 2))])
    draws = draw(len(sizes))
    received = crops.crop_boxes(draws, *tf.constant(sizes.T, tf.int32), *settings)
    rows = zip(draws.numpy().astype(float), sizes.tolist(), strict=True)
    expected = [expected_box(row, *size, *settings) for row, size in rows]
    # A side, or whether an attempt fits, may differ between float32 and float64.
    assert np.mean(np.all(received == expected, axis=1)) > 0.99


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 1000, [0, 433, 100, 133]), (1000, 100, [433, 0, 133, 100]), (9, 9, [0, 0, 9, 9])],
)
def test_if_no_attempt_fits_the_largest_central_box_is_taken(height, width, expected):
    received = boxes(height, width, 20, min_area=0.999)
    np.testing.assert_array_equal(received, np.tile(expected, [20, 1]))


def test_a_box_has_a_pixel_even_if_no_ratio_is_possible():
    for ratio in ((3.0, 4.0), (0.1, 0.2)):
        np.testing.assert_array_equal(boxes(1, 1, 1, ratio=ratio), [[0, 0, 1, 1]])


def test_areas_are_uniform_and_ratios_log_uniform_if_every_box_fits():
    _, _, height, width = boxes(1000, 1000, 2000, min_area=0.1, max_area=0.6).T.astype(float)
    areas = height * width / 1e6
    assert stats.kstest(areas, stats.uniform(0.1, 0.5).cdf).pvalue > 1e-3
    ratios = np.log(width / height)
    span = stats.uniform(np.log(3 / 4), np.log(16 / 9))
    assert stats.kstest(ratios, span.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(areas, ratios)[0, 1]) < 0.08


def test_positions_are_uniform():
    top, left, height, width = boxes(1000, 1000, 2000, min_area=0.1, max_area=0.3).T
    for first, size in ((top, height), (left, width)):
        shares = (first + 0.5) / (1000 - size + 1)
        assert stats.kstest(shares, stats.uniform().cdf).pvalue > 1e-3
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.08


@pytest.mark.parametrize("settings", [{"min_area": 0.0}, {"max_area": 1.1}, {"min_area": 0.6,
                         "max_area": 0.5}, {"ratio": (2, 1)}, {"ratio": (0, 1)}])  # fmt: skip
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected 0 < min_area <= max_area <= 1"):
        boxes(10, 10, 1, **settings)


# Pixels.


@pytest.mark.parametrize("size", [24, 64, 200])
def test_resized_boxes_agree_with_pillow(size):
    pixels = photograph(90, 130)
    received = crops.random_resized_crop(tf.constant([encode(pixels, "PNG")] * 6), KEY, size)
    draws = draw(6, noise.named(KEY, "resized_crop"))
    chosen = crops.crop_boxes(draws, tf.fill([6], 90), tf.fill([6], 130)).numpy()
    for box, image in zip(chosen, received.numpy(), strict=True):
        part = Image.fromarray(inside(pixels, box))
        expected = part.resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(image, np.asarray(expected).astype(int), atol=1)


def test_both_formats_are_cropped_alike():
    """A smooth image, which JPEG hardly changes: other boxes would have other colours."""
    rows, columns = np.mgrid[:99, :131]
    smooth = np.stack([rows * 2, columns, 255 - rows - columns], axis=2).astype(np.uint8)
    png, jpeg = (
        crops.random_resized_crop(tf.constant([encoded] * 8), KEY, 24).numpy().astype(int)
        for encoded in (encode(smooth, "PNG"), encode(smooth, "JPEG", quality=98, subsampling=0))
    )
    np.testing.assert_allclose(png, jpeg, atol=4)
    assert np.abs(png[1:] - png[:-1]).mean(axis=(1, 2, 3)).min() > 5


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_a_fused_crop_is_the_decoded_image_cropped(options):
    encoded = encode(photograph(75, 101), "JPEG", **options)
    whole = np.asarray(Image.open(io.BytesIO(encoded))).astype(int)
    for box in boxes(75, 101, 40).tolist():
        part = crops.decode_and_crop(encoded, box).numpy()
        difference = np.abs(part - inside(whole, box))
        # Halved chroma is interpolated: the columns at the border lack the pixels beyond.
        assert not difference[:, 1:-1].any()
        assert difference.max() <= (0 if options == {"subsampling": 0} else 24)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_gray_images_become_three_channels(kind):
    gray = encode(photograph(30, 40)[:, :, 0], kind)
    received = crops.random_resized_crop(tf.constant([gray]), KEY, 10)
    assert received.shape == (1, 10, 10, 3)
    for channel in (1, 2):
        np.testing.assert_array_equal(received[..., 0], received[..., channel])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1)])
def test_thin_images_have_crops_too(kind, height, width):
    encoded = encode(np.full((height, width, 3), 77, np.uint8), kind)
    received = crops.random_resized_crop(tf.constant([encoded]), KEY, 7)
    np.testing.assert_allclose(received, np.full((1, 7, 7, 3), 77), atol=1)


def test_crops_depend_only_on_key_and_position():
    encoded = tf.constant([encode(photograph(60, 70), kind) for kind in ("JPEG", "PNG", "JPEG")])
    first = crops.random_resized_crop(encoded, KEY, 16)
    assert np.any(first[0] != first[2])
    assert np.any(crops.random_resized_crop(encoded, noise.key(1), 16) != first)
    np.testing.assert_array_equal(crops.random_resized_crop(encoded[:2], KEY, 16), first[:2])
    dataset = tf.data.Dataset.from_tensor_slices(encoded).batch(3)
    mapped = dataset.map(lambda batch: crops.random_resized_crop(batch, tf.constant(KEY), 16))
    assert mapped.element_spec == tf.TensorSpec([None, 16, 16, 3], tf.uint8)
    np.testing.assert_array_equal(next(iter(mapped)), first)


def test_an_empty_batch():
    empty = tf.constant([], tf.string)
    assert crops.random_resized_crop(empty, KEY, 16).shape == (0, 16, 16, 3)
    mapped = tf.function(lambda batch: crops.random_resized_crop(batch, KEY, 16))
    assert mapped(empty).shape == (0, 16, 16, 3)
