"""Evaluation of a model on a labelled split: metrics, and every image's prediction with its id."""

from nsk.evaluation import metrics
from nsk.pseudo.scores import from_predictions, write_scores


def evaluate(images, predict, path):
    """Predicts every image once.

    Args:
        images: `pipeline.Images` with labels.
        predict: function of uint8 images (n, height, width, 3) that returns log-probabilities
            (n, classes).
        path: Parquet file for the per-image predictions; columns as in
            `pseudo.scores`, and `truth`.

    Returns:
        dict of metrics, see `metrics.summarize`.
    """
    log_probabilities = predict(images.images)
    write_scores(path, from_predictions(images.ids, log_probabilities), truth=images.labels)
    return metrics.summarize(log_probabilities, images.labels)
