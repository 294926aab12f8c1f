"""Prediction files: a model's predictions of unlabelled, dev or test images, in Parquet.

One file for each image shard, row for row with its images. Those of a scoring stage, from which
pseudo-labels are selected, are called score files. Columns:

- `id` string, `key` uint64: a stable hash of the id.
- `label` int32: the top-1 class.
- `confidence` float32: its probability; `calibrated_confidence` float32, in score files: its
  probability at the temperature fitted on dev.
- `feature_distance` float32, in score files of a teacher whose features are known: the distance to
  the nearest dev images, see `nsk.evaluation.feature_distance`.
- `log_probabilities` list of float16 (temperatures and distillation need the tails that
  probabilities lose): of all classes in order, or of the most probable ones. In the latter case
  `classes` (list of int32) names them, and `remaining_probability` float32 is the total of all
  other classes.
- `truth` int32, in the files of an evaluated split: the true label.
- `label_among_NAME` int32, in the files of the suite `natural`: the most probable of the classes of
  the test set NAME.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nsk.errors import UserError
from nsk.hashing import stable_keys
from nsk.store.files import atomic_write

# Lower bound of the remaining probability: the logarithm of 0 is infinite.
MIN_REMAINING_PROBABILITY = 1e-10


@dataclasses.dataclass(frozen=True)
class StoredPredictions:
    """Predictions of n images, as a prediction file holds them.

    Attributes:
        ids: list of strings (n,).
        keys: uint64 array (n,), see `nsk.hashing.stable_key`.
        labels: int32 array (n,), the top-1 classes.
        confidences: float32 array (n,), their probabilities.
        log_probabilities: float16 array (n, num_classes), natural logarithms; or (n, k), of the
            `classes`.
        classes: int32 array (n, k), the k most probable classes, in descending order; None: all
            classes are stored.
        remaining: float32 array (n,), total probability of the classes that are not stored; None:
            all classes are stored.
        calibrated_confidences: float32 array (n,) or None.
        feature_distances: float32 array (n,) or None.
    """

    ids: list[str]
    keys: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    log_probabilities: np.ndarray
    classes: np.ndarray | None = None
    remaining: np.ndarray | None = None
    calibrated_confidences: np.ndarray | None = None
    feature_distances: np.ndarray | None = None

    def __len__(self):
        return len(self.ids)

    @property
    def top_k(self) -> int:
        """Number of classes with a stored log-probability; 0: all."""
        return 0 if self.classes is None else self.classes.shape[1]

    def stored_row(self, row: int) -> dict[str, np.ndarray | float | None]:
        """What is stored of an image: its `log_probabilities`, `classes` and `remaining`."""
        return {
            "log_probabilities": self.log_probabilities[row],
            "classes": None if self.classes is None else self.classes[row],
            "remaining": None if self.remaining is None else self.remaining[row],
        }

    def all_log_probabilities(self, num_classes: int) -> np.ndarray:
        """Log-probabilities of all classes; those not stored share what remains equally.

        Returns:
            float32 array (n, num_classes).
        """
        stored = self.log_probabilities.astype(np.float32)
        if self.classes is None:
            return stored
        share = self.remaining / max(1, num_classes - self.top_k)
        share = np.log(np.maximum(share, MIN_REMAINING_PROBABILITY / num_classes))
        dense = np.repeat(share[:, np.newaxis], num_classes, axis=1).astype(np.float32)
        np.put_along_axis(dense, self.classes, stored, axis=1)
        return dense


def make_stored_predictions(
    ids: list[str],
    log_probabilities: np.ndarray,
    top_k: int = 0,
    calibrated_confidences: np.ndarray | None = None,
    feature_distances: np.ndarray | None = None,
) -> StoredPredictions:
    """Makes `StoredPredictions` of log-probabilities.

    Args:
        ids: list of strings (n,).
        log_probabilities: float32 array (n, num_classes), natural logarithms.
        top_k: int, number of classes to store, the most probable ones; 0 or at least `num_classes`:
            all.
        calibrated_confidences: float32 array (n,) or None.
        feature_distances: float32 array (n,) or None.
    """
    labels = log_probabilities.argmax(axis=1).astype(np.int32)
    confidences = np.exp(log_probabilities.max(axis=1)).clip(0.0, 1.0)
    classes = remaining = None
    if 0 < top_k < log_probabilities.shape[1]:
        # A stable sort: ties go to the first class, as in argmax.
        order = np.argsort(-log_probabilities, axis=1, kind="stable")
        classes = order[:, :top_k].astype(np.int32)
        others = np.take_along_axis(log_probabilities, order[:, top_k:], axis=1)
        remaining = np.exp(others.astype(np.float64)).sum(axis=1).astype(np.float32)
        log_probabilities = np.take_along_axis(log_probabilities, classes, axis=1)
    return StoredPredictions(
        ids=ids,
        keys=stable_keys(ids),
        labels=labels,
        confidences=confidences,
        log_probabilities=np.maximum(log_probabilities, np.finfo(np.float16).min).astype(
            np.float16
        ),
        classes=classes,
        remaining=remaining,
        calibrated_confidences=calibrated_confidences,
        feature_distances=feature_distances,
    )


def write_predictions(
    path: Path,
    predictions: StoredPredictions,
    truth: np.ndarray | None = None,
    labels_among: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a prediction file.

    Args:
        path: the file.
        predictions: the predictions of n images.
        truth: int (n,), the true labels of an evaluated split.
        labels_among: int (n,) by names of test sets, the most probable of the classes of each.
    """
    columns = {
        "id": pa.array(predictions.ids, pa.string()),
        "key": pa.array(predictions.keys, pa.uint64()),
        "label": pa.array(predictions.labels, pa.int32()),
        "confidence": pa.array(predictions.confidences, pa.float32()),
    }
    if predictions.calibrated_confidences is not None:
        columns["calibrated_confidence"] = pa.array(
            predictions.calibrated_confidences, pa.float32()
        )
    if predictions.feature_distances is not None:
        columns["feature_distance"] = pa.array(predictions.feature_distances, pa.float32())
    columns["log_probabilities"] = _list_column(predictions.log_probabilities, pa.float16())
    if predictions.classes is not None:
        columns["classes"] = _list_column(predictions.classes, pa.int32())
        columns["remaining_probability"] = pa.array(predictions.remaining, pa.float32())
    if truth is not None:
        columns["truth"] = pa.array(truth, pa.int32())
    for name, labels in (labels_among or {}).items():
        columns[f"label_among_{name}"] = pa.array(labels, pa.int32())
    with atomic_write(path) as unfinished:
        pq.write_table(
            pa.table(columns), unfinished, compression="zstd", use_dictionary=["label", "truth"]
        )


