"""The suite `clean`: accuracy and calibration on the images as they are."""

from collections.abc import Mapping
from pathlib import Path

from nsk.evaluation import metrics
from nsk.evaluation.prediction_files import make_stored_predictions, write_predictions
from nsk.evaluation.predictor import Predictions, Predictor, collect
from nsk.evaluation.suites.suite import Metrics, SplitImages


def evaluate(
    predictor: Predictor, splits: Mapping[str, SplitImages], folder: Path
) -> dict[str, Metrics]:
    """Measures a model on clean images.

    Writes `dev.parquet` and `test.parquet`: every image's prediction with its id and true label.

    Returns:
        dict from each split to its metrics, see `metrics.summarize`.
    """
    return {
        split: measure_predictions(collect(predictor(images.batches)), folder / f"{split}.parquet")
        for split, images in splits.items()
    }


def measure_predictions(predictions: Predictions, path: Path) -> Metrics:
    """Writes the predictions of a labelled split to a file and returns their metrics."""
    stored = make_stored_predictions(predictions.ids, predictions.log_probabilities)
    write_predictions(path, stored, truth=predictions.labels)
    return metrics.summarize(predictions.log_probabilities, predictions.labels)
