"""Score files: what a teacher says of each unlabelled image, and of each dev and test image.

Parquet, one file for each image shard, row for row with its images. Columns:

- `id` string, `key` uint64: a stable hash of the id.
- `label` int32: the teacher's first choice.
- `confidence` float32: its probability; `calibrated_confidence` float32: its probability at the
  temperature that fits dev best, where it was asked for.
- `log_probabilities` list of float16 (temperatures and distillation need the tails that
  probabilities lose): of all classes, or of the `classes` (list of int32) of the largest ones, with
  `remaining_probability` float32 for all others together.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nsk.errors import UserError
from nsk.pseudo.radix_selection import stable_keys
from nsk.store.files import written_whole

# A share of nothing has no logarithm.
LEAST_REMAINING = 1e-10


@dataclasses.dataclass(frozen=True)
class Scores:
    """Predictions of n images.

    Attributes:
        ids: list of strings (n,).
        keys: uint64 array (n,).
        labels: int32 array (n,), the first choices.
        confidences: float32 array (n,), their probabilities.
        log_probabilities: float16 array (n, classes), or (n, k) of the `classes`.
        classes: int32 array (n, k), whose log-probabilities these are, the most probable first;
            None: all, in order.
        remaining: float32 array (n,), the probability of all other classes together; None where
            there are no others.
        calibrated_confidences: float32 array (n,) or None.
    """

    ids: list
    keys: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    log_probabilities: np.ndarray
    classes: np.ndarray | None = None
    remaining: np.ndarray | None = None
    calibrated_confidences: np.ndarray | None = None

    def __len__(self):
        return len(self.ids)

    @property
    def top_k(self):
        """How many classes' log-probabilities are held; 0: those of all."""
        return 0 if self.classes is None else self.classes.shape[1]

    def all_log_probabilities(self, num_classes):
        """float32 array (n, num_classes), what remains being spread evenly."""
        held = self.log_probabilities.astype(np.float32)
        if self.classes is None:
            return held
        each = self.remaining / max(1, num_classes - self.top_k)
        spread = np.log(np.maximum(each, LEAST_REMAINING / num_classes))
        dense = np.repeat(spread[:, np.newaxis], num_classes, axis=1).astype(np.float32)
        np.put_along_axis(dense, self.classes, held, axis=1)
        return dense


def from_predictions(ids, log_probabilities, top_k=0, calibrated_confidences=None):
    """`Scores` of float32 log-probabilities (n, classes).

    Args:
        ids: list of strings (n,).
        log_probabilities: float32 array (n, classes).
        top_k: int, hold the largest so many; 0 or at least `classes`: all.
        calibrated_confidences: float32 array (n,) or None.
    """
    labels = log_probabilities.argmax(axis=1).astype(np.int32)
    confidences = np.exp(log_probabilities.max(axis=1)).clip(0.0, 1.0)
    classes = remaining = None
    if 0 < top_k < log_probabilities.shape[1]:
        # A stable sort: of equals the first class comes first, as in argmax.
        order = np.argsort(-log_probabilities, axis=1, kind="stable")
        classes = order[:, :top_k].astype(np.int32)
        others = np.take_along_axis(log_probabilities, order[:, top_k:], axis=1)
        remaining = np.exp(others.astype(np.float64)).sum(axis=1).astype(np.float32)
        log_probabilities = np.take_along_axis(log_probabilities, classes, axis=1)
    return Scores(
        ids,
        stable_keys(ids),
        labels,
        confidences,
        np.maximum(log_probabilities, np.finfo(np.float16).min).astype(np.float16),
        classes,
        remaining,
        calibrated_confidences,
    )


def write_scores(path, scores, truth=None):
    """Writes one score file; `truth`, int (n,), adds the true labels of an evaluated split."""
    columns = {
        "id": pa.array(scores.ids, pa.string()),
        "key": pa.array(scores.keys, pa.uint64()),
        "label": pa.array(scores.labels, pa.int32()),
        "confidence": pa.array(scores.confidences, pa.float32()),
    }
    if scores.calibrated_confidences is not None:
        columns["calibrated_confidence"] = pa.array(scores.calibrated_confidences, pa.float32())
    columns["log_probabilities"] = _lists(scores.log_probabilities, pa.float16())
    if scores.classes is not None:
        columns["classes"] = _lists(scores.classes, pa.int32())
        columns["remaining_probability"] = pa.array(scores.remaining, pa.float32())
    if truth is not None:
        columns["truth"] = pa.array(truth, pa.int32())
    with written_whole(path) as unfinished:
        pq.write_table(
            pa.table(columns), unfinished, compression="zstd", use_dictionary=["label", "truth"]
        )


def _lists(rows, kind):
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel(), kind), rows.shape[1])


def read_scores(path):
    """Reads a score file as `Scores`.

    Raises:
        UserError: it is missing or damaged.
    """
    table = read_table(path).combine_chunks()

    def column(name):
        return table[name].to_numpy() if name in table.column_names else None

    def lists(name):
        if name not in table.column_names:
            return None
        column = table[name].combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(table), column.type.list_size)

    return Scores(
        ids=table["id"].to_pylist(),
        keys=column("key"),
        labels=column("label"),
        confidences=column("confidence"),
        log_probabilities=lists("log_probabilities"),
        classes=lists("classes"),
        remaining=column("remaining_probability"),
        calibrated_confidences=column("calibrated_confidence"),
    )


def read_table(path, columns=None):
    """A Parquet file of a stage as an Arrow table; UserError where it is missing or damaged."""
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from None


def count_rows(path):
    """Rows of a Parquet file of a stage; UserError where it is missing or damaged."""
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from None


def read_top_k(path):
    """`Scores.top_k` of a score file; UserError where it is missing or damaged."""
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from None
    return schema.field("classes").type.list_size if "classes" in schema.names else 0


def _unreadable(path, error):
    reason = str(error).splitlines()[0]
    return UserError(f"{path} cannot be read ({reason}): delete its folder and run again.")
