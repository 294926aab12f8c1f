"""Seeded subsets: independent of the order, nested, spread evenly."""

import numpy as np
import pytest

from nsk.evaluation.subsets import choose_subset

IDS = [f"image {index}" for index in range(1000)]


def chosen_ids(ids, number, seed=0):
    return {ids[index] for index in choose_subset(ids, number, seed)}


def test_indices_are_ascending_and_different():
    indices = choose_subset(IDS, 100, 0)
    assert len(indices) == 100 and np.all(np.diff(indices) > 0)
    assert indices.min() >= 0 and indices.max() < 1000
    np.testing.assert_array_equal(choose_subset(IDS, 1000, 0), np.arange(1000))
    assert len(choose_subset(IDS, 1, 0)) == 1


def test_the_same_images_in_any_order_and_process():
    shuffled = [IDS[index] for index in np.random.default_rng(0).permutation(1000)]
    assert chosen_ids(shuffled, 100) == chosen_ids(IDS, 100)
    np.testing.assert_array_equal(choose_subset(IDS, 3, 0), [119, 233, 759])


def test_smaller_subsets_are_part_of_larger_ones():
    assert chosen_ids(IDS, 50) < chosen_ids(IDS, 100)


def test_seeds_choose_independently():
    common = chosen_ids(IDS, 300, seed=1) & chosen_ids(IDS, 300, seed=2)
    assert 60 < len(common) < 120  # 90 are expected, standard deviation 7.


def test_images_that_were_added_replace_few():
    more = [*IDS, *(f"new {index}" for index in range(10))]
    assert len(chosen_ids(more, 100) - chosen_ids(IDS, 100)) <= 10


@pytest.mark.parametrize("number", [0, 1001])
def test_a_number_out_of_range_is_an_error(number):
    with pytest.raises(ValueError, match=f"number={number}: expected 1 to 1000"):
        choose_subset(IDS, number, 0)


def test_repeated_ids_are_an_error():
    with pytest.raises(ValueError, match="repeated"):
        choose_subset([*IDS, IDS[3]], 10, 0)
