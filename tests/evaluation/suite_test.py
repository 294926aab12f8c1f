import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from nsk.data import pipeline
from nsk.evaluation import metrics, suite
from nsk.pseudo import scores, select


def test_metrics_are_those_of_the_predictions_and_every_image_is_kept_with_its_id(tmp_path):
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(7, 0.5), 40).astype(np.float32)
    log_probabilities = np.log(probabilities)
    images = pipeline.Images(
        ids=[f"dev/{number}" for number in range(40)],
        images=tf.constant(random.integers(0, 256, (40, 2, 2, 3)), tf.uint8),
        labels=random.integers(0, 7, 40).astype(np.int32),
        log_probabilities=None,
        copies=np.ones(40, np.int32),
    )
    seen = []

    def predict(pixels):
        seen.append(pixels)
        return log_probabilities

    path = tmp_path / "dev.parquet"
    assert suite.evaluate(images, predict, path) == metrics.summarize(
        log_probabilities, images.labels
    )
    assert len(seen) == 1
    assert seen[0] is images.images

    table = pq.read_table(path)
    assert table["truth"].to_pylist() == images.labels.tolist()
    kept = scores.read_scores([path])
    assert kept.ids == images.ids
    np.testing.assert_array_equal(kept.keys, select.stable_keys(images.ids))
    np.testing.assert_array_equal(kept.labels, probabilities.argmax(axis=1))
    np.testing.assert_allclose(kept.confidences, probabilities.max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(kept.log_probabilities, log_probabilities, rtol=1e-3)
    assert metrics.accuracy(kept.log_probabilities, table["truth"].to_numpy()) == pytest.approx(
        metrics.accuracy(log_probabilities, images.labels)
    )
