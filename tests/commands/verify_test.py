"""The command verify: prints the state of each finished stage, and fails if one is damaged."""

import pytest

from nsk.commands import verify
from nsk.errors import UserError
from nsk.store import manifest
from nsk.store.folders import StageKey, build_or_reuse
from nsk.units import format_bytes


def build_stage(workdir, name):
    def build(folder):
        (folder / "result.txt").write_text(name)
        return {}

    return build_or_reuse(StageKey(workdir, name, {}, {}), build).path


@pytest.fixture
def stages(tmp_path):
    return [build_stage(tmp_path, name) for name in ("data/images", "export", "gen0/teacher")]


def test_intact_stages_are_ok(tmp_path, stages, capsys):
    assert verify.execute({"workdir": str(tmp_path)}) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{stage.relative_to(tmp_path)}: ok" for stage in stages]


def test_damaged_stages_are_named_with_the_remedy(tmp_path, stages, capsys):
    images, export, teacher = stages
    (images / "result.txt").write_text("data/imagez")
    (teacher / "stage.json").unlink()
    with pytest.raises(UserError, match="2 of 3 stages are damaged: delete the folders") as error:
        verify.execute({"workdir": str(tmp_path)})
    for stage in (images, teacher):
        assert str(stage.relative_to(tmp_path)) in str(error.value)
    assert export.name not in str(error.value)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{images.relative_to(tmp_path)}: DAMAGED"
    assert lines[1] == f"  {images}/result.txt: its SHA-256 differs from what was written"
    assert lines[2] == f"{export.name}: ok"
    assert lines[3] == f"{teacher.relative_to(tmp_path)}: DAMAGED"
    assert "is not a finished stage" in lines[4]


def test_foreign_files_are_reported_and_ignored(tmp_path, stages, capsys):
    (stages[1] / ".DS_Store").write_text("")
    assert verify.execute({"workdir": str(tmp_path)}) == 3
    line = f"  {stages[1]}/.DS_Store: does not belong to this stage, ignored"
    assert line in capsys.readouterr().out.splitlines()


def test_what_unfinished_stages_left_is_listed_with_its_size(tmp_path, stages, capsys):
    key = StageKey(tmp_path, "gen1/student", {}, {})

    def interrupt(folder):
        (folder / "half").write_bytes(bytes(2000))
        checkpoints = folder.with_suffix(".checkpoints") / "1"
        checkpoints.mkdir(parents=True)
        (checkpoints / "weights").write_bytes(bytes(1000))
        verify.execute({"workdir": str(tmp_path)})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_or_reuse(key, interrupt)
    assert "unfinished" not in capsys.readouterr().out  # While it was being built.
    verify.execute({"workdir": str(tmp_path)})
    lines = capsys.readouterr().out.splitlines()[3:]
    name = key.path.name
    size = (key.path.with_name(f"{name}.lock")).stat().st_size + 3000
    assert lines[0] == (
        f"gen1/{name}: unfinished, {format_bytes(size)}: "
        f"{name}.checkpoints, {name}.lock, {name}.partial"
    )
    assert lines[1].startswith(f"1 unfinished stages take {format_bytes(size)}: the run with their")


def test_a_workdir_without_stages_is_refused(tmp_path):
    for workdir in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="has no finished stage: nothing to verify"):
            verify.execute({"workdir": str(workdir)})
    with pytest.raises(UserError, match="--workdir is not given"):
        verify.execute({"workdir": ""})


def test_stages_of_another_version_are_not_called_damaged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(manifest, "FORMAT", manifest.FORMAT - 1)
    build_or_reuse(StageKey(tmp_path, "data/images", {}, {}), lambda folder: {})
    monkeypatch.undo()
    with pytest.raises(UserError, match="no finished stage of this version: nothing to verify"):
        verify.verify_workdir(tmp_path)
    build_or_reuse(StageKey(tmp_path, "gen0/teacher", {}, {}), lambda folder: {})
    assert verify.verify_workdir(tmp_path) == 1
    output = capsys.readouterr().out
    assert "written by another version of nsk, not checked" in output and "DAMAGED" not in output
