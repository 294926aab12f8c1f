import numpy as np

from nsk.evaluation import suites
from nsk.report.terminal import closing_table, print_selection
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
        "starved": [1],
        "dev_kept": [8, 0],
        "dev_correct": [6, 0],
        "dev_before_cut": [8, 0],
        "dev_before_cut_correct": [6, 0],
    }
    counts = {"images": 600, "copies": 600, "per_class": per_class}
    return images, scores, make_stage(tmp_path, "gen1/selection", counts)


def test_the_selection_table_has_a_row_for_each_class_and_a_total(tmp_path, capsys):
    stages = make_selection(tmp_path)
    assert print_selection(*stages) == stages[2].counts
    output = capsys.readouterr().out
    rows = [line.split() for line in output.splitlines() if line]
    assert rows[1] == ["cat", "0.5", "1,000", "600", "600", "0.5001", "8", "75.00%"]
    assert rows[2] == ["dog", "0.75", "0", "0", "0", "-", "0", "-"]
    assert rows[3] == ["all", "1,000", "600", "600", "8", "75.00%"]
    assert "1,200 unlabelled images were scored." in output and "of 30 dev images" in output
    assert "Temperature fitted on dev: 1.250. Nothing was trained." in output
    assert "efore cut" not in output
    assert str(stages[2].path) in output


def test_dev_images_before_the_cut_are_shown_if_they_differ(tmp_path, capsys):
    stages = make_selection(tmp_path)
    per_class = stages[2].counts["per_class"]
    per_class |= {"dev_before_cut": [5, 0], "dev_before_cut_correct": [4, 0]}
    print_selection(*stages)
    output = capsys.readouterr().out
    rows = [line.split() for line in output.splitlines() if line]
    assert rows[0][-6:] == ["dev", "kept", "correct", "before", "cut", "correct"]
    assert rows[1][-4:] == ["8", "75.00%", "5", "80.00%"]
    assert rows[2][-4:] == ["0", "-", "0", "-"]
    assert rows[3][-4:] == ["8", "75.00%", "5", "80.00%"]
    assert "Before cut:" in output
    per_class["dev_before_cut"] = per_class["dev_kept"]
    print_selection(*stages)
    assert "efore cut" not in capsys.readouterr().out


def test_external_scores_have_no_dev_columns(tmp_path, capsys):
    print_selection(*make_selection(tmp_path, temperature=None))
    output = capsys.readouterr().out
    rows = [line.split() for line in output.splitlines() if line]
    assert rows[0][-1] == "lowest" and rows[1][-1] == "0.5001"
    assert rows[3] == ["all", "1,000", "600", "600"]
    assert "emperature" not in output and "dev images" not in output
    assert "The external teacher's predictions of dev are not known. Nothing was trained." in output


def make_summary(*generations, num_classes=2):
    per_class = {name: [1] * num_classes for name in ("images", "recall", "precision")}
    return {
        "generations": [
            {
                "index": index,
                "role": "teacher",
                "model": "resnet8",
                "parameters": 1000,
                "seconds": 60,
                **{split: {"per_class": per_class, **values} for split, values in metrics.items()},
            }
            for index, metrics in enumerate(generations)
        ],
        "best": {"index": 0},
        "decide_by": "accuracy",
        "class_names": [f"class-{number}" for number in range(num_classes)],
        "export": "export-0",
        "num_images": {"labeled": 1, "unlabeled": 2, "dev": 3, "test": 4},
        "seed": 0,
    }


def test_of_many_classes_the_worst_ten_are_listed(tmp_path):
    random = np.random.default_rng(0)
    recall = random.permutation(1000) / 1000
    per_class = {"images": [5] * 1000, "recall": recall.tolist(), "precision": [0.5] * 1000}
    values = {"accuracy": 0.4, "per_class": per_class}
    summary = make_summary({"dev": values, "test": values}, num_classes=1000)
    lines = closing_table(summary, tmp_path).splitlines()
    (start,) = (number for number, line in enumerate(lines) if "recall below half" in line)
    assert lines[start].startswith("200 of 1000 classes")
    listed = [line.split()[0] for line in lines[start + 2 : start + 12]]
    assert listed == [f"class-{label}" for label in np.argsort(recall)[:10]]
    assert lines[start + 12] == ""


def test_no_class_is_listed_if_all_are_found(tmp_path):
    values = {"accuracy": 0.9}
    assert "recall" not in closing_table(make_summary({"dev": values, "test": values}), tmp_path)


def test_a_second_table_shows_the_metrics_that_suites_ask_for(tmp_path, monkeypatch):
    """A generation that was not evaluated has no row."""
    suite = suites.Suite(evaluate=None, table={"mce": ".3f", "error": ".1%"}, splits=("test",))
    monkeypatch.setitem(suites.SUITES, "corruptions", suite)
    old = {"dev": {"accuracy": 0.5}, "test": {"accuracy": 0.25}}
    measured = {"corruptions/mce": 0.6789, "corruptions/error": None}
    new = {"dev": {"accuracy": 0.75}, "test": {"accuracy": 0.5, **measured}}
    lines = closing_table(make_summary(old, new), tmp_path).splitlines()
    header, *rows = lines[1:4]
    assert header.split()[4:7] == ["dev", "test", "pseudo-labels"]
    assert [row.split()[4:6] for row in rows] == [["50.00%", "25.00%"], ["75.00%", "50.00%"]]
    assert lines[5].startswith("gen  dev balanced")
    assert [line.split() for line in lines[9:11]] == [
        ["gen", "corruptions/mce", "corruptions/error"],
        ["1", "0.679", "-"],
    ]
    assert "mce" not in closing_table(make_summary(old), tmp_path)
