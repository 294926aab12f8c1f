"""The suite `natural`: accuracy on other test sets, with all or some of the classes."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsk.errors import MAX_NAMES, UserError
from nsk.evaluation import bootstrap
from nsk.evaluation.image_files import Batch, Decode
from nsk.evaluation.label_sets import read_label_sets
from nsk.evaluation.natural_sets import NaturalSet, map_classes, open_natural_set, restrict
from nsk.evaluation.prediction_files import read_table
from nsk.evaluation.predictor import Predictions, Predictor, collect
from nsk.evaluation.suites.conditions import read_condition, write_condition, write_missing
from nsk.evaluation.suites.suite import SplitImages

CLEAN = "clean"
LABEL_SETS_SUFFIX = ".json"


@dataclasses.dataclass(frozen=True)
class _Set:
    """A test set and the model's classes.

    Attributes:
        images: the set.
        mapping: int64 (set classes,), the model's class of each label of the set.
        classes: int64 (k,), the model's classes that the set has images of, in ascending order.
    """

    images: NaturalSet
    mapping: np.ndarray
    classes: np.ndarray

    def batches(self, batch_size: int, decode: Decode) -> Iterator[Batch]:
        """The images with the model's labels; a UserError if none of them is readable."""
        is_empty = True
        for batch in self.images.batches(batch_size, decode):
            is_empty = False
            yield {**batch, "label": self.mapping[batch["label"]]}
        if is_empty:
            reason = self.images.unreadable[0][1]
            raise UserError(
                f"{self.images.path}: none of {self.images.num_images} images is readable, the "
                f"first one because of: {reason}. Download the set again."
            )


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the suite.

    Attributes:
        natural_sets: paths of sets, or of JSON files of label sets, by their names.
        class_names: names of the model's classes.
        decode: function of an encoded image that returns uint8 (side, side, 3), and raises a
            ValueError if it cannot.
    """

    natural_sets: Mapping[str, str]
    class_names: Sequence[str]
    decode: Decode


def evaluate(
    predictor: Predictor, splits: Mapping[str, SplitImages], folder: Path, options: Options
) -> dict[str, Any]:
    """Measures the accuracy on other test sets.

    A set may have some of the model's classes alone. Then accuracies among these classes, whatever
    the model finds of the others, are those that are published, and the clean test images of the
    same classes are what they can be compared with.

    Writes `NAME.parquet` for each set, and `clean.parquet` for the test images: the predictions of
    every image, and the most probable among the classes of each set.

    A JSON file of label sets, see `label_sets`, is no set of images: it judges the predictions of
    the test images.

    Args:
        predictor: makes the predictions of the model.
        splits: the clean images.
        folder: where files are written.
        options: the settings.

    Returns:
        `sets`: by name `accuracy`, `accuracy_among_classes`, their 95 % intervals, the same of the
        clean test images of the same classes (`clean_accuracy`, ...; None if there are none), and
        the numbers `images` (without unreadable ones), `clean_images`, `classes`, `skipped` and
        `unreadable`, and `unreadable_images`, the ids of the first ten. Of label sets `accuracy`,
        `accuracy_interval`, `images` (with a label) and `unlabeled_images`, which are left out.
    """
    sets, label_sets = {}, {}
    for name, path in options.natural_sets.items():
        if path.endswith(LABEL_SETS_SUFFIX):
            label_sets[name] = read_label_sets(path, len(options.class_names))
            continue
        images = open_natural_set(path)
        mapping = map_classes(images, options.class_names, len(options.class_names))
        sets[name] = _Set(images, mapping, np.unique(mapping[images.labels]))

    def write(batches, classes, path):
        _predict(predictor, batches(), path, classes)

    classes = {name: found.classes for name, found in sets.items()}
    writers = {
        folder / f"{CLEAN}.parquet": functools.partial(
            write, lambda: splits["test"].batches, classes
        )
    }
    for name, found in sets.items():
        batches = functools.partial(found.batches, predictor.batch_size, options.decode)
        writers[folder / f"{name}.parquet"] = functools.partial(
            write, batches, {name: found.classes}
        )
    write_missing("natural", "test sets", writers)
    measured = {name: _measure(folder, name, found) for name, found in sets.items()}
    measured |= {name: _measure_label_sets(folder, found) for name, found in label_sets.items()}
    return {"sets": {name: measured[name] for name in options.natural_sets}}


def _predict(predictor, batches, path, classes):
    """Writes the predictions of images, and the most probable of the classes of each set."""
    predictions: Predictions = collect(predictor(batches))
    labels_among = {
        name: chosen[restrict(predictions.log_probabilities, chosen).argmax(axis=1)]
        for name, chosen in classes.items()
    }
    write_condition(path, predictions, labels_among)


def _measure(folder, name, found):
    """What the files of a set and of the clean images say."""
    ids, correct = _read_correct(folder / f"{name}.parquet", name, found.classes)
    _, clean = _read_correct(folder / f"{CLEAN}.parquet", name, found.classes)
    readable = set(ids)
    unreadable = [id for id in found.images.ids if id not in readable]
    return {
        **_accuracies(correct, ""),
        **_accuracies(clean, "clean_"),
        "images": len(correct),
        "clean_images": len(clean),
        "classes": len(found.classes),
        "skipped": found.images.skipped,
        "unreadable": len(unreadable),
        "unreadable_images": unreadable[:MAX_NAMES],
    }


def _measure_label_sets(folder, label_sets):
    """What the file of the clean images says, if several classes of an image may be right."""
    clean = read_condition(folder / f"{CLEAN}.parquet")
    correct = label_sets.correct(label_sets.rows(clean.ids), clean.predicted)
    if not len(correct):
        raise UserError(
            f"{label_sets.path} has no label of any of {len(clean.ids)} test images: expected "
            "labels of these images."
        )
    return {
        "accuracy": float(correct.mean()),
        "accuracy_interval": list(bootstrap.bootstrap_interval(correct)),
        "images": len(correct),
        "unlabeled_images": len(clean.ids) - len(correct),
    }


def _read_correct(path, name, classes):
    """Ids of the images of some classes, and bool (n, 2): correct among all and these classes."""
    column = f"label_among_{name}"
    table = read_table(path, ["id", "truth", "label", column])
    truth = table["truth"].to_numpy()
    predicted = np.stack([table["label"].to_numpy(), table[column].to_numpy()], axis=1)
    is_chosen = np.isin(truth, classes)
    ids = [id for id, chosen in zip(table["id"].to_pylist(), is_chosen, strict=True) if chosen]
    return ids, (predicted == truth[:, np.newaxis])[is_chosen]


def _accuracies(correct, prefix):
    """Accuracies with their intervals, None without images."""
    metrics = {}
    for column, name in enumerate(("accuracy", "accuracy_among_classes")):
        values = correct[:, column]
        interval = bootstrap.bootstrap_interval(values) if len(values) else (None, None)
        metrics[f"{prefix}{name}"] = float(values.mean()) if len(values) else None
        metrics[f"{prefix}{name}_interval"] = list(interval)
    return metrics
