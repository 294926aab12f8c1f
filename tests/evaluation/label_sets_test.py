"""Sets of labels: how they are read, found by the images' names, and counted."""

import json

import numpy as np
import pytest

from nsk.errors import UserError
from nsk.evaluation.label_sets import read_label_sets

SETS = [[3], [], [0, 2], [1, 1], [], [4, 0, 3]]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "real.json").write_text(json.dumps(SETS))
    return tmp_path / "real.json"


def test_predictions_in_the_set_are_right_and_empty_sets_are_left_out(path):
    label_sets = read_label_sets(path, 5)
    assert label_sets.is_right.shape == (6, 5)
    assert [np.flatnonzero(row).tolist() for row in label_sets.is_right] == [
        sorted(set(labels)) for labels in SETS
    ]
    assert label_sets.is_labeled.tolist() == [bool(labels) for labels in SETS]
    random = np.random.default_rng(0)
    rows, predicted = random.integers(0, 6, 200), random.integers(0, 5, 200)
    expected = [label in SETS[row] for row, label in zip(rows, predicted, strict=True) if SETS[row]]
    assert 20 < sum(expected) < len(expected) < 200
    assert label_sets.correct(rows, predicted).tolist() == expected


def test_images_are_found_by_the_numbers_in_their_names(path):
    ids = [
        "ILSVRC2012_val_00000006.JPEG",
        "test/n01440764/ILSVRC2012_val_00000001.JPEG",
        "n01440764/ILSVRC2012_val_00000002",
    ]
    assert read_label_sets(path, 5).rows(ids).tolist() == [5, 0, 1]


@pytest.mark.parametrize(
    "name",
    [
        "ILSVRC2012_val_00000000.JPEG",
        "ILSVRC2012_val_00000007.JPEG",
        "ILSVRC2012_val_0000001.JPEG",
        "xILSVRC2012_val_00000001.JPEG",
        "ILSVRC2012_val_00000001.JPEG/cat.png",
        "1",
    ],
)
def test_other_names_are_refused(path, name):
    with pytest.raises(UserError, match=r"6 images, but 1 of 2 test images .*: ") as raised:
        read_label_sets(path, 5).rows(["ILSVRC2012_val_00000001.JPEG", name])
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[1], [5]]", r"list 1 has the class 5: expected integers from 0 to 4"),
        ("[[1], [-1]]", "list 1 has the class -1"),
        ("[[1], [true]]", "list 1 has the class true"),
        ("[[1], [1.0]]", r"list 1 has the class 1\.0"),
        ('[["a\\nb"]]', r'class "a\\nb"'),
        ("[1, 2]", "not a list of lists"),
        ('{"a": [1]}', "not a list of lists"),
        ("[[], []]", "no labels in 2 lists"),
        ("[]", "no labels in 0 lists"),
        ("[[1],\n", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("\xff", "not a JSON file|not a list"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "real.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message) as raised:
        read_label_sets(tmp_path / "real.json", 5)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        read_label_sets(tmp_path / "none.json", 5)
    with pytest.raises(UserError, match="cannot be read"):
        read_label_sets(tmp_path, 5)
