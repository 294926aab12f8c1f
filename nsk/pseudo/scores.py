"""Score files: what a teacher says of each unlabelled image, and of each dev and test image.

Parquet, one file for each image shard, row for row with its images. Columns: `id` string, `key`
uint64 (a stable hash of the id), `label` int32 (the teacher's first choice), `confidence` float32
(its probability), `log_probabilities` list of float16 (temperatures and distillation need the tails
that probabilities lose).
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nsk.errors import UserError
from nsk.pseudo.select import stable_keys


@dataclasses.dataclass(frozen=True)
class Scores:
    """Predictions of n images.

    Attributes:
        ids: list of strings (n,).
        keys: uint64 array (n,).
        labels: int32 array (n,), the first choices.
        confidences: float32 array (n,), their probabilities.
        log_probabilities: float16 array (n, classes).
    """

    ids: list
    keys: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    log_probabilities: np.ndarray

    def __len__(self):
        return len(self.ids)


def from_predictions(ids, log_probabilities):
    """`Scores` of float32 log-probabilities (n, classes)."""
    labels = log_probabilities.argmax(axis=1).astype(np.int32)
    confidences = np.exp(log_probabilities.max(axis=1)).clip(0.0, 1.0)
    return Scores(ids, stable_keys(ids), labels, confidences, log_probabilities.astype(np.float16))


def write_scores(path, scores, truth=None):
    """Writes one score file; `truth`, int (n,), adds the true labels of an evaluated split."""
    num_classes = scores.log_probabilities.shape[1]
    flat = pa.array(scores.log_probabilities.ravel(), pa.float16())
    columns = {
        "id": pa.array(scores.ids, pa.string()),
        "key": pa.array(scores.keys, pa.uint64()),
        "label": pa.array(scores.labels, pa.int32()),
        "confidence": pa.array(scores.confidences, pa.float32()),
        "log_probabilities": pa.FixedSizeListArray.from_arrays(flat, num_classes),
    }
    if truth is not None:
        columns["truth"] = pa.array(truth, pa.int32())
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_scores(paths):
    """Reads score files, one after the other, as one `Scores`.

    Raises:
        UserError: a file is missing or damaged.
    """
    table = pa.concat_tables([read_table(path) for path in paths]).combine_chunks()
    lists = table["log_probabilities"].combine_chunks()
    return Scores(
        ids=table["id"].to_pylist(),
        keys=table["key"].to_numpy(),
        labels=table["label"].to_numpy(),
        confidences=table["confidence"].to_numpy(),
        log_probabilities=lists.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1),
    )


def read_table(path, columns=None):
    """A Parquet file of a stage as an Arrow table; UserError where it is missing or damaged."""
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} cannot be read ({reason}): delete its folder and run again."
        ) from None
