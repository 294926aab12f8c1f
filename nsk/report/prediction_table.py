"""Tables of predictions: a CSV or Parquet file with a row for each image."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nsk.errors import UserError
from nsk.store.files import atomic_write

SUFFIXES = (".csv", ".parquet")


def check_suffix(path: Path) -> None:
    """UserError if a table cannot have this suffix."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--output={path}: expected a file that ends with {' or '.join(SUFFIXES)}.")


class TableWriter:
    """Writes rows to a file that appears when it is complete; made by `open_table`."""

    def __init__(self, schema: pa.Schema, file: Any):
        self._schema, self._file = schema, file

    def write(self, columns: dict[str, list]) -> None:
        """Appends rows, given as the values of every column; None: no value."""
        if isinstance(self._file, pq.ParquetWriter):
            self._file.write_table(pa.table(columns, self._schema))
        else:
            self._file.writerows(zip(*(columns[name] for name in self._schema.names), strict=True))


@contextlib.contextmanager
def open_table(path: Path, schema: pa.Schema) -> Iterator[TableWriter]:
    """Opens a table to write to; an interrupted process leaves no file of this name.

    Args:
        path: ends with .csv or .parquet.
        schema: names and types of the columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished:
        if path.suffix.lower() == ".parquet":
            with pq.ParquetWriter(unfinished, schema, compression="zstd") as file:
                yield TableWriter(schema, file)
            return
        with open(unfinished, "w", encoding="utf-8", newline="") as text:
            file = csv.writer(text)
            file.writerow(schema.names)
            yield TableWriter(schema, file)
