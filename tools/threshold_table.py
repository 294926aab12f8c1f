"""Pseudo-labels that confidence thresholds keep, their precision and coverage, class by class.

    python -m tools.threshold_table --flagfile=flags/quickstart.flags --workdir=runs/quickstart
        [--generation=1] [--thresholds=0.3,0.5,0.7,0.8,0.9,0.95]

Flags are those of `nsk.main`, and `--thresholds`; the scores must be finished. For every threshold
of the confidence, and of the calibrated confidence (with the temperature fitted on dev): images
kept, their precision (the share with a correct label) and coverage (the share of all unlabelled
images of a class that are kept with its label). The true labels come from the sealed file: this is
a report and decides nothing. If they are unknown, precision and coverage are measured on dev, and
the table says so. The last line is a JSON object.
"""

import dataclasses
import functools
import json

import numpy as np
from absl import app, flags

from nsk import main as nsk_main
from nsk.commands import select
from nsk.commands.preparation import prepare
from nsk.errors import UserError
from nsk.report.text_table import align_columns

KINDS = ("confidence", "calibrated_confidence")


def measure(labels, confidences, truth, num_classes, threshold):
    """Counts by class: images kept with its label, correct ones among them, images of the class."""
    kept = confidences >= np.float32(threshold)
    count = functools.partial(np.bincount, minlength=num_classes)
    return count(labels[kept]), count(labels[kept & (labels == truth)]), count(truth)


@dataclasses.dataclass(frozen=True)
class LabeledPredictions:
    """The teacher's predictions of n images, and their true labels.

    Attributes:
        labels: int array (n,), the top-1 classes.
        confidences: {kind: float32 array (n,)}.
        truth: int array (n,).
    """

    labels: np.ndarray
    confidences: dict[str, np.ndarray]
    truth: np.ndarray

    @classmethod
    def from_tables(cls, tables, read_labels):
        """The images of Arrow tables with a known true label; `read_labels` has -1 for others."""
        parts = [
            [table[name].to_numpy() for name in ("label", *KINDS)] + [read_labels(table)]
            for table in tables
        ]
        labels, *confidences, truth = map(np.concatenate, zip(*parts, strict=True))
        is_known = truth >= 0
        confidences = {
            kind: values[is_known] for kind, values in zip(KINDS, confidences, strict=True)
        }
        return cls(labels[is_known], confidences, truth[is_known])


def read_unlabeled(images, scores):
    """Predictions of the unlabelled images with a known true label; None if there are none."""
    from nsk.report.collect import read_truth

    truth = read_truth(images)
    if not truth:
        return None
    return LabeledPredictions.from_tables(
        _read_tables(scores, "id"),
        lambda table: np.array([truth.get(image_id, -1) for image_id in table["id"].to_pylist()]),
    )


def read_dev(scores):
    """Predictions of dev; UserError if dev was not scored."""
    from nsk.evaluation.prediction_files import read_table

    table = read_table(scores.path / "dev.parquet", ["label", *KINDS, "truth"])
    if not table.num_rows:
        raise UserError(
            "The true labels of the unlabelled images are unknown, and the external teacher's "
            "predictions of dev too: there is nothing to report."
        )
    return LabeledPredictions.from_tables([table], lambda table: table["truth"].to_numpy())


def count_kept(scores, num_classes, kind, thresholds):
    """Counts the unlabelled images of each label that thresholds keep: {threshold: int array}."""
    counts = dict.fromkeys(thresholds, 0)
    for table in _read_tables(scores):
        labels, confidences = table["label"].to_numpy(), table[kind].to_numpy()
        for threshold in thresholds:
            counts[threshold] += measure(labels, confidences, labels, num_classes, threshold)[0]
    return counts


def _read_tables(scores, *more_columns):
    """Yields the score files of the unlabelled images as Arrow tables."""
    from nsk.evaluation.prediction_files import read_table

    for path in sorted((scores.path / "unlabeled").glob("*.parquet")):
        yield read_table(path, ["label", *KINDS, *more_columns])


