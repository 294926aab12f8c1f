"""Prints what the settings would keep of finished scores, class by class; trains nothing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import logging

from nsk.commands.preparation import prepare, require_workdir
from nsk.config.config import Config
from nsk.data.class_names import read_class_descriptions
from nsk.errors import GenerationFailedError, UserError

if TYPE_CHECKING:  # Imported in functions, since it imports TensorFlow.
    from nsk.stages.runner import StageRunner
    from nsk.store.folders import StageFolder


def execute(values: Mapping[str, Any]) -> dict | None:
    """Prints what the settings keep of the finished scores for `--generation`.

    Args:
        values: values of settings by name.

    Returns:
        The selection's counts; None for all workers but the chief.

    Raises:
        UserError: the scores are not finished.
    """
    runner = prepare(values, check)
    from nsk.report.selection_report import Selection, report_selection
    from nsk.stages import comparison, selection, selection_checks

    images, scores = find_scores(runner)
    generation = runner.config.command.generation
    compared = comparison.compare(runner, generation, scores, images)
    selected = selection.select(runner, generation, scores, images, compared)
    try:
        selection_checks.check_selection(runner, generation, images, scores, selected)
    except GenerationFailedError as error:
        logging.warning("A run would end here: %s", error)
    if not runner.workers.is_chief:
        return None
    descriptions = read_class_descriptions(runner.config.data)
    return report_selection(Selection(images, scores, selected, descriptions))


def find_scores(runner: "StageRunner") -> tuple["StageFolder", "StageFolder"]:
    """(images, scores for `--generation`), both finished `StageFolder`s; UserError if missing."""
    from nsk import self_training
    from nsk.stages import scoring
    from nsk.stages.runner import ReadOnlyRunner

    read_only = ReadOnlyRunner(runner.config, runner.runtime)
    generation = runner.config.command.generation
    images, chain = self_training.train_generations(read_only, generation)
    return images, scoring.score(read_only, generation, chain[-1].model, images)


def check(config: Config) -> None:
    """UserError if there cannot be finished scores, or nothing is selected from them."""
    config.check_generation()
    generation = config.command.generation
    if config.chain.select == "once" and generation > 1:
        raise UserError(
            f"--generation={generation} with --select=once: every student is trained on the images "
            "selected for the first one: give --generation=1, or leave out --select=once."
        )
    if not require_workdir(config.run.workdir).is_dir():
        raise UserError(
            f"--workdir={config.run.workdir} does not exist: give the workdir of a run."
        )
