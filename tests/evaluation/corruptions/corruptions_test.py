"""All corruptions: names, independence of the batch, sizes, errors."""

import numpy as np
import pytest

from nsk.evaluation.corruptions import (
    BENCHMARK,
    CORRUPTIONS,
    EXTRAS,
    choose_constants,
    corrupt,
)
from tests.evaluation.corruptions.photographs import photographs

DETERMINISTIC = {
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
}
BENCHMARK_NAMES = """gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur
    zoom_blur snow frost fog brightness contrast elastic_transform pixelate jpeg_compression"""
EXTRA_NAMES = "speckle_noise gaussian_blur spatter saturate"
ALL_NAMES = [*BENCHMARK_NAMES.split(), *EXTRA_NAMES.split()]

parametrize_names = pytest.mark.parametrize("name", ALL_NAMES)


def test_names_are_those_of_the_published_files_in_their_order():
    assert list(CORRUPTIONS) == ALL_NAMES
    assert tuple(BENCHMARK_NAMES.split()) == BENCHMARK
    assert tuple(EXTRA_NAMES.split()) == EXTRAS
    assert all(name == corruption.name for name, corruption in CORRUPTIONS.items())
    groups = [CORRUPTIONS[name].group for name in BENCHMARK]
    assert groups == ["noise"] * 3 + ["blur"] * 4 + ["weather"] * 4 + ["digital"] * 4


@parametrize_names
def test_pixels_do_not_depend_on_the_batch(name):
    # 40 images are more than one chunk.
    images = np.concatenate([photographs(32, 8)] * 4)
    ids = [f"image {number}" for number in range(len(images))]
    together = corrupt(images, name, 3, ids, seed=5)
    order = np.random.default_rng(0).permutation(len(images))
    shuffled = corrupt(images[order], name, 3, [ids[index] for index in order], seed=5)
    np.testing.assert_array_equal(shuffled, together[order])
    for start, stop in ((0, 1), (1, 4), (39, 40)):
        alone = corrupt(images[start:stop], name, 3, ids[start:stop], seed=5)
        np.testing.assert_array_equal(alone, together[start:stop])


@parametrize_names
def test_pixels_do_not_depend_on_the_batch_at_other_sizes(name):
    for side, severity in ((64, 4), (224, 5)):
        images = photographs(side, 2)[:2]
        together = corrupt(images, name, severity, ["a", "b"])
        np.testing.assert_array_equal(corrupt(images[1:], name, severity, ["b"]), together[1:])


@parametrize_names
def test_random_corruptions_depend_on_id_seed_and_severity(name):
    images = np.repeat(photographs(32, 1)[:1], 2, axis=0)
    first = corrupt(images, name, 3, ["a", "b"])
    assert np.any(first != images)
    assert np.array_equal(first[0], first[1]) == (name in DETERMINISTIC)
    other = corrupt(images, name, 3, ["a", "b"], seed=1)
    assert np.array_equal(first, other) == (name in DETERMINISTIC)
    assert np.any(corrupt(images, name, 4, ["a", "b"]) != first)


@pytest.mark.parametrize("constants", ["cifar", "tiny", "imagenet"])
@parametrize_names
def test_small_gray_and_oblong_images(name, constants):
    for shape in ((8, 8), (24, 40), (40, 24), (1, 1), (1, 7)):
        images = np.ascontiguousarray(photographs(64, 2)[:3, : shape[0], : shape[1]])
        images[1] = images[1, ..., :1]
        before = images.copy()
        corrupted = corrupt(images, name, 5, ["a", "b", "c"], constants=constants)
        assert corrupted.shape == images.shape
        assert corrupted.dtype == np.uint8
        np.testing.assert_array_equal(images, before)
        assert not np.shares_memory(corrupted, images)


@parametrize_names
def test_no_images(name):
    corrupted = corrupt(np.zeros((0, 32, 32, 3), np.uint8), name, 1, [])
    assert corrupted.shape == (0, 32, 32, 3)
    assert corrupted.dtype == np.uint8


@parametrize_names
def test_gray_images_stay_gray_without_colored_corruptions(name):
    # Noise differs in the channels; frost, water and mud have colors.
    colored = {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "frost", "spatter"}
    gray = photographs(32, 2)[..., :1].repeat(3, axis=-1)
    corrupted = corrupt(gray, name, 4, list("abcd")).astype(int)
    spread = np.ptp(corrupted[:2], axis=-1).max()
    # Gray has the saturation 0, to which severity 4 of saturate adds.
    assert (spread > 2) == (name in colored | {"saturate"})


@pytest.mark.parametrize("name", BENCHMARK)
def test_the_highest_severity_changes_more_than_the_lowest(name):
    """But some corruptions of small images are not ordered by severity."""
    for side in (32, 224):
        images = photographs(side, 2)[:2]
        changes = [
            np.abs(corrupt(images, name, severity, ["a", "b"]) - images.astype(float)).mean()
            for severity in (1, 5)
        ]
        assert changes[0] > 0.1
        if name != "elastic_transform":
            assert changes[1] > changes[0]


@pytest.mark.parametrize(
    ("shape", "constants"),
    [
        ((32, 32), "cifar"),
        ((48, 500), "cifar"),
        ((49, 49), "tiny"),
        ((500, 128), "tiny"),
        ((129, 200), "imagenet"),
    ],
)
def test_constants_are_chosen_by_the_shorter_side(shape, constants):
    assert choose_constants(shape) == constants
    assert choose_constants(shape, "tiny") == "tiny"
    image = np.resize(photographs(32, 1)[0], (1, *shape, 3))
    chosen = corrupt(image, "contrast", 1, ["a"])
    np.testing.assert_array_equal(chosen, corrupt(image, "contrast", 1, ["a"], constants=constants))


def test_given_textures_are_those_of_frost():
    images = np.zeros((2, 32, 32, 3), np.uint8)
    textures = [np.full((400, 400, 3), 200, np.uint8)]
    frosted = corrupt(images, "frost", 1, ["a", "b"], textures=textures)
    np.testing.assert_array_equal(frosted, np.full_like(images, 40))  # 0.2 * 200
    corrupt(images, "fog", 1, ["a", "b"], textures=textures)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "rain"}, "corruption 'rain': expected one of gaussian_noise, "),
        ({"severity": 0}, "severity=0: expected 1 to 5"),
        ({"severity": 2.5}, "severity=2.5: expected 1 to 5"),
        ({"constants": "mnist"}, "constants='mnist': expected auto or cifar, tiny, imagenet"),
        ({"images": np.zeros((2, 8, 8, 3))}, r"float64 \(2, 8, 8, 3\): expected uint8"),
        ({"images": np.zeros((2, 8, 8, 1), np.uint8)}, r"\(2, 8, 8, 1\): expected uint8"),
        ({"images": np.zeros((8, 8, 3), np.uint8)}, r"\(8, 8, 3\): expected uint8"),
        ({"images": np.zeros((2, 0, 8, 3), np.uint8)}, "sides of at least one pixel"),
        ({"ids": ["a"]}, "1 ids for 2 images"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    arguments = {"images": np.zeros((2, 8, 8, 3), np.uint8), "name": "fog", "severity": 1}
    with pytest.raises(ValueError, match=message):
        corrupt(**{**arguments, "ids": ["a", "b"], **changes})
