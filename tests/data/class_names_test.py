import unicodedata

import pytest

from nsk.config.data import DataConfig
from nsk.data.class_names import (
    are_numbers,
    describe_coverage,
    normalize_name,
    read_class_descriptions,
    repeated_values,
    sort_names,
    with_descriptions,
    words_of,
)
from nsk.errors import UserError


def test_encodings_of_a_name_are_equal():
    decomposed = unicodedata.normalize("NFD", "Größe ő")
    assert decomposed != "Größe ő" and normalize_name(decomposed) == "Größe ő"
    assert normalize_name("\udcff") == "\udcff"  # What is not UTF-8 stays as it is.


def test_numbers_are_sorted_by_value_and_other_names_by_letters():
    assert sort_names(["10", "9", "001"]) == ["001", "9", "10"]
    assert sort_names(["10", "9", "a"]) == ["10", "9", "a"]
    assert sort_names(["²", "10", "9"]) == ["10", "9", "²"]
    assert not are_numbers(["1", "-1"]) and not are_numbers(["1.5"])
    with pytest.raises(UserError, match="photos: several class folders have the number 1, such"):
        sort_names(["1", "01", "2"], "photos")


def test_repeated_values():
    assert repeated_values("abcbaab") == ["a", "b"] and repeated_values("abc") == []


def descriptions_in(path, content):
    path.write_bytes(content)
    return read_class_descriptions(DataConfig(class_descriptions=str(path)))


def test_words_for_names_of_classes(tmp_path):
    """As in Tiny-ImageNet's words.txt, with tabs, and ImageNet's LOC_synset_mapping.txt."""
    expected = {"n01440764": "tench, Tinca tinca", "n02120334": "Kaffir cat"}
    for content in (
        b"n01440764\ttench, Tinca tinca\nn02120334\tKaffir cat\n",
        b"\xef\xbb\xbfn01440764 tench, Tinca tinca\r\n\r\nn02120334 Kaffir cat\r\nn3\r\n",
    ):
        assert descriptions_in(tmp_path / "words.txt", content) == expected
    names = ["n02120334", "n7", "n01440764"]
    assert with_descriptions(names, expected) == [
        "n02120334 (Kaffir cat)",
        "n7",
        "n01440764 (tench)",
    ]
    assert words_of(names, expected) == ["Kaffir cat", "", "tench, Tinca tinca"]
    assert with_descriptions(names, {}) == names
    # Names of classes may have spaces, if a tab follows them.
    assert descriptions_in(tmp_path / "w", b"big cat\ta lion\n") == {"big cat": "a lion"}
    assert read_class_descriptions(DataConfig()) == {}


def test_how_many_classes_have_words_is_said_in_one_line():
    words = {f"n{number}": "word" for number in range(1000)} | {"\xe4": "a"}
    assert describe_coverage(["n1", "n2", "\xe4"], words) == [
        "--class_descriptions: words for 3 of 3 classes; 998 other names in the file."
    ]
    assert describe_coverage(["n1", "cat"], words) == [
        "--class_descriptions: words for 1 of 2 classes, none for cat; 1,000 other names in the "
        "file."
    ]
    assert describe_coverage(["n1"], {}) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"--class_descriptions=.*words.txt cannot be read \(No such file"),
        (
            b"n1 \xff\xfe",
            "cannot be read .it is not text in UTF-8.: give a file with a name and its",
        ),
        (b"n1 a cat\nn1 a dog\n", "has 'a cat' and 'a dog' for n1: remove one of them"),
    ],
)
def test_descriptions_that_are_refused(tmp_path, content, message):
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_class_descriptions(DataConfig(class_descriptions=str(path)))
