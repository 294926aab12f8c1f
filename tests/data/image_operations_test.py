"""Tests of nsk.data.image_operations, with Pillow and NumPy as oracles.

Images are asymmetric and not square, so that swapped axes and directions show.
"""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from nsk.data import image_operations
from nsk.data.image_operations import RandAugmentOptions
from nsk.data.randaugment_table import OPERATIONS

HEIGHT, WIDTH = 48, 64
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
WITHOUT_AMOUNT = ("auto_contrast", "equalize", "invert", "identity")
ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}


def operations_except(*names):
    return tuple(name for name in OPERATIONS if name not in names)


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
    """The right part and a few pixels on the left have another colour than the rest."""
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


def compute_amount(name, level, sign=1.0, profile="increasing", height=HEIGHT, width=WIDTH):
    options = RandAugmentOptions(profile=profile)
    return float(image_operations.operation_amount(name, level, sign, height, width, options))


@pytest.mark.parametrize("name", operations_except("cutout", "identity", *GEOMETRIC))
@pytest.mark.parametrize(
    ("profile", "level"),
    [
        ("increasing", 0.3),
        ("increasing", 0.9),
        ("increasing", 1.0),
        ("reference", 0.5),
        ("reference", 2.7),
        ("linear", 0.1),
        ("linear", 0.9),
    ],
)
def test_photometric_operations_agree_with_pillow_within_one_level(name, profile, level):
    for sign in (-1.0, 1.0):
        amount = compute_amount(name, level, sign, profile)
        options = RandAugmentOptions(profile=profile)
        got = image_operations.apply_operation(name, IMAGES, level, sign, options=options).numpy()
        expected = np.stack([pillow_photometric(name, image, amount) for image in IMAGES])
        difference = np.abs(got.astype(int) - expected)
        assert difference.max() <= 1
        assert np.mean(difference > 0) < 0.01


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("level", [0.0, 0.1, 0.37, 0.9, 1.0])
def test_geometric_operations_agree_with_pillow(name, level):
    for sign in (-1.0, 1.0):
        got = image_operations.apply_operation(name, IMAGES, level, sign).numpy()
        amount = compute_amount(name, level, sign)
        expected = np.stack([pillow_geometric(name, image, amount) for image in IMAGES])
        wrong = np.any(got != expected, axis=-1)[:, 2:-2, 2:-2]
        # Pillow computes in 1/65536 of a pixel, so pixels on an edge between two may differ.
        assert np.mean(wrong) < 0.002


def test_the_images_of_a_batch_may_have_different_levels_and_signs():
    levels, signs = np.linspace(0.1, 1, len(IMAGES)), np.resize([1.0, -1.0], len(IMAGES))
    for name in OPERATIONS:
        together = image_operations.apply_operation(name, IMAGES, levels, signs).numpy()
        alone = [
            image_operations.apply_operation(name, image[None], level, sign)[0]
            for image, level, sign in zip(IMAGES, levels, signs, strict=True)
        ]
        np.testing.assert_array_equal(together, np.stack(alone), err_msg=name)


def test_geometric_operations_fill_the_empty_area():
    images = np.full([1, HEIGHT, WIDTH, 3], 200, np.uint8)
    options = RandAugmentOptions(fill=7)

    def apply(name, sign=1.0):
        return image_operations.apply_operation(name, images, 1.0, sign, options=options).numpy()

    right = apply("translate_x", -1.0)[0]
    assert np.all(right[:, :28] == 7)  # 0.45 * 64 = 28.8 pixels to the right
    assert np.all(right[:, 30:] == 200)
    down = apply("translate_y", -1.0)[0]
    assert np.all(down[:21] == 7)  # 0.45 * 48 = 21.6
    assert np.all(down[23:] == 200)
    for name in GEOMETRIC:
        assert np.any(apply(name) == 7)


