import dataclasses
import io
import itertools
import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn import datasets

from nsk.config.selection import SelectionConfig
from nsk.data import records
from nsk.data.shards import ShardSet, ShardWriter
from nsk.errors import UserError
from nsk.evaluation.prediction_files import (
    make_stored_predictions,
    read_predictions,
    read_table,
    write_predictions,
)
from nsk.pseudo import engine, score_rows
from nsk.pseudo.score_rows import read_copies
from nsk.stages.selection import (
    make_thresholds,
    read_labeled_copies,
    read_labels,
    select_images,
)

CLASS_NAMES = ["zero", "one", "two"]
BASE = {"min_confidence": 0.5, "calibrate": False, "target_precision": 0.0}
PAPER = SelectionConfig(policy="paper", images_per_class=4, **BASE)
GAP = SelectionConfig(policy="gap", gap_floor=6, gap_margin=2, **BASE)
NONE = SelectionConfig(policy="none", **BASE)

# Shards of unlabelled images as (label, confidence).
SHARDS = [
    [(0, 0.9), (1, 0.8), (0, 0.4), (0, 0.95)],
    [(1, 0.3), (0, 0.6)],
    [(0, 0.7), (1, 0.55), (0, 0.85)],
]


@pytest.fixture
def labeled(tmp_path):
    """Handwritten zeros, ones and twos: 2, 2 and 3 of them, in shards of 4."""
    digits = datasets.load_digits()
    with ShardWriter(tmp_path / "labeled", "images", CLASS_NAMES, 4) as writer:
        for label, number in ((0, 2), (1, 2), (2, 3)):
            for row in np.flatnonzero(digits.target == label)[:number].tolist():
                buffer = io.BytesIO()
                pixels = np.round(digits.images[row] * (255 / 16)).astype(np.uint8)
                Image.fromarray(pixels).save(buffer, "PNG")
                writer.write(records.image_example(f"labeled/{row}", buffer.getvalue(), label))
    return ShardSet.load(tmp_path / "labeled")


def predict_images(images, ids, calibrated=None):
    """`StoredPredictions` of (label, confidence) pairs."""
    probabilities = np.empty((len(images), 3), np.float32)
    for row, (label, confidence) in enumerate(images):
        probabilities[row] = (1 - confidence) / 2
        probabilities[row, label] = confidence
    return make_stored_predictions(ids, np.log(probabilities), 0, calibrated)


def make_scores(folder, shards=SHARDS, dev=((0, 0.9), (1, 0.6), (2, 0.2)), truth=(0, 1, 0)):
    """Score files of unlabelled images and dev; calibrated confidences are the square roots."""

    def write(path, images, ids, truth=None):
        calibrated = np.sqrt(np.float32([confidence for _, confidence in images]))
        write_predictions(path, predict_images(images, ids, calibrated), truth)

    (folder / "unlabeled").mkdir(parents=True)
    for number, images in enumerate(shards):
        ids = [f"image/{number}/{row}" for row in range(len(images))]
        write(folder / "unlabeled" / f"{number:05d}.parquet", images, ids)
    ids = [f"dev/{row}" for row in range(len(dev))]
    write(folder / "dev.parquet", dev, ids, np.asarray(truth, np.int32))
    return folder


def paths_of(scores):
    return sorted((scores / "unlabeled").iterdir())


def run(settings, scores, labeled, folder):
    folder.mkdir()
    return select_images(settings, 0, paths_of(scores), scores / "dev.parquet", labeled, folder)


def read_all(folder, scores):
    """{id: copies} of all files, row for row with the score files."""
    copies = {}
    for path in paths_of(scores):
        ids, file_copies = read_predictions(path).ids, read_copies(folder / path.name)
        assert file_copies.dtype == np.int32
        copies |= dict(zip(ids, file_copies.tolist(), strict=True))
    return copies


