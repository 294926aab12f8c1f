"""What a person reads in a terminal at the end of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsk.data.class_names import with_descriptions
from nsk.errors import printable
from nsk.evaluation.suites import SUITES, metric_name
from nsk.report.text_table import align_columns
from nsk.units import format_duration

# Metrics that weigh classes equally, by their titles.
CLASS_METRICS = {"balanced": "balanced_accuracy", "macro-F1": "macro_f1"}
CRITERIA = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "nll": "NLL"}
# Classes that are listed: those that are found this much less often than the average image.
LOW_RECALL = 0.5
MAX_LISTED_CLASSES = 10


def closing_table(summary: Mapping[str, Any], workdir: Path) -> str:
    """The table at the end of a run, a row for each generation.

    Args:
        summary: the content of `summary.json`.
        workdir: folder of the run.
    """
    generations = summary["generations"]
    metric_columns = _metric_columns(generations, ["clean"])
    titles = [title for title, *_ in metric_columns]
    header = ("gen", "role", "model", "parameters", *titles, "pseudo-labels", "precision", "time")
    rows = [header]
    for generation in generations:
        pseudo = generation.get("pseudo")
        is_best = generation["index"] == summary["best"]["index"]
        rows.append(
            (
                f"{generation['index']}{'*' if is_best else ''}",
                generation["role"],
                generation["model"],
                f"{generation['parameters']:,}",
                *(
                    _format(generation[split].get(metric), format_spec)
                    for _, split, metric, format_spec in metric_columns
                ),
                f"{pseudo['kept']:,}" if pseudo else "-",
                _format(pseudo and pseudo["precision"], ".2%"),
                "-" if generation["seconds"] is None else format_duration(generation["seconds"]),
            )
        )
    finetuned = [
        f"Generation {generation['index']} was trained at "
        f"{generation['finetuned_from']['image_size']} pixels and fine-tuned at "
        f"{generation['image_size']}."
        for generation in generations
        if "finetuned_from" in generation
    ]
    ensembles = [
        f"Generation {generation['index']} is the mean of {len(generation['members'])} networks, "
        "on dev: "
        + ", ".join(f"{member['dev']['accuracy']:.2%}" for member in generation["members"])
        + "."
        for generation in generations
        if "members" in generation
    ]
    images = summary["num_images"]
    return "\n".join(
        (
            "",
            *align_columns(rows, left=3),
            "",
            *_class_metrics_table(generations, summary["decide_by"]),
            *_suites_table(generations),
            *_low_recall_table(summary),
            *finetuned,
            *ensembles,
            f"* best on dev by {CRITERIA[summary['decide_by']]}. {images['labeled']:,} labelled, "
            f"{_describe_unlabeled(summary)}, {images['dev']:,} dev and {images['test']:,} "
            f"test images; seed {summary['seed']}. The test split decides nothing.",
            f"Model: {workdir / summary['export'] / 'saved_model'}",
            f"TensorBoard: tensorboard --logdir={workdir / 'tensorboard'}",
            "",
        )
    )


def _describe_unlabeled(summary):
    """The number of unlabelled images, and of those that were used if not all were."""
    used = summary.get("unlabeled_used")
    share = "" if used is None else f"{used:,} of "
    return f"{share}{summary['num_images']['unlabeled']:,} unlabelled"


def _class_metrics_table(generations, decide_by):
    """Lines of the table of metrics that weigh classes equally, and of the NLL if it decides."""
    columns = [
        (f"{split} {title}", split, metric, ".2%")
        for title, metric in CLASS_METRICS.items()
        for split in ("dev", "test")
    ]
    if decide_by == "nll":
        columns += [(f"{split} NLL", split, "nll", ".4f") for split in ("dev", "test")]
    rows = [("gen", *(title for title, *_ in columns))]
    for generation in generations:
        values = (
            _format(generation[split].get(metric), format_spec)
            for _, split, metric, format_spec in columns
        )
        rows.append((str(generation["index"]), *values))
    return [*align_columns(rows, left=1), ""]


def _low_recall_table(summary):
    """Lines of the classes that the best generation seldom finds on dev, the worst first."""
    best = summary["generations"][summary["best"]["index"]]
    dev, test = (best[split]["per_class"] for split in ("dev", "test"))
    limit = LOW_RECALL * best["dev"]["accuracy"]
    low = [
        (recall, -dev["images"][label], label)
        for label, recall in enumerate(dev["recall"])
        if recall is not None and recall < limit
    ]
    if not low:
        return []
    names = with_descriptions(summary["class_names"], summary.get("class_descriptions"))
    rows = [("class", "dev images", "recall", "precision", "test images", "recall", "precision")]
    for _, _, label in sorted(low)[:MAX_LISTED_CLASSES]:
        cells = [printable(names[label])]
        for split in (dev, test):
            cells.append(f"{split['images'][label]:,}")
            cells += [_format(split[metric][label], ".2%") for metric in ("recall", "precision")]
        rows.append(cells)
    title = (
        f"{len(low)} of {len(dev['recall'])} classes with a recall below half of the accuracy on "
        f"dev (generation {best['index']}); all classes: classes.csv"
    )
    return [title, *align_columns(rows, left=1), ""]


def _suites_table(generations):
    """Lines of the table of what `--evaluate` measured; none if that is nothing."""
    columns = _metric_columns(generations, [name for name in SUITES if name != "clean"])
    if not columns:
        return []
    rows = [("gen", *(title for title, *_ in columns))]
    for generation in generations:
        if any(metric in generation[split] for _, split, metric, _ in columns):
            rows.append(
                (
                    str(generation["index"]),
                    *(
                        _format(generation[split].get(metric), format_spec)
                        for _, split, metric, format_spec in columns
                    ),
                )
            )
    return [*align_columns(rows, left=1), ""]


def _metric_columns(generations, suites):
    """[(title, split, metric, format)] of the suites' metrics that any generation has."""
    columns = []
    for suite_name in suites:
        suite = SUITES[suite_name]
        for metric, format_spec in suite.table.items():
            name = metric_name(suite_name, metric)
            columns += [
                (split if name == "accuracy" else name, split, name, format_spec)
                for split in suite.splits
                if any(name in generation[split] for generation in generations)
            ]
    return columns


def _format(value, format_spec):
    return "-" if value is None else format(value, format_spec)
