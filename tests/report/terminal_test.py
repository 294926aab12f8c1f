from tests.report.run_summary_test import make_stage

from nsk.report import selection_table as selection


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
        "dev_before_cut": [8, 0],
        "dev_before_cut_correct": [6, 0],
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
    assert "efore cut" not in told
    assert str(stages[2].path) in told


def test_what_dev_says_of_those_before_the_cut_is_shown_where_it_differs(tmp_path, capsys):
    stages = make(tmp_path)
    of_classes = stages[2].counts["per_class"]
    of_classes |= {"dev_before_cut": [5, 0], "dev_before_cut_correct": [4, 0]}
    selection.report(*stages)
    told = capsys.readouterr().out
    rows = [line.split() for line in told.splitlines() if line]
    assert rows[0][-6:] == ["dev", "kept", "right", "before", "cut", "right"]
    assert rows[1][-4:] == ["8", "75.00%", "5", "80.00%"]
    assert rows[2][-4:] == ["0", "-", "0", "-"]
    assert rows[3][-4:] == ["8", "75.00%", "5", "80.00%"]
    assert "Before cut:" in told
    del of_classes["dev_before_cut"], of_classes["dev_before_cut_correct"]  # An older run's.
    selection.report(*stages)
    assert "efore cut" not in capsys.readouterr().out


def test_of_scores_from_elsewhere_dev_says_nothing(tmp_path, capsys):
    selection.report(*make(tmp_path, temperature=None))
    told = capsys.readouterr().out
    rows = [line.split() for line in told.splitlines() if line]
    assert rows[0][-1] == "lowest" and rows[1][-1] == "0.5001"
    assert rows[3] == ["all", "1,000", "600", "600"]
    assert "temperature" not in told and "dev images" not in told
    assert "What the records' teacher says of dev is not known. Nothing was trained." in told