def test_copies_are_row_for_row_with_the_score_files(tmp_path, labeled):
    scores = make_scores(tmp_path / "scores")
    counts = run(PAPER, scores, labeled, tmp_path / "selection")
    copies = read_all(tmp_path / "selection", scores)
    # The four most confident zeros of six; two ones twice each; no twos.
    assert copies == {
        "image/0/0": 1,  # 0.9
        "image/0/1": 2,
        "image/0/2": 0,  # Below the threshold.
        "image/0/3": 1,  # 0.95
        "image/1/0": 0,  # Below the threshold.
        "image/1/1": 0,  # 0.6, the fifth.
        "image/2/0": 1,  # 0.7
        "image/2/1": 2,
        "image/2/2": 1,  # 0.85
    }
    assert counts["images"] == 6 and counts["copies"] == 8
    assert counts["per_class"]["candidates"] == (5, 2, 0)
    assert counts["per_class"]["copies"] == (4, 4, 0)
    # Dev: a zero and a one, both correct; the third image is below the threshold.
    assert counts["per_class"]["dev_kept"] == [1, 1, 0]
    assert counts["per_class"]["dev_correct"] == [1, 1, 0]
    assert counts["per_class"]["thresholds"] == (0.5, 0.5, 0.5)
    json.dumps(counts)
    *names, classes = sorted(path.name for path in (tmp_path / "selection").iterdir())
    assert names == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert (tmp_path / "selection" / classes).read_text().splitlines() == [
        "class,labeled,threshold,candidates,kept,copies,lowest_confidence",
        "zero,2,0.5,5,4,4,0.7",
        "one,2,0.5,2,2,4,0.55",
        "two,3,0.5,0,0,0,",
    ]
    assert read_table(tmp_path / "selection" / names[0]).column_names == ["copies"]
    assert read_labeled_copies(tmp_path / "selection") == {}


