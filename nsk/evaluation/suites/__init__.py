"""The evaluation suites, and the one place that lists them.

To add a suite, write `nsk/evaluation/suites/NAME.py` with a function

    def evaluate(predictor, splits, folder):
        ...
        return {"error": ...}

(`Suite` in `nsk/evaluation/suites/suite.py` describes its arguments, and how it has settings) and a
line in `SUITES`. Its metrics are named `NAME/METRIC`; summary.json and TensorBoard show all of
them, and the closing table those in `Suite.table`.
"""

from nsk.evaluation.suites import (
    attacks,
    calibration,
    clean,
    corruptions,
    natural,
    perturbations,
)
from nsk.evaluation.suites.suite import Metrics, Suite

SUITES = {
    "clean": Suite(clean.evaluate, table={"accuracy": ".2%"}, splits=("dev", "test")),
    "calibration": Suite(calibration.evaluate, table={"ece": ".4f"}, version=2),
    "corruptions": Suite(
        corruptions.evaluate,
        corruptions.Options,
        files=("corruption_files", "frost_textures"),
        table={"mean_error": ".2%", "mce": ".1f", "relative_mce": ".1f"},
    ),
    "perturbations": Suite(
        perturbations.evaluate,
        perturbations.Options,
        files=("perturbation_files",),
        table={"mean_flip_probability": ".2%", "mfr": ".1f"},
        variant=perturbations.variant,
    ),
    "attacks": Suite(attacks.evaluate, attacks.Options, table={"fgsm/0.03": ".2%"}),
    "natural": Suite(natural.evaluate, natural.Options, files=("natural_sets",)),
}


def metric_name(suite: str, metric: str) -> str:
    """Returns the full name of a metric: that of the suite `clean` has no prefix."""
    return metric if suite == "clean" else f"{suite}/{metric}"


def named_metrics(suite: str, result: dict) -> Metrics:
    """The metrics in what a suite returned, by their full names.

    Those of an attack's curve are named ATTACK/EPSILON, those of another test set SET/METRIC; other
    data, such as errors by condition, are left out.
    """
    found = {name: value for name, value in result.items() if name != "seed"}
    for name, value in result.items():
        if isinstance(value, dict) and "epsilons" in value:
            curve = zip(value["epsilons"], value["accuracy"], strict=True)
            found |= {f"{name}/{epsilon:g}": accuracy for epsilon, accuracy in curve}
    for name, values in result.get("sets", {}).items():
        found |= {f"{name}/{metric}": value for metric, value in values.items()}
    return {
        metric_name(suite, name): value
        for name, value in found.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }
