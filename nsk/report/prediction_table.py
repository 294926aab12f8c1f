"""Tables of predictions: a CSV or Parquet file with a row for each image."""

import contextlib
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nsk.errors import UserError
from nsk.evaluation.calibration import apply_temperature
from nsk.store.files import atomic_write

SUFFIXES = (".csv", ".parquet")
TOP_CLASSES = 5


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


class PredictionRows:
    """Makes rows of predictions.

    Args:
        class_names: names of the classes.
        temperature: of the calibrated probabilities; None: there are none.
        abstain_below: predictions with a lower probability, the calibrated one if there is one, get
            no label.

    Attributes:
        schema: names and types of the columns: `path`, `label`, `probability`,
            `calibrated_probability`, `abstained`, `top1`, `top1_probability` to `top5`,
            `top5_probability`, and `error`.
        broken: paths of the files that cannot be read, so far.
    """

    def __init__(self, class_names: Sequence[str], temperature: float | None, abstain_below: float):
        self._names, self._temperature = np.array(class_names, object), temperature
        self._abstain_below, self._top = abstain_below, min(TOP_CLASSES, len(class_names))
        self.broken = []
        top = [
            column
            for rank in range(1, self._top + 1)
            for column in ((f"top{rank}", pa.string()), (f"top{rank}_probability", pa.float32()))
        ]
        self.schema = pa.schema(
            [
                ("path", pa.string()),
                ("label", pa.string()),
                ("probability", pa.float32()),
                ("calibrated_probability", pa.float32()),
                ("abstained", pa.bool_()),
                *top,
                ("error", pa.string()),
            ]
        )

    def columns(
        self, paths: Sequence[str], errors: Sequence[str], log_probabilities: Sequence[np.ndarray]
    ) -> dict[str, list]:
        """The columns of a batch; a file that cannot be read has a path and an error alone.

        Args:
            paths: of all files.
            errors: of all files; "" for none.
            log_probabilities: of the files without an error, (n, classes).
        """
        columns = {name: [] for name in self.schema.names}
        predicted = (
            self._rows(np.asarray(log_probabilities)) if len(log_probabilities) else iter(())
        )
        for path, error in zip(paths, errors, strict=True):
            values = dict.fromkeys(columns) | {"path": path, "error": error or None}
            if error:
                self.broken.append(path)
            else:
                values |= next(predicted)
            for name, value in values.items():
                columns[name].append(value)
        return columns

    def _rows(self, log_probabilities):
        """Yields the values of each image that was predicted."""
        order = np.argsort(-log_probabilities, axis=1, kind="stable")[:, : self._top]
        probabilities = np.exp(np.take_along_axis(log_probabilities, order, axis=1))
        calibrated = self._calibrated(log_probabilities)
        deciding = probabilities[:, 0] if calibrated is None else calibrated
        for row, classes in enumerate(order):
            abstains = bool(deciding[row] < self._abstain_below)
            values = {
                "label": None if abstains else self._names[classes[0]],
                "probability": float(probabilities[row, 0]),
                "calibrated_probability": None if calibrated is None else float(calibrated[row]),
                "abstained": abstains,
            }
            for rank, label in enumerate(classes):
                values[f"top{rank + 1}"] = self._names[label]
                values[f"top{rank + 1}_probability"] = float(probabilities[row, rank])
            yield values

    def _calibrated(self, log_probabilities):
        """The calibrated probabilities of the most probable classes, (n,); None: not known."""
        if self._temperature is None:
            return None
        scaled = apply_temperature(log_probabilities, self._temperature)
        return np.exp(scaled.max(axis=1))
