from nsk.report import selection
from tests.report.summary_test import make_stage


def make(tmp_path, temperature=1.25, lowest=0.5001):
    images = make_stage(
        tmp_path, "data/images", {"class_names": ["cat", "dog"], "images": {"dev": 30}}
    )
    scores = make_stage(tmp_path, "gen1/scores", {"scored": 1200, "temperature": temperature})
    per_class = {
        "thresholds": [0.5, 0.75],
        "candidates": [1000, 0],
        "kept": [600, 0],
        "copies": [600, 0],
        "lowest_confidence": [lowest, None],
        "labeled_copies": None,
        "starved": [1],
        "dev_kept": [8, 0],
        "dev_correct": [6, 0],
    }
    counts = {"images": 600, "copies": 600, "per_class": per_class}
    return images, scores, make_stage(tmp_path, "gen1/selection", counts)


def test_every_class_has_its_row_and_all_have_one(tmp_path, capsys):
    stages = make(tmp_path)
    assert selection.report(*stages) == stages[2].counts
    told = capsys.readouterr().out
    rows = [line.split() for line in told.splitlines() if line]
    assert rows[1] == ["cat", "0.5", "1,000", "600", "600", "0.5001", "8", "75.00%"]
    assert rows[2] == ["dog", "0.75", "0", "0", "0", "-", "0", "-"]
    assert rows[3] == ["all", "1,000", "600", "600", "8", "75.00%"]
    assert "Of 1,200 unlabelled images." in told and "of 30 dev images" in told
    assert "fits dev best is 1.250. Nothing was trained." in told
    assert str(stages[2].path) in told


def test_scores_from_elsewhere_have_no_temperature(tmp_path, capsys):
    selection.report(*make(tmp_path, temperature=None))
    assert "temperature" not in capsys.readouterr().out
