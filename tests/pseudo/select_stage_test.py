import io
import logging

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from nsk.data import records
from nsk.data.shards import ShardSet, ShardWriter
from nsk.errors import UserError
from nsk.pseudo import select
from nsk.pseudo.scores import from_predictions, read_scores, write_scores
from nsk.pseudo.select_stage import read_copies, read_labels, select_images

CLASS_NAMES = ["zero", "one", "two"]
PAPER = {"policy": "paper", "min_confidence": 0.5, "images_per_class": 4, "seed": 0}
GAP = {"policy": "gap", "min_confidence": 0.5, "gap_floor": 6, "gap_margin": 2, "seed": 0}
NONE = {"policy": "none", "min_confidence": 0.5, "seed": 0}

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


def make_scores(folder, shards=SHARDS):
    folder.mkdir()
    for number, rows in enumerate(shards):
        probabilities = np.empty((len(rows), 3), np.float32)
        for row, (label, confidence) in enumerate(rows):
            probabilities[row] = (1 - confidence) / 2
            probabilities[row, label] = confidence
        ids = [f"image/{number}/{row}" for row in range(len(rows))]
        scores = from_predictions(ids, np.log(probabilities))
        write_scores(folder / f"{number:05d}.parquet", scores)
    return folder


def run(settings, scores, labeled, folder):
    folder.mkdir()
    return select_images(settings, scores, labeled, folder)


def read_all(folder):
    """{id: copies} over all files, after a check that each stands row for row with its scores."""
    copies = {}
    for number in range(len(SHARDS)):
        ids, numbers = read_copies(folder / f"{number:05d}.parquet")
        assert ids == [f"image/{number}/{row}" for row in range(len(ids))]
        copies |= dict(zip(ids, numbers.tolist(), strict=True))
    return copies


def test_copies_stand_row_for_row_with_the_scores(tmp_path, labeled):
    counts = run(PAPER, make_scores(tmp_path / "scores"), labeled, tmp_path / "selection")
    copies = read_all(tmp_path / "selection")
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
    assert counts["per_class"]["starved"] == (2,)
    assert not (tmp_path / "selection" / "labeled.parquet").exists()


def test_files_hold_what_the_pure_function_decides(tmp_path, labeled):
    run(NONE, make_scores(tmp_path / "scores"), labeled, tmp_path / "selection")
    scores = read_scores(sorted((tmp_path / "scores").iterdir()))
    decided = select.select(
        "none", scores.keys, scores.labels, scores.confidences, num_classes=3, min_confidence=0.5
    )
    copies = read_all(tmp_path / "selection")
    assert [copies[one] for one in scores.ids] == decided.copies.tolist()


def test_the_gap_policy_writes_copies_of_labelled_images(tmp_path, labeled):
    run(GAP, make_scores(tmp_path / "scores"), labeled, tmp_path / "selection")
    ids, copies = read_copies(tmp_path / "selection" / "labeled.parquet")
    all_ids, labels = read_labels(labeled)
    assert ids == all_ids
    # Twos have no pseudo-label: their 3 labelled images are repeated up to the floor of 6.
    assert copies[labels == 2].tolist() == [2, 2, 2]
    # Zeros are 2 + 5, ones 2 + 2 which repeats the labelled first; all within 6 + 2.
    pseudo = read_all(tmp_path / "selection")
    assert copies[labels == 0].sum() == 2 and sum(pseudo.values()) == 5 + 2
    assert copies[labels == 1].tolist() == [2, 2]


def test_starved_classes_are_named_in_a_warning(tmp_path, labeled, caplog):
    scores = make_scores(tmp_path / "scores")
    with caplog.at_level(logging.WARNING):
        run(PAPER, scores, labeled, tmp_path / "one")
        run(PAPER | {"min_confidence": 0.85}, scores, labeled, tmp_path / "two")
    first, second = (record.getMessage() for record in caplog.records)
    assert "labelled two with a confidence of 0.5" in first and "see it only" in first
    assert "labelled one, two with a confidence of 0.85" in second and "see them only" in second


def test_no_warning_where_every_class_has_its_images(tmp_path, labeled, caplog):
    scores = make_scores(tmp_path / "scores", [[(0, 0.9), (1, 0.9), (2, 0.9)]])
    with caplog.at_level(logging.WARNING):
        run(PAPER, scores, labeled, tmp_path / "selection")
    assert not caplog.records


@pytest.mark.parametrize("settings", [PAPER, GAP, NONE])
def test_a_threshold_that_keeps_nothing_is_a_user_error(tmp_path, labeled, settings):
    scores = make_scores(tmp_path / "scores")
    message = r"--min_confidence=0.99 keeps none of 9 images: the most confident has 0.95"
    with pytest.raises(UserError, match=message):
        run(settings | {"min_confidence": 0.99}, scores, labeled, tmp_path / "selection")


def test_labelled_images_that_leave_no_room_are_a_user_error(tmp_path, labeled):
    # The smallest class has two images, and so may each of the others: the labelled ones.
    scores = make_scores(tmp_path / "scores", [[(2, 0.9)]])
    with pytest.raises(UserError, match=r"no room .*--gap_margin=0"):
        run(GAP | {"gap_floor": 0, "gap_margin": 0}, scores, labeled, tmp_path / "selection")


def test_the_result_does_not_depend_on_the_number_of_shards(tmp_path, labeled):
    run(PAPER, make_scores(tmp_path / "scores"), labeled, tmp_path / "selection")
    copies = read_all(tmp_path / "selection")
    scores = read_scores(sorted((tmp_path / "scores").iterdir()))
    (tmp_path / "joined").mkdir()
    write_scores(tmp_path / "joined" / "00000.parquet", scores)
    run(PAPER, tmp_path / "joined", labeled, tmp_path / "selection of joined")
    ids, joined = read_copies(tmp_path / "selection of joined" / "00000.parquet")
    assert dict(zip(ids, joined.tolist(), strict=True)) == copies


def test_read_labels(labeled):
    ids, labels = read_labels(labeled)
    assert len(set(ids)) == 7 and labels.tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_a_broken_shard_of_labelled_images_is_named(labeled):
    path = labeled.paths[1]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=path.name):
        read_labels(labeled)
