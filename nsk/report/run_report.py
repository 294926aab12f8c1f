"""The report at the end of a run: `summary.json`, `classes.csv`, TensorBoard, closing table."""

import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsk.config.config import Config
from nsk.data.class_names import words_of
from nsk.report import tensorboard
from nsk.report.collect import SPLITS, RunResults, collect_summary
from nsk.report.terminal import closing_table
from nsk.store.disk_errors import naming_disk_errors
from nsk.store.files import atomic_write
from nsk.store.manifest import write_json


def report_run(config: Config, results: RunResults, all_reused: bool) -> dict[str, Any]:
    """Writes `summary.json`, `classes.csv` and TensorBoard's events, and prints the closing table.

    Args:
        config: the settings of the run.
        results: its stages.
        all_reused: whether every stage was finished before.

    Returns:
        the content of `summary.json`.
    """
    folder = config.run_folder
    summary = collect_summary(config, results)
    with naming_disk_errors(folder):
        _write_classes(folder / "classes.csv", summary)
    with naming_disk_errors(folder / "tensorboard"):
        tensorboard.write_generations(summary, folder / "tensorboard" / "generations")
    write_json(folder / "summary.json", summary)
    sys.stdout.write(closing_table(summary, config.workdir))
    if all_reused:
        sys.stdout.write("Every stage was finished before: nothing was done.\n")
    return summary


def _write_classes(path: Path, summary: Mapping[str, Any]) -> None:
    """Writes a row for each generation, split and class; empty where a value is not defined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names, descriptions = summary["class_names"], summary.get("class_descriptions")
    classes = {"class": names}
    if descriptions is not None:
        classes["description"] = words_of(names, descriptions)
    writer.writerow(("generation", "split", *classes, "images", "recall", "precision"))
    for generation in summary["generations"]:
        for split in SPLITS:
            columns = generation[split]["per_class"].values()
            for values in zip(*classes.values(), *columns, strict=True):
                writer.writerow((generation["index"], split, *values))
    with atomic_write(path) as unfinished:
        unfinished.write_text(text.getvalue(), encoding="utf-8")
