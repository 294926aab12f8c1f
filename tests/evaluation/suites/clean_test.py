import numpy as np
import pyarrow.parquet as pq
import pytest

from nsk.evaluation import metrics
from nsk.evaluation.prediction_files import read_predictions
from nsk.evaluation.predictor import Predictions
from nsk.evaluation.suites import clean
from nsk.evaluation.suites.suite import SplitImages
from nsk.hashing import stable_keys


def test_metrics_and_the_file_hold_every_prediction(tmp_path):
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(7, 0.5), 40).astype(np.float32)
    log_probabilities = np.log(probabilities)
    labels = random.integers(0, 7, 40).astype(np.int32)
    ids = [f"dev/{number}" for number in range(40)]
    batches = [slice(0, 15), slice(15, 40)]  # The predictor below takes any batches.

    def predictor(batches):
        for rows in batches:
            yield Predictions(ids[rows], labels[rows], log_probabilities[rows])

    found = clean.evaluate(predictor, {"dev": SplitImages("dev", batches)}, tmp_path)
    assert found == {"dev": metrics.summarize(log_probabilities, labels)}

    path = tmp_path / "dev.parquet"
    assert list(tmp_path.iterdir()) == [path]
    truth = pq.read_table(path)["truth"]
    assert truth.to_pylist() == labels.tolist()
    stored = read_predictions(path)
    assert stored.ids == ids
    np.testing.assert_array_equal(stored.keys, stable_keys(ids))
    np.testing.assert_array_equal(stored.labels, probabilities.argmax(axis=1))
    np.testing.assert_allclose(stored.confidences, probabilities.max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(stored.log_probabilities, log_probabilities, rtol=1e-3)
    assert metrics.accuracy(stored.log_probabilities, truth.to_numpy()) == pytest.approx(
        metrics.accuracy(log_probabilities, labels)
    )
