"""Crop, flip and cutout, and their composition with RandAugment.

Images are asymmetric and not square, so that swapped axes and directions are noticed.
"""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_sample_images

from nsk import noise
from nsk.data import augment, rand_augment
from nsk.data.augment import ImageNoise
from nsk.data.image_operations import RandAugmentOptions

KEY = noise.key(0, "test")
HEIGHT, WIDTH = 48, 64
FULL = RandAugmentOptions(num_ops=2, magnitude=27.0)
UNIFORM = RandAugmentOptions(
    num_ops=1, magnitude=27.0, profile="reference", magnitude_mode="uniform"
)


def photographs():
    """Crops of two photographs, each at two scales, uint8 (4, 48, 64, 3)."""
    china, flower = load_sample_images().images
    crops = [china[100:148, 300:364], china[30:222:4, 40:296:4]]
    crops += [flower[150:198, 250:314], flower[60:252:4, 200:456:4]]
    return np.stack(crops)


IMAGES = np.concatenate([photographs(), 255 - photographs()])


# A pure function of images and key, eagerly and in graphs.


def random_functions():
    return {
        "rand_augment": lambda images, key: rand_augment.rand_augment(images, key, UNIFORM),
        "random_crop": lambda images, key: augment.random_crop(images, key, 4),
        "reflect": lambda images, key: augment.random_crop(images, key, 4, "reflect"),
        "random_flip": augment.random_flip,
        "augment": lambda images, key: augment.augment(
            images, key, ImageNoise(crop_padding=4, flip=True, rand_augment=FULL)
        ),
    }


@pytest.mark.parametrize("name", random_functions())
def test_the_same_key_gives_the_same_result_and_another_key_another(name):
    function = random_functions()[name]
    images = np.tile(photographs()[:1], [64, 1, 1, 1])
    first = function(images, KEY)
    assert first.dtype == tf.uint8
    assert first.shape == images.shape
    np.testing.assert_array_equal(first, function(tf.constant(images), tf.constant(KEY)))
    assert np.any(first != function(images, noise.key(1, "test")))
    distinct = len(np.unique(first.numpy().reshape(64, -1), axis=0))
    assert distinct == 2 if name == "random_flip" else distinct > 25
    # An image depends only on its position: a shorter batch equals the start of the longer one.
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
    assert [len(images) for images in got] == [len(IMAGES), 3, 0]
    for augmented, images, key in zip(got, generate(), keys, strict=True):
        assert augmented.dtype == np.uint8
        np.testing.assert_array_equal(augmented, function(images, key))


def test_static_height_and_width_are_kept_if_the_batch_size_is_unknown():
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


def test_every_image_is_cropped_from_itself():
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


def test_random_cutout_fills_a_random_square_of_each_image():
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
    image_noise = ImageNoise(crop_padding=3, crop_mode="reflect", flip=True, rand_augment=FULL)
    got = augment.augment(IMAGES, KEY, image_noise)
    expected = augment.random_flip(augment.random_crop(IMAGES, KEY, 3, "reflect"), KEY)
    np.testing.assert_array_equal(got, rand_augment.rand_augment(expected, KEY, FULL))


def test_augment_without_noise_changes_nothing():
    np.testing.assert_array_equal(augment.augment(IMAGES, KEY, ImageNoise()), IMAGES)


def test_bad_images_and_modes_are_refused():
    with pytest.raises(ValueError, match="float32"):
        augment.random_flip(IMAGES.astype(np.float32), KEY)
    with pytest.raises(ValueError, match="expected uint8"):
        augment.random_flip(IMAGES[0], KEY)
    with pytest.raises(ValueError, match="wrap"):
        augment.random_crop(IMAGES, KEY, 4, "wrap")
    with pytest.raises(ValueError, match="reflection"):
        augment.random_crop(IMAGES, KEY, HEIGHT, "reflect")
