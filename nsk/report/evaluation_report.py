"""The report of `evaluate`: `evaluation.json`, `evaluation.csv` and tables on the terminal."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nsk.config.config import Config
from nsk.errors import UserError
from nsk.evaluation.suites import relative
from nsk.report.collect import describe_environment, describe_suites
from nsk.report.text_table import align_columns
from nsk.store.files import atomic_write
from nsk.store.folders import StageFolder
from nsk.store.manifest import write_json

FORMAT = 1  # Of evaluation.json.
SPLITS = ("dev", "test")


def read_baseline(given: str) -> relative.Baseline | None:
    """Reads what errors are compared with.

    Args:
        given: "alexnet", the path of an `evaluation.json`, or "" for None.

    Raises:
        UserError: the file is missing or not an `evaluation.json`.
    """
    if not given:
        return None
    if given == "alexnet":
        return relative.ALEXNET
    path = Path(given).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        name, suites = content["model"]["name"], dict(content["suites"])
        stages = content.get("stages", {})
        folders = {suite: path.parent / folder for suite, folder in stages.items()}
        return relative.Baseline(name, suites, folders=folders)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--baseline={given} cannot be read ({type(error).__name__}: {error}): give alexnet or "
            "the evaluation.json of another model."
        ) from None


def report_evaluation(
    config: Config,
    model: StageFolder,
    images: StageFolder,
    stages: Mapping[str, StageFolder],
    baseline: relative.Baseline | None,
) -> dict[str, Any]:
    """Writes the results of an evaluation and prints their tables.

    Args:
        config: the settings.
        model: the model's stage.
        images: the stage with the images.
        stages: the finished stages by suite.
        baseline: what errors are relative to.

    Returns:
        the content of `evaluation.json`.
    """
    suites = describe_suites(stages, baseline)
    content = {
        "format": FORMAT,
        "model": model.counts,
        "dataset": config.data.dataset,
        "images": images.counts["images"],
        "classes": images.counts["num_classes"],
        "suites": suites,
        "stages": {name: stage.path.name for name, stage in stages.items()},
        "environment": describe_environment(),
    }
    folder = config.workdir
    write_json(folder / "evaluation.json", content)
    _write_csv(folder / "evaluation.csv", suites)
    sys.stdout.write(evaluation_tables(content, folder))
    return content


def flatten(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields (path, value) of everything in nested dicts and lists."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from flatten(inner, (*path, str(index)))
    else:
        yield path, value


def _write_csv(path, suites):
    """One row for each value: its suite, its path inside the suite's results, the value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("suite", "metric", "value"))
    for (suite, *metric), value in flatten(suites):
        writer.writerow((suite, "/".join(metric), "" if value is None else value))
    with atomic_write(path) as unfinished:
        unfinished.write_text(text.getvalue(), encoding="utf-8")


def evaluation_tables(content: Mapping[str, Any], folder: Path) -> str:
    """The tables that a person reads: for each suite its numbers, then its values by condition."""
    lines = [""]
    for suite, result in content["suites"].items():
        for rows in (_numbers(suite, result), *_curves(result), *_by_condition(result)):
            lines += [*align_columns(rows, left=1), ""]
    lines += [f"Results: {folder / 'evaluation.json'}, {folder / 'evaluation.csv'}", ""]
    return "\n".join(lines)


def _numbers(suite, result):
    """Rows of a suite's numbers, or of those of its splits, with their intervals."""
    rows = [(suite, "", "")]
    for name, value in result.items():
        if _is_scalar(value):
            rows.append((name, _format(value), _format_interval(result.get(f"{name}_interval"))))
        elif name in SPLITS:
            rows += [(f"{name} {metric}", _format(number), "") for metric, number in value.items()]
    return rows


def _curves(result):
    """For each attack the rows of its epsilons."""
    for name, value in result.items():
        if isinstance(value, Mapping) and "epsilons" in value:
            columns = value["epsilons"], value["accuracy"], value["intervals"]
            yield [
                (name, "accuracy", ""),
                *(
                    (f"{epsilon:g}", _format(accuracy), _format_interval(interval))
                    for epsilon, accuracy, interval in zip(*columns, strict=True)
                ),
            ]


def _by_condition(result):
    """Tables of the values that have the same conditions: a column for each, or for a severity."""
    columns_of = {}  # By the conditions: the columns' titles and values.
    for name, value in result.items():
        if not isinstance(value, Mapping) or not value or name in SPLITS or "epsilons" in value:
            continue
        columns = columns_of.setdefault(tuple(value), [])
        first = next(iter(value.values()))
        if isinstance(first, list | tuple):
            for index in range(len(first)):
                columns.append((f"{name} {index + 1}", [row[index] for row in value.values()]))
        elif isinstance(first, Mapping):
            columns += [
                (key, [row[key] for row in value.values()])
                for key, item in first.items()
                if _is_scalar(item)
            ]
        else:
            columns.append((name, list(value.values())))
    for conditions, columns in columns_of.items():
        yield [
            ("", *(title for title, _ in columns)),
            *(
                (condition, *(_format(values[index]) for _, values in columns))
                for index, condition in enumerate(conditions)
            ),
        ]


def _is_scalar(value):
    return value is None or isinstance(value, int | float | str)


def _format(value):
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _format_interval(interval):
    """A 95 % interval in brackets; "" if there is none."""
    if not interval or interval[0] is None:
        return ""
    return f"[{_format(interval[0])}, {_format(interval[1])}]"
