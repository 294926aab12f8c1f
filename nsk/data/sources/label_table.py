"""Tables of labels: which file has which label, and perhaps which split and group."""

import bisect
import contextlib
import csv
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nsk.config.data import DataConfig
from nsk.data.class_names import normalize_name
from nsk.data.image_folders import has_image_suffix
from nsk.errors import UserError, list_names, printable

DELIMITERS = ",\t;|"


@dataclasses.dataclass(frozen=True)
class Row:
    """What a table says of a file.

    Attributes:
        path: as it is in the table.
        label: name of the class; "" if it is not known.
        split: as it is in the table; "" if there is none.
        group: of images that belong together; "" if there is none.
    """

    path: str
    label: str
    split: str = ""
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of a table.

    `split` and `group` may be missing from it under their default names alone: another name was
    given by somebody who expects the column to be there.
    """

    path: str = DataConfig.path_column
    label: str = DataConfig.label_column
    split: str = DataConfig.split_column
    group: str = DataConfig.group_column


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """Where a table is and how it is read.

    Attributes:
        path: a Parquet file, or a text file in UTF-8 with commas, semicolons, tabs or "|" between
            columns. Without a header its first two columns are path and label.
        columns: names of the columns.
        max_missing_fraction: largest share of rows without a file.
        flag: the setting that names it, for messages.
    """

    path: Path
    columns: Columns = Columns()
    max_missing_fraction: float = DataConfig.max_corrupt_fraction
    flag: str = "labels"

    def __str__(self):
        return f"--{self.flag}={self.path}"

    @property
    def has_labels(self) -> bool:
        """Whether labels are read, not paths alone."""
        return self.columns.label != self.columns.path


def read_paths(path: Path, column: str, flag: str) -> list[str]:
    """Reads the paths in a table, or in a .txt file with one in each line.

    Args:
        path: the file.
        column: name of the column in a table that has a header.
        flag: the setting that names the file, for messages.

    Raises:
        UserError: the file cannot be read, or lacks the column.
    """
    table = LabelTable(path, Columns(path=column, label=column), flag=flag)
    if path.suffix.lower() == ".txt":
        with _naming_unreadable(table):
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        lines = list(filter(None, map(str.strip, lines)))
        if lines and not _is_row(lines[0], column):
            return lines
    return [row.path for row in read_label_table(table)]


def _is_row(line: str, column: str) -> bool:
    """Whether the first line of a text file is that of a table, not a path that may have commas."""
    cells = [cell.strip() for cell in line.split(_delimiter(line))]
    return column in cells or (has_image_suffix(cells[0]) and not has_image_suffix(line))


def read_label_table(table: LabelTable) -> list[Row]:
    """Reads a table.

    Raises:
        UserError: the file cannot be read, or lacks a column.
    """
    path, columns = table.path, table.columns
    with _naming_unreadable(table):
        if path.suffix.lower() == ".parquet":
            names, records = _read_parquet(path, columns)
        else:
            names, records = _read_text(path)
    if names is None:  # No header.
        names = [columns.path, columns.label]
        header = "no header, so path and label alone"
        if table.has_labels and records and len(records[0]) < 2:
            raise UserError(f"{table} has one column, of paths: give one of labels, too.")
    else:
        header = f"the columns {list_names(names)}"
    for name, flag in _required_columns(columns):
        if name not in names:
            raise UserError(f"{table} has {header}, none named {name!r}: give --{flag}.")
    positions = {
        field.name: names.index(getattr(columns, field.name))
        for field in dataclasses.fields(columns)
        if getattr(columns, field.name) in names
    }
    rows = []
    for record in records:
        values = {
            name: record[position] if position < len(record) else ""
            for name, position in positions.items()
        }
        rows.append(Row(**{name: _text(value) for name, value in values.items()}))
    if not rows:
        kind = "labels" if table.has_labels else "paths"
        raise UserError(f"{table} has no rows: give a table of {kind}.")
    return rows


@contextlib.contextmanager
def _naming_unreadable(table: LabelTable) -> Iterator[None]:
    """Turns errors of reading a table into a UserError."""
    try:
        yield
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(
            f"{table} cannot be read ({reason}): give a CSV file in UTF-8, or Parquet."
        ) from None


def _required_columns(columns: Columns) -> Iterator[tuple[str, str]]:
    """Yields (name, setting) of the columns that a table must have."""
    for field in dataclasses.fields(columns):
        name = getattr(columns, field.name)
        if field.name in ("path", "label") or name != field.default:
            yield name, f"{field.name}_column"


def _read_parquet(path: Path, columns: Columns) -> tuple[list[str], Iterator[tuple]]:
    names = pq.read_schema(path).names
    wanted = set(dataclasses.astuple(columns))
    table = pq.read_table(path, columns=[name for name in names if name in wanted]).to_pydict()
    empty = [""] * len(next(iter(table.values()), ()))
    return names, zip(*(table.get(name, empty) for name in names), strict=True)


def _read_text(path: Path) -> tuple[list[str] | None, Iterable[list[str]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        delimiter = _delimiter(file.readline())
        file.seek(0)
        records = [record for record in csv.reader(file, delimiter=delimiter) if any(record)]
    if not records:
        return None, []
    if has_image_suffix(records[0][0].strip()):  # A header does not name a file.
        return None, records
    return [name.strip() for name in records[0]], records[1:]


def _delimiter(line: str) -> str:
    """The most frequent of `DELIMITERS` in the first line of a table."""
    return max(DELIMITERS, key=line.count)


def _text(value: Any) -> str:
    """A value of a cell as text; numbers without a fraction as integers, as pandas turns them."""
    if value is None or value != value:  # NaN.
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return normalize_name(str(value)).strip()


def match_rows(
    rows: Iterable[Row], files: Iterable[str], root: Path, table: Path
) -> tuple[dict[str, Row], list[str]]:
    """Finds the file of each row.

    The path in a row may be relative to the folder of images or to that of the table, or absolute;
    or it is the end of a path, such as a file's name, that fits a single file; the suffix may be
    missing.

    Args:
        rows: of the table.
        files: paths relative to `root`, with "/".
        root: the folder of images.
        table: path of the table, for messages and relative paths.

    Returns:
        dict from files to rows, and the paths of the rows without a file.

    Raises:
        UserError: a row fits several files, or a file has rows that differ.
    """
    finder = _Finder(files, root, table)
    found, missing = {}, []
    for row in rows:
        file = finder.find(row.path)
        if file is None:
            missing.append(printable(row.path))
        elif found.setdefault(file, row) != dataclasses.replace(row, path=found[file].path):
            raise UserError(
                f"--labels={table} has two rows for {printable(file)} that differ: "
                f"{_describe(found[file])} and {_describe(row)}: keep one of them."
            )
    return found, missing


def _describe(row: Row) -> str:
    values = {"label": row.label, "split": row.split, "group": row.group}
    return " ".join(f"{name}={value!r}" for name, value in values.items() if value) or "no label"


class _PathEnds:
    """Finds paths by their ends, in an order in which those with the same end are neighbours.

    Args:
        paths: pairs of a path and what `find` returns for it.
    """

    def __init__(self, paths: Iterable[tuple[str, str]]):
        self._reversed = sorted((_reverse(path), value) for path, value in paths)

    def find(self, end: str) -> list[str]:
        """The values of the paths that end with a name, or with names after folders."""
        prefix = _reverse(end)
        position, found = bisect.bisect_left(self._reversed, (prefix,)), []
        while position < len(self._reversed) and self._reversed[position][0].startswith(prefix):
            found.append(self._reversed[position][1])
            position += 1
        return found


def _reverse(path: str) -> str:
    """The parts of a path in reverse order, each with a slash behind it."""
    return "".join(f"{part}/" for part in reversed(path.split("/")))


class _Finder:
    """Finds files by paths, by names, or by names without suffix."""

    def __init__(self, files: Iterable[str], root: Path, table: Path):
        self._files = {normalize_name(file): file for file in files}
        self._table, self._root = table, Path(os.path.abspath(root))

    @functools.cached_property
    def _by_end(self):
        return _PathEnds((file, file) for file in self._files)

    @functools.cached_property
    def _by_end_without_suffix(self):
        return _PathEnds((os.path.splitext(file)[0], file) for file in self._files)

    def find(self, text: str) -> str | None:
        """The file that a path means; None if there is none."""
        text = normalize_name(text).replace("\\", "/").removeprefix("./")
        if not text:
            return None
        for path in (text, self._below_root(text), self._below_root(self._table.parent / text)):
            if path in self._files:
                return self._files[path]
        fitting = self._by_end.find(text) or self._by_end_without_suffix.find(text)
        if len(fitting) > 1:
            raise UserError(
                f"--labels={self._table}: {printable(text)!r} fits several files, "
                f"{list_names(list(map(printable, fitting)))}: give longer paths."
            )
        return self._files[fitting[0]] if fitting else None

    def _below_root(self, path: str | Path) -> str | None:
        """The path relative to the folder of images, if it is in there."""
        path = os.path.abspath(path)
        root = os.path.join(self._root, "")
        return normalize_name(path[len(root) :]) if path.startswith(root) else None


def labels_in(rows: Mapping[str, Row]) -> set[str]:
    """Names of all classes in rows."""
    return {row.label for row in rows.values() if row.label}
