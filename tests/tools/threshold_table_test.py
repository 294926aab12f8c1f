import numpy as np
import pytest

from nsk.errors import UserError
from nsk.pseudo.scores import from_predictions, write_scores
from nsk.stage import Stage
from tests.report.summary_test import make_images, make_stage
from tools import threshold_table


def test_kept_precision_and_coverage_by_class():
    labels = np.array([0, 0, 0, 1, 1, 2])
    truth = np.array([0, 1, 0, 1, 1, 0])
    confidences = np.float32([0.9, 0.8, 0.3, 0.7, 0.95, 0.7])
    kept, correct, of_truth = threshold_table.measure(labels, confidences, truth, 3, 0.7)
    assert kept.tolist() == [2, 2, 1]  # A confidence equal to the threshold is kept.
    assert correct.tolist() == [1, 2, 0]
    assert of_truth.tolist() == [3, 3, 0]
    lines = threshold_table.table(["a", "b", "c"], {0.7: (kept, correct, of_truth)})
    assert [line.split() for line in lines] == [
        ["class", "0.7"],
        ["a", "2", "50.0", "33.3"],
        ["b", "2", "100.0", "66.7"],
        ["c", "1", "0.0", "-"],
        ["all", "5", "60.0", "50.0"],
    ]


def test_scores_are_joined_with_the_sealed_truth_by_id(tmp_path):
    images = make_images(tmp_path)
    scores = Stage(tmp_path / "scores", "0", {})
    (scores.path / "unlabeled").mkdir(parents=True)
    log_probabilities = np.log(np.full((2, 3), 0.2) + np.eye(3)[[1, 2]] * 0.4).astype(np.float32)
    given = from_predictions(
        ["image/1/0", "image/0/3"], log_probabilities, 0, np.float32([0.7, 0.8])
    )
    write_scores(scores.path / "unlabeled/00000.parquet", given)
    labels, confidences, truth = threshold_table.read(images, scores)
    assert labels.tolist() == [2] and truth.tolist() == [2]  # Of image/1/0 nothing is known.
    np.testing.assert_allclose(confidences["confidence"], [0.6])
    np.testing.assert_allclose(confidences["calibrated_confidence"], [0.8])


def test_without_any_truth_there_is_nothing_to_report(tmp_path):
    images = make_images(tmp_path, with_truth=False)
    with pytest.raises(UserError, match="there is nothing to report"):
        threshold_table.read(images, make_stage(tmp_path, "gen1/scores", {}))
