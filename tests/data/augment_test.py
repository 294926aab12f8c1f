"""Tests of nsk.data.augment: draws and their composition.

Images are asymmetric and not square, so that swapped axes and directions show.
"""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_sample_images

from nsk import noise
from nsk.config.sections import RANDAUGMENT_OPERATIONS
from nsk.data import augment, image_operations

KEY = noise.key(0, "test")
HEIGHT, WIDTH = 48, 64
FULL = {"num_ops": 2, "magnitude": 27.0}


def photographs():
    """Crops of two photographs, each at two scales, uint8 (4, 48, 64, 3)."""
    china, flower = load_sample_images().images
    crops = [china[100:148, 300:364], china[30:222:4, 40:296:4]]
    crops += [flower[150:198, 250:314], flower[60:252:4, 200:456:4]]
    return np.stack(crops)


IMAGES = np.concatenate([photographs(), 255 - photographs()])


# Draws.


def test_draws_are_uniform_over_operations_signs_levels_and_places():
    draws = augment.draw_operations(KEY, 8000, 2, 16)
    for turn in range(2):
        counts = np.bincount(draws.operations.numpy()[:, turn], minlength=16)
        assert counts.shape == (16,)
        assert np.all(np.abs(counts - 500) < 100)  # 4.6 standard deviations
    repeated = np.mean(draws.operations[:, 0] == draws.operations[:, 1])
    assert abs(repeated - 1 / 16) < 0.015  # with replacement
    assert set(np.unique(draws.signs)) == {-1.0, 1.0}
    assert abs(np.mean(draws.signs)) < 0.04
    by_operation = [np.mean(draws.signs.numpy()[draws.operations == index]) for index in range(16)]
    assert np.all(np.abs(by_operation) < 0.15)
    assert np.mean(draws.level_scales) == pytest.approx(0.5, abs=0.02)
    assert np.mean(draws.centers, axis=(0, 1)) == pytest.approx([0.5, 0.5], abs=0.02)
    assert abs(np.corrcoef(draws.centers.numpy().reshape(-1, 2).T)[0, 1]) < 0.04


def test_every_allowed_operation_is_applied_and_no_other():
    images = np.tile(photographs()[1:2], [400, 1, 1, 1])
    allowed = ("invert", "solarize_add", "auto_contrast")
    got = augment.rand_augment(images, KEY, num_ops=1, magnitude=15.0, operations=allowed).numpy()
    possible = [
        image_operations.apply_operation(name, images[:1], 0.5).numpy()[0] for name in allowed
    ]
    matches = np.array([[np.array_equal(one, other) for other in possible] for one in got])
    assert np.all(matches.sum(axis=1) == 1)
    assert np.all(matches.sum(axis=0) > 90)
    drawn = augment.draw_operations(KEY, 400, 1, 3).operations.numpy()[:, 0]
    np.testing.assert_array_equal(np.argmax(matches, axis=1), drawn)


def test_rand_augment_applies_the_drawn_operations_one_after_the_other():
    images = IMAGES
    got = augment.rand_augment(images, KEY, num_ops=3, magnitude=21.0, fill=50).numpy()
    draws = augment.draw_operations(KEY, len(images), 3, 16)
    for position, image in enumerate(images):
        expected = image[None]
        for turn in range(3):
            expected = image_operations.apply_operation(
                RANDAUGMENT_OPERATIONS[draws.operations[position, turn]],
                expected,
                0.7,
                draws.signs[position, turn],
                draws.centers[position, turn],
                fill=50,
            )
        np.testing.assert_array_equal(got[position], expected[0])


