"""Tables of a sweep: Markdown, HTML and CSV."""

import csv
import html
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from nsk.store.disk_errors import naming_disk_errors
from nsk.store.files import atomic_write
from nsk.sweep.grid import Grid
from nsk.sweep.results import METRICS, Estimate, Result, Row

MARKDOWN, HTML, RUNS, CLASSES = "sweep.md", "sweep.html", "sweep.csv", "sweep_classes.csv"
STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
)


def write_tables(
    folder: Path, grid: Grid, rows: Sequence[Row], results: Sequence[Result], notes: Sequence[str]
) -> list[Path]:
    """Writes the tables of a sweep.

    Args:
        folder: where they go.
        grid: the grid.
        rows: means over the seeds.
        results: the results of all generations of all runs.
        notes: lines below the table.

    Returns:
        Their paths: the table in Markdown and HTML, a CSV file with a row for each generation of
        each run, and one with the pseudo-labels of each class.
    """
    contents = {
        MARKDOWN: markdown(grid, rows, notes),
        HTML: as_html(grid, rows, notes),
        RUNS: _csv(_run_rows(results)),
        CLASSES: _csv(_class_rows(results)),
    }
    with naming_disk_errors(folder):
        for name, text in contents.items():
            with atomic_write(folder / name) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
    return [folder / name for name in contents]


def cells_of(grid: Grid, rows: Sequence[Row]) -> list[list[str]]:
    """The table as text, the header first. Metrics that no row has are left out."""
    metrics = [name for name in METRICS if any(name in row.estimates for row in rows)]
    compared = [name for name in metrics if any(name in row.differences for row in rows)]
    header = ["", *(METRICS[name].title for name in metrics), "seeds"]
    header += [f"{METRICS[name].title} - {grid.compare_with}" for name in compared]
    table = [header]
    for row in rows:
        cells = [_format(name, row.estimates.get(name)) for name in metrics]
        differences = [_format(name, row.differences.get(name), "+") for name in compared]
        table.append([row.name, *cells, str(row.seeds), *differences])
    return table


def _format(metric: str, estimate: Estimate | None, sign: str = "") -> str:
    """A mean and its margin."""
    if estimate is None or math.isnan(estimate.mean):
        return "-"
    factor, digits = METRICS[metric].factor, METRICS[metric].digits
    text = f"{factor * estimate.mean:{sign},.{digits}f}"
    if not math.isnan(estimate.margin):
        text += f" ± {factor * estimate.margin:,.{digits}f}"
    return text


def markdown(grid: Grid, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table in Markdown."""
    header, *table = ([cell.replace("|", "\\|") for cell in row] for row in cells_of(grid, rows))
    lines = [f"# {grid.title}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def as_html(grid: Grid, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table as a page that needs no other file."""
    header, *table = ([html.escape(cell) for cell in row] for row in cells_of(grid, rows))
    title = html.escape(grid.title)
    lines = [
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>",
        f"<h1>{title}</h1><table>",
        f"<tr>{''.join(f'<th>{cell}</th>' for cell in header)}</tr>",
        *(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in table),
        "</table><ul>",
        *(f"<li>{html.escape(note)}</li>" for note in notes),
        "</ul>",
    ]
    return "\n".join(lines) + "\n"


def _csv(rows) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _run_rows(results: Sequence[Result]) -> Iterator[tuple]:
    known = ("role", "model", "parameters", "images_seen", "seconds")
    yield ("cell", "seed", "generation", "is_best", *known, *METRICS)
    for result in results:
        described = [result.description.get(name) for name in known]
        values = [result.values.get(name) for name in METRICS]
        start = (result.cell.name, result.cell.seed, result.generation, result.is_best)
        yield (*start, *described, *values)


def _class_rows(results: Sequence[Result]) -> Iterator[tuple]:
    """Pseudo-labels of each class: over the threshold, and copies that the student saw."""
    yield ("cell", "seed", "generation", "class", "over_threshold", "copies")
    for result in results:
        pseudo = result.description.get("pseudo")
        if not pseudo:
            continue
        copies = pseudo["per_class_copies"]
        candidates = pseudo["per_class_candidates"] or [None] * len(copies)
        for label, counts in enumerate(zip(candidates, copies, strict=True)):
            yield (result.cell.name, result.cell.seed, result.generation, label, *counts)
