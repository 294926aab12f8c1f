"""Runs a grid of configurations and seeds, and writes a table of their results."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from nsk.commands.preparation import require_workdir
from nsk.errors import UserError, list_names
from nsk.store.disk_errors import make_folder


def execute(values: Mapping[str, Any]) -> list[str]:
    """Runs all cells of `--grid` that are not finished, and prints and writes their table.

    Args:
        values: values of settings by name, the base of every cell.

    Returns:
        The names of the cells that have results.

    Raises:
        UserError: a setting or the grid is wrong, or cells failed.
    """
    from nsk.sweep import results, running, tables
    from nsk.sweep.grid import read_grid

    workdir = require_workdir(values["workdir"])
    if not values["grid"]:
        raise UserError("--grid is not given: name a TOML file of cells; see docs/sweeps.md.")
    grid = read_grid(values["grid"], values["seeds"])
    cells = grid.cells(values)
    make_folder(workdir)
    logging.info("%s: %d cells with %d seeds", grid.title, len(grid.names), len(grid.seeds))
    try:
        running.run_cells(cells, workdir, 3600 * values["budget_hours"])
    finally:
        progress = running.find_progress(cells, workdir)
        summaries = [running.read_summary(cell, workdir) for cell in progress.finished]
        collected = results.collect(progress.finished, summaries, grid)
        rows = results.make_rows(collected, grid)
        notes = _notes(grid, progress)
        paths = tables.write_tables(workdir, grid, rows, collected, notes)
        _print(tables.cells_of(grid, rows), notes, paths)
    if progress.failed:
        raise UserError(
            f"{len(progress.failed)} of {len(cells)} runs failed: "
            f"{list_names(list(progress.failed))}; their logs are in {workdir / 'cells'}. The "
            "same command runs them again."
        )
    return [cell.title for cell in progress.finished]


def _notes(grid, progress):
    """What a reader of the table has to know."""
    shown = {
        "last": "the last generation",
        "best": "the best generation on dev",
        "all": "all generations",
    }
    notes = [
        f"Seeds {', '.join(map(str, grid.seeds))}. Shown: {shown[grid.generations]}. Means; ± is "
        "half of the 95 % interval over the seeds (Student's t). Nothing was chosen by test.",
        f"Differences are to {grid.compare_with!r}, paired by seed; errors under corruptions and "
        f"flips are relative to {grid.baseline!r}.",
    ]
    notes += [f"Failed: {title}: {reason}" for title, reason in progress.failed.items()]
    if progress.remaining:
        names = list_names([cell.title for cell in progress.remaining])
        notes.append(f"Not run yet: {names}.")
    return notes


def _print(table, notes, paths: list[Path]):
    from nsk.report.text_table import align_columns

    lines = [
        "",
        *align_columns(table, left=1),
        "",
        *notes,
        f"Tables: {list_names(list(map(str, paths)))}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
