"""Class folders that are hostile or strange, and how they are matched with classes."""

import unicodedata

import numpy as np
import pytest

from nsk.errors import UserError
from nsk.evaluation.class_folders import list_class_folders, match_classes
from tests.evaluation.written_images import fill, unreadable

__all__ = ["fill"]


def test_links_to_folders(tmp_path, fill):
    fill(b"a/1.png", b"a/deep/2.png")
    (tmp_path / "a" / "more").symlink_to(tmp_path / "a" / "deep")
    (tmp_path / "a" / "3.png").symlink_to(tmp_path / "a" / "deep")
    (tmp_path / "b").symlink_to(tmp_path / "a" / "deep")
    found = list_class_folders(tmp_path)
    assert [file.id for file in found.files] == ["a/1", "a/3", "a/deep/2", "b/2"]
    assert found.skipped == 1
    assert unreadable(found) == {"a/3": "a link to a folder, not a file"}
    (tmp_path / "c").symlink_to(tmp_path.parent)
    with pytest.raises(UserError, match="c is a link to a folder that contains it"):
        list_class_folders(tmp_path)


def test_names_of_files_become_one_line_of_text(fill, tmp_path):
    found = fill(b"\xff\nc/a\xfe.png", b"d/b.png")
    # In Unicode's order, in which what is not UTF-8 is behind ASCII.
    assert found.names == ["d", r"\udcff\nc"]
    assert [file.id for file in found.files] == ["d/b", r"\udcff\nc/a\udcfe"]
    assert unreadable(found) == {}
    with pytest.raises(UserError) as raised:
        match_classes(found.names, ["d"], 1, tmp_path)
    assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(match_classes(found.names, ["d", r"\udcff\nc"], 2, ""), [0, 1])


def test_images_are_told_by_their_content(tmp_path, fill):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.001").write_bytes(b"text")
    found = fill(b"a/photo", b"a/photo.002", b"a/photo.003", b"b/1.webp")
    assert [file.id for file in found.files] == ["a/photo", "a/photo.002", "a/photo.003", "b/1"]
    assert (found.skipped, unreadable(found)) == (1, {})


def test_contents_are_described_in_one_line(tmp_path, fill):
    (tmp_path / "a\nb").touch()
    with pytest.raises(UserError, match=r"It holds a\\nb\.$"):
        list_class_folders(tmp_path)


@pytest.mark.parametrize(
    ("names", "model_names", "num_classes", "expected"),
    [
        (["b", "a"], ["a", "b", "c"], 3, [1, 0]),
        # Numbers: names of the model's classes first, else indices.
        (["0", "9", "10"], ["10", "9", "0"], 3, [2, 1, 0]),
        (["0", "9", "10"], [], 11, [0, 9, 10]),
        (["0", "9", "10"], [f"n{index:02d}" for index in range(11)], 11, [0, 9, 10]),
        (["000", "009"], [str(index) for index in range(10)], 10, [0, 9]),
        # Names of no class, in any order.
        (["n2", "n1"], [], 2, [1, 0]),
        (["n2", "n1"], ["0", "1"], 2, [1, 0]),
        ([unicodedata.normalize("NFD", "ä")], ["o", unicodedata.normalize("NFC", "ä")], 2, [1]),
        # The names of other classes do not have to be different.
        (["b"], ["a", "a", "b"], 3, [2]),
    ],
)
def test_classes_are_matched(names, model_names, num_classes, expected):
    matched = match_classes(names, model_names, num_classes, "set")
    np.testing.assert_array_equal(matched, expected)
    assert matched.dtype == np.int64


@pytest.mark.parametrize(
    ("names", "model_names", "message"),
    [
        # Some of the folders are names: the others are not indices.
        (["0", "1"], ["1", "2", "3"], r"1 of 2 classes are not the model's: 0\."),
        # Nor are they, if the model's names are other numbers.
        (["4", "5"], ["10", "20", "30", "40", "50", "60"], r"2 of 2 classes .*: 4, 5\."),
        (["0", "3"], ["a", "b", "c"], r"1 of 2 classes are not the model's: 3\."),
        (["n1"], ["0", "1"], r"1 of 1 classes are not the model's: n1\."),
        (["n1", "n2"], ["a", "b"], r"2 of 2 classes .*: n1, n2\. Expected .* \(a, b\)"),
        (["0", "n1"], ["0", "1"], r"1 of 2 classes are not the model's: n1\."),
        (["a"], ["a", "b", "a"], r"several of the model's classes have the name a: .* 0 to 2\."),
        (["a", "a"], ["a"], "several folders have the same name in different encodings: a"),
    ],
)
def test_other_classes_are_refused(names, model_names, message):
    with pytest.raises(UserError, match=message) as raised:
        match_classes(names, model_names, len(model_names), "set")
    assert "\n" not in str(raised.value)


def test_a_warning_says_that_classes_are_matched_by_their_order(caplog):
    with caplog.at_level("WARNING"):
        match_classes(["n1", "n2"], ["n1", "n2"], 2, "set")
        match_classes(["0", "1"], [], 2, "set")
        assert caplog.messages == []
        match_classes(["n2", "n1"], ["0", "1"], 2, "set")
    (message,) = caplog.messages
    assert message.startswith("set: ") and message.endswith("in alphabetical order: n1, n2.")
