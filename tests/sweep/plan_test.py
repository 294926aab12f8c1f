"""The plan of a sweep, compared with the stages that its runs build."""

import pytest

from nsk.commands import run
from nsk.distributed.runtime import Runtime
from nsk.distributed.strategy import make_strategy
from nsk.errors import UserError
from nsk.stages.runner import StageRunner
from nsk.store.manifest import read_manifest
from nsk.sweep import plan, speed
from nsk.sweep.grid import Cell
from nsk.sweep.speed import Speed
from tests.commands.small_run import make_values

CHANGES = {
    "hard": {"pseudo_label": "hard"},
    "soft": {},
    "soft again, once": {"select": "once"},
    "no mixup in the teacher": {"mixup_alpha": ["0", "1"]},
    "other teacher": {"weight_decay": ["1e-3"]},
    "labels only": {"models": ["convnet5"], "train_steps": ["40"]},
    "other threshold": {"min_confidence": ["0.2"]},
    "distillation": {"distillation_alpha": ["0.5"]},
    "ensemble": {"num_teachers": 2},
    "pre-training": {"mixing": "pretrain"},
    "pre-training, other rate": {"mixing": "pretrain", "labeled_learning_rate": ["0.3"]},
    "half": {"unlabeled_fraction": 0.5},
}
BASE = {"models": ["convnet5"] * 2, "train_steps": ["40", "3"], "labeled_batch_size": ["32", "16"]}


@pytest.fixture
def constant_speed(monkeypatch):
    """Ten seconds for each training, one for 100 images."""
    monkeypatch.setattr(speed, "measure", lambda *arguments: Speed(10.0, 0.01, 0.0))


def make_cells(workdir, changes, seeds=(0,)):
    return [
        Cell(name, seed, make_values(workdir, **{**BASE, **changed}, seed=seed))
        for seed in seeds
        for name, changed in changes.items()
    ]


def make_plan(cells):
    runtime = Runtime.from_strategy(make_strategy("one"))
    return plan.make_plan(cells, lambda config: StageRunner(config, runtime), runtime)


@pytest.mark.slow
def test_what_is_planned_is_what_runs_build(tmp_path, constant_speed):
    """Images of the trainings, without those that earlier cells have done."""
    cells = make_cells(tmp_path, CHANGES)
    found = make_plan(cells)
    built, images = set(), []
    for cell in cells:
        run.execute({**cell.values, "run_name": cell.run_name})
        kinds = ("teacher*", "student", "pretraining")
        stages = {path for kind in kinds for path in tmp_path.glob(f"gen*/{kind}-*")}
        stages = {path for path in stages if path.is_dir() and path.suffix == ""}
        images.append(sum(read_manifest(path)["counts"]["images_seen"] for path in stages - built))
        built = stages
    assert [row[2] - row[3] for row in found.rows] == images
    assert found.images == sum(images) and found.runs == len(cells)


def test_seeds_multiply_the_cost(tmp_path, constant_speed):
    changes = {name: CHANGES[name] for name in ("hard", "soft")}
    one = make_plan(make_cells(tmp_path, changes))
    three = make_plan(make_cells(tmp_path, changes, (0, 5, 6)))
    assert three.images == 3 * one.images and three.runs == 6
    assert three.seconds == pytest.approx({name: 3 * time for name, time in one.seconds.items()})
    teacher, student = 40 * 32, 3 * (16 + 48)
    assert one.images == teacher + 2 * student
    assert one.images_without_sharing == 2 * (teacher + student)
    trained = 3 * 10 + 0.01 * one.images
    assert one.seconds["here"] == pytest.approx(2 * plan.RUN_SECONDS + trained)


def test_a_speed_is_measured_for_each_kind_of_work(tmp_path, monkeypatch):
    """One measurement of two trainings that differ in what costs no time."""
    monkeypatch.setattr(speed, "MEASURED_SECONDS", 0.1)
    changes = {"soft": {}, "hard": {"pseudo_label": "hard"}, "fast": {"learning_rate": ["0.2"]}}
    cells, keys = make_cells(tmp_path, changes), set()
    for cell in cells:
        counts = {"images": {"labeled": 100, "dev": 200}, "image_side": 8, "num_classes": 10}
        keys |= set(map(speed.work_key, plan.trainings(cell.config, counts)))
    assert len(keys) == 2  # Of the teacher and the student.
    found = make_plan(cells[:1])
    assert 0 < found.seconds["here"] < 3600 and found.seconds["H200"] > plan.RUN_SECONDS
    text = "\n".join(plan.describe(found))
    assert "soft  convnet5 convnet5" in text and "1 runs: 1,472 training images" in text


def test_networks_that_do_not_exist_are_refused_first(tmp_path):
    with pytest.raises(UserError, match="nosuch"):
        make_plan(make_cells(tmp_path, {"a": {"models": ["convnet5", "nosuch"]}}))
    assert not (tmp_path / "data").exists()
