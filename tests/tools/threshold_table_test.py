import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nsk.errors import UserError
from nsk.evaluation.prediction_files import make_stored_predictions, write_predictions
from nsk.store.folders import StageFolder
from tests.report.run_report_test import make_images, make_stage
from tools import threshold_table


def test_kept_precision_and_coverage_by_class():
    labels = np.array([0, 0, 0, 1, 1, 2])
    truth = np.array([0, 1, 0, 1, 1, 0])
    confidences = np.float32([0.9, 0.8, 0.3, 0.7, 0.95, 0.7])
    kept, correct, num_images = threshold_table.measure(labels, confidences, truth, 3, 0.7)
    assert kept.tolist() == [2, 2, 1]  # A confidence equal to the threshold is kept.
    assert correct.tolist() == [1, 2, 0]
    assert num_images.tolist() == [3, 3, 0]
    lines = threshold_table.format_results(["a", "b", "c"], {0.7: (kept, correct, num_images)})
    assert [line.split() for line in lines] == [
        ["class", "0.7"],
        ["a", "2", "50.0", "33.3"],
        ["b", "2", "100.0", "66.7"],
        ["c", "1", "0.0", "-"],
        ["all", "5", "60.0", "50.0"],
    ]


def test_scores_are_joined_with_the_sealed_truth_by_id(tmp_path):
    images = make_images(tmp_path)
    scores = StageFolder(tmp_path / "scores", "0", {})
    (scores.path / "unlabeled").mkdir(parents=True)
    log_probabilities = np.log(np.full((2, 3), 0.2) + np.eye(3)[[1, 2]] * 0.4).astype(np.float32)
    predictions = make_stored_predictions(
        ["image/1/0", "image/0/3"], log_probabilities, 0, np.float32([0.7, 0.8])
    )
    write_predictions(scores.path / "unlabeled/00000.parquet", predictions)
    predictions = threshold_table.read_unlabeled(images, scores)
    assert predictions.labels.tolist() == [2] and predictions.truth.tolist() == [
        2
    ]  # image/1/0 is unknown.
    np.testing.assert_allclose(predictions.confidences["confidence"], [0.6])
    np.testing.assert_allclose(predictions.confidences["calibrated_confidence"], [0.8])


def write(path, labels, confidences, truth=None):
    """A score file of three classes; calibrated confidences are the square roots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    confidences = np.float32(confidences)
    probabilities = np.tile((1 - confidences[:, np.newaxis]) / 2, 3)
    probabilities[np.arange(len(labels)), labels] = confidences
    ids = [f"{path.stem}/{row}" for row in range(len(labels))]
    scores = make_stored_predictions(ids, np.log(probabilities), 0, np.sqrt(confidences))
    write_predictions(path, scores, truth)


def test_precision_is_measured_on_dev_if_no_true_label_is_known(tmp_path):
    images = make_images(tmp_path, with_truth=False)
    images.counts["class_names"] = ["a", "b", "c"]
    scores = make_stage(tmp_path, "gen1/scores", {"scored": 5, "temperature": 1.5})
    write(scores.path / "unlabeled/00000.parquet", [0, 0, 1], [0.9, 0.7, 0.9])
    write(scores.path / "unlabeled/00001.parquet", [1, 2], [0.9, 0.5])
    write(scores.path / "dev.parquet", [0, 0, 1, 1], [0.9, 0.8, 0.9, 0.4], [0, 1, 1, 0])
    assert threshold_table.read_unlabeled(images, scores) is None
    first, *lines = threshold_table.report(images, scores, [0.6, 0.8])
    assert "those of 4 dev images; images kept are counted among 5 unlabelled ones" in first
    assert "precision % on dev, coverage % on dev" in lines[0]
    rows = [line.split() for line in lines[1:6]]
    assert rows[1] == ["a", "2", "50.0", "50.0", "1", "50.0", "50.0"]
    assert rows[2] == ["b", "2", "100.0", "50.0", "2", "100.0", "50.0"]
    assert rows[3] == ["c", "0", "-", "-", "0", "-", "-"]
    assert rows[4] == ["all", "4", "66.7", "50.0", "3", "66.7", "50.0"]
    summary = json.loads(lines[-1])
    assert summary["precision_and_coverage"] == "dev"
    assert summary["confidence"]["0.8"] == {
        "kept": 3,
        "precision": pytest.approx(2 / 3),
        "coverage": 0.5,
    }
    assert summary["calibrated_confidence"]["0.8"]["kept"] == 4  # At least 0.64.


def test_without_true_labels_and_dev_scores_there_is_nothing_to_report(tmp_path):
    images = make_images(tmp_path, with_truth=False)
    images.counts["class_names"] = ["a", "b", "c"]
    scores = make_stage(tmp_path, "gen1/scores", {"scored": 5, "temperature": None})
    write(scores.path / "dev.parquet", [], [], np.zeros(0, np.int32))
    with pytest.raises(UserError, match="there is nothing to report"):
        list(threshold_table.report(images, scores, [0.5]))


@pytest.mark.parametrize("texts", ["2", "nan", "-1", "", "0.5,x", "0.5,1.1", "inf"])
def test_invalid_thresholds_are_rejected(texts):
    with pytest.raises(UserError, match=f"--thresholds={texts}: expected numbers from 0 to 1"):
        threshold_table.parse_thresholds(texts.split(",") if texts else [])
    assert threshold_table.parse_thresholds(["0", "1"]) == [0, 1]


def test_a_missing_workdir_is_an_error_and_is_not_created(tmp_path):
    workdir = tmp_path / "typo"
    command = [sys.executable, "-m", "tools.threshold_table", "--flagfile=flags/quickstart.flags"]
    done = subprocess.run(
        [*command, f"--workdir={workdir}"],
        capture_output=True,
        text=True,
        cwd=Path(threshold_table.__file__).parents[1],
    )
    assert done.returncode == 2 and not workdir.exists()
    assert done.stderr == f"nsk: --workdir={workdir} does not exist: give the workdir of a run.\n"
