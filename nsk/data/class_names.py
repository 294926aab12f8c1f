"""Names of classes, as folders have them: how they are compared and sorted."""

import collections
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from nsk.errors import UserError, list_names, printable


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


def read_class_names(path: Path) -> list[str]:
    """Reads a file with the names of classes, one per line, as `--class_names` gives it.

    Raises:
        UserError: it cannot be read, has no name, or has a name twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UserError(
            f"--class_names={path} cannot be read ({reason}): give a file with one name per line."
        ) from None
    names = [normalize_name(line.strip()) for line in lines if line.strip()]
    if not names:
        raise UserError(f"--class_names={path} has no names: give one per line.")
    repeated = repeated_values(names)
    if repeated:
        raise UserError(f"--class_names={path} has {list_names(repeated)} twice: remove one.")
    return list(map(printable, names))


def repeated_values(values: Iterable) -> list:
    """Values that are there more than once, in the order of their first place."""
    return [value for value, count in collections.Counter(values).items() if count > 1]
