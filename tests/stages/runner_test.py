"""The runner of stages: built or reused by one process or by several workers, or read only."""

import concurrent.futures
import logging
import threading
from types import SimpleNamespace

import pytest

from nsk.config.config import Config
from nsk.distributed.workers import Workers
from nsk.errors import CannotTeachError, UserError
from nsk.stages import runner as runners
from nsk.stages.runner import ReadOnlyRunner, StageRunner, summary_folder
from nsk.store import manifest
from nsk.store.folders import StageKey, build_or_reuse

TIMEOUT_SECONDS = 60


def make_runner(workdir, kind=StageRunner, workers=None):
    config = Config.from_values(
        {"workdir": str(workdir), "train_steps": ["5"], "num_labeled": 5, "num_dev": 5}
    )
    workers = workers or SimpleNamespace(count=1, index=0, is_chief=True)
    return kind(config, SimpleNamespace(workers=workers))


def write_result(folder):
    (folder / "result.txt").write_text("x")
    return {"images": 3}


def must_not_build(folder):
    raise AssertionError(f"{folder} was built.")


# One process.


def test_a_stage_is_built_once_and_reused(tmp_path):
    runner = make_runner(tmp_path)
    assert runner.all_reused
    images = runner.build_or_reuse("data/images", write_result, {"seed": 1})
    scores = runner.build_or_reuse("gen1/scores", write_result, images=images)
    assert not images.reused and not runner.all_reused
    key = StageKey(tmp_path, "gen1/scores", {}, {"images": images})
    assert scores.fingerprint == key.fingerprint and scores.path == key.path

    again = make_runner(tmp_path)
    assert again.build_or_reuse("data/images", must_not_build, {"seed": 1}).reused
    assert again.all_reused
    assert not again.build_or_reuse("data/images", write_result, {"seed": 2}).reused
    assert not again.all_reused


def test_an_unfinished_share_is_none(tmp_path):
    runner = make_runner(tmp_path)
    options = {"resumes": True, "worker": 0, "num_workers": 2}
    assert runner.build_or_reuse("gen1/scores", lambda folder: None, **options) is None
    assert not runner.all_reused
    assert list(tmp_path.glob("gen1/scores-*.partial"))


def test_stages_of_another_format_trigger_one_warning_of_the_chief(tmp_path, monkeypatch, caplog):
    runner = make_runner(tmp_path)
    runner.build_or_reuse("export", write_result)
    runner.warn_of_other_formats()
    assert not caplog.records
    monkeypatch.setattr(manifest, "FORMAT", manifest.FORMAT - 1)
    old = [runner.build_or_reuse(name, write_result) for name in ("data/images", "export")]
    monkeypatch.undo()
    runner.warn_of_other_formats()
    make_runner(tmp_path, workers=SimpleNamespace(is_chief=False)).warn_of_other_formats()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith(f"2 stages in {tmp_path} were written by another version of nsk")
    assert f"such as {old[0].name}: delete them" in message
    assert not runner.build_or_reuse("data/images", write_result).reused


def test_curves_are_kept_outside_of_stages(tmp_path):
    partial = tmp_path / "gen0" / "teacher-0123456789.partial"
    expected = tmp_path / "tensorboard" / "gen0" / "teacher-0123456789"
    assert summary_folder(tmp_path, partial) == expected


# Read only.


def test_a_read_only_runner_finds_finished_stages(tmp_path):
    images = make_runner(tmp_path).build_or_reuse("data/images", write_result, {"seed": 1})
    scores = make_runner(tmp_path).build_or_reuse("gen1/scores", write_result, images=images)
    runner = make_runner(tmp_path, ReadOnlyRunner)
    assert runner.build_or_reuse("data/images", must_not_build, {"seed": 1}).path == images.path
    found = runner.build_or_reuse(
        "gen1/scores",
        must_not_build,
        join=must_not_build,
        resumes=True,
        worker=0,
        num_workers=1,
        images=images,
    )
    assert found.path == scores.path and found.reused