@pytest.mark.parametrize("block_rows", [1, 3, 5, 2**20])
@pytest.mark.parametrize("cores", [1, 2, 64])
def test_files_hold_the_result_of_a_plain_loop(tmp_path, labeled, monkeypatch, block_rows, cores):
    """In blocks of a single file or of several, with a single thread or several."""
    monkeypatch.setattr(score_rows, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(score_rows, "num_cores", lambda: cores)
    monkeypatch.setattr(engine, "num_cores", lambda: cores)
    random = np.random.default_rng(0)
    levels = [0.4, 0.5, 0.6, 0.9]
    shards = [
        [(int(random.integers(3)), float(random.choice(levels))) for _ in range(count)]
        for count in (4, 1, 9, 2, 2, 30)
    ]
    scores = make_scores(tmp_path / "scores", shards)
    counts = run(
        dataclasses.replace(PAPER, images_per_class=7), scores, labeled, tmp_path / "selection"
    )
    copies = read_all(tmp_path / "selection", scores)
    all_predictions = [read_predictions(path) for path in paths_of(scores)]
    for label in range(3):
        candidates = [
            (-float(predictions.confidences[row]), predictions.ids[row])
            for predictions in all_predictions
            for row in range(len(predictions))
            if predictions.labels[row] == label and predictions.confidences[row] >= np.float32(0.5)
        ]
        assert counts["per_class"]["candidates"][label] == len(candidates) > 7
        kept = [(key, image_id) for key, image_id in candidates if copies[image_id]]
        assert len(kept) == 7 and {copies[image_id] for _, image_id in kept} == {1}
        dropped = [key for key, image_id in candidates if not copies[image_id]]
        assert max(key for key, _ in kept) <= min(dropped)
    assert sum(copies.values()) == counts["copies"] == counts["images"] == 21


def test_images_with_equal_keys_are_ordered_by_the_ids_in_their_files(tmp_path, labeled):
    scores = make_scores(tmp_path / "scores", [[(0, 0.9)] * 3, [(0, 0.9)] * 3, [(1, 0.9)]])
    for path in paths_of(scores)[:2]:
        predictions = read_predictions(path)
        write_predictions(path, dataclasses.replace(predictions, keys=np.full(3, 5, np.uint64)))
    run(dataclasses.replace(PAPER, images_per_class=4), scores, labeled, tmp_path / "selection")
    copies = read_all(tmp_path / "selection", scores)
    assert [copies[image_id] for image_id in sorted(copies)] == [1, 1, 1, 1, 0, 0, 4]


def test_classes_in_the_proportions_of_the_labelled_images(tmp_path, labeled):
    """Labels 2, 2 and 3: of twos there are no pseudo-labels here, of zeros alone there."""
    settings = SelectionConfig(policy="labeled_shares", images_per_class=3, **BASE)
    images = [[(0, 0.9), (2, 0.8), (2, 0.7), (2, 0.6), (2, 0.9), (2, 0.95)], [(0, 0.2), (0, 0.7)]]
    scores = make_scores(tmp_path / "scores", images)
    counts = run(settings, scores, labeled, tmp_path / "selection")
    # 2 x 3 rows at 2 : 3, exactly 2.4 and 3.6: the most confident 4 of 5 twos.
    assert counts["per_class"]["copies"] == (2, 0, 4) and counts["copies"] == 6
    assert counts["per_class"]["kept"] == (2, 0, 4)
    copies = read_all(tmp_path / "selection", scores)
    assert list(copies.values()) == [1, 1, 1, 0, 1, 1, 0, 1]


def test_the_gap_policy_writes_copies_of_labelled_images(tmp_path, labeled):
    scores = make_scores(tmp_path / "scores")
    run(GAP, scores, labeled, tmp_path / "selection")
    labeled_copies = read_labeled_copies(tmp_path / "selection")
    all_ids, labels = read_labels(labeled)
    assert list(labeled_copies) == all_ids
    copies = np.array(list(labeled_copies.values()))
    # No pseudo-label is a two: the 3 labelled twos are repeated up to the floor of 6.
    assert copies[labels == 2].tolist() == [2, 2, 2]
    # Zeros are 2 + 5, ones 2 + 2 which repeats the labelled first; all within 6 + 2.
    pseudo = read_all(tmp_path / "selection", scores)
    assert copies[labels == 0].sum() == 2 and sum(pseudo.values()) == 5 + 2
    assert copies[labels == 1].tolist() == [2, 2]


# Thresholds.


def test_calibrated_confidences_are_compared_on_request(tmp_path, labeled):
    scores = make_scores(tmp_path / "scores")
    plain = run(dataclasses.replace(NONE, min_confidence=0.8), scores, labeled, tmp_path / "plain")
    counts = run(
        dataclasses.replace(NONE, min_confidence=0.8, calibrate=True),
        scores,
        labeled,
        tmp_path / "calibrated",
    )
    # The calibrated confidence is the square root: 0.64 is enough.
    assert plain["per_class"]["candidates"] == (3, 1, 0)
    assert counts["per_class"]["candidates"] == (4, 1, 0)
    assert counts["per_class"]["lowest_confidence"][0] == pytest.approx(0.7**0.5)
    assert counts["per_class"]["dev_kept"] == [1, 0, 0]


def make_dev(confidences, is_correct):
    """Arguments of `make_scores` for dev images that all get the label 0."""
    return {
        "dev": [(0, confidence) for confidence in confidences],
        "truth": [0 if correct else 1 for correct in is_correct],
    }


def test_the_precision_on_dev_sets_the_threshold_of_each_class(tmp_path, labeled, caplog):
    confidences = np.linspace(0.99, 0.5, 50)
    is_correct = np.arange(50) < 30  # 30 / 33 = 0.909.
    scores = make_scores(tmp_path / "scores", **make_dev(confidences, is_correct))
    threshold = float(np.float32(confidences[32]))
    settings = dataclasses.replace(NONE, target_precision=0.9)
    with caplog.at_level(logging.WARNING):
        counts = run(settings, scores, labeled, tmp_path / "selection")
    assert counts["per_class"]["thresholds"] == pytest.approx([threshold] * 3)
    assert counts["per_class"]["candidates"] == (4, 1, 0)
    assert counts["per_class"]["dev_kept"] == [33, 0, 0]
    assert counts["per_class"]["dev_correct"] == [30, 0, 0]
    warned = caplog.records[0].getMessage()
    assert "--target_precision=0.9" in warned and "one (0.67), two (0.67)" in warned
    assert "fewer than 20 dev images" in warned and "zero" not in warned
    assert not [record for record in caplog.records if "either" in record.getMessage()]
    counts = run(
        dataclasses.replace(settings, min_confidence=0.8), scores, labeled, tmp_path / "minimum"
    )
    assert counts["per_class"]["thresholds"] == pytest.approx([0.8] * 3)


def test_a_target_precision_that_dev_does_not_reach_triggers_a_warning(tmp_path, labeled, caplog):
    scores = make_scores(
        tmp_path / "scores", **make_dev(np.linspace(0.99, 0.5, 50), np.arange(50) % 2 == 0)
    )
    with caplog.at_level(logging.WARNING):
        run(
            dataclasses.replace(NONE, target_precision=0.9), scores, labeled, tmp_path / "selection"
        )
    messages = [record.getMessage() for record in caplog.records]
    assert any(
        "zero" in line and "no threshold that keeps 20 dev images reaches it" in line
        for line in messages
    )
    assert any("all classes together do not reach it" in line for line in messages)


def test_a_class_with_few_dev_images_does_not_miss_the_target(tmp_path, labeled, caplog):
    """All of the 12 dev images at the threshold or above are correct: too few to decide."""
    confidences = np.linspace(0.99, 0.5, 50)
    scores = make_scores(tmp_path / "scores", **make_dev(confidences, np.arange(50) < 12))
    settings = dataclasses.replace(NONE, target_precision=0.9, min_confidence=0.875)
    with caplog.at_level(logging.WARNING):
        counts = run(settings, scores, labeled, tmp_path / "selection")
    assert counts["per_class"]["dev_kept"][0] == counts["per_class"]["dev_correct"][0] == 12
    messages = [record.getMessage() for record in caplog.records]
    assert any("zero" in line and "fewer than 20 dev images" in line for line in messages)
    assert not any("no threshold" in line for line in messages)


def test_dev_images_before_the_cut_of_the_policy_are_counted(tmp_path, labeled):
    """The cut of the zeros is at 0.9: of three dev images above the threshold, two reach it."""
    scores = make_scores(
        tmp_path / "scores", dev=[(0, 0.95), (0, 0.9), (0, 0.6), (1, 0.5)], truth=[0, 1, 0, 1]
    )
    counts = run(
        dataclasses.replace(PAPER, images_per_class=2), scores, labeled, tmp_path / "selection"
    )
    per_class = counts["per_class"]
    assert per_class["dev_kept"] == [3, 1, 0] and per_class["dev_correct"] == [2, 1, 0]
    # All ones are selected: their threshold counts, though the lowest confidence is 0.55.
    assert per_class["dev_before_cut"] == [2, 1, 0]
    assert per_class["dev_before_cut_correct"] == [1, 1, 0]
    json.dumps(counts)


@pytest.mark.parametrize("which", ["unlabeled/00001.parquet", "dev.parquet"])
@pytest.mark.parametrize("content", [None, b"", b"PAR1" + bytes(100) + b"PAR1"])
def test_missing_and_damaged_score_files_are_user_errors(tmp_path, labeled, which, content):
    scores = make_scores(tmp_path / "scores")
    paths = paths_of(scores)
    (scores / which).unlink()
    if content is not None:
        (scores / which).write_bytes(content)
    (tmp_path / "selection").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        select_images(PAPER, 0, paths, scores / "dev.parquet", labeled, tmp_path / "selection")


def test_many_classes_that_miss_the_precision_are_cut_at_ten(caplog):
    names = [f"class {label}" for label in range(200)]
    few = np.zeros(3, int), np.full(3, 0.9, np.float32), np.zeros(3, int)
    make_thresholds(*few, names, 0.5, 0.9)
    (message,) = [record.getMessage() for record in caplog.records if "classes" in record.msg][:1]
    assert "class 9 (0.9) and 190 more, fewer" in message and "class 10" not in message


@pytest.mark.parametrize("settings", [PAPER, GAP, NONE])
def test_a_threshold_that_keeps_nothing_is_a_user_error(tmp_path, labeled, settings):
    scores = make_scores(tmp_path / "scores")
    message = r"at least 0\.99; the highest confidence is 0\.95\. Lower --min_confidence"
    with pytest.raises(UserError, match=message):
        run(
            dataclasses.replace(settings, min_confidence=0.99),
            scores,
            labeled,
            tmp_path / "selection",
        )


def test_labelled_images_that_leave_no_room_are_a_user_error(tmp_path, labeled):
    # The smallest class has two images, so that the others keep only their labelled ones.
    scores = make_scores(tmp_path / "scores", [[(2, 0.9)]])
    with pytest.raises(UserError, match=r"no room .*--gap_margin=0"):
        run(
            dataclasses.replace(GAP, gap_floor=0, gap_margin=0),
            scores,
            labeled,
            tmp_path / "selection",
        )


@pytest.mark.parametrize("sizes", [[9], [1] * 9, [0, 4, 0, 5], [8, 1]])
def test_the_result_does_not_depend_on_the_number_of_shards(tmp_path, labeled, sizes):
    scores = make_scores(tmp_path / "scores")
    run(PAPER, scores, labeled, tmp_path / "selection")
    copies = read_all(tmp_path / "selection", scores)
    images = [image for shard in SHARDS for image in shard]
    ids = [image_id for path in paths_of(scores) for image_id in read_predictions(path).ids]
    resharded = make_scores(tmp_path / "resharded", [])
    for number, size in enumerate(sizes):
        first = sum(sizes[:number])
        part = slice(first, first + size)
        calibrated = np.ones(size, np.float32)
        write_predictions(
            resharded / "unlabeled" / f"{number:05d}.parquet",
            predict_images(images[part], ids[part], calibrated),
        )
    run(PAPER, resharded, labeled, tmp_path / "resharded selection")
    joined = [
        read_copies(tmp_path / "resharded selection" / path.name).tolist()
        for path in paths_of(resharded)
    ]
    assert list(map(len, joined)) == sizes
    assert dict(zip(ids, itertools.chain(*joined), strict=True)) == copies


def test_read_labels(labeled):
    ids, labels = read_labels(labeled)
    assert len(set(ids)) == 7 and labels.tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_a_broken_shard_of_labelled_images_is_named(labeled):
    path = labeled.paths[1]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=path.name):
        read_labels(labeled)


