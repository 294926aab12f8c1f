"""Tests of nsk.data.augment, with Pillow and NumPy as oracles.

Images are asymmetric and not square, so that swapped axes and directions show.
"""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from nsk import noise
from nsk.config import RANDAUGMENT_OPERATIONS
from nsk.data import augment

KEY = noise.key(0, "test")
HEIGHT, WIDTH = 48, 64
FULL = {"num_ops": 2, "magnitude": 27.0}
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
WITHOUT_AMOUNT = ("auto_contrast", "equalize", "invert")
ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}


def other_than(*names):
    return tuple(name for name in RANDAUGMENT_OPERATIONS if name not in names)


def photographs():
    """Crops of two photographs, each at two scales, uint8 (4, 48, 64, 3)."""
    china, flower = load_sample_images().images
    crops = [china[100:148, 300:364], china[30:222:4, 40:296:4]]
    crops += [flower[150:198, 250:314], flower[60:252:4, 200:456:4]]
    return np.stack(crops)


def constant_images():
    levels = np.array([[0, 0, 0], [255, 255, 255], [128, 128, 128], [17, 200, 127]], np.uint8)
    return np.tile(levels[:, None, None], [1, HEIGHT, WIDTH, 1])


def two_colour_images():
    """The right part and a few pixels on the left in another colour than the rest."""
    images = np.tile(
        np.array([[20, 130, 250], [0, 255, 7]], np.uint8)[:, None, None], [1, 48, 64, 1]
    )
    images[:, :, 40:] = [90, 129, 3]
    images[:, 5, :3] = [90, 129, 3]
    return images


IMAGES = np.concatenate([photographs(), constant_images(), two_colour_images()])


def pillow_photometric(name, image, amount):
    picture = Image.fromarray(image)
    if name in ENHANCERS:
        return np.asarray(ENHANCERS[name](picture).enhance(amount))
    if name == "solarize_add":
        return np.where(image < 128, np.minimum(image.astype(int) + int(amount), 255), image)
    operation = {
        "auto_contrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "invert": ImageOps.invert,
        "posterize": lambda picture: ImageOps.posterize(picture, int(amount)),
        "solarize": lambda picture: ImageOps.solarize(picture, amount),
    }[name]
    return np.asarray(operation(picture))


def pillow_geometric(name, image, amount):
    picture, gray = Image.fromarray(image), (128, 128, 128)
    if name == "rotate":
        return np.asarray(picture.rotate(amount, Image.Resampling.NEAREST, fillcolor=gray))
    matrix = {
        "shear_x": (1, amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, amount, 1, 0),
        "translate_x": (1, 0, amount, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, amount),
    }[name]
    nearest = Image.Resampling.NEAREST
    return np.asarray(
        picture.transform(picture.size, Image.Transform.AFFINE, matrix, nearest, fillcolor=gray)
    )


def amount_of(name, level, sign=1.0, profile="increasing", height=HEIGHT, width=WIDTH):
    return float(augment.operation_amount(name, level, sign, height, width, profile))


@pytest.mark.parametrize("name", other_than("cutout", *GEOMETRIC))
@pytest.mark.parametrize(
    ("profile", "level"),
    [
        ("increasing", 0.3),
        ("increasing", 0.9),
        ("increasing", 1.0),
        ("reference", 0.5),
        ("reference", 2.7),
    ],
)
def test_photometric_operations_agree_with_pillow_within_one_level(name, profile, level):
    for sign in (-1.0, 1.0):
        amount = amount_of(name, level, sign, profile)
        got = augment.apply_operation(name, IMAGES, level, sign, profile=profile).numpy()
        expected = np.stack([pillow_photometric(name, image, amount) for image in IMAGES])
        difference = np.abs(got.astype(int) - expected)
        assert difference.max() <= 1
        assert np.mean(difference > 0) < 0.01


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("level", [0.0, 0.1, 0.37, 0.9, 1.0])
def test_geometric_operations_agree_with_pillow(name, level):
    for sign in (-1.0, 1.0):
        got = augment.apply_operation(name, IMAGES, level, sign).numpy()
        amount = amount_of(name, level, sign)
        expected = np.stack([pillow_geometric(name, image, amount) for image in IMAGES])
        wrong = np.any(got != expected, axis=-1)[:, 2:-2, 2:-2]
        # Pillow counts in 1/65536 of a pixel, so a pixel on the edge between two may differ.
        assert np.mean(wrong) < 0.002