def test_a_read_only_runner_builds_nothing(tmp_path):
    runner = make_runner(tmp_path / "run", ReadOnlyRunner)
    message = (
        "gen1/scores is not finished in .* for these settings{}: give those of its run, or build it"
    )
    with pytest.raises(UserError, match=message.format("")):
        runner.build_or_reuse("gen1/scores", must_not_build)
    assert not (tmp_path / "run").exists()
    make_runner(tmp_path / "run").build_or_reuse("gen1/scores", write_result, {"top_k": 0})
    closest = message.format(r" \(scores-\w+ has top_k=0, not 3\)")
    with pytest.raises(UserError, match=closest):
        runner.build_or_reuse("gen1/scores", must_not_build, {"top_k": 3})


def test_a_read_only_runner_refuses_a_damaged_stage(tmp_path):
    stage = make_runner(tmp_path).build_or_reuse("data/images", write_result)
    (stage.path / "result.txt").write_text("y")
    with pytest.raises(UserError, match="is damaged"):
        make_runner(tmp_path, ReadOnlyRunner).build_or_reuse("data/images", must_not_build)


# Several workers, here as threads.


class ThreadWorkers(Workers):
    """A worker that exchanges numbers with others through memory instead of TensorFlow."""

    def __init__(self, index, group):
        self.index, self.count, self._group = index, group.count, group

    def sum(self, *values):
        self._group.values[self.index] = values
        self._group.barrier.wait(TIMEOUT_SECONDS)
        sums = [sum(map(int, column)) for column in zip(*self._group.values, strict=True)]
        self._group.barrier.wait(TIMEOUT_SECONDS)
        return sums

    def abort(self):
        """Ends this worker, so that the others stop waiting."""
        self._group.barrier.abort()


def run_workers(function, count=3):
    """Results or errors of `function(workers)` of each worker."""
    group = SimpleNamespace(count=count, values=[()] * count, barrier=threading.Barrier(count))

    def call(index):
        try:
            return function(ThreadWorkers(index, group))
        except Exception as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def test_the_chief_builds_and_all_workers_get_the_stage(tmp_path):
    calls = []

    def run(workers):
        def build(folder):
            calls.append(("build", workers.index))
            return write_result(folder)

        def join(folder):
            calls.append(("join", workers.index))
            assert folder.name.endswith(".partial")

        runner = make_runner(tmp_path, workers=workers)
        runner.build_or_reuse("data/images", build)
        return runner.build_or_reuse("gen1/scores", build, join=join)

    stages = run_workers(run)
    assert len({stage.path for stage in stages}) == 1
    assert all(stage.counts == {"images": 3} for stage in stages)
    assert sorted(calls) == [("build", 0), ("build", 0), ("join", 1), ("join", 2)]

    calls.clear()
    stages = run_workers(run)  # Reused: nobody builds or joins.
    assert len({stage.path for stage in stages}) == 1 and calls == []


def test_a_worker_with_other_data_is_refused(tmp_path):
    """Its error ends its process, so the others lose it; here they wait for it in vain."""

    def run(workers):
        try:
            return make_runner(tmp_path, workers=workers).build_or_reuse(
                "data/images", write_result, {"content": workers.index}
            )
        except UserError:
            workers.abort()
            raise

    errors = run_workers(run, count=2)
    assert isinstance(errors[0], threading.BrokenBarrierError)
    assert isinstance(errors[1], UserError)
    assert "Worker 1 has other data than worker 0 (data/images-" in str(errors[1])


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_worker_is_raised_on_all(tmp_path, failing):
    def run(workers):
        def build(folder):
            if workers.index == failing:
                raise CannotTeachError("no finite loss")
            return write_result(folder)

        runner = make_runner(tmp_path, workers=workers)
        return runner.build_or_reuse("gen0/teacher", build, join=build, resumes=True)

    errors = run_workers(run)
    assert all(isinstance(error, CannotTeachError) for error in errors)
    assert str(errors[failing]) == "no finite loss"


def test_a_stage_of_another_machine_may_be_visible_late(tmp_path, monkeypatch):
    monkeypatch.setattr(runners, "POLL_SECONDS", 0.01)
    stage = build_or_reuse(StageKey(tmp_path, "export", {}, {}), write_result)
    hidden = stage.path.rename(tmp_path / "hidden")
    timer = threading.Timer(0.1, hidden.rename, [stage.path])
    timer.start()
    assert runners._load_when_visible(stage.path) == stage
    timer.join()
    monkeypatch.setattr(runners, "VISIBILITY_TIMEOUT_SECONDS", 0.05)
    with pytest.raises(UserError, match="not a finished stage"):
        runners._load_when_visible(tmp_path / "missing")
