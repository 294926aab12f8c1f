"""The suite `calibration`: how well confidences agree with accuracy, before and after scaling."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsk.evaluation import calibration
from nsk.evaluation.predictor import Predictor, collect
from nsk.evaluation.suites.suite import SplitImages


def evaluate(
    predictor: Predictor, splits: Mapping[str, SplitImages], folder: Path
) -> dict[str, Any]:
    """Measures the calibration on test as it is, and at the temperature that dev gives.

    Returns:
        The metrics of `calibration.calibration_metrics` and `reliability`, its bins; the same at
        the `temperature` fitted on dev, with the prefix `scaled_`. Without dev images,
        `temperature` is None, and there are no scaled ones.
    """
    del folder  # Predictions of clean images are the suite `clean`'s.
    test = collect(predictor(splits["test"].batches))
    result = _measure(test.log_probabilities, test.labels, "")
    if "dev" not in splits:
        return result | {"temperature": None, "images": len(test.labels)}
    dev = collect(predictor(splits["dev"].batches))
    temperature = calibration.fit_temperature(dev.log_probabilities, dev.labels)
    scaled = calibration.apply_temperature(test.log_probabilities, temperature)
    return (
        result
        | {"temperature": temperature, "images": len(test.labels), "dev_images": len(dev.labels)}
        | _measure(scaled, test.labels, "scaled_")
    )


def _measure(log_probabilities, labels, prefix):
    metrics = calibration.calibration_metrics(log_probabilities, labels)
    bins = calibration.reliability(log_probabilities, labels)
    return {f"{prefix}{name}": value for name, value in {**metrics, "reliability": bins}.items()}
