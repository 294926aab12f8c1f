"""Comparison of score files with dev, and what a run says and does about it."""

import csv
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from nsk.config.selection import SelectionConfig
from nsk.errors import UserError
from nsk.evaluation.prediction_files import make_stored_predictions, write_predictions
from nsk.pseudo import pool_comparison
from nsk.pseudo.beam_engine import BeamEngine
from nsk.stages import comparison, ingestion, scoring, selection, training
from nsk.stages.comparison import COMPARISON_FILE, SUSPICIOUS_FILE, compare_files
from nsk.store.folders import load_stage

NAMES = ["cat", "dog", "owl"]
RUNNER = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"
SETTINGS = SelectionConfig(min_confidence=0.5)


def write_scores(path, labels, confidences, distances, truth=None, calibrated=None):
    probabilities = np.repeat((1 - confidences)[:, np.newaxis] / 2, 3, axis=1)
    probabilities[np.arange(len(labels)), labels] = confidences
    ids = [f"{path.stem}/{row}" for row in range(len(labels))]
    calibrated = confidences if calibrated is None else calibrated
    predictions = make_stored_predictions(
        ids, np.log(probabilities).astype(np.float32), 0, calibrated, distances
    )
    write_predictions(path, predictions, truth)


@pytest.fixture
def scores(tmp_path):
    """(paths of three files of unlabelled images, that of dev, all distances)."""
    random = np.random.default_rng(0)
    paths, distances = [tmp_path / f"{number}.parquet" for number in range(3)], []
    for path, count in zip(paths, (700, 1, 500), strict=True):
        labels, confidences = random.integers(0, 3, count), random.uniform(0.4, 1, count)
        distances.append(random.gamma(9, 0.03, count).astype(np.float32))
        write_scores(path, labels, confidences, distances[-1])
    labels, confidences = random.integers(0, 3, 300), random.uniform(0.4, 1, 300)
    near = random.gamma(2, 0.03, 300).astype(np.float32)
    dev = tmp_path / "dev.parquet"
    write_scores(dev, labels, confidences, near, labels.astype(np.int32), np.sqrt(confidences))
    return paths, dev, np.concatenate(distances)


def test_files_hold_the_figures_and_the_farthest_images(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_comparison, "MAX_SUSPICIOUS", 40)
    paths, dev, distances = scores
    found = compare_files(SETTINGS, paths, dev, NAMES, tmp_path)
    assert found["images"] == 1201 and found["dev_images"] == 300
    assert found["unlike"] == ["unknown"] and found["unknown_share"] > 0.6
    assert json.loads((tmp_path / COMPARISON_FILE).read_text()) == found
    rows = list(csv.DictReader((tmp_path / SUSPICIOUS_FILE).read_text().splitlines()))
    order = np.argsort(-distances)[:40]
    starts = {"0": 0, "1": 700, "2": 701}
    received = [row["id"].split("/") for row in rows]
    assert [starts[file] + int(row) for file, row in received] == order.tolist()
    assert {row["label"] for row in rows} <= set(NAMES)
    # The order of the files does not matter.
    again = tmp_path / "again"
    again.mkdir()
    assert compare_files(SETTINGS, paths[::-1], dev, NAMES, again) == found
    assert (again / SUSPICIOUS_FILE).read_bytes() == (tmp_path / SUSPICIOUS_FILE).read_bytes()


def test_beam_writes_the_same_files(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_comparison, "MAX_SUSPICIOUS", 40)
    paths, dev, _ = scores
    folders = [tmp_path / "here", tmp_path / "beam"]
    for folder in folders:
        folder.mkdir()
    compare_files(SETTINGS, paths, dev, NAMES, folders[0])
    engine = BeamEngine(RUNNER, folders[1], 1)
    compare_files(SETTINGS, paths, dev, NAMES, folders[1], engine)
    for name in (COMPARISON_FILE, SUSPICIOUS_FILE):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_thresholds_are_those_of_the_selection(scores, tmp_path):
    paths, dev, _ = scores
    calibrated = SETTINGS.with_values(calibrate=True, min_confidence=0.9)
    found = compare_files(calibrated, paths, dev, NAMES, tmp_path)["confidence"]
    table = comparison.read_table(dev)
    expected = np.mean(table["calibrated_confidence"].to_numpy() >= np.float32(0.9))
    assert found["above_threshold"]["dev"] == expected
    precise = SETTINGS.with_values(target_precision=1.0, min_confidence=0.7)
    found = compare_files(precise, paths, dev, NAMES, tmp_path)["confidence"]
    expected = np.mean(table["confidence"].to_numpy() >= np.float32(0.7))
    assert found["above_threshold"]["dev"] == pytest.approx(expected, abs=0.01)


def test_files_without_distances_are_compared_and_not_filtered(scores, tmp_path):
    paths, dev, _ = scores
    labels = np.arange(60) % 3
    confidences = np.linspace(0.4, 0.99, 60)
    for path in (*paths, dev):
        write_scores(path, labels, confidences, None, labels.astype(np.int32))
    found = compare_files(SETTINGS, paths, dev, NAMES, tmp_path)
    assert found["distance"] is None and found["unlike"] == []
    rows = list(csv.DictReader((tmp_path / SUSPICIOUS_FILE).read_text().splitlines()))
    assert [row["id"] for row in rows[:3]] == ["0/0", "1/0", "2/0"]
    stage = SimpleNamespace(counts=found)
    with pytest.raises(UserError, match="--unknown_classes=filter needs the features"):
        comparison.max_distance(SETTINGS.with_values(unknown_classes="filter"), stage)
    assert comparison.max_distance(SETTINGS, stage) is None


@pytest.fixture
def run(make_runner, tmp_path, monkeypatch):
    """Function of `unknown_classes`: (comparison, selection) of a run whose pool is unlike dev.

    The pool is told to be so: all differences count, however small or likely they are.
    """
    monkeypatch.setattr(pool_comparison, "P_VALUE", 2)
    monkeypatch.setattr(pool_comparison, "MIN_UNKNOWN_SHARE", -1)

    def make(**values):
        runner = make_runner(tmp_path, min_confidence=["0"], policy="none", **values)
        images = ingestion.ingest_images(runner)
        scores = scoring.score(runner, 1, training.train(runner, 0, images), images)
        compared = comparison.compare(runner, 1, scores, images)
        return compared, selection.select(runner, 1, scores, images, compared)

    return make


def test_a_run_warns_filters_or_does_not_compare(run, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        compared, selected = run()
    assert "The unlabelled images are not like dev: " in caplog.text
    assert f"{compared.name}/{SUSPICIOUS_FILE} lists" in caplog.text
    assert "of no known class, or dev is of another source" in caplog.text
    assert load_stage(compared.path).counts == compared.counts

    caplog.clear()
    off, selected_off = run(unknown_classes="off")
    assert off is None and "like dev" not in caplog.text
    assert selected_off.path == selected.path  # A warning changes no selection.

    with caplog.at_level(logging.INFO, logger="absl"):
        again, filtered = run(unknown_classes="filter")
    assert again.reused and "not like dev" in caplog.text  # Also said when it is resumed.
    left_out = compared.counts["distance"]["beyond_limit"]
    assert 0 < left_out < compared.counts["images"]
    assert selected.counts["images"] == compared.counts["images"]
    assert filtered.counts["images"] == compared.counts["images"] - left_out
    assert f"{left_out:,} of {compared.counts['images']:,} images" in caplog.text
