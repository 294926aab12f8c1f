"""What suites share: the images that they change, and the predictions of one condition.

A condition is one version of all images, such as `fog-3`. Its predictions are a Parquet file, whose
name is that of the condition; an interrupted evaluation resumes with the first missing one.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from nsk.errors import UserError
from nsk.evaluation.image_files import Batch
from nsk.evaluation.prediction_files import (
    make_stored_predictions,
    read_table,
    write_predictions,
)
from nsk.evaluation.predictor import Predictions, Predictor, collect
from nsk.evaluation.subsets import choose_subset
from nsk.evaluation.suites.suite import SplitImages
from nsk.progress import Progress
from nsk.store.files import num_cores

# Decoded images are kept in memory up to this size, since every condition starts from them.
MAX_BYTES_IN_MEMORY = 2**31
MAX_BYTES_IN_WORK = 2**30  # Of the images that threads change at a time.
# With more classes, only the most probable ones are stored.
MAX_STORED_CLASSES, STORED_CLASSES = 200, 10


class ChosenImages:
    """The images of a split, or a random subset of them, batch by batch.

    Args:
        images: the images of the split.
        number: size of the subset; 0: all.
        seed: of the choice of the subset.
    """

    def __init__(self, images: SplitImages, number: int = 0, seed: int = 0):
        self._images, self._number, self._seed = images, number, seed
        self._batches = None

    def __iter__(self) -> Iterator[Batch]:
        """Yields dicts `id` bytes (n,), `label` int64 (n,), `image` as `SplitImages` has it."""
        if self._batches is not None:
            yield from self._batches
            return
        kept, num_bytes = [], 0
        for batch in self._chosen():
            yield batch
            num_bytes += _num_bytes(batch["image"])
            if num_bytes <= MAX_BYTES_IN_MEMORY:
                kept.append(batch)
            else:
                kept = []
        if num_bytes <= MAX_BYTES_IN_MEMORY:
            self._batches = kept

    def _chosen(self) -> Iterator[Batch]:
        batches = self._images.batches
        if not self._number:
            yield from batches.as_numpy_iterator()
            return
        ids = [id for batch in batches.as_numpy_iterator() for id in ids_of(batch)]
        rows = choose_rows(ids, self._number, self._seed, f"the split {self._images.split}")
        chosen = {ids[row].encode() for row in rows}
        rest, size = None, 0
        for batch in batches.as_numpy_iterator():
            size = max(size, len(batch["id"]))  # The last batch may be small.
            is_chosen = np.array([id in chosen for id in batch["id"]], bool)
            batch = {name: values[is_chosen] for name, values in batch.items()}
            rest = batch if rest is None else _concatenate(rest, batch)
            if len(rest["id"]) >= size:
                yield {name: values[:size] for name, values in rest.items()}
                rest = {name: values[size:] for name, values in rest.items()}
        if rest is not None and len(rest["id"]):
            yield rest


def _num_bytes(images: np.ndarray) -> int:
    """Size of pixels, uint8 (n, height, width, 3), or of encoded images, objects (n,)."""
    return sum(map(len, images)) if images.dtype == object else images.nbytes


def ids_of(batch: Batch) -> list[str]:
    """The ids of a batch's images as strings."""
    return [image_id.decode() for image_id in batch["id"]]


def choose_rows(ids: Sequence[str], number: int, seed: int, owner: str | Path) -> np.ndarray:
    """Chooses the random subset of `--evaluation_images`, see `choose_subset`.

    Raises:
        UserError: there are fewer images; the message names the `owner` of them.
    """
    if number > len(ids):
        raise UserError(
            f"--evaluation_images={number}: {owner} has {len(ids)} images: give at most this "
            "number, or 0 for all."
        )
    return choose_subset(ids, number, seed)


def _concatenate(first: Batch, second: Batch) -> Batch:
    return {name: np.concatenate([first[name], second[name]]) for name in first}


def transform_batches(
    batches: Iterable[Batch], transform: Callable[[np.ndarray, list[str]], np.ndarray]
) -> Iterator[Batch]:
    """Changes the images of batches, several batches at a time in threads.

    Args:
        batches: as `ChosenImages` yields them.
        transform: function of the images of a batch, as `ChosenImages` yields them, and their ids
            that returns other images.

    Yields:
        the batches in order.
    """

    def apply(batch):
        return {**batch, "image": transform(batch["image"], ids_of(batch))}

    workers = num_cores()
    waiting = collections.deque()  # Results are in memory until they are used.
    with concurrent.futures.ThreadPoolExecutor(workers) as executor:
        for batch in batches:
            most = max(1, min(workers, MAX_BYTES_IN_WORK // max(1, batch["image"].nbytes)))
            waiting.append(executor.submit(apply, batch))
            while len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@dataclasses.dataclass(frozen=True)
class Condition:
    """Predictions of one condition, as its file holds them.

    Attributes:
        ids: list of strings (n,).
        labels: int array (n,), the true ones.
        predicted: int array (n,), the most probable classes.
    """

    ids: list[str]
    labels: np.ndarray
    predicted: np.ndarray

    @property
    def ids_digest(self) -> str:
        """16 hex digits that identify the images, by their ids in order."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()[:16]

    @property
    def is_correct(self) -> np.ndarray:
        """Bool (n,)."""
        return self.labels == self.predicted


def predict_condition(
    predictor: Predictor, batches: Callable[[], Iterable[Batch]], path: Path
) -> Condition:
    """The predictions of a condition; they are made only if their file is missing.

    Args:
        predictor: makes the predictions of the model.
        batches: function that returns the images.
        path: the Parquet file.
    """
    if not path.exists():
        write_condition(path, collect(predictor(batches())))
    return read_condition(path)


def write_missing(title: str, unit: str, writers: Mapping[Path, Callable[[Path], None]]) -> None:
    """Writes the files that an interrupted evaluation has not written, and shows the progress.

    Args:
        title: what is done.
        unit: what is counted, in the plural.
        writers: by path, the function that writes the file.
    """
    missing = {path: write for path, write in writers.items() if not path.exists()}
    done = len(writers) - len(missing)
    progress = Progress(title, len(writers), unit, done=done)
    for path, write in missing.items():
        write(path)
        done += 1
        progress.update(done)
    progress.close()


def write_condition(
    path: Path,
    predictions: Predictions,
    labels_among: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes the predictions of a condition.

    Args:
        path: the Parquet file.
        predictions: of all images.
        labels_among: see `write_predictions`.
    """
    num_classes = predictions.log_probabilities.shape[1]
    top_k = STORED_CLASSES if num_classes > MAX_STORED_CLASSES else 0
    stored = make_stored_predictions(predictions.ids, predictions.log_probabilities, top_k)
    write_predictions(path, stored, predictions.labels, labels_among)


def read_condition(path: Path) -> Condition:
    """The predictions in the file of a condition."""
    table = read_table(path, ["id", "truth", "label"])
    return Condition(table["id"].to_pylist(), table["truth"].to_numpy(), table["label"].to_numpy())
