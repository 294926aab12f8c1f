"""Names of classes, as folders have them: how they are compared and sorted."""

import collections
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from nsk.errors import UserError, list_names


def normalize_name(name: str) -> str:
    """The name in Unicode's normal form C, in which different encodings of a text are equal.

    The same folder name may be stored decomposed (macOS) or composed (most other systems).
    """
    return unicodedata.normalize("NFC", name)


def sort_names(names: Iterable[str], folder: str | Path = "") -> list[str]:
    """Sorts names of classes: by number if all are integers, so that 10 comes after 9.

    Args:
        names: different names.
        folder: where they are, for messages.

    Raises:
        UserError: two names are the same number, such as 1 and 01.
    """
    names = sorted(names)
    if not are_numbers(names):
        return names
    repeated = [str(number) for number in repeated_values(map(int, names))]
    if repeated:
        raise UserError(
            f"{folder}: several class folders have the number {list_names(repeated)}, such as 1 "
            "and 01: keep one of each."
        )
    return sorted(names, key=int)


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all names are non-negative integers."""
    return all(name.isascii() and name.isdigit() for name in names)


def repeated_values(values: Iterable) -> list:
    """Values that are there more than once, in the order of their first place."""
    return [value for value, count in collections.Counter(values).items() if count > 1]
