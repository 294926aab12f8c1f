"""The command sweep: its table, and what it says about failures."""

import csv
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nsk.commands import run, sweep
from nsk.distributed.runtime import Runtime
from nsk.distributed.strategy import make_strategy
from nsk.errors import UserError
from nsk.stages.runner import StageRunner
from nsk.store.manifest import read_manifest
from nsk.sweep import plan, running, speed, tables
from nsk.sweep.grid import read_grid
from nsk.sweep.speed import Speed
from tests.commands.small_run import make_values

ROOT = Path(__file__).parents[2]
GRID = """
title = "Targets"
compare_with = "hard"
[cells.hard]
pseudo_label = "hard"
[cells.soft]
[cells.worse]
chance_p_value = 0.0
"""


def execute_here(cell, workdir, seconds, lock):
    """Runs a cell in this process."""
    log = workdir / cell.run_name / running.LOG
    try:
        run.execute({**cell.values, "run_name": cell.run_name})
    except UserError as error:
        log.write_text(f"nsk: {error}\n")
        return 2
    return 0


def planned_images(values, monkeypatch):
    """Training images of the two cells that train a student, by the plan."""
    monkeypatch.setattr(speed, "measure", lambda *arguments: Speed(0.0, 0.0, 0.0))
    cells = read_grid(values["grid"], values["seeds"]).cells(values)[:2]
    runtime = Runtime.from_strategy(make_strategy("one"))
    return plan.make_plan(cells, lambda config: StageRunner(config, runtime), runtime).images


def built_images(workdir):
    """Training images of all finished trainings in a workdir."""
    stages = [*workdir.glob("gen0/teacher-??????????"), *workdir.glob("gen1/student-??????????")]
    return sum(read_manifest(stage)["counts"]["images_seen"] for stage in stages)


def test_a_sweep_runs_its_cells_and_writes_their_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "launch_process", execute_here)
    path, workdir = tmp_path / "grid.toml", tmp_path / "run"
    path.write_text(GRID)
    values = make_values(workdir, models=["convnet5"] * 2, grid=str(path), seeds="4")
    values |= {"budget_hours": 0.0, "train_steps": ["40", "2"]}
    with pytest.raises(UserError, match="1 of 3 runs failed: worse, seed 4; their logs are in"):
        sweep.execute(values)
    output = capsys.readouterr().out
    assert "Failed: worse, seed 4: gen0/teacher-" in output and "it cannot teach" in output
    for name in (tables.MARKDOWN, tables.HTML, tables.RUNS, tables.CLASSES):
        assert f"{workdir / name}" in output and (workdir / name).exists()
    with open(workdir / tables.RUNS, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["cell"], row["generation"]) for row in rows] == [
        (name, index) for name in ("hard", "soft") for index in "01"
    ]
    assert len(list(workdir.glob("gen0/teacher-??????????"))) == 1  # Shared.
    assert len(list(workdir.glob("gen1/student-??????????"))) == 2
    assert not (workdir / "summary.json").exists()
    assert (workdir / "cells/soft/seed-4/tensorboard/generations").exists()
    assert planned_images(values, monkeypatch) == built_images(workdir)
    before = (workdir / tables.MARKDOWN).read_text()
    values["grid"] = str(path.with_name("two.toml"))
    Path(values["grid"]).write_text(GRID.partition("[cells.worse]")[0])
    assert sweep.execute(values) == ["hard, seed 4", "soft, seed 4"]
    assert (workdir / tables.MARKDOWN).read_text().splitlines()[2:6] == before.splitlines()[2:6]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workdir": ""}, "--workdir is not given"),
        ({"grid": ""}, "--grid is not given"),
        ({"grid": "none.toml"}, r"--grid=none\.toml cannot be read"),
    ],
)
def test_what_is_missing_is_said(tmp_path, values, message):
    given = {"workdir": str(tmp_path), "grid": "", "seeds": "", "budget_hours": 0.0}
    with pytest.raises(UserError, match=message):
        sweep.execute({**given, **values})


@pytest.mark.slow
def test_killed_and_shared_sweeps_have_the_same_table(tmp_path):
    """Processes that are killed at random, and two at a time: the table of an undisturbed one."""
    grid = tmp_path / "grid.toml"
    grid.write_text("[cells.hard]\npseudo_label='hard'\n[cells.soft]")
    flags = (
        "--dataset=digits --num_labeled=100 --num_dev=200 --models=convnet5,convnet5 "
        "--labeled_batch_size=32 --train_steps=200 --chance_p_value=1 --min_confidence=0 "
        f"--grid={grid} --seeds=0,1"
    ).split()

    def start(workdir):
        command = [sys.executable, "-m", "nsk.main", "sweep", *flags, f"--workdir={workdir}"]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def table(workdir):
        with open(workdir / tables.RUNS, newline="") as file:
            rows = [{**row, "seconds": ""} for row in csv.DictReader(file)]
        return rows, (workdir / tables.MARKDOWN).read_text()

    assert start(tmp_path / "whole").wait() == 0
    moment, kills = random.Random(0), 0
    while (process := start(tmp_path / "killed")).poll() is None:
        try:
            process.wait(moment.uniform(5, 25))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(moment.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            process.wait()
            kills += 1
    assert kills >= 2 and process.returncode == 0
    pair = [start(tmp_path / "pair") for _ in range(2)]
    assert [process.wait() for process in pair] == [0, 0]
    assert table(tmp_path / "killed") == table(tmp_path / "pair") == table(tmp_path / "whole")
    logs = list((tmp_path / "pair").rglob(running.LOG))
    assert len(logs) == 4
    trained = [line for log in logs for line in log.read_text().splitlines() if "done in" in line]
    stages = [line.split()[1] for line in trained]
    assert len(stages) == len(set(stages))  # Each stage was built once.