def test_uniform_magnitude_is_drawn_below_the_magnitude_for_each_image():
    images = np.full([500, 4, 4, 3], 10, np.uint8)
    settings = {"num_ops": 1, "magnitude": 30.0, "operations": ("solarize_add",)}
    constant = augment.rand_augment(images, KEY, **settings).numpy()[:, 0, 0, 0]
    assert set(constant) == {120}
    added = (
        augment.rand_augment(images, KEY, magnitude_mode="uniform", **settings).numpy()[:, 0, 0, 0]
        - 10.0
    )
    assert added.min() < 5
    assert 105 < added.max() < 110
    assert np.mean(added) == pytest.approx(54.5, abs=5)
    scales = augment.draw_operations(KEY, 500, 1, 1).level_scales.numpy()[:, 0]
    np.testing.assert_array_equal(added, np.floor(110 * scales))


def test_magnitude_zero_and_num_ops_zero_change_nothing():
    without_amount = ("auto_contrast", "equalize", "invert")
    neutral = tuple(name for name in RANDAUGMENT_OPERATIONS if name not in without_amount)
    same = augment.rand_augment(IMAGES, KEY, num_ops=16, magnitude=0.0, operations=neutral)
    np.testing.assert_array_equal(same, IMAGES)
    np.testing.assert_array_equal(
        augment.rand_augment(IMAGES, KEY, num_ops=0, magnitude=9.0), IMAGES
    )
    np.testing.assert_array_equal(augment.augment(IMAGES, KEY), IMAGES)


# A pure function of images and key, in every place it may run.


def random_functions():
    return {
        "rand_augment": lambda images, key: augment.rand_augment(
            images, key, num_ops=1, magnitude=27.0, profile="reference", magnitude_mode="uniform"
        ),
        "random_crop": lambda images, key: augment.random_crop(images, key, 4),
        "reflect": lambda images, key: augment.random_crop(images, key, 4, "reflect"),
        "random_flip": augment.random_flip,
        "augment": lambda images, key: augment.augment(
            images, key, crop_padding=4, flip=True, **FULL
        ),
    }


@pytest.mark.parametrize("name", random_functions())
def test_same_key_same_result_and_another_key_another(name):
    function = random_functions()[name]
    images = np.tile(photographs()[:1], [64, 1, 1, 1])
    first = function(images, KEY)
    assert first.dtype == tf.uint8
    assert first.shape == images.shape
    np.testing.assert_array_equal(first, function(tf.constant(images), tf.constant(KEY)))
    assert np.any(first != function(images, noise.key(1, "test")))
    distinct = len(np.unique(first.numpy().reshape(64, -1), axis=0))
    assert distinct == 2 if name == "random_flip" else distinct > 25
    # An image depends on its position alone: a shorter batch is a beginning of the longer one.
    np.testing.assert_array_equal(first[:37], function(images[:37], KEY))


@pytest.mark.parametrize("name", random_functions())
def test_eager_equals_map_and_unknown_and_empty_batches_work(name):
    function = random_functions()[name]
    unknown = tf.TensorSpec([None, None, None, 3], tf.uint8)
    keys = np.stack([KEY, noise.key(1), noise.key(2)])

    def generate():
        yield from (IMAGES, IMAGES[:3], IMAGES[:0])

    batches = tf.data.Dataset.from_generator(generate, output_signature=unknown)
    mapped = tf.data.Dataset.zip(batches, tf.data.Dataset.from_tensor_slices(keys)).map(function)
    got = list(mapped.as_numpy_iterator())
    assert [len(one) for one in got] == [len(IMAGES), 3, 0]
    for one, images, key in zip(got, generate(), keys, strict=True):
        assert one.dtype == np.uint8
        np.testing.assert_array_equal(one, function(images, key))


def test_static_height_and_width_are_kept_where_the_batch_is_unknown():
    signature = [tf.TensorSpec([None, HEIGHT, WIDTH, 3], tf.uint8), tf.TensorSpec([2], tf.int64)]
    compiled = tf.function(random_functions()["augment"], input_signature=signature)
    assert compiled.get_concrete_function().structured_outputs.shape[1:] == [HEIGHT, WIDTH, 3]
    expected = random_functions()["augment"](IMAGES, KEY)
    np.testing.assert_array_equal(compiled(IMAGES, KEY), expected)


