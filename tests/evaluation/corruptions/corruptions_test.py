"""All corruptions: independence of the batch, sizes, constants, errors, and a peer."""

import hashlib

import numpy as np
import pytest
from imagecorruptions import corrupt as peer

from nsk.config.evaluation import CORRUPTION_NAMES, PERTURBATION_NAMES
from nsk.evaluation.corruptions import (
    BENCHMARK,
    CORRUPTIONS,
    EXTRAS,
    choose_constants,
    corrupt,
)
from nsk.evaluation.corruptions.constants import CONSTANTS
from nsk.evaluation.perturbations import PERTURBATIONS
from tests.evaluation.corruptions.photographs import photographs

# The beginnings of the SHA-256 of four images of 32 pixels at severity 4.
DIGESTS = {
    "gaussian_noise": "d682e2b4bb254186",
    "shot_noise": "82ac6d9338b08a8f",
    "impulse_noise": "bf60a290a88dd3f7",
    "defocus_blur": "37be9711a9c73544",
    "glass_blur": "ffdd59c3863b1139",
    "motion_blur": "7cded3aa4299cd9f",
    "zoom_blur": "ae0b0da49e070fcb",
    "snow": "f5e7067931c76935",
    "frost": "3d63ff93214210b4",
    "fog": "58546f9b95e9d406",
    "brightness": "de5c42fab428947b",
    "contrast": "44da20cb4b9f341e",
    "elastic_transform": "835781bb8cf53d5a",
    "pixelate": "c948612292363438",
    "jpeg_compression": "8b6380b99b1683d7",
    "speckle_noise": "472862b6a9c8d9c9",
    "gaussian_blur": "be1d908da69465c7",
    "spatter": "b90a83c1e0bbd732",
    "saturate": "9e2748b2090df502",
}
# Without random numbers, and with them; glass blur, which the peer compiles for seconds, is
# compared in blur_test.
EQUAL = ("zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
EQUAL += ("defocus_blur", "gaussian_blur", "saturate")
ALIKE = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
# What adds colors to a gray image, beside noise.
COLORED = ("frost", "speckle_noise", "spatter")

parametrize_names = pytest.mark.parametrize("name", CORRUPTIONS)


def ids_of(images):
    return [f"image {index}" for index in range(len(images))]


def test_names_and_groups():
    assert tuple(CORRUPTIONS) == CORRUPTION_NAMES
    assert tuple(PERTURBATIONS) == PERTURBATION_NAMES
    assert BENCHMARK + EXTRAS == CORRUPTION_NAMES
    assert len(BENCHMARK) == 15
    assert all(name == corruption.name for name, corruption in CORRUPTIONS.items())
    groups = [corruption.group for corruption in CORRUPTIONS.values()]
    assert (
        groups == ["noise"] * 3 + ["blur"] * 4 + ["weather"] * 4 + ["digital"] * 4 + ["extra"] * 4
    )


@parametrize_names
def test_pixels_are_always_the_same(name):
    images = photographs(32)[:4]
    changed = corrupt(images, name, 4, ids_of(images), seed=3)
    assert hashlib.sha256(changed.tobytes()).hexdigest()[:16] == DIGESTS[name]


@parametrize_names
@pytest.mark.parametrize(("side", "severity"), [(32, 5), (64, 2), (224, 3)])
def test_an_image_does_not_depend_on_its_batch(name, side, severity):
    images = photographs(side)[: 6 if side < 224 else 3]
    ids = ids_of(images)
    whole = corrupt(images, name, severity, ids)
    parts = [
        corrupt(images[part], name, severity, ids[part]) for part in (slice(0, 1), slice(1, 99))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    if side < 224:
        backwards = corrupt(images[::-1], name, severity, ids[::-1])
        np.testing.assert_array_equal(backwards[::-1], whole)


@parametrize_names
def test_random_numbers_follow_seed_id_and_severity(name):
    images = np.repeat(photographs(32)[:1], 2, axis=0)
    first, second = corrupt(images, name, 5, ["a", "b"])
    other_seed = corrupt(images[:1], name, 5, ["a"], seed=1)[0]
    # Both images differ from each other exactly if the corruption is random.
    is_random = name not in EQUAL
    assert (first != second).any() == (first != other_seed).any() == is_random
    assert (first != images[0]).any()


@parametrize_names
@pytest.mark.parametrize("constants", CONSTANTS)
def test_images_of_any_size(name, constants):
    for severity in (1, 5):
        for shape in ((0, 32, 32, 3), (1, 8, 8, 3), (2, 1, 1, 3), (2, 20, 33, 3), (1, 130, 97, 3)):
            images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
            before = images.copy()
            changed = corrupt(images, name, severity, ids_of(images), constants=constants)
            assert (changed.shape, changed.dtype) == (shape, np.uint8)
            np.testing.assert_array_equal(images, before)


@parametrize_names
def test_gray_images_stay_gray_if_noise_and_colors_allow_it(name):
    images = photographs(32)[5:]
    changed = corrupt(images, name, 2, ["a"])
    is_gray = (changed == changed[..., :1]).all()
    assert is_gray == (CORRUPTIONS[name].group != "noise" and name not in COLORED)


def test_constants_follow_the_shorter_side():
    sides = {28: "cifar", 48: "cifar", 49: "tiny", 128: "tiny", 129: "imagenet", 224: "imagenet"}
    for side, expected in sides.items():
        assert choose_constants((side, side)) == expected
        assert choose_constants((side, 500)) == choose_constants((500, side)) == expected
        assert choose_constants((side, side), "tiny") == "tiny"
    images = photographs(64)
    automatic = corrupt(images, "contrast", 1, ids_of(images))
    for constants in CONSTANTS:
        changed = corrupt(images, "fog", 1, ids_of(images), constants=constants)
        is_same = (changed == corrupt(images, "fog", 1, ids_of(images))).all()
        assert is_same == (constants == "tiny")
    assert automatic[0].std() < images[0].std() * 0.5


@parametrize_names
def test_severities_are_the_rows_of_the_table(name):
    images = photographs(32)[:2]
    corruption = CORRUPTIONS[name]
    for severity in range(1, 6):
        parameters = CONSTANTS["imagenet"][name][severity - 1]
        assert corruption.parameters["imagenet"][severity - 1] == parameters
    changed = [
        corrupt(images, name, severity, ids_of(images)).tobytes() for severity in range(1, 6)
    ]
    assert len(set(changed)) == 5


def test_textures_are_those_of_frost():
    images = photographs(32)[:2]
    texture = np.full((200, 200, 3), 100, np.uint8)
    changed = corrupt(images, "frost", 1, ids_of(images), textures=[texture])
    np.testing.assert_array_equal(changed, np.minimum(images + 20.0, 255).astype(np.uint8))
    fog = corrupt(images, "fog", 1, ids_of(images), textures=[texture])
    np.testing.assert_array_equal(fog, corrupt(images, "fog", 1, ids_of(images)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "rain"}, "corruption 'rain': expected one of gaussian_noise, shot_noise"),
        ({"severity": 0}, "severity=0: expected 1 to 5"),
        ({"severity": 6}, "severity=6: expected 1 to 5"),
        ({"constants": "cifar100"}, "constants='cifar100': expected auto or cifar, tiny, imagenet"),
        ({"images": np.zeros((2, 8, 8, 3))}, "images float64"),
        ({"images": np.zeros((2, 8, 8), np.uint8)}, r"expected uint8 \(n, height, width, 3\)"),
        ({"images": np.zeros((2, 8, 8, 1), np.uint8)}, r"expected uint8 \(n, height, width, 3\)"),
        ({"images": np.zeros((2, 0, 8, 3), np.uint8)}, "at least one pixel"),
        ({"ids": ["a"]}, "1 ids for 2 images"),
    ],
)
def test_wrong_arguments_are_errors(change, message):
    arguments = {
        "images": np.zeros((2, 8, 8, 3), np.uint8),
        "name": "fog",
        "severity": 1,
        "ids": ["a", "b"],
    }
    with pytest.raises(ValueError, match=message):
        corrupt(**{**arguments, **change})


@pytest.mark.parametrize("name", EQUAL)
@pytest.mark.parametrize("severity", [1, 4])
def test_imagecorruptions_agrees_without_random_numbers(name, severity):
    for image in photographs(224)[:2]:
        ours = corrupt(image[np.newaxis], name, severity, ["a"])[0]
        theirs = peer(image, corruption_name=name, severity=severity)
        if name == "defocus_blur":
            # Sums by Fourier transforms, truncated to the other level in a few values.
            assert np.count_nonzero(ours != theirs) <= 3
            assert np.abs(ours.astype(int) - theirs).max() <= 1
        else:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("severity", [1, 5])
def test_imagecorruptions_agrees_in_distribution(name, severity):
    image = photographs(224)[0]
    ours = corrupt(image[np.newaxis], name, severity, ["a"])[0].astype(float) - image
    theirs = peer(image, corruption_name=name, severity=severity).astype(float) - image
    assert abs(ours.mean() - theirs.mean()) < 1
    assert abs(ours.std() / theirs.std() - 1) < 0.02
    # The same mean in bright and in dark areas.
    for area in (image > 150, image < 50):
        assert abs(ours[area].mean() - theirs[area].mean()) < 2
