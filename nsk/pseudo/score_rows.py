"""Score files as rows to select from, and files of copies: what `select` works on, in Parquet.

A file of copies has the column `copies`, row for row with a score file of the same name.
"""

import concurrent.futures
import functools
import operator

import pyarrow as pa
import pyarrow.parquet as pq

from nsk.evaluation.prediction_files import count_rows, read_table
from nsk.pseudo.radix_selection import Rows
from nsk.store.files import num_cores, written_whole

# Small score files are read together up to so many rows.
BLOCK_ROWS = 2**20


def scan(engine, paths, confidence, function):
    """The sum (+) of a function of `Rows` over the rows of score files.

    Args:
        engine: see `nsk.pseudo.engine`.
        paths: list of the score files.
        confidence: which of their columns is compared.
        function: function of `Rows`, as `select.select` gives it.
    """
    return engine.sum(paths, functools.partial(_sum, function, confidence))


def _sum(function, confidence, paths):
    return functools.reduce(operator.add, map(function, _blocks(paths, confidence)))


def _blocks(paths, confidence):
    """`Rows` of one file after the other, small ones together."""
    together, count = [], 0
    for path in paths:
        together.append(path)
        count += count_rows(path)
        if count >= BLOCK_ROWS:
            yield read_rows(together, confidence)
            together, count = [], 0
    if together:
        yield read_rows(together, confidence)


def read_rows(paths, confidence="confidence"):
    """`Rows` of score files, one after the other; the column `confidence` is compared."""
    columns = ["key", "label", confidence]
    table = pa.concat_tables([read_table(path, columns) for path in paths])
    keys, labels, confidences = (table[name].to_numpy() for name in columns)

    @functools.cache
    def ids():
        return [one for path in paths for one in read_table(path, ["id"])["id"].to_pylist()]

    return Rows(keys, labels, confidences, ids)


def write_copies(engine, selection, paths, confidence, folder):
    """A file of `copies` for each score file."""
    engine.each(paths, lambda: functools.partial(_write_copies, selection, confidence, folder))


def _write_copies(selection, confidence, folder, paths):
    def write(path):
        copies = selection.copies(read_rows([path], confidence))
        with written_whole(folder / path.name) as unfinished:
            pq.write_table(pa.table({"copies": copies}), unfinished, compression="zstd")

    with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
        for _ in pool.map(write, paths):  # The loop raises what a file has raised.
            pass


def read_copies(path):
    """`copies` of one file of a selection: int32 array (n,)."""
    return read_table(path, ["copies"])["copies"].to_numpy()
