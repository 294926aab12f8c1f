import json
from pathlib import Path

import pytest

from nsk.errors import UserError
from tools import robustness_table

CLEAN = {"accuracy": 0.875, "ece": 0.125}


def suites(error, mce):
    return {
        "corruptions": {"mean_error": error, "mce": mce, "relative_mce": None},
        "perturbations": {"mean_flip_probability": 0.0625},
        "attacks": {
            "fgsm": {"epsilons": [0.0, 0.03], "accuracy": [0.875, 0.25]},
            "pgd": {"epsilons": [0.03], "accuracy": [0.125]},
        },
    }


@pytest.fixture
def paths(tmp_path):
    """The paths of an evaluation and of a run with two generations."""
    evaluation = {"suites": {"clean": {"test": CLEAN}, **suites(0.5, 80.0)}}
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation))
    generations = [{"test": CLEAN, "suites": suites(0.25, mce)} for mce in (90.0, 60.0)]
    (tmp_path / "summary.json").write_text(
        json.dumps({"best": {"index": 1}, "generations": generations})
    )
    return str(path), f"{tmp_path}:best"


def test_rows_are_means_over_paths(paths, capsys):
    arguments = [f"both={','.join(paths)}", f"one={paths[0]}"]
    assert robustness_table.main(["", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:4]]
    header, _, both, one = cells
    assert header == ["", *robustness_table.COLUMNS]
    assert both == [
        "both",
        "87.50 (87.50 to 87.50)",
        "0.1250 (0.1250 to 0.1250)",
        "37.50 (25.00 to 50.00)",
        "70.0 (60.0 to 80.0)",
        "-",
        "6.25 (6.25 to 6.25)",
        "-",
        "25.00 (25.00 to 25.00)",
        "12.50 (12.50 to 12.50)",
    ]
    assert one[:4] == ["one", "87.50", "0.1250", "50.00"]
    assert json.loads(lines[-1])["one"][0]["mCE"] == 80


def test_values_over_all_corruptions_come_first(paths):
    path = Path(paths[0])
    content = json.loads(path.read_text())
    content["suites"]["corruptions"] |= {"mce_of_19": 70.0, "relative_mce_of_19": 65.0}
    path.write_text(json.dumps(content))
    measured = robustness_table.measure(paths[0])
    assert (measured["mCE"], measured["relative mCE"]) == (70, 65)


def test_generations_are_chosen_by_their_index(paths):
    workdir = paths[1].removesuffix(":best")
    assert [robustness_table.measure(f"{workdir}:{index}")["mCE"] for index in (0, 1)] == [90, 60]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "No model was given"),
        (["a.json"], "expected NAME=PATH"),
        (["a=missing.json"], "missing.json cannot be read"),
        (["a=missing:7"], "missing:7 cannot be read"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        robustness_table.main(["", *arguments])
