import numpy as np

from nsk.evaluation import suites
from nsk.report.terminal import closing_table


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


def test_an_ensemble_shows_the_accuracy_of_its_members(tmp_path):
    values = {"accuracy": 0.9}
    summary = make_summary({"dev": values, "test": values})
    members = [{"stage": "gen0/teacher-0", "dev": {"accuracy": share}} for share in (0.8, 0.85)]
    summary["generations"][0]["members"] = members
    assert "Generation 0 is the mean of 2 networks, on dev: 80.00%, 85.00%.\n" in closing_table(
        summary, tmp_path
    )