def test_the_batch_of_one_operation_may_have_levels_and_signs_of_its_own():
    levels, signs = np.linspace(0.1, 1, len(IMAGES)), np.resize([1.0, -1.0], len(IMAGES))
    for name in RANDAUGMENT_OPERATIONS:
        together = augment.apply_operation(name, IMAGES, levels, signs).numpy()
        alone = [
            augment.apply_operation(name, image[None], level, sign)[0]
            for image, level, sign in zip(IMAGES, levels, signs, strict=True)
        ]
        np.testing.assert_array_equal(together, np.stack(alone), err_msg=name)


def test_geometric_operations_fill_what_they_leave_empty():
    images = np.full([1, HEIGHT, WIDTH, 3], 200, np.uint8)
    right = augment.apply_operation("translate_x", images, 1.0, -1.0, fill=7).numpy()[0]
    assert np.all(right[:, :28] == 7)  # 0.45 * 64 = 28.8 pixels to the right
    assert np.all(right[:, 30:] == 200)
    down = augment.apply_operation("translate_y", images, 1.0, -1.0, fill=7).numpy()[0]
    assert np.all(down[:21] == 7)  # 0.45 * 48 = 21.6
    assert np.all(down[23:] == 200)
    for name in GEOMETRIC:
        assert np.any(augment.apply_operation(name, images, 1.0, fill=7).numpy() == 7)


@pytest.mark.parametrize("center", [(0.5, 0.5), (0.0, 0.25), (0.99, 0.99)])
def test_cutout_fills_one_square_around_its_center(center):
    got = augment.apply_operation(
        "cutout", IMAGES, 1.0, 1.0, np.array([center] * len(IMAGES)), fill=9
    )
    expected, side = IMAGES.copy(), 17  # 0.36 * 48 = 17.28
    top, left = int(center[0] * HEIGHT) - side // 2, int(center[1] * WIDTH) - side // 2
    expected[:, max(top, 0) : top + side, max(left, 0) : left + side] = 9
    np.testing.assert_array_equal(got, expected)


def test_small_and_odd_images_work():
    for height, width in [(1, 1), (1, 5), (2, 3), (7, 1)]:
        images = np.arange(2 * height * width * 3, dtype=np.uint8).reshape(2, height, width, 3)
        for name in RANDAUGMENT_OPERATIONS:
            assert augment.apply_operation(name, images, 0.5).shape == images.shape
        smooth = augment.apply_operation("sharpness", images, 1.0, -1.0)
        factor = amount_of("sharpness", 1.0, -1.0)
        expected = [pillow_photometric("sharpness", image, factor) for image in images]
        np.testing.assert_allclose(smooth, np.stack(expected), atol=1)


# Profiles.


def test_increasing_profile_numbers():
    expected = {
        "rotate": 27.0,
        "shear_x": 0.27,
        "shear_y": 0.27,
        "translate_x": 0.9 * 0.45 * 64,
        "translate_y": 0.9 * 0.45 * 48,
        "color": 1.81,
        "contrast": 1.81,
        "brightness": 1.81,
        "sharpness": 1.81,
        "posterize": 4.0,
        "solarize": 25.6,
        "solarize_add": 99.0,
        "cutout": 16.0,
    }
    for name, amount in expected.items():
        assert amount_of(name, 27.0 / 30.0) == pytest.approx(amount), name
    assert amount_of("cutout", 0.9, height=64, width=48) == 16.0  # the shorter side counts
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert amount_of(name, 0.9, -1.0) == pytest.approx(0.19)
    for name in GEOMETRIC:
        assert amount_of(name, 0.9, -1.0) == pytest.approx(-expected[name])