# Crop and flip.


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_every_crop_is_a_window_of_the_padded_image(mode):
    images = np.tile(photographs()[1:2], [300, 1, 1, 1])
    got = augment.random_crop(images, KEY, 2, mode).numpy()
    padded = np.pad(images[0], [(2, 2), (2, 2), (0, 0)], mode=mode)
    windows = [padded[y : y + HEIGHT, x : x + WIDTH] for y in range(5) for x in range(5)]
    matches = np.array([[np.array_equal(crop, window) for window in windows] for crop in got])
    assert np.all(matches.sum(axis=1) == 1)
    counts = matches.sum(axis=0)
    assert np.all(counts > 0)
    assert counts.max() < 30  # 12 expected
    np.testing.assert_array_equal(augment.random_crop(images, KEY, 0, mode), images)


def test_crop_takes_each_image_from_itself():
    images = np.arange(1, 9, dtype=np.uint8)[:, None, None, None] * np.ones([1, 6, 5, 3], np.uint8)
    got = augment.random_crop(images, KEY, 4).numpy()
    for image, crop in zip(images, got, strict=True):
        assert set(np.unique(crop)) <= {0, image[0, 0, 0]}


def test_flip_mirrors_half_of_the_images_left_to_right():
    images = np.random.default_rng(0).integers(0, 256, [1000, 3, 5, 3], np.uint8)
    got = augment.random_flip(images, KEY).numpy()
    flipped = np.all(got == images[:, :, ::-1], axis=(1, 2, 3))
    kept = np.all(got == images, axis=(1, 2, 3))
    assert np.all(flipped ^ kept)
    assert abs(np.mean(flipped) - 0.5) < 0.07


def test_random_cutout_fills_one_square_of_each_image_somewhere():
    images = np.full((200, 20, 30, 3), 255, np.uint8)
    cut = augment.random_cutout(images, KEY, 8, fill=9).numpy()
    centers = set()
    for image in cut:
        changed = np.any(image != 255, axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        square = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert np.all(square == 9)
        assert 4 <= len(rows) <= 8 and 4 <= len(columns) <= 8  # The border cuts at most half.
        if len(rows) == len(columns) == 8:
            centers.add((rows[4], columns[4]))
    assert len(centers) > 50


def test_augment_crops_then_flips_then_applies_rand_augment():
    got = augment.augment(IMAGES, KEY, crop_padding=3, crop_mode="reflect", flip=True, **FULL)
    expected = augment.random_flip(augment.random_crop(IMAGES, KEY, 3, "reflect"), KEY)
    np.testing.assert_array_equal(got, augment.rand_augment(expected, KEY, **FULL))


# Errors.


@pytest.mark.parametrize(
    "changes",
    [
        {"num_ops": -1},
        {"magnitude": -1.0},
        {"magnitude": 31.0},
        {"max_level": 0.0},
        {"profile": "official"},
        {"magnitude_mode": "random"},
        {"operations": ()},
        {"operations": ("blur",)},
        {"fill": 256},
    ],
)
def test_bad_settings_are_refused(changes):
    with pytest.raises(ValueError, match=r"expected|above"):
        augment.rand_augment(IMAGES, KEY, **{**FULL, **changes})


def test_bad_images_and_modes_are_refused():
    with pytest.raises(ValueError, match="float32"):
        augment.random_flip(IMAGES.astype(np.float32), KEY)
    with pytest.raises(ValueError, match="expected uint8"):
        augment.random_flip(IMAGES[0], KEY)
    with pytest.raises(ValueError, match="wrap"):
        augment.random_crop(IMAGES, KEY, 4, "wrap")
    with pytest.raises(ValueError, match="reflection"):
        augment.random_crop(IMAGES, KEY, HEIGHT, "reflect")