@pytest.mark.parametrize("settings", [PAPER, GAP, NONE])
def test_images_far_from_dev_are_selected_as_if_they_did_not_exist(labeled, tmp_path, settings):
    """Compared with scores that lack them; also a minimum confidence of 0 does not admit them."""
    settings = settings.with_values(min_confidence=0.0)
    random = np.random.default_rng(0)
    shards = [
        [(int(random.integers(3)), float(random.uniform(0.4, 1))) for _ in range(count)]
        for count in (7, 1, 9)
    ]
    distances = [random.uniform(0, 1, len(shard)).astype(np.float32) for shard in shards]
    distances[1][:] = 0.9
    limit = float(np.median(distances[0]))  # An image at the limit is near enough.
    whole = make_scores(tmp_path / "whole", shards)
    near = make_scores(tmp_path / "near", shards)
    for number, far in enumerate(distances):
        for folder in (whole, near):
            path = folder / "unlabeled" / f"{number:05d}.parquet"
            predictions = dataclasses.replace(read_predictions(path), feature_distances=far)
            write_predictions(path, predictions)
        table = read_table(path)
        pq.write_table(table.filter(pa.array(far <= np.float32(limit))), path)
    counts, copies = {}, {}
    for folder, max_distance in ((whole, limit), (near, None)):
        output = tmp_path / f"selected-{folder.name}"
        output.mkdir()
        paths = sorted((folder / "unlabeled").glob("*.parquet"))
        counts[folder.name] = select_images(
            settings, 0, paths, folder / "dev.parquet", labeled, output, max_distance=max_distance
        )
        copies[folder.name] = [read_copies(output / path.name) for path in paths]
    assert counts["whole"] == counts["near"]
    for received, expected, far in zip(copies["whole"], copies["near"], distances, strict=True):
        is_far = far > np.float32(limit)
        assert not received[is_far].any() and is_far.any()
        np.testing.assert_array_equal(received[~is_far], expected)
