import numpy as np

from nsk.evaluation.corruptions.levels import LEVELS, to_levels


def test_levels_return_to_themselves():
    np.testing.assert_array_equal(to_levels(LEVELS.copy()), np.arange(256))


def test_values_are_clipped_and_truncated():
    values = np.array([[-0.1, 0.0, 0.9999 / 255, 1.5 / 255], [254.99 / 255, 1.0, 1.1, 7.0]])
    levels = to_levels(values)
    np.testing.assert_array_equal(levels, [[0, 0, 0, 1], [254, 255, 255, 255]])
    assert levels.dtype == np.uint8
