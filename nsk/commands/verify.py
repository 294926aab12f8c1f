"""Checks that all files of finished stages in the workdir are as they were written."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsk.commands.preparation import require_workdir
from nsk.errors import UserError, list_names
from nsk.store.verification import (
    find_damage,
    finished_stages,
    foreign_files,
    size_of,
    stages_of_other_formats,
    unfinished_stages,
)
from nsk.units import format_bytes


def execute(values: Mapping[str, Any]) -> int:
    """Verifies a workdir; needs no other setting than `--workdir`, and no TensorFlow.

    Args:
        values: values of settings by name.

    Returns:
        The number of finished stages.

    Raises:
        UserError: something is damaged, or there is no finished stage.
    """
    return verify_workdir(require_workdir(values["workdir"]))


def verify_workdir(workdir: Path) -> int:
    """Compares every file of every finished stage with its SHA-256 and prints what is wrong.

    Result and errors as for `execute`.
    """
    others = stages_of_other_formats(workdir)
    for path in others:
        name = path.relative_to(workdir)
        sys.stdout.write(f"{name}: written by another version of nsk, not checked\n")
    stages = [path for path in finished_stages(workdir) if path not in others]
    if not stages:
        kind = " of this version" if others else ""
        raise UserError(f"{workdir} has no finished stage{kind}: nothing to verify.")
    damaged = [path for path in stages if not _print_state(workdir, path)]
    _print_unfinished(workdir)
    if damaged:
        names = sorted(str(path.relative_to(workdir)) for path in damaged)
        raise UserError(
            f"{len(damaged)} of {len(stages)} stages are damaged: delete the folders "
            f"{list_names(names)} in {workdir} and run again to rebuild them alone."
        )
    return len(stages)


def _print_unfinished(workdir):
    """Prints what unfinished stages have left, with its size."""
    unfinished = unfinished_stages(workdir)
    total = 0
    for stage, paths in unfinished.items():
        size = sum(map(size_of, paths))
        total += size
        names = list_names([path.name for path in paths])
        sys.stdout.write(
            f"{stage.relative_to(workdir)}: unfinished, {format_bytes(size)}: {names}\n"
        )
    if unfinished:
        sys.stdout.write(
            f"{len(unfinished)} unfinished stages take {format_bytes(total)}: the run with their "
            "settings resumes them; if none will, delete these files and folders.\n"
        )


def _print_state(workdir, path):
    """Prints the state of one stage and returns whether it is intact."""
    try:
        lines = [f"{file}: {reason}" for file, reason in find_damage(path)]
        foreign = foreign_files(path)
    except UserError as error:
        lines, foreign = [str(error)], []
    sys.stdout.write(f"{path.relative_to(workdir)}: {'DAMAGED' if lines else 'ok'}\n")
    for line in lines:
        sys.stdout.write(f"  {line}\n")
    for file in foreign:
        sys.stdout.write(f"  {file}: does not belong to this stage, ignored\n")
    return not lines
