"""The report of a selection: the table, and all classes in a CSV file."""

import csv

from nsk.report.selection_report import Selection, report_selection
from tests.report.run_report_test import make_stage


def make_selection(tmp_path, temperature=1.25, lowest=0.5001):
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
        "dev_kept": [8, 0],
        "dev_correct": [6, 0],
        "dev_before_cut": [8, 0],
        "dev_before_cut_correct": [6, 0],
    }
    counts = {"images": 600, "copies": 600, "per_class": per_class}
    return Selection(images, scores, make_stage(tmp_path, "gen1/selection", counts))


def test_the_selection_table_has_a_row_for_each_class_and_a_total(tmp_path, capsys):
    selection = make_selection(tmp_path)
    assert report_selection(selection) == selection.selected.counts
    output = capsys.readouterr().out
    rows = [line.split() for line in output.splitlines() if line]
    assert rows[1] == ["cat", "0.5", "1,000", "600", "600", "0.5001", "8", "75.00%"]
    assert rows[2] == ["dog", "0.75", "0", "0", "0", "-", "0", "-"]
    assert rows[3] == ["all", "1,000", "600", "600", "8", "75.00%"]
    assert "1,200 unlabelled images were scored." in output and "of 30 dev images" in output
    assert "Temperature fitted on dev: 1.250. Nothing was trained." in output
    assert "efore cut" not in output
    assert str(selection.selected.path) in output


def test_dev_images_before_the_cut_are_shown_if_they_differ(tmp_path, capsys):
    selection = make_selection(tmp_path)
    per_class = selection.selected.counts["per_class"]
    per_class |= {"dev_before_cut": [5, 0], "dev_before_cut_correct": [4, 0]}
    report_selection(selection)
    output = capsys.readouterr().out
    rows = [line.split() for line in output.splitlines() if line]
    assert rows[0][-6:] == ["dev", "kept", "correct", "before", "cut", "correct"]
    assert rows[1][-4:] == ["8", "75.00%", "5", "80.00%"]
    assert rows[2][-4:] == ["0", "-", "0", "-"]
    assert rows[3][-4:] == ["8", "75.00%", "5", "80.00%"]
    assert "Before cut:" in output
    per_class["dev_before_cut"] = per_class["dev_kept"]
    report_selection(selection)
    assert "efore cut" not in capsys.readouterr().out


def test_external_scores_have_no_dev_columns(tmp_path, capsys):
    report_selection(make_selection(tmp_path, temperature=None))
    output = capsys.readouterr().out
    rows = [line.split() for line in output.splitlines() if line]
    assert rows[0][-1] == "lowest" and rows[1][-1] == "0.5001"
    assert rows[3] == ["all", "1,000", "600", "600"]
    assert "emperature" not in output and "dev images" not in output
    assert "The external teacher's predictions of dev are not known. Nothing was trained." in output


def test_classes_with_most_images_come_first_and_empty_ones_beyond_ten_are_hidden(tmp_path, capsys):
    names = [f"n{number:02d}" for number in range(20)]
    kept = [0] * 20
    kept[3], kept[7], kept[11] = 5, 900, 5
    candidates = [number + 10 * count for number, count in enumerate(kept)]
    zeros = [0] * 20
    per_class = {
        "thresholds": [0.5] * 20,
        "candidates": candidates,
        "kept": kept,
        "copies": [2 * number for number in kept],
        "lowest_confidence": [0.25 if number else None for number in kept],
        "dev_kept": [2] * 20,
        "dev_correct": [1] * 20,
        **{name: zeros for name in ("dev_before_cut", "dev_before_cut_correct")},
    }
    images = make_stage(tmp_path, "data/images", {"class_names": names, "images": {"dev": 40}})
    scores = make_stage(tmp_path, "gen1/scores", {"scored": 1200, "temperature": 1.0})
    counts = {"images": 910, "copies": 1820, "per_class": per_class}
    selected = make_stage(tmp_path, "gen1/selection", counts)
    words = {"n07": "tench, Tinca tinca", "n00": "dog", "n99": "unknown"}
    report_selection(Selection(images, scores, selected, words))
    lines = capsys.readouterr().out.splitlines()
    empty = (0, 1, 2, 4, 5, 6, 8, 9, 10, 12)
    expected = ["n07", "n03", "n11", *(f"n{label:02d}" for label in empty)]
    shown = [line.split()[0] for line in lines if line.startswith("n") and "threshold" not in line]
    assert shown == expected
    assert lines[2].startswith("n07 (tench)  ") and lines[5].startswith("n00 (dog)  ")
    total = f"{sum(candidates):,}"
    assert lines[15].split() == ["all", total, "910", "1,820", "40", "50.00%", "0", "-"]
    assert lines[16] == "and 7 more classes of which nothing is kept."
    path = tmp_path / "gen1" / f"classes-{selected.fingerprint}.csv"
    assert f"All classes: {path}" in lines
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows[:13]] == expected
    assert sorted(row["class"] for row in rows) == names
    assert rows[0] == {
        "class": "n07",
        "description": "tench, Tinca tinca",
        "threshold": "0.5",
        "candidates": "9007",
        "kept": "900",
        "copies": "1800",
        "lowest_confidence": "0.25",
        "dev_kept": "2",
        "dev_correct": "1",
        "dev_before_cut": "0",
        "dev_before_cut_correct": "0",
    }
    assert rows[-1]["lowest_confidence"] == "" and rows[-1]["description"] == ""
    report_selection(Selection(images, scores, selected))
    with open(path, newline="") as file:
        assert "description" not in next(csv.reader(file))
