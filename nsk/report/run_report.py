"""The report at the end of a run: `summary.json`, TensorBoard and the closing table."""

import sys
from collections.abc import Sequence
from typing import Any

from nsk.config.config import Config
from nsk.decisions import Generation
from nsk.report import tensorboard
from nsk.report.collect import collect_summary
from nsk.report.terminal import closing_table
from nsk.store.disk_errors import naming_disk_errors
from nsk.store.folders import StageFolder
from nsk.store.manifest import write_json


def report_run(
    config: Config,
    images: StageFolder,
    chain: Sequence[Generation],
    best: int,
    export: StageFolder,
    all_reused: bool,
) -> dict[str, Any]:
    """Writes `summary.json` and TensorBoard's events, and prints the closing table.

    Args:
        config: the settings of the run.
        images: the ingest stage.
        chain: the generations, the teacher first.
        best: index of the best generation on dev.
        export: the export stage.
        all_reused: whether every stage was finished before.

    Returns:
        the content of `summary.json`.
    """
    workdir = config.workdir
    summary = collect_summary(config, images, chain, best, export)
    write_json(workdir / "summary.json", summary)
    with naming_disk_errors(workdir / "tensorboard"):
        tensorboard.write_generations(summary, workdir / "tensorboard" / "generations")
    sys.stdout.write(closing_table(summary, workdir))
    if all_reused:
        sys.stdout.write("Every stage was finished before: nothing was done.\n")
    return summary
