import numpy as np

from nsk.evaluation.corruptions.levels import LEVELS, to_levels


def test_levels_are_the_quotients_by_255():
    np.testing.assert_array_equal(LEVELS, [level / 255 for level in range(256)])


def test_values_are_clipped_and_truncated():
    values = np.array([[-1, 0, 0.999 / 255, 1 / 255, 0.5], [254.999 / 255, 1, 1.5, 9, 100 / 255]])
    levels = to_levels(values.copy())
    assert levels.dtype == np.uint8
    np.testing.assert_array_equal(levels, [[0, 0, 0, 1, 127], [254, 255, 255, 255, 100]])


def test_levels_are_those_of_the_reference():
    values = np.random.default_rng(1).normal(0.5, 0.4, 10_000)
    np.testing.assert_array_equal(to_levels(values.copy()), np.uint8(np.clip(values, 0, 1) * 255))
    np.testing.assert_array_equal(to_levels(LEVELS.copy()), np.uint8(LEVELS * 255))
