import unicodedata

import pytest

from nsk.data.class_names import are_numbers, normalize_name, repeated_values, sort_names
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
