"""Evaluates any model: accuracy, calibration, robustness, attacks, other test sets."""

from collections.abc import Mapping
from typing import Any

from nsk.commands.preparation import NO_TRAINING, prepare, require_output
from nsk.config.config import Config
from nsk.config.evaluation import split_list
from nsk.errors import UserError


def execute(values: Mapping[str, Any]) -> dict | None:
    """Evaluates the model of `--model` with `--suites`.

    Args:
        values: values of settings by name.

    Returns:
        The content of `evaluation.json`; None for all workers but the chief.

    Raises:
        UserError: settings, data or the model do not allow it.
    """
    output = require_output("evaluate", values)
    runner = prepare({**values, **NO_TRAINING, "workdir": str(output)}, _check)
    from nsk.report.evaluation_report import read_baseline, report_evaluation
    from nsk.stages import adoption, evaluation, ingestion

    settings = runner.config.evaluation
    baseline = read_baseline(settings.baseline)
    classifier, crop = adoption.load_any_model(runner)
    images = ingestion.ingest_test_images(
        runner, classifier.decoding.significant_bits, classifier.class_names
    )
    model, load = adoption.adopt_any_model(runner, images, classifier, crop)
    stages = {
        name: evaluation.evaluate_suite(runner, name, model, images, load)
        for name in split_list(settings.suites)
    }
    if not runner.workers.is_chief:
        return None
    return report_evaluation(runner.config, model, images, stages, baseline)


def _check(config: Config):
    """UserError if there is nothing to evaluate."""
    if not config.evaluation.model:
        raise UserError(
            "--model is not given: give the path of a .keras file or SavedModel, or the name of a "
            "network and its --weights."
        )
    if not split_list(config.evaluation.suites):
        raise UserError("--suites is empty: give a list of suites, as --suites=clean,corruptions.")
