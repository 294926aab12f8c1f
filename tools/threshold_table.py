"""What thresholds keep of a run's pseudo-labels, class by class, and how much of it is true.

    python -m tools.threshold_table --flagfile=flags/quickstart.flags --workdir=runs/quickstart
        [--generation=1] [--thresholds=0.3,0.5,0.7,0.8,0.9,0.95]

Flags are those of `nsk.main`, and `--thresholds`; the scores must be finished. For every threshold,
by the teacher's own confidence and by the calibrated one (the temperature that fits dev best):
images kept, their precision (the share whose label is true) and their coverage (the share of all
unlabelled images of a class that are kept with its label). The truth comes from the sealed file,
which decides nothing: this is a report. The last line is one JSON object.
"""

import functools
import json

import numpy as np
from absl import app, flags

from nsk import main as nsk_main
from nsk.errors import UserError
from nsk.report.table import columns

KINDS = ("confidence", "calibrated_confidence")


def measure(labels, confidences, truth, num_classes, threshold):
    """Images kept of each label, how many of them are true, and images of each class: arrays."""
    kept = confidences >= np.float32(threshold)
    count = functools.partial(np.bincount, minlength=num_classes)
    return count(labels[kept]), count(labels[kept & (labels == truth)]), count(truth)


def read(images, scores):
    """(labels, {kind: confidences}, truth) of the unlabelled images whose truth is known."""
    from nsk.pseudo.scores import read_table
    from nsk.report.summary import read_truth

    truth = read_truth(images)
    if not truth:
        raise UserError(
            "The true labels of the unlabelled images are not known: there is nothing to report."
        )
    parts = []
    for path in sorted((scores.path / "unlabeled").glob("*.parquet")):
        table = read_table(path, ["id", "label", *KINDS])
        of_image = [truth.get(one, -1) for one in table["id"].to_pylist()]
        parts.append([table[name].to_numpy() for name in ("label", *KINDS)] + [np.array(of_image)])
    labels, *confidences, true = (np.concatenate(column) for column in zip(*parts, strict=True))
    known = true >= 0
    confidences = {kind: of_kind[known] for kind, of_kind in zip(KINDS, confidences, strict=True)}
    return labels[known], confidences, true[known]


def table(class_names, results):
    """Lines of a table: a row for each class and one for all; results as of `measure`."""
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
            cells.append(f"{kept:,} {precision} {coverage}")
        rows.append((name, *cells))
    return columns(rows, left=1)


def show(argv):
    """The command."""
    if argv[1:]:
        raise UserError(f"Received {' '.join(argv[1:])!r}: settings are given as --name=value.")
    try:
        thresholds = [float(one) for one in flags.FLAGS.thresholds]
    except ValueError:
        raise UserError(
            f"--thresholds={','.join(flags.FLAGS.thresholds)}: expected numbers, as 0.5,0.9."
        ) from None
    config = nsk_main.read_config()
    config.check_generation()
    nsk_main.prepare(config)
    from nsk import self_training
    from nsk.stages import Stages

    images, scores = self_training.finished_scores(config, Stages(config, finished_only=True))
    labels, confidences, truth = read(images, scores)
    class_names = images.counts["class_names"]
    summary = {}
    for kind, of_kind in confidences.items():
        results = {
            one: measure(labels, of_kind, truth, len(class_names), one) for one in thresholds
        }
        print(f"\nBy {kind.replace('_', ' ')}: images kept, precision %, coverage %\n")
        print(*table(class_names, results), sep="\n")
        summary[kind] = {
            f"{threshold:g}": {
                "kept": int(kept.sum()),
                "precision": float(correct.sum() / kept.sum()) if kept.sum() else None,
                "coverage": float(correct.sum() / of_truth.sum()),
            }
            for threshold, (kept, correct, of_truth) in results.items()
        }
    summary["temperature"] = scores.counts["temperature"]
    print(json.dumps(summary))
    return nsk_main.OK


if __name__ == "__main__":
    nsk_main.define_flags()
    flags.DEFINE_list("thresholds", ["0.3", "0.5", "0.7", "0.8", "0.9", "0.95"], "Thresholds.")
    app.run(functools.partial(nsk_main.run_main, main=show), flags_parser=nsk_main.parse_flags)
