"""Score files as rows to select from, and files of copies: the input and output of a selection.

A file of copies has the column `copies`, row for row with the score file of the same name.
"""

import concurrent.futures
import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nsk.evaluation.prediction_files import count_rows, read_table
from nsk.pseudo.engine import Engine
from nsk.pseudo.policies import Selection
from nsk.pseudo.ranking import ScoredImages
from nsk.store.files import atomic_write, num_cores

# Small score files are read together until they have this many rows.
BLOCK_ROWS = 2**20


@dataclasses.dataclass(frozen=True)
class ScoreColumns:
    """What is read of score files.

    Attributes:
        confidence: name of the column with the confidences to compare.
        max_distance: images with a larger distance in features are left out; None: none is.
    """

    confidence: str = "confidence"
    max_distance: float | None = None


def scan(
    engine: Engine,
    paths: Sequence[Path],
    columns: ScoreColumns,
    function: Callable[[ScoredImages], Any],
) -> Any:
    """Returns the sum (+) of a function of `ScoredImages` over the rows of score files.

    Args:
        engine: see `nsk.pseudo.engine`.
        paths: the score files.
        columns: see `ScoreColumns`.
        function: see `radix_selection.Scan`.
    """
    return engine.map_reduce(paths, functools.partial(_sum_blocks, function, columns))


def _sum_blocks(function, columns, paths):
    return functools.reduce(operator.add, map(function, _blocks(paths, columns)))


def _blocks(paths, columns):
    """Yields the `ScoredImages` of one file after another, of small ones together."""
    block, num_rows = [], 0
    for path in paths:
        block.append(path)
        num_rows += count_rows(path)
        if num_rows >= BLOCK_ROWS:
            yield read_scored_images(block, columns)
            block, num_rows = [], 0
    if block:
        yield read_scored_images(block, columns)


def read_scored_images(
    paths: Sequence[Path], columns: ScoreColumns = ScoreColumns()
) -> ScoredImages:
    """Reads score files, one after another, without the images that are left out."""
    return _read(paths, columns)[0]


def _read(paths, columns):
    """(the `ScoredImages` that are not left out, their rows int array) of score files."""
    names = ["key", "label", columns.confidence]
    has_limit = columns.max_distance is not None
    wanted = [*names, "feature_distance"] if has_limit else names
    table = pa.concat_tables([read_table(path, wanted) for path in paths])
    rows = np.arange(len(table))
    if has_limit:
        distances = table["feature_distance"].to_numpy()
        rows = np.flatnonzero(distances <= np.float32(columns.max_distance))
    arrays = (table[name].to_numpy() for name in names)
    keys, labels, confidences = (array[rows] if has_limit else array for array in arrays)

    @functools.cache
    def read_ids():
        ids = pa.chunked_array(
            [chunk for path in paths for chunk in read_table(path, ["id"])["id"].chunks]
        )
        return ids.take(pa.array(rows)).to_pylist()

    return ScoredImages(keys, labels, confidences, read_ids), rows


def write_copies(
    engine: Engine,
    selection: Selection,
    paths: Sequence[Path],
    columns: ScoreColumns,
    folder: Path,
) -> None:
    """Writes a file of copies for each score file.

    Args:
        engine: see `nsk.pseudo.engine`.
        selection: the `Selection`.
        paths: the score files.
        columns: see `ScoreColumns`.
        folder: where the files go, under the names of the score files.
    """
    engine.run(paths, lambda: functools.partial(_write_copies, selection, columns, folder))


def _write_copies(selection, columns, folder, paths):
    def write(path):
        images, rows = _read([path], columns)
        copies = np.zeros(count_rows(path), np.int32)
        copies[rows] = selection.copies(images)
        with atomic_write(folder / path.name) as unfinished:
            pq.write_table(pa.table({"copies": copies}), unfinished, compression="zstd")

    with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
        for _ in pool.map(write, paths):  # Consuming the results raises the errors of the threads.
            pass


def read_copies(path: Path) -> np.ndarray:
    """Reads a file of copies: int32 array of shape (n,)."""
    return read_table(path, ["copies"])["copies"].to_numpy()
