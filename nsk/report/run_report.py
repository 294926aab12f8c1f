"""The report at the end of a run: `summary.json`, TensorBoard and the closing table."""

import sys
from typing import Any

from nsk.config.config import Config
from nsk.report import tensorboard
from nsk.report.collect import RunResults, collect_summary
from nsk.report.terminal import closing_table
from nsk.store.disk_errors import naming_disk_errors
from nsk.store.manifest import write_json


def report_run(config: Config, results: RunResults, all_reused: bool) -> dict[str, Any]:
    """Writes `summary.json` and TensorBoard's events, and prints the closing table.

    Args:
        config: the settings of the run.
        results: its stages.
        all_reused: whether every stage was finished before.

    Returns:
        the content of `summary.json`.
    """
    workdir = config.workdir
    summary = collect_summary(config, results)
    write_json(workdir / "summary.json", summary)
    with naming_disk_errors(workdir / "tensorboard"):
        tensorboard.write_generations(summary, workdir / "tensorboard" / "generations")
    sys.stdout.write(closing_table(summary, workdir))
    if all_reused:
        sys.stdout.write("Every stage was finished before: nothing was done.\n")
    return summary
