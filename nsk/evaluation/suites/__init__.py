"""The evaluation suites, and the one place that lists them.

To add a suite, write `nsk/evaluation/suites/NAME.py` with a function

    def evaluate(predictor, images, folder):
        ...
        return {"accuracy": ...}

(`Suite` in `nsk/evaluation/suites/suite.py` describes its arguments) and a line in `SUITES`. Its
metrics are named `NAME/METRIC`; summary.json and TensorBoard show all of them, and the closing
table those in `Suite.table`.
"""

from pathlib import Path

from nsk.evaluation.predictor import Predictor
from nsk.evaluation.suites import clean
from nsk.evaluation.suites.suite import Metrics, SplitImages, Suite

SUITES = {
    "clean": Suite(clean.evaluate, table={"accuracy": ".2%"}),
}


def run_suites(predictor: Predictor, images: SplitImages, folder: Path) -> Metrics:
    """Evaluates a model with every suite for a split.

    Args:
        predictor: makes the predictions of the model.
        images: the labelled images of the split.
        folder: where suites write their files.

    Returns:
        dict from the full names of all metrics to their values.
    """
    return {
        metric_name(name, metric): value
        for name, suite in SUITES.items()
        if images.split in suite.splits
        for metric, value in suite.evaluate(predictor, images, folder).items()
    }


def metric_name(suite: str, metric: str) -> str:
    """Returns the full name of a metric: that of the suite `clean` has no prefix."""
    return metric if suite == "clean" else f"{suite}/{metric}"