@pytest.mark.parametrize("center", [(0.5, 0.5), (0.0, 0.25), (0.99, 0.99)])
def test_cutout_fills_one_square_around_its_center(center):
    got = image_operations.apply_operation(
        "cutout", IMAGES, 1.0, 1.0, np.array([center] * len(IMAGES)), RandAugmentOptions(fill=9)
    )
    expected, side = IMAGES.copy(), 17  # 0.36 * 48 = 17.28
    top, left = int(center[0] * HEIGHT) - side // 2, int(center[1] * WIDTH) - side // 2
    expected[:, max(top, 0) : top + side, max(left, 0) : left + side] = 9
    np.testing.assert_array_equal(got, expected)


def test_small_and_odd_images_work():
    for height, width in [(1, 1), (1, 5), (2, 3), (7, 1)]:
        images = np.arange(2 * height * width * 3, dtype=np.uint8).reshape(2, height, width, 3)
        for name in OPERATIONS:
            assert image_operations.apply_operation(name, images, 0.5).shape == images.shape
        smooth = image_operations.apply_operation("sharpness", images, 1.0, -1.0)
        factor = compute_amount("sharpness", 1.0, -1.0)
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
        assert compute_amount(name, 27.0 / 30.0) == pytest.approx(amount), name
    assert compute_amount("cutout", 0.9, height=64, width=48) == 16.0  # the shorter side counts
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert compute_amount(name, 0.9, -1.0) == pytest.approx(0.19)
    for name in GEOMETRIC:
        assert compute_amount(name, 0.9, -1.0) == pytest.approx(-expected[name])


def test_the_share_of_translation_can_be_set():
    options = RandAugmentOptions(translate_share=0.125)
    for name, side in (("translate_x", WIDTH), ("translate_y", HEIGHT)):
        amount = image_operations.operation_amount(name, 0.5, -1.0, HEIGHT, WIDTH, options)
        assert float(amount) == pytest.approx(-0.5 * 0.125 * side)
    images = photographs()
    received = image_operations.apply_operation("translate_x", images, 1.0, options=options)
    assert np.all(received.numpy()[:, :, -WIDTH // 8 :] == 128)
    np.testing.assert_array_equal(received[:, :, : -WIDTH // 8], images[:, :, WIDTH // 8 :])


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
        assert compute_amount(name, 2.7, profile="reference") == pytest.approx(amount), name
    middle = {
        "brightness": 1.0,
        "posterize": 2.0,
        "solarize": 128.0,
        "solarize_add": 55.0,
        "cutout": 40.0,
    }
    for name, amount in middle.items():
        assert compute_amount(name, 0.5, profile="reference") == pytest.approx(amount), name
    assert compute_amount("translate_x", 0.5, -1.0, "reference", 224, 224) == pytest.approx(-50.0)
    assert compute_amount("posterize", 0.1, profile="reference") == 1.0
    assert compute_amount("brightness", 0.5, -1.0, "reference") == pytest.approx(1.0)


def test_linear_profile_numbers():
    """amount = magnitude / 30 x (max - min) + min, by hand, at magnitudes 27 and 3."""
    strong = {
        "rotate": 27.0,  # 0..30
        "shear_x": 0.27,  # 0..0.3
        "shear_y": 0.27,
        "translate_x": 19.008,  # 0..0.33 of 64
        "translate_y": 14.256,  # of 48
        "posterize": 3.0,  # 0..4: 3.6, truncated
        "solarize": 230.4,  # 0..256
        "solarize_add": 99.0,  # 0..110
        "color": 1.72,  # 0.1..1.9
        "contrast": 1.72,
        "brightness": 1.72,
        "sharpness": 1.72,
        "cutout": 36.0,  # 0..40 pixels
    }
    weak = {"posterize": 1.0, "solarize": 25.6, "solarize_add": 11.0, "cutout": 4.0, "color": 0.28}
    for level, expected in ((0.9, strong), (0.1, weak)):
        for name, amount in expected.items():
            assert compute_amount(name, level, profile="linear") == pytest.approx(amount), name
            sign = -1.0 if name in GEOMETRIC else 1.0
            opposite = compute_amount(name, level, -1.0, "linear")
            assert opposite == pytest.approx(sign * amount), name


def test_linear_profile_leaves_black_and_cuts_out_in_its_own_colour():
    images = np.full([1, HEIGHT, WIDTH, 3], 200, np.uint8)
    options = RandAugmentOptions(profile="linear", fill=9)
    for name in GEOMETRIC:
        got = image_operations.apply_operation(name, images, 1.0, options=options).numpy()
        assert set(np.unique(got)) == {0, 200}, name
    # A square of 20 pixels around row 12 and column 60: 2..21 and 50..63, where the border cuts it.
    center = np.array([[0.25, 0.9375]])
    got = image_operations.apply_operation("cutout", images, 0.5, 1.0, center, options).numpy()
    images[:, 2:22, 50:] = 125, 123, 114
    np.testing.assert_array_equal(got, images)


def test_identity_changes_nothing():
    for profile in ("increasing", "linear"):
        options = RandAugmentOptions(profile=profile)
        got = image_operations.apply_operation("identity", IMAGES, 1.0, options=options)
        np.testing.assert_array_equal(got, IMAGES)


def test_auto_contrast_is_exactly_pillows():
    """For every lowest and highest value: Pillow truncates, so that rounding errors show."""
    for lowest in range(0, 256, 5):
        values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
        highest = np.arange(lowest, 256, dtype=np.uint8)[:, None, None, None]
        images = np.clip(values, lowest, highest)
        got = image_operations.apply_operation("auto_contrast", images, 0.0).numpy()
        expected = [pillow_photometric("auto_contrast", image, 0.0) for image in images]
        np.testing.assert_array_equal(got, np.stack(expected))


@pytest.mark.parametrize("name", operations_except(*WITHOUT_AMOUNT))
def test_increasing_profile_grows_with_the_magnitude(name):
    """The change is 0 at level 0, never falls, and ends above its start."""
    images = photographs()
    for sign in (-1.0, 1.0):
        changes = []
        for level in np.linspace(0, 1, 6):
            # The change of a ramp is proportional to the distance that it is moved.
            ramp = np.add.outer(2 * np.arange(HEIGHT), np.arange(WIDTH)).astype(np.uint8)
            source = np.tile(ramp[None, :, :, None], [1, 1, 1, 3]) if name in GEOMETRIC else images
            options = RandAugmentOptions(fill=255)
            got = image_operations.apply_operation(name, source, level, sign, options=options)
            changes.append(np.mean(np.abs(got.numpy().astype(float) - source)))
        assert changes[0] == 0
        assert np.all(np.diff(changes) >= 0)
        assert changes[-1] > changes[1]


def test_without_clamps_the_reference_profile_weakens_posterize_and_solarize():
    options = RandAugmentOptions(profile="reference")
    for name in ("posterize", "solarize"):
        weak, strong = (
            image_operations.apply_operation(name, IMAGES, level, options=options).numpy()
            for level in (0.3, 0.9)
        )
        change_of_weak = np.mean(np.abs(weak.astype(int) - IMAGES))
        assert np.mean(np.abs(strong.astype(int) - IMAGES)) < change_of_weak


def test_every_operation_accepts_an_empty_batch():
    for name in OPERATIONS:
        assert image_operations.apply_operation(name, IMAGES[:0], 0.5).shape == (
            0,
            HEIGHT,
            WIDTH,
            3,
        )


def test_bad_images_profiles_and_names_are_refused():
    with pytest.raises(ValueError, match="blur"):
        image_operations.apply_operation("blur", IMAGES, 0.5)
    with pytest.raises(ValueError, match="official"):
        RandAugmentOptions(profile="official")
    with pytest.raises(ValueError, match="expected uint8"):
        image_operations.apply_operation("rotate", IMAGES[0], 0.5)
