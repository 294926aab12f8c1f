"""Evaluation of a model on a labelled split: metrics, and every image's prediction with its id."""

from nsk.evaluation import metrics
from nsk.evaluation.prediction_files import from_predictions, write_scores


def evaluate(predictions, path):
    """Writes a split's predictions and measures them.

    Args:
        predictions: `predict.Predictions` of the whole split, with labels.
        path: Parquet file for the per-image predictions; columns as in
            `pseudo.scores`, and `truth`.

    Returns:
        dict of metrics, see `metrics.summarize`.
    """
    scores = from_predictions(predictions.ids, predictions.log_probabilities)
    write_scores(path, scores, truth=predictions.labels)
    return metrics.summarize(predictions.log_probabilities, predictions.labels)
