"""The suite `clean`: accuracy and calibration on the images as they are."""

from pathlib import Path

from nsk.evaluation import metrics
from nsk.evaluation.prediction_files import make_stored_predictions, write_predictions
from nsk.evaluation.predictor import Predictions, Predictor, collect
from nsk.evaluation.suites.suite import Metrics, SplitImages


def evaluate(predictor: Predictor, images: SplitImages, folder: Path) -> Metrics:
    """Measures a model on clean images.

    Writes `dev.parquet` or `test.parquet`: every image's prediction with its id and true label.

    Returns:
        see `metrics.summarize`.
    """
    predictions = collect(predictor(images.batches))
    return measure_predictions(predictions, folder / f"{images.split}.parquet")


def measure_predictions(predictions: Predictions, path: Path) -> Metrics:
    """Writes the predictions of a labelled split to a file and returns their metrics."""
    stored = make_stored_predictions(predictions.ids, predictions.log_probabilities)
    write_predictions(path, stored, truth=predictions.labels)
    return metrics.summarize(predictions.log_probabilities, predictions.labels)