def write_classes(path: Path, ids: list[str], truth: np.ndarray, classes: np.ndarray) -> None:
    """Writes several predictions of every image: at several strengths of an attack, say.

    Args:
        path: the Parquet file.
        ids: list of strings (n,).
        truth: int (n,), the true labels.
        classes: int (n, predictions) or (n, predictions, k), classes; of a prediction the k most
            probable ones in descending order.
    """
    columns = {
        "id": pa.array(ids, pa.string()),
        "truth": pa.array(truth, pa.int32()),
        "classes": _list_column(classes, pa.int32()),
    }
    with atomic_write(path) as unfinished:
        pq.write_table(pa.table(columns), unfinished, compression="zstd")


def read_classes(path: Path) -> tuple[list[str], np.ndarray]:
    """The ids and classes in a file of `write_classes`.

    Raises:
        UserError: the file is missing or damaged.
    """
    table = read_table(path, ["id", "classes"]).combine_chunks()
    return table["id"].to_pylist(), _read_list_column(table["classes"])


def _list_column(rows, value_type):
    """A column of lists of a fixed size, or of lists of lists, from an array (n, ...)."""
    column = pa.array(rows.ravel(), value_type)
    for size in reversed(rows.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _read_list_column(column):
    """The array (n, ...) that `_list_column` made a column of."""
    shape, values = [len(column)], column.combine_chunks()
    while isinstance(values.type, pa.FixedSizeListType):
        shape.append(values.type.list_size)
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def read_predictions(path: Path) -> StoredPredictions:
    """Reads a prediction file.

    Raises:
        UserError: the file is missing or damaged.
    """
    table = read_table(path).combine_chunks()

    def read_column(name):
        return table[name].to_numpy() if name in table.column_names else None

    def read_list_column(name):
        return _read_list_column(table[name]) if name in table.column_names else None

    return StoredPredictions(
        ids=table["id"].to_pylist(),
        keys=read_column("key"),
        labels=read_column("label"),
        confidences=read_column("confidence"),
        log_probabilities=read_list_column("log_probabilities"),
        classes=read_list_column("classes"),
        remaining=read_column("remaining_probability"),
        calibrated_confidences=read_column("calibrated_confidence"),
        feature_distances=read_column("feature_distance"),
    )


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Reads a Parquet file of a stage, or some of its columns.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from None


def count_rows(path: Path) -> int:
    """Returns the number of rows of a Parquet file of a stage.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from None


def read_top_k(path: Path) -> int:
    """Returns `StoredPredictions.top_k` of a prediction file.

    Raises:
        UserError: the file is missing or damaged.
    """
    schema = _read_schema(path)
    return schema.field("classes").type.list_size if "classes" in schema.names else 0


def read_schema_names(path: Path) -> list[str]:
    """Returns the names of the columns of a Parquet file of a stage.

    Raises:
        UserError: the file is missing or damaged.
    """
    return _read_schema(path).names


def _read_schema(path):
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from None


def _unreadable(path, error):
    reason = str(error).splitlines()[0]
    return UserError(f"{path} cannot be read ({reason}): delete its folder and run again.")
