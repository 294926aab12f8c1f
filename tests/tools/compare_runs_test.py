"""The comparison of several runs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nsk.errors import UserError

PATH = Path(__file__).parents[2] / "tools" / "compare_runs.py"
spec = importlib.util.spec_from_file_location("compare_runs", PATH)
compare_runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare_runs)


def write_run(folder, seed, accuracies, best):
    folder.mkdir()
    generations = [{"index": i, "test": {"accuracy": a}} for i, a in enumerate(accuracies)]
    summary = {"seed": seed, "best": {"index": best}, "generations": generations}
    (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


def test_gains_means_and_whether_every_run_gains(tmp_path, capsys):
    first = write_run(tmp_path / "a", 0, [0.80, 0.90, 0.85], best=1)
    second = write_run(tmp_path / "b", 1, [0.90, 0.94], best=1)
    third = write_run(tmp_path / "c", 2, [0.70, 0.60], best=0)
    compare_runs.main([first, second])
    lines = capsys.readouterr().out.splitlines()
    assert "80.00%" in lines[1] and "90.00%" in lines[1] and "+10.00%" in lines[1]
    assert json.loads(lines[-1]) == pytest.approx(
        {"teacher": 0.85, "chosen": 0.92, "every_run_gains": True}
    )
    compare_runs.main([first, third])
    assert not json.loads(capsys.readouterr().out.splitlines()[-1])["every_run_gains"]


def test_help_is_shown_and_invalid_input_is_an_error_of_one_line(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "tools.compare_runs", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=PATH.parents[1])

    shown = run("--help")
    assert shown.returncode == 0 and "over finished runs" in shown.stdout
    for arguments in ([], [tmp_path]):
        failed = run(*arguments)
        assert failed.returncode == 2 and failed.stderr.startswith("nsk: ")
        assert failed.stderr.count("\n") == 1


def test_a_file_that_is_not_a_summary_is_named(tmp_path):
    for content in ("{}", "[]", '{"best": {"index": 1}, "generations": [], "seed": 0}'):
        (tmp_path / "summary.json").write_text(content)
        with pytest.raises(UserError, match=r"summary\.json is not the summary of a run"):
            compare_runs.main([str(tmp_path)])


def test_a_run_that_is_not_finished_is_named(tmp_path):
    with pytest.raises(UserError, match=r"summary\.json cannot be read"):
        compare_runs.main([str(tmp_path)])
