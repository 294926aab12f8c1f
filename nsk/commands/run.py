"""Trains teacher and students and exports the best model (the default command)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nsk.commands.preparation import prepare

if TYPE_CHECKING:  # Imported in functions, since it imports TensorFlow.
    from nsk.stages.runner import StageRunner


def execute(values: Mapping[str, Any]) -> dict | None:
    """Runs the whole chain, or what remains of it.

    Args:
        values: values of settings by name.

    Returns:
        The summary, as written to `summary.json`; None for all workers but the chief.

    Raises:
        UserError: settings or data do not allow the run.
    """
    runner = prepare(values)
    from nsk import decisions, self_training
    from nsk.report.collect import RunResults
    from nsk.report.evaluation_report import read_baseline
    from nsk.report.run_report import report_run
    from nsk.stages import evaluation, export

    baseline = read_baseline(runner.config.evaluation.baseline)
    save_config(runner)
    images, chain = self_training.train_chain(runner)
    best = decisions.best_generation(chain, runner.config.chain.decide_by)
    exported = export.export(runner, chain[best].model, images, chain[best].evaluation)
    is_for_all = runner.config.evaluation.evaluate_models == "all"
    evaluated = range(len(chain)) if is_for_all else [best]
    models = {index: chain[index].model for index in evaluated}
    suites = evaluation.evaluate_generations(runner, images, models)
    if not runner.workers.is_chief:
        return None
    results = RunResults(images, chain, best, exported, suites, baseline)
    return report_run(runner.config, results, runner.all_reused)


def save_config(runner: "StageRunner") -> None:
    """Writes every setting of this call into the workdir."""
    from nsk.store.manifest import write_json

    if runner.workers.is_chief:
        sections = {name: section.values() for name, section in runner.config.sections.items()}
        write_json(runner.config.run_folder / "config.json", sections)
