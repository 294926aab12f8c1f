import numpy as np
import pyarrow.parquet as pq
import pytest

from nsk.evaluation import metrics
from nsk.evaluation import prediction_files as scores
from nsk.evaluation.predictor import Predictions
from nsk.pseudo import radix_selection as ranking
from nsk.stages import evaluation as suite


def test_metrics_are_those_of_the_predictions_and_every_image_is_kept_with_its_id(tmp_path):
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(7, 0.5), 40).astype(np.float32)
    log_probabilities = np.log(probabilities)
    labels = random.integers(0, 7, 40).astype(np.int32)
    ids = [f"dev/{number}" for number in range(40)]
    path = tmp_path / "dev.parquet"
    assert suite.evaluate(Predictions(ids, labels, log_probabilities), path) == metrics.summarize(
        log_probabilities, labels
    )

    table = pq.read_table(path)
    assert table["truth"].to_pylist() == labels.tolist()
    kept = scores.read_scores(path)
    assert kept.ids == ids
    np.testing.assert_array_equal(kept.keys, ranking.stable_keys(ids))
    np.testing.assert_array_equal(kept.labels, probabilities.argmax(axis=1))
    np.testing.assert_allclose(kept.confidences, probabilities.max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(kept.log_probabilities, log_probabilities, rtol=1e-3)
    assert metrics.accuracy(kept.log_probabilities, table["truth"].to_numpy()) == pytest.approx(
        metrics.accuracy(log_probabilities, labels)
    )
