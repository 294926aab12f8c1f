"""Images with the same pixels under several labels."""

import numpy as np
import pytest

from nsk.data.conflicts import resolve_conflicts
from nsk.data.image_index import ImageIndex

CLASSES = ["cat", "dog", "eel"]
# Rows 0, 1, 2 are a conflict with a majority; 3 and 4 one without; 5 and 6 are equal with the same
# label; 7 and 8 are a conflict with a test image; 9 is unlabelled, with the pixels of row 0.
DIGESTS = [b"a", b"a", b"a", b"b", b"b", b"c", b"c", b"d", b"d", b"a", b"e"]
LABELS = [0, 1, 0, 1, 2, 2, 2, 0, 1, 2, -1]
POOLS = {"train": [0, 1, 2, 3, 4, 5, 6, 7, 10], "test": [8], "unlabeled": [9]}


def make_index():
    count = len(DIGESTS)
    return ImageIndex(
        [f"{row}" for row in range(count)],
        np.array(LABELS, np.int32),
        DIGESTS,
        np.zeros((count, 2), np.int64),
        np.full(count, 8, np.int32),
        {name: np.array(rows) for name, rows in POOLS.items()},
    )


@pytest.mark.parametrize(
    ("policy", "dropped"),
    [("keep", []), ("drop", [0, 1, 2, 3, 4]), ("majority", [1, 3, 4])],
)
def test_policies(policy, dropped):
    index, counts = resolve_conflicts(make_index(), CLASSES, policy)
    kept = [row for row in POOLS["train"] if row not in dropped]
    assert index.pools["train"].tolist() == kept
    assert index.pools["test"].tolist() == [8] and index.pools["unlabeled"].tolist() == [9]
    assert counts["images"] == 7 and counts["dropped"] == len(dropped)
    assert counts["named"] == ["0 (cat), 1 (dog), 2 (cat)", "3 (dog), 4 (eel)", "7 (cat), 8 (dog)"]


def test_without_conflicts():
    index = make_index()
    index.pools["train"] = np.array([5, 6, 10])
    index.pools["test"] = np.array([], np.int64)
    index.labels[[0, 1, 2, 3, 4, 7, 8]] = -1
    found, counts = resolve_conflicts(index, CLASSES, "drop")
    assert found.pools["train"].tolist() == [5, 6, 10]
    assert counts == {"images": 0, "dropped": 0, "named": []}
