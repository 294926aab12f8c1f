"""Verify: is everything that a run left as it was written?"""

import sys

from nsk.errors import UserError
from nsk.store import folders as stage


def verify(workdir):
    """Compares every file of every finished stage with its SHA-256 and prints what is wrong.

    Args:
        workdir: `pathlib.Path` of the run.

    Returns:
        int, the number of finished stages.

    Raises:
        UserError: something is damaged, or there is no finished stage.
    """
    stages = stage.finished(workdir)
    if not stages:
        raise UserError(f"{workdir} has no finished stage: nothing to verify.")
    damaged = set()
    for path in stages:
        try:
            lines = [f"{file}: {reason}" for file, reason in stage.damages(path)]
            strays = stage.strays(path)
        except UserError as error:
            lines, strays = [str(error)], []
        name = path.relative_to(workdir)
        sys.stdout.write(f"{name}: {'DAMAGED' if lines else 'right'}\n")
        for line in lines:
            sys.stdout.write(f"  {line}\n")
        for stray in strays:
            sys.stdout.write(f"  {stray}: not of this stage, left alone\n")
        if lines:
            damaged.add(str(name))
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(stages)} stages are damaged: delete the folders "
            f"{', '.join(sorted(damaged))} in {workdir} and run again to redo them alone."
        )
    return len(stages)
