"""The command run: settings, summary and workers. End to end it is in end_to_end_test.py."""

import json
from types import SimpleNamespace

import pytest

from nsk import decisions, self_training
from nsk.commands import plan, run
from nsk.config.config import settings
from nsk.report import run_report
from nsk.stages import export

VALUES = {"train_steps": ["5"], "num_labeled": 20, "num_dev": 20, "strategy": "one"}


@pytest.fixture
def reported(monkeypatch):
    """Replaces the stages; arguments of the report are collected in the list."""
    reports = []
    chain = [SimpleNamespace(model=name, evaluation=None) for name in ("teacher", "student")]
    monkeypatch.setattr(self_training, "train_chain", lambda runner: ("images", chain))
    best = {"accuracy": 1, "nll": 0}
    monkeypatch.setattr(decisions, "best_generation", lambda chain, decide_by: best[decide_by])
    monkeypatch.setattr(export, "export", lambda runner, model, *_: f"export of {model}")

    def report(*arguments):
        reports.append(arguments)
        return {"best": 1}

    monkeypatch.setattr(run_report, "report_run", report)
    return reports


def test_run_saves_all_settings_and_exports_the_best_generation(tmp_path, reported):
    workdir = tmp_path / "run"
    assert run.execute({**VALUES, "workdir": str(workdir), "seed": 3}) == {"best": 1}
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["run"]["seed"] == 3 and saved["data"]["num_labeled"] == 20
    assert saved["train"]["train_steps"] == [5] and saved["train"]["momentum"] == 0.9
    names = [name for section in saved.values() for name in section]
    assert names == [field.name for field in settings()]
    ((config, results, all_reused),) = reported
    assert config.run.seed == 3 and results.images == "images" and len(results.chain) == 2
    assert (results.best, results.export, all_reused) == (1, "export of student", True)
    assert results.suites == {} and results.baseline is None


def test_decide_by_decides_what_is_exported(tmp_path, reported):
    run.execute({**VALUES, "workdir": str(tmp_path), "decide_by": "nll"})
    assert reported[0][1].export == "export of teacher"


def test_only_the_chief_writes_settings_and_summary(tmp_path, reported, monkeypatch):
    def prepare(values):
        runner = run_prepare(values)
        runner.workers.index = 1
        return runner

    run_prepare = run.prepare
    monkeypatch.setattr(run, "prepare", prepare)
    assert run.execute({**VALUES, "workdir": str(tmp_path)}) is None
    assert reported == [] and not (tmp_path / "config.json").exists()


def test_plan_does_not_change_the_saved_settings(tmp_path, reported):
    values = {**VALUES, "workdir": str(tmp_path), "models": ["convnet5"]}
    run.execute({**values, "temperature": 0.5})
    plan.execute({**values, "temperature": 0.7, "plan_images": "50,0,10", "image_size": ["8"]})
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["targets"]["temperature"] == 0.5