def format_results(class_names, results, counts=None):
    """Lines of a table with a row for each class and for all.

    Args:
        class_names: names of all classes.
        results: {threshold: result of `measure`}.
        counts: result of `count_kept`, shown instead of the images kept in `results`.
    """
    header = ["class"] + [f"{threshold:g}" for threshold in results]
    totals = {threshold: tuple(map(np.sum, result)) for threshold, result in results.items()}
    rows = [tuple(header)]
    for index, name in enumerate([*class_names, "all"]):
        cells = []
        for threshold, result in results.items():
            is_class = index < len(class_names)
            row = [array[index] for array in result] if is_class else totals[threshold]
            kept, correct, num_images = row
            precision = f"{100 * correct / kept:.1f}" if kept else "-"
            coverage = f"{100 * correct / num_images:.1f}" if num_images else "-"
            if counts:
                kept = counts[threshold][index] if is_class else counts[threshold].sum()
            cells.append(f"{kept:,} {precision} {coverage}")
        rows.append((name, *cells))
    return align_columns(rows, left=1)


def show(argv):
    """Runs the command."""
    if argv[1:]:
        raise UserError(f"Received {' '.join(argv[1:])!r}: settings are given as --name=value.")
    thresholds = parse_thresholds(flags.FLAGS.thresholds)
    runner = prepare(nsk_main.flag_values(), select.check)
    images, scores = select.find_scores(runner)
    print(*report(images, scores, thresholds), sep="\n")
    return nsk_main.OK


def parse_thresholds(texts):
    """Parses numbers from 0 to 1; UserError if they are not."""
    try:
        thresholds = [float(text) for text in texts]
    except ValueError:
        thresholds = []
    if not thresholds or not all(0 <= threshold <= 1 for threshold in thresholds):
        raise UserError(
            f"--thresholds={','.join(texts)}: expected numbers from 0 to 1, such as 0.5,0.9."
        )
    return thresholds


def report(images, scores, thresholds):
    """Yields the lines of both tables and the JSON object."""
    class_names = images.counts["class_names"]
    predictions, summary, suffix = read_unlabeled(images, scores), {}, ""
    is_known = predictions is not None
    if not is_known:
        predictions, suffix = read_dev(scores), " on dev"
        summary["precision_and_coverage"] = "dev"
        yield (
            "The true labels of the unlabelled images are unknown: precision and coverage are "
            f"those of {len(predictions.truth):,} dev images; images kept are counted among "
            f"{scores.counts['scored']:,} unlabelled ones."
        )
    for kind, confidences in predictions.confidences.items():
        results = {
            threshold: measure(
                predictions.labels, confidences, predictions.truth, len(class_names), threshold
            )
            for threshold in thresholds
        }
        counts = None if is_known else count_kept(scores, len(class_names), kind, thresholds)
        name = kind.replace("_", " ")
        yield f"\nBy {name}: images kept, precision %{suffix}, coverage %{suffix}\n"
        yield from format_results(class_names, results, counts)
        summary[kind] = {
            f"{threshold:g}": {
                "kept": int((counts[threshold] if counts else kept).sum()),
                "precision": float(correct.sum() / kept.sum()) if kept.sum() else None,
                "coverage": float(correct.sum() / num_images.sum()),
            }
            for threshold, (kept, correct, num_images) in results.items()
        }
    summary["temperature"] = scores.counts["temperature"]
    yield json.dumps(summary)


if __name__ == "__main__":
    nsk_main.define_flags()
    flags.DEFINE_list(
        "thresholds", ["0.3", "0.5", "0.7", "0.8", "0.9", "0.95"], "Confidence thresholds."
    )
    app.run(functools.partial(nsk_main.run_main, main=show), flags_parser=nsk_main.parse_flags)
