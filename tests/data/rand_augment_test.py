"""RandAugment: what is drawn, and that exactly this is applied.

Images are asymmetric and not square, so that swapped axes and directions are noticed.
"""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from nsk import noise
from nsk.data import image_operations, rand_augment
from nsk.data.image_operations import RandAugmentOptions
from nsk.data.randaugment_table import OPERATIONS, PROFILES

KEY = noise.key(0, "test")
HEIGHT, WIDTH = 48, 64
FULL = RandAugmentOptions(num_ops=2, magnitude=27.0)


def photographs():
    """Crops of two photographs, each at two scales, uint8 (4, 48, 64, 3)."""
    china, flower = load_sample_images().images
    crops = [china[100:148, 300:364], china[30:222:4, 40:296:4]]
    crops += [flower[150:198, 250:314], flower[60:252:4, 200:456:4]]
    return np.stack(crops)


IMAGES = np.concatenate([photographs(), 255 - photographs()])


def test_draws_are_uniform_over_operations_signs_levels_and_centers():
    draws = rand_augment.draw_operations(KEY, 8000, 2, 16)
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


def test_exactly_the_allowed_operations_are_applied():
    images = np.tile(photographs()[1:2], [400, 1, 1, 1])
    allowed = ("invert", "solarize_add", "auto_contrast")
    options = RandAugmentOptions(num_ops=1, magnitude=15.0, operations=allowed)
    got = rand_augment.rand_augment(images, KEY, options).numpy()
    possible = [
        image_operations.apply_operation(name, images[:1], 0.5).numpy()[0] for name in allowed
    ]
    matches = np.array(
        [[np.array_equal(image, expected) for expected in possible] for image in got]
    )
    assert np.all(matches.sum(axis=1) == 1)
    assert np.all(matches.sum(axis=0) > 90)
    drawn = rand_augment.draw_operations(KEY, 400, 1, 3).operations.numpy()[:, 0]
    np.testing.assert_array_equal(np.argmax(matches, axis=1), drawn)


@pytest.mark.parametrize("profile", PROFILES)
def test_rand_augment_applies_the_drawn_operations_in_sequence(profile):
    images = IMAGES
    options = RandAugmentOptions(num_ops=3, magnitude=21.0, profile=profile, fill=50)
    got = rand_augment.rand_augment(images, KEY, options).numpy()
    draws = rand_augment.draw_operations(KEY, len(images), 3, len(options.operations))
    for position, image in enumerate(images):
        expected = image[None]
        for turn in range(3):
            expected = image_operations.apply_operation(
                options.operations[draws.operations[position, turn]],
                expected,
                0.7,
                draws.signs[position, turn],
                draws.centers[position, turn],
                options,
            )
        np.testing.assert_array_equal(got[position], expected[0])


def test_uniform_magnitude_is_drawn_below_the_magnitude_for_each_image():
    images = np.full([500, 4, 4, 3], 10, np.uint8)
    options = RandAugmentOptions(num_ops=1, magnitude=30.0, operations=("solarize_add",))
    uniform = dataclasses.replace(options, magnitude_mode="uniform")
    constant = rand_augment.rand_augment(images, KEY, options).numpy()[:, 0, 0, 0]
    assert set(constant) == {120}
    added = rand_augment.rand_augment(images, KEY, uniform).numpy()[:, 0, 0, 0] - 10.0
    assert added.min() < 5
    assert 105 < added.max() < 110
    assert np.mean(added) == pytest.approx(54.5, abs=5)
    scales = rand_augment.draw_operations(KEY, 500, 1, 1).level_scales.numpy()[:, 0]
    np.testing.assert_array_equal(added, np.floor(110 * scales))


def test_magnitude_zero_and_num_ops_zero_change_nothing():
    changing = ("auto_contrast", "equalize", "invert")
    neutral = tuple(name for name in OPERATIONS if name not in changing)
    for options in (
        RandAugmentOptions(num_ops=16, magnitude=0.0, operations=neutral),
        RandAugmentOptions(num_ops=0, magnitude=9.0),
    ):
        unchanged = rand_augment.rand_augment(IMAGES, KEY, options)
        np.testing.assert_array_equal(unchanged, IMAGES)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_ops": -1},
        {"magnitude": -1.0},
        {"magnitude": 31.0},
        {"magnitude": 31.0, "profile": "linear"},
        {"max_level": 0.0},
        {"profile": "official"},
        {"magnitude_mode": "random"},
        {"operations": ()},
        {"operations": ("blur",)},
        {"fill": 256},
    ],
)
def test_bad_options_are_refused(changes):
    with pytest.raises(ValueError, match=r"expected|above"):
        dataclasses.replace(FULL, **changes)
