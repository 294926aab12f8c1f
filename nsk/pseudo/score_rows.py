"""Prediction files as rows to select from, and files of copies: the Parquet files of `select`.

A file of copies has the column `copies`, row for row with the prediction file of the same name.
"""

import concurrent.futures
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

# Small prediction files are read together until they have this many rows.
BLOCK_ROWS = 2**20


def scan(
    engine: Engine,
    paths: Sequence[Path],
    confidence: str,
    function: Callable[[ScoredImages], Any],
) -> Any:
    """Returns the sum (+) of a function of `ScoredImages` over the rows of prediction files.

    Args:
        engine: see `nsk.pseudo.engine`.
        paths: the prediction files.
        confidence: name of the column with the confidences.
        function: see `radix_selection.Scan`.
    """
    return engine.map_reduce(paths, functools.partial(_sum_blocks, function, confidence))


def _sum_blocks(function, confidence, paths):
    return functools.reduce(operator.add, map(function, _blocks(paths, confidence)))


def _blocks(paths, confidence):
    """Yields the `ScoredImages` of one file after another, of small ones together."""
    block, num_rows = [], 0
    for path in paths:
        block.append(path)
        num_rows += count_rows(path)
        if num_rows >= BLOCK_ROWS:
            yield read_scored_images(block, confidence)
            block, num_rows = [], 0
    if block:
        yield read_scored_images(block, confidence)


def read_scored_images(paths: Sequence[Path], confidence: str = "confidence") -> ScoredImages:
    """Reads prediction files, one after another; `confidence` names the column to compare."""
    columns = ["key", "label", confidence]
    table = pa.concat_tables([read_table(path, columns) for path in paths])
    keys, labels, confidences = (table[name].to_numpy() for name in columns)

    @functools.cache
    def read_ids():
        return [
            image_id for path in paths for image_id in read_table(path, ["id"])["id"].to_pylist()
        ]

    return ScoredImages(keys, labels, confidences, read_ids)


def write_copies(
    engine: Engine, selection: Selection, paths: Sequence[Path], confidence: str, folder: Path
) -> None:
    """Writes a file of copies for each prediction file.

    Args:
        engine: see `nsk.pseudo.engine`.
        selection: the `Selection`.
        paths: the prediction files.
        confidence: name of the column with the confidences.
        folder: where the files go, under the names of the prediction files.
    """
    engine.run(paths, lambda: functools.partial(_write_copies, selection, confidence, folder))


def _write_copies(selection, confidence, folder, paths):
    def write(path):
        copies = selection.copies(read_scored_images([path], confidence))
        with atomic_write(folder / path.name) as unfinished:
            pq.write_table(pa.table({"copies": copies}), unfinished, compression="zstd")

    with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
        for _ in pool.map(write, paths):  # Consuming the results raises the errors of the threads.
            pass


def read_copies(path: Path) -> np.ndarray:
    """Reads a file of copies: int32 array of shape (n,)."""
    return read_table(path, ["copies"])["copies"].to_numpy()
