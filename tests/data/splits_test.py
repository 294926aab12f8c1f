"""Quotas of classes, and groups; `ingest_test.py` tests the splits themselves."""

import numpy as np
import pytest

from nsk.config.data import DataConfig
from nsk.data.image_index import ImageIndex
from nsk.data.splits import (
    balanced_quotas,
    choose_splits,
    join_kin,
    proportional_quotas,
    quotas_with_every_class,
)


def test_quotas():
    available = np.array([9, 9, 0, 9])
    assert balanced_quotas(8, available).tolist() == [3, 3, 0, 2]
    assert balanced_quotas(50, np.full(10, 99)).tolist() == [5] * 10
    assert balanced_quotas(52, np.full(10, 99)).tolist() == [6, 6] + [5] * 8
    assert proportional_quotas(10, np.array([50, 30, 20])).tolist() == [5, 3, 2]
    # 7 x (10, 10, 1) / 21 = 3.33, 3.33, 0.33: equal remainders, so the first class gets the rest.
    assert proportional_quotas(7, np.array([10, 10, 1])).tolist() == [4, 3, 0]
    # 5 x (6, 3, 1) / 10 = 3, 1.5, 0.5.
    assert proportional_quotas(5, np.array([6, 3, 1])).tolist() == [3, 2, 0]
    random = np.random.default_rng(0)
    for _ in range(50):
        available = random.integers(0, 20, 7) + (np.arange(7) == 0)
        number = random.integers(0, available.sum() + 1)
        quotas = proportional_quotas(int(number), available)
        assert quotas.sum() == number
        assert (quotas <= available).all()
        assert (np.abs(quotas - number * available / available.sum()) < 1).all()


def test_every_class_has_a_quota():
    """Each taken from the largest quota of all, which may be several classes in turn."""
    available = np.array([900, 800, 0, 3, 1, 2])
    quotas = quotas_with_every_class(np.array([5, 5, 0, 0, 0, 0]), available)
    assert quotas.tolist() == [3, 4, 0, 1, 1, 1]
    quotas = quotas_with_every_class(np.array([3, 2, 0, 0, 0, 0]), available)
    assert quotas.tolist() == [1, 1, 0, 1, 1, 1]
    unchanged = np.array([5, 4, 0, 1, 1, 1])
    assert quotas_with_every_class(unchanged, available).tolist() == unchanged.tolist()
    with pytest.raises(ValueError, match="4 images"):
        quotas_with_every_class(np.array([3, 1, 0, 0, 0, 0]), available)


def make_index(labels, groups, digests=None, pools=None):
    count = len(labels)
    return ImageIndex(
        ids=[f"image {row}" for row in range(count)],
        labels=np.array(labels, np.int32),
        digests=digests or [str(row).encode() for row in range(count)],
        spans=np.zeros((count, 2), np.int64),
        sides=np.full(count, 8, np.int32),
        pools=pools or {"train": np.arange(count)},
        groups=groups,
    )


def test_groups_and_equal_pixels_are_joined():
    digests = [b"0", b"1", b"2", b"3", b"1", b"5", b"6"]
    # Group a has rows 0 and 1; row 4 of group b has the pixels of row 1, row 5 is in group b, too.
    groups = {0: "a", 1: "a", 4: "b", 5: "b", 2: "c"}
    keys, names = join_kin(make_index([0] * 7, groups, digests))
    assert keys[0] == keys[1] == keys[4] == keys[5]
    assert len({keys[0], keys[2], keys[3], keys[6]}) == 4
    assert names == {keys[0]: "a", keys[2]: "c"}
    assert join_kin(make_index([0] * 7, {}, digests)) == (digests, {})


def random_groups(seed):
    """Labels of 600 images, and groups: patients with 1 to 12 images, and images without one."""
    random = np.random.default_rng(seed)
    patients = np.repeat(np.arange(120), random.integers(1, 13, 120))[:600]
    labels = random.integers(0, 3, 600)
    is_grouped = random.random(600) < 0.9
    return labels, {row: f"p{patients[row]}" for row in np.flatnonzero(is_grouped).tolist()}


@pytest.mark.parametrize("seed", range(3))
def test_no_group_is_in_two_splits(seed):
    labels, groups = random_groups(seed)
    config = DataConfig(num_labeled=90, num_dev=60, test_fraction=0.2)
    splits, removed, _, unused = choose_splits(
        make_index(labels, groups), ["a", "b", "c"], config, seed
    )
    found = {split: {groups.get(row) for row in rows.tolist()} for split, rows in splits.items()}
    names = ["test", "dev", "labeled", "unlabeled"]
    assert list(splits) == names
    for position, split in enumerate(names):
        for other in names[:position]:
            assert found[split] & found[other] <= {None}
    assert [len(splits[split]) for split in names[:3]] == [120, 60, 90]
    assert np.bincount(labels[splits["labeled"]]).tolist() == [30, 30, 30]
    # Every image is in a split, or left out and counted.
    assert sum(map(len, splits.values())) + sum(removed.values()) + unused["train"] == 600
    assert len(splits["unlabeled"]) > 150  # Few groups are divided.


def test_without_groups_nothing_changes():
    labels, _ = random_groups(0)
    config = DataConfig(num_labeled=90, num_dev=60, test_fraction=0.2)
    alone = {row: f"patient {row}" for row in range(600)}
    splits, *_ = choose_splits(make_index(labels, {}), ["a", "b", "c"], config, 0)
    one_each, *_ = choose_splits(make_index(labels, alone), ["a", "b", "c"], config, 0)
    assert all(len(splits[name]) == len(one_each[name]) for name in splits)


def test_given_splits_lose_images_of_groups_in_earlier_ones():
    pools = {"train": np.arange(6), "test": np.array([6, 7])}
    groups = {0: "a", 6: "a", 3: "b", 7: "c"}
    index = make_index([0, 1] * 4, groups, pools=pools)
    config = DataConfig(labeled_fraction=1.0, num_dev=2)
    splits, removed, by_group, _ = choose_splits(index, ["x", "y"], config, 0)
    assert splits["test"].tolist() == [6, 7] and removed["dev"] == 1
    assert by_group["dev"] == 1
    assert 0 not in np.concatenate([splits["dev"], splits["labeled"], splits["unlabeled"]])
