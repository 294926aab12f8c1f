import numpy as np
import pytest

from nsk.evaluation.corruptions.plasma import plasma_map
from nsk.evaluation.corruptions.random_numbers import RandomNumbers


def point_by_point_map(noise, side, decay):
    """Diamond-square on a torus with a loop over points; noise in the order of the levels."""
    heights = np.full((side, side), np.nan)
    heights[0, 0] = 0
    noise, step, amplitude = iter(noise.tolist()), side, 100.0
    while step > 1:
        half = step // 2
        cross = [(half, 0), (-half, 0), (0, half), (0, -half)]
        corners = [(half, half), (half, -half), (-half, half), (-half, -half)]
        for rows, columns, neighbors in ((half, half, corners), (0, half, cross), (half, 0, cross)):
            for row in range(rows, side, step):
                for column in range(columns, side, step):
                    known = [heights[(row + y) % side, (column + x) % side] for y, x in neighbors]
                    heights[row, column] = sum(known) / 4 + amplitude * next(noise) * amplitude
        step, amplitude = half, amplitude / decay
    assert next(noise, None) is None
    heights -= heights.min()
    return heights / heights.max()


def numbers_of(count):
    return RandomNumbers(1, [str(index) for index in range(count)], "plasma")


@pytest.mark.parametrize(("side", "decay"), [(2, 2), (8, 1.4), (32, 3), (64, 1.75)])
def test_map_is_that_of_a_loop_over_points(side, decay):
    maps = plasma_map(numbers_of(2), side, decay)
    noise = numbers_of(2).uniform(-1, 1, (side**2 - 1,))
    for row in range(2):
        np.testing.assert_allclose(
            maps[row], point_by_point_map(noise[row], side, decay), atol=1e-12
        )


def test_maps_of_one_point_of_no_image_and_of_many_images():
    np.testing.assert_array_equal(plasma_map(numbers_of(2), 1, 2), np.zeros((2, 1, 1)))
    assert plasma_map(numbers_of(0), 4, 2).shape == (0, 4, 4)
    many = plasma_map(numbers_of(7), 256, 2)
    assert (many.min((1, 2)) == 0).all()
    assert (many.max((1, 2)) == 1).all()
    np.testing.assert_array_equal(many[:2], plasma_map(numbers_of(2), 256, 2))


@pytest.mark.parametrize("side", [0, 3, 48])
def test_side_is_a_power_of_two(side):
    with pytest.raises(ValueError, match=f"side={side}: expected a power of two"):
        plasma_map(numbers_of(1), side, 2)
