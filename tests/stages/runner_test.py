"""The runner: which worker builds a stage, what is reused, and what a missing stage triggers."""

import contextlib
import dataclasses
import json
import types

import pytest

from nsk.errors import UserError
from nsk.stages import runner as runner_module
from nsk.stages.runner import ReadOnlyRunner, StageRunner, summary_folder
from nsk.store.folders import StageFolder
from nsk.store.manifest import MANIFEST


def write_text(text, counts=None):
    """A build function that writes one file."""

    def build(folder):
        folder.mkdir(exist_ok=True)
        (folder / "result.txt").write_text(text)
        return counts or {"letters": len(text)}

    return build


def never(folder):
    raise AssertionError("a finished stage was built again")


def test_a_stage_is_built_once_for_its_settings_and_inputs(make_runner, tmp_path):
    runner = make_runner(tmp_path)
    images = runner.build_or_reuse("data/images", write_text("images"), {"seed": 0})
    teacher = runner.build_or_reuse("gen0/teacher", write_text("teacher"), images=images)
    assert images.path.parent == tmp_path / "data" and teacher.counts == {"letters": 7}
    assert not runner.all_reused

    runner = make_runner(tmp_path)
    again = runner.build_or_reuse("data/images", never, {"seed": 0})
    assert again.reused and again.path == images.path
    assert runner.build_or_reuse("gen0/teacher", never, images=again).path == teacher.path
    assert runner.all_reused

    other = runner.build_or_reuse("data/images", write_text("others"), {"seed": 1})
    assert runner.build_or_reuse("gen0/teacher", write_text(""), images=other).path != teacher.path
    assert not runner.all_reused


def test_an_unfinished_stage_is_none_and_not_reused(make_runner, tmp_path):
    runner = make_runner(tmp_path)
    options = {"resumes": True, "worker": 0, "num_workers": 2}
    assert runner.build_or_reuse("gen1/scores", lambda folder: None, **options) is None
    assert not runner.all_reused


def test_a_read_only_runner_builds_nothing(make_runner, tmp_path):
    runner = make_runner(tmp_path)
    read_only = ReadOnlyRunner(runner.config, runner.runtime)
    with pytest.raises(UserError, match=r"data/images is not finished in .* or build it with"):
        read_only.build_or_reuse("data/images", never, {"seed": 0})
    assert list(tmp_path.iterdir()) == []

    images = runner.build_or_reuse("data/images", write_text("images"), {"seed": 0})
    teacher = runner.build_or_reuse("gen0/teacher", write_text("teacher"), images=images)
    found = read_only.build_or_reuse("data/images", never, {"seed": 0}, resumes=True, join=never)
    assert found.reused and found.path == images.path
    assert read_only.build_or_reuse("gen0/teacher", never, images=found).path == teacher.path
    with pytest.raises(UserError, match=r"\(images-\w+ has seed=0, not 1\): give those of its run"):
        read_only.build_or_reuse("data/images", never, {"seed": 1})


def test_stages_of_another_version_trigger_a_warning(make_runner, tmp_path, caplog):
    runner = make_runner(tmp_path)
    stage = runner.build_or_reuse("data/images", write_text("images"))
    runner.warn_of_other_formats()
    assert not caplog.text
    manifest = json.loads((stage.path / MANIFEST).read_text())
    (stage.path / MANIFEST).write_text(json.dumps({**manifest, "format": 0}))
    runner.warn_of_other_formats()
    assert f"Not reused: 1 of the stages in {tmp_path}, written by another" in caplog.text
    assert f"such as data/{stage.path.name}" in caplog.text


def test_events_are_written_to_a_folder_that_is_never_renamed(tmp_path):
    folder = tmp_path / "gen0" / "teacher-0123456789.partial"
    assert summary_folder(tmp_path, folder) == tmp_path / "tensorboard/gen0/teacher-0123456789"


# Several workers. Here each has its turn: `messages` are what the chief broadcasts.


@dataclasses.dataclass
class FakeWorkers:
    index: int
    messages: list
    count: int = 2

    @property
    def is_chief(self):
        return self.index == 0

    def broadcast_from_chief(self, *values):
        if self.is_chief:
            self.messages.append([int(value) for value in values])
            return self.messages[-1]
        return self.messages.pop(0)

    def propagate_errors(self):
        return contextlib.nullcontext()


@pytest.fixture
def make_workers(make_runner, tmp_path):
    """Runners of the chief and of another worker."""

    def make():
        messages, config = [], make_runner(tmp_path).config
        runtimes = [types.SimpleNamespace(workers=FakeWorkers(i, messages)) for i in range(2)]
        return [StageRunner(config, runtime) for runtime in runtimes]

    return make


def test_the_chief_builds_and_the_other_workers_join_and_load(make_workers):
    chief, other = make_workers()
    joined = []
    built = chief.build_or_reuse("gen0/teacher", write_text("chief"), join=never)
    found = other.build_or_reuse("gen0/teacher", never, join=joined.append)
    assert (built.path, built.counts) == (found.path, found.counts)
    assert joined == [built.path.with_name(built.path.name + ".partial")]
    assert not chief.all_reused and not other.all_reused

    chief, other = make_workers()
    chief.build_or_reuse("gen0/teacher", never, join=never)
    assert other.build_or_reuse("gen0/teacher", never, join=never).path == built.path
    assert chief.all_reused


def test_workers_without_join_wait(make_workers):
    chief, other = make_workers()
    built = chief.build_or_reuse("gen0/evaluation", write_text("chief"))
    assert other.build_or_reuse("gen0/evaluation", never).path == built.path


def test_a_worker_with_other_data_is_rejected(make_workers):
    chief, other = make_workers()
    chief.build_or_reuse("data/images", write_text("chief"), {"content": "a"})
    with pytest.raises(UserError, match=r"Worker 1 has other data than worker 0 .*the same data"):
        other.build_or_reuse("data/images", never, {"content": "b"}, join=never)


def test_a_stage_that_a_file_system_shows_late_is_waited_for(make_workers, monkeypatch, tmp_path):
    """The stage of the other machine appears while this one waits."""
    chief, other = make_workers()
    built = chief.build_or_reuse("data/images", write_text("chief"))
    hidden = built.path.rename(tmp_path / "hidden")
    monkeypatch.setattr(runner_module.time, "sleep", lambda seconds: hidden.rename(built.path))
    found = other.build_or_reuse("data/images", never)
    assert isinstance(found, StageFolder) and found.path == built.path
    built.path.rename(hidden)
    monkeypatch.setattr(runner_module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(runner_module, "VISIBILITY_TIMEOUT_SECONDS", 0.0)
    chief.runtime.workers.messages.append([0, int(built.fingerprint, 16)])
    with pytest.raises(UserError):
        other.build_or_reuse("data/images", never)
