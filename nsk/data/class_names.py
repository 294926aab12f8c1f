"""Names of classes, as folders have them: how they are compared and sorted."""

import collections
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nsk.config.data import DataConfig
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
    names = [normalize_name(line) for line in _read_lines(path, "class_names", "one name per line")]
    if not names:
        raise UserError(f"--class_names={path} has no names: give one per line.")
    repeated = repeated_values(names)
    if repeated:
        raise UserError(f"--class_names={path} has {list_names(repeated)} twice: remove one.")
    return list(map(printable, names))


def read_class_descriptions(config: DataConfig) -> dict[str, str]:
    """Reads the words that `--class_descriptions` gives for names of classes, such as WordNet ids.

    A line has a name, then a tab or, without one, a space, then words, such as
    "n01440764 tench, Tinca tinca".

    Returns:
        dict from names to words; empty if the setting is.

    Raises:
        UserError: the file cannot be read, or has several words for a name.
    """
    if not config.class_descriptions:
        return {}
    path = Path(config.class_descriptions).expanduser()
    found = {}
    for line in _read_lines(path, "class_descriptions", "a name and its words on each line"):
        name, _, words = line.partition("\t") if "\t" in line else line.partition(" ")
        name, words = printable(normalize_name(name.strip())), printable(words.strip())
        if found.setdefault(name, words) != words:
            raise UserError(
                f"--class_descriptions={path} has {found[name]!r} and {words!r} for {name}: remove "
                "one of them."
            )
    return {name: words for name, words in found.items() if words}


def with_descriptions(
    names: Sequence[str], descriptions: Mapping[str, str] | None
) -> Sequence[str]:
    """Names of classes with the first of their words, such as "n01440764 (tench)"."""
    if not descriptions:
        return names
    first = (words.split(",")[0] for words in words_of(names, descriptions))
    return [f"{name} ({word})" if word else name for name, word in zip(names, first, strict=True)]


def words_of(names: Iterable[str], descriptions: Mapping[str, str]) -> list[str]:
    """All words for each name; "" where there are none."""
    return [descriptions.get(normalize_name(name), "") for name in names]


def describe_coverage(names: Sequence[str], descriptions: Mapping[str, str] | None) -> list[str]:
    """A line on how many classes have words, and how many words are of no class; [] without words.

    Args:
        names: of all classes.
        descriptions: see `read_class_descriptions`.
    """
    if not descriptions:
        return []
    names = list(map(normalize_name, names))
    missing = [name for name in names if name not in descriptions]
    none_for = f", none for {list_names(missing)}" if missing else ""
    unknown = len(descriptions.keys() - set(names))
    return [
        f"--class_descriptions: words for {len(names) - len(missing):,} of {len(names):,} "
        f"classes{none_for}; {unknown:,} other names in the file."
    ]


def _read_lines(path: Path, setting: str, expected: str) -> list[str]:
    """The lines of a file that are not blank, without the space around them."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UserError(
            f"--{setting}={path} cannot be read ({reason}): give a file with {expected}."
        ) from None
    return [line.strip() for line in lines if line.strip()]


def repeated_values(values: Iterable) -> list:
    """Values that are there more than once, in the order of their first place."""
    return [value for value, count in collections.Counter(values).items() if count > 1]