def test_reference_profile_numbers():
    """The official arithmetic at M=27 of 10 (81 degrees, factor 4.96) and at M=5 of 10."""
    strong = {
        "rotate": 81.0,
        "shear_x": 0.81,
        "shear_y": 0.81,
        "translate_x": 64.0,
        "translate_y": 48.0,
        "color": 4.96,
        "contrast": 4.96,
        "brightness": 4.96,
        "sharpness": 4.96,
        "posterize": 8.0,
        "solarize": 256.0,
        "solarize_add": 297.0,
        "cutout": 48.0,
    }
    for name, amount in strong.items():
        assert amount_of(name, 2.7, profile="reference") == pytest.approx(amount), name
    middle = {
        "brightness": 1.0,
        "posterize": 2.0,
        "solarize": 128.0,
        "solarize_add": 55.0,
        "cutout": 40.0,
    }
    for name, amount in middle.items():
        assert amount_of(name, 0.5, profile="reference") == pytest.approx(amount), name
    assert amount_of("translate_x", 0.5, -1.0, "reference", 224, 224) == pytest.approx(-50.0)
    assert amount_of("posterize", 0.1, profile="reference") == 1.0
    assert amount_of("brightness", 0.5, -1.0, "reference") == pytest.approx(1.0)


@pytest.mark.parametrize("name", other_than(*WITHOUT_AMOUNT))
def test_increasing_profile_grows_with_the_magnitude(name):
    """From nothing at level 0, the change never falls and ends above its start."""
    images = photographs()
    for sign in (-1.0, 1.0):
        changes = []
        for level in np.linspace(0, 1, 6):
            # Geometry moves detail away and back; a ramp changes by as much as it is moved.
            ramp = np.add.outer(2 * np.arange(HEIGHT), np.arange(WIDTH)).astype(np.uint8)
            source = np.tile(ramp[None, :, :, None], [1, 1, 1, 3]) if name in GEOMETRIC else images
            got = augment.apply_operation(name, source, level, sign, fill=255).numpy()
            changes.append(np.mean(np.abs(got.astype(float) - source)))
        assert changes[0] == 0
        assert np.all(np.diff(changes) >= 0)
        assert changes[-1] > changes[1]


def test_without_clamps_the_reference_profile_weakens_posterize_and_solarize():
    for name in ("posterize", "solarize"):
        changes = [
            np.mean(
                np.abs(
                    augment.apply_operation(name, IMAGES, level, profile="reference")
                    .numpy()
                    .astype(int)
                    - IMAGES
                )
            )
            for level in (0.3, 0.9)
        ]
        assert changes[1] < changes[0]


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
    possible = [augment.apply_operation(name, images[:1], 0.5).numpy()[0] for name in allowed]
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
            expected = augment.apply_operation(
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
    neutral = other_than(*WITHOUT_AMOUNT)
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


def test_every_operation_alone_accepts_an_empty_batch():
    for name in RANDAUGMENT_OPERATIONS:
        assert augment.apply_operation(name, IMAGES[:0], 0.5).shape == (0, HEIGHT, WIDTH, 3)


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


def test_bad_images_modes_and_names_are_refused():
    with pytest.raises(ValueError, match="float32"):
        augment.random_flip(IMAGES.astype(np.float32), KEY)
    with pytest.raises(ValueError, match="expected uint8"):
        augment.random_flip(IMAGES[0], KEY)
    with pytest.raises(ValueError, match="wrap"):
        augment.random_crop(IMAGES, KEY, 4, "wrap")
    with pytest.raises(ValueError, match="reflection"):
        augment.random_crop(IMAGES, KEY, HEIGHT, "reflect")
    with pytest.raises(ValueError, match="blur"):
        augment.apply_operation("blur", IMAGES, 0.5)
    with pytest.raises(ValueError, match="official"):
        augment.apply_operation("rotate", IMAGES, 0.5, profile="official")
