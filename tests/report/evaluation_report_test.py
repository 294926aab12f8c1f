"""Tables and values of the report of `evaluate`; its files: tests/commands/evaluate_test.py."""

import json

import pytest

from nsk.errors import UserError
from nsk.evaluation.suites import relative
from nsk.report.collect import describe_suites
from nsk.report.evaluation_report import evaluation_tables, flatten, read_baseline
from nsk.store.folders import StageFolder

RESULT = {
    "mean_error": 0.25,
    "mean_error_interval": [0.2, 0.3],
    "relative_mce": None,
    "images": 40,
    "errors": {"fog": [0.1, 0.2], "snow": [0.3, 0.4]},
    "denominator": {"fog": 0.15, "snow": 0.35},
    "fgsm": {"epsilons": [0, 0.1], "accuracy": [0.9, 0.5], "intervals": [[0.8, 1.0], [None] * 2]},
    "sets": {"v2": {"accuracy": 0.5, "interval": [0.4, 0.6], "images": 10}},
    "warnings": [],
}


def test_tables_of_a_suite(tmp_path):
    content = {"suites": {"clean": {"test": {"accuracy": 0.5}}, "corruptions": RESULT}}
    lines = [line.split() for line in evaluation_tables(content, tmp_path).splitlines() if line]
    assert lines[:-1] == [
        ["clean"],
        ["test", "accuracy", "0.5000"],
        ["corruptions"],
        ["mean_error", "0.2500", "[0.2000,", "0.3000]"],
        ["relative_mce", "-"],
        ["images", "40"],
        ["fgsm", "accuracy"],
        ["0", "0.9000", "[0.8000,", "1.0000]"],
        ["0.1", "0.5000"],
        ["errors", "1", "errors", "2", "denominator"],
        ["fog", "0.1000", "0.2000", "0.1500"],
        ["snow", "0.3000", "0.4000", "0.3500"],
        ["accuracy", "images"],
        ["v2", "0.5000", "10"],
    ]


def test_every_value_has_a_path():
    assert list(flatten({"a": {"b": [1, {"c": None}]}, "d": "x"})) == [
        (("a", "b", "0"), 1),
        (("a", "b", "1", "c"), None),
        (("d",), "x"),
    ]


def test_baselines(tmp_path):
    assert read_baseline("") is None and read_baseline("alexnet") is relative.ALEXNET
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"model": {"name": "resnet20"}, "suites": {"corruptions": RESULT}}))
    found = read_baseline(str(path))
    assert found == relative.Baseline("resnet20", {"corruptions": RESULT})


@pytest.mark.parametrize("text", ["", "[]", "{}", "no JSON", '{"model": 1, "suites": {}}'])
def test_a_file_that_is_no_evaluation_is_an_error(tmp_path, text):
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"cannot be read .*: give alexnet or"):
        read_baseline(str(path))


def test_what_a_reader_has_to_know_is_logged(tmp_path, caplog):
    sets = {
        "v2": {"unreadable": 2, "unreadable_images": ["3/a", "4/b"]},
        "whole": {"unreadable": 0, "unreadable_images": []},
        "real": {"accuracy": 0.5, "unlabeled_images": 4},  # Label sets judge the test images.
    }
    found = {
        "clean_note": "no clean images",
        "warnings": ["zero gradients"],
        "missing": ["fog", "snow"],
        "frost": "procedural texture",
        "sets": sets,
    }
    stage = StageFolder(tmp_path / "natural-0", "0", found)
    with caplog.at_level("WARNING"):
        assert describe_suites({"natural": stage}, None) == {"natural": found}
    assert [record.getMessage().partition("natural-0: ")[2] for record in caplog.records] == [
        "no clean images",
        "zero gradients",
        "There are no files of fog, snow.",
        "frost with procedural textures, not the published photographs.",
        "2 images of v2 cannot be read, such as 3/a.",
    ]
