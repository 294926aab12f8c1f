"""What thresholds keep of a run's pseudo-labels, class by class, and how much of it is true.

    python -m tools.threshold_table --flagfile=flags/quickstart.flags --workdir=runs/quickstart
        [--generation=1] [--thresholds=0.3,0.5,0.7,0.8,0.9,0.95]

Flags are those of `nsk.main`, and `--thresholds`; the scores must be finished. For every threshold,
by the teacher's own confidence and by the calibrated one (the temperature that fits dev best):
images kept, their precision (the share whose label is true) and their coverage (the share of all
unlabelled images of a class that are kept with its label). The truth comes from the sealed file,
which decides nothing: this is a report. Where it is not known, precision and coverage are those of
dev, and the table says so. The last line is one JSON object.
"""

import dataclasses
import functools
import json

import numpy as np
from absl import app, flags

from nsk import main as nsk_main
from nsk.errors import UserError
from nsk.report.text_table import columns

KINDS = ("confidence", "calibrated_confidence")


def measure(labels, confidences, truth, num_classes, threshold):
    """Images kept of each label, how many of them are true, and images of each class: arrays."""
    kept = confidences >= np.float32(threshold)
    count = functools.partial(np.bincount, minlength=num_classes)
    return count(labels[kept]), count(labels[kept & (labels == truth)]), count(truth)


@dataclasses.dataclass(frozen=True)
class Judged:
    """What the teacher says of n images, and what is true.

    Attributes:
        labels: int array (n,), its first choices.
        confidences: {kind: float32 array (n,)}.
        truth: int array (n,).
    """

    labels: np.ndarray
    confidences: dict
    truth: np.ndarray

    @classmethod
    def of(cls, tables, truth_of):
        """Those images of Arrow tables whose truth, `truth_of` a table, is known and not -1."""
        parts = [
            [table[name].to_numpy() for name in ("label", *KINDS)] + [truth_of(table)]
            for table in tables
        ]
        labels, *confidences, truth = map(np.concatenate, zip(*parts, strict=True))
        known = truth >= 0
        confidences = {kind: one[known] for kind, one in zip(KINDS, confidences, strict=True)}
        return cls(labels[known], confidences, truth[known])


def read(images, scores):
    """Unlabelled images whose truth is known: `Judged`; None where nothing is known."""
    from nsk.report.run_summary import read_truth

    truth = read_truth(images)
    if not truth:
        return None
    return Judged.of(
        _unlabeled(scores, "id"),
        lambda table: np.array([truth.get(one, -1) for one in table["id"].to_pylist()]),
    )


def read_dev(scores):
    """The dev images: `Judged`; UserError where the scores say nothing of them."""
    from nsk.evaluation.prediction_files import read_table

    table = read_table(scores.path / "dev.parquet", ["label", *KINDS, "truth"])
    if not table.num_rows:
        raise UserError(
            "The true labels of the unlabelled images are not known, and the records' teacher says "
            "nothing of dev: there is nothing to report."
        )
    return Judged.of([table], lambda table: table["truth"].to_numpy())


def count_kept(scores, num_classes, kind, thresholds):
    """How many unlabelled images of each label thresholds keep: {threshold: int array}."""
    counts = dict.fromkeys(thresholds, 0)
    for table in _unlabeled(scores):
        labels, confidences = table["label"].to_numpy(), table[kind].to_numpy()
        for one in thresholds:
            counts[one] += measure(labels, confidences, labels, num_classes, one)[0]
    return counts


def _unlabeled(scores, *more):
    """Yields the score files of the unlabelled images as Arrow tables."""
    from nsk.evaluation.prediction_files import read_table

    for path in sorted((scores.path / "unlabeled").glob("*.parquet")):
        yield read_table(path, ["label", *KINDS, *more])


def table(class_names, results, counts=None):
    """Lines of a table: a row for each class and one for all; results as of `measure`.

    With `counts`, of `count_kept`, these are shown and not how many of the judged images are kept.
    """
    header = ["class"] + [f"{one:g}" for one in results]
    sums = {one: tuple(map(np.sum, result)) for one, result in results.items()}
    rows = [tuple(header)]
    for index, name in enumerate([*class_names, "all"]):
        cells = []
        for threshold, result in results.items():
            is_class = index < len(class_names)
            of_class = [one[index] for one in result] if is_class else sums[threshold]
            kept, correct, of_truth = of_class
            precision = f"{100 * correct / kept:.1f}" if kept else "-"
            coverage = f"{100 * correct / of_truth:.1f}" if of_truth else "-"
            if counts:
                kept = counts[threshold][index] if is_class else counts[threshold].sum()
            cells.append(f"{kept:,} {precision} {coverage}")
        rows.append((name, *cells))
    return columns(rows, left=1)


def show(argv):
    """The command."""
    if argv[1:]:
        raise UserError(f"Received {' '.join(argv[1:])!r}: settings are given as --name=value.")
    thresholds = read_thresholds(flags.FLAGS.thresholds)
    config = nsk_main.read_config()
    config.check_generation()
    if not nsk_main.given_workdir().is_dir():
        raise UserError(f"--workdir={config.run.workdir} is not there: give that of a run.")
    nsk_main.prepare(config)
    from nsk import self_training
    from nsk.stages.all_stages import Stages

    images, scores = self_training.finished_scores(config, Stages(config, finished_only=True))
    print(*report(images, scores, thresholds), sep="\n")
    return nsk_main.OK


def read_thresholds(given):
    """Numbers from 0 to 1, of strings; UserError where they are not."""
    try:
        thresholds = [float(one) for one in given]
    except ValueError:
        thresholds = []
    if not thresholds or not all(0 <= one <= 1 for one in thresholds):
        raise UserError(
            f"--thresholds={','.join(given)}: expected numbers from 0 to 1, as 0.5,0.9."
        )
    return thresholds


def report(images, scores, thresholds):
    """Yields the lines of both tables and the JSON object."""
    class_names = images.counts["class_names"]
    judged, summary, by = read(images, scores), {}, ""
    is_known = judged is not None
    if not is_known:
        judged, by = read_dev(scores), " on dev"
        summary["precision_and_coverage"] = "dev"
        yield (
            "The truth about the unlabelled images is not known: precision and coverage are those "
            f"of {len(judged.truth):,} dev images, kept are of {scores.counts['scored']:,} "
            "unlabelled ones."
        )
    for kind, of_kind in judged.confidences.items():
        results = {
            one: measure(judged.labels, of_kind, judged.truth, len(class_names), one)
            for one in thresholds
        }
        counts = None if is_known else count_kept(scores, len(class_names), kind, thresholds)
        yield f"\nBy {kind.replace('_', ' ')}: images kept, precision %{by}, coverage %{by}\n"
        yield from table(class_names, results, counts)
        summary[kind] = {
            f"{threshold:g}": {
                "kept": int((counts[threshold] if counts else kept).sum()),
                "precision": float(correct.sum() / kept.sum()) if kept.sum() else None,
                "coverage": float(correct.sum() / of_truth.sum()),
            }
            for threshold, (kept, correct, of_truth) in results.items()
        }
    summary["temperature"] = scores.counts["temperature"]
    yield json.dumps(summary)


if __name__ == "__main__":
    nsk_main.define_flags()
    flags.DEFINE_list("thresholds", ["0.3", "0.5", "0.7", "0.8", "0.9", "0.95"], "Thresholds.")
    app.run(functools.partial(nsk_main.run_main, main=show), flags_parser=nsk_main.parse_flags)
