import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
import textwrap

import pytest

from nsk import stage
from nsk.errors import UserError


def make(workdir, *, name="gen1/scores", settings=None, inputs=None, content="x"):
    def build(folder):
        (folder / "result.txt").write_text(content)
        return {"images": 3}

    return stage.run(workdir, name, build, settings=settings or {}, inputs=inputs or {})


def must_not_build(folder):
    raise AssertionError(f"{folder} was built again.")


def start_process(workdir, build):
    """Another process that runs the stage gen1/slow, whose build function is `build`."""
    program = f"""
        import sys, time, os
        from nsk import stage
        def build(folder):
            {build}
            return {{}}
        stage.run({os.fspath(workdir)!r}, "gen1/slow", build, settings={{}}, inputs={{}})
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )


def test_fingerprint_depends_on_everything_but_the_order_of_settings(tmp_path):
    teacher = make(tmp_path, name="gen0/teacher")
    other = make(tmp_path, name="gen0/teacher", settings={"seed": 1})
    settings = {"seed": 0, "model": {"depth": 20, "rate": 0.5}, "operations": ["rotate", "invert"]}
    base = stage.fingerprint("gen1/scores", settings, {"teacher": teacher})
    assert len(base) == 10 and int(base, 16) >= 0

    reordered = {
        "operations": ["rotate", "invert"],
        "model": {"rate": 0.5, "depth": 20},
        "seed": 0,
    }
    assert stage.fingerprint("gen1/scores", reordered, {"teacher": teacher}) == base

    changed = [
        stage.fingerprint("gen2/scores", settings, {"teacher": teacher}),
        stage.fingerprint("gen1/scores", settings | {"seed": 1}, {"teacher": teacher}),
        stage.fingerprint(
            "gen1/scores", settings | {"model": {"depth": 26, "rate": 0.5}}, {"teacher": teacher}
        ),
        stage.fingerprint(
            "gen1/scores", settings | {"operations": ["invert", "rotate"]}, {"teacher": teacher}
        ),
        stage.fingerprint("gen1/scores", settings | {"new": None}, {"teacher": teacher}),
        stage.fingerprint("gen1/scores", settings, {"teacher": other}),
        stage.fingerprint("gen1/scores", settings, {"images": teacher}),
        stage.fingerprint("gen1/scores", settings, {}),
    ]
    assert len({base, *changed}) == 1 + len(changed)


def test_finished_stage_is_used_again_and_a_changed_setting_builds_beside_it(tmp_path):
    first = make(tmp_path, settings={"seed": 0}, content="first")
    assert not first.reused and first.counts == {"images": 3}
    assert first.path == tmp_path / f"gen1/scores-{first.fingerprint}"
    assert first.name == f"gen1/scores-{first.fingerprint}"

    again = stage.run(tmp_path, "gen1/scores", must_not_build, settings={"seed": 0}, inputs={})
    assert again.reused
    assert (again.path, again.fingerprint, again.counts) == (
        first.path,
        first.fingerprint,
        first.counts,
    )

    second = make(tmp_path, settings={"seed": 1}, content="second")
    assert second.path != first.path
    assert (first.path / "result.txt").read_text() == "first"
    assert (second.path / "result.txt").read_text() == "second"
    assert sorted(path.name for path in (tmp_path / "gen1").iterdir()) == sorted(
        [first.path.name, second.path.name]
    )


def test_manifest_has_settings_inputs_counts_and_every_files_bytes_and_digest(tmp_path):
    teacher = make(tmp_path, name="gen0/teacher")
    contents = {"a.bin": bytes(range(256)), "sub/b.txt": b"b", "sub/deeper/empty": b""}

    def build(folder):
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return {"scored": 7}

    made = stage.run(
        tmp_path, "gen1/scores", build, settings={"seed": 5}, inputs={"teacher": teacher}
    )
    manifest = json.loads((made.path / "stage.json").read_text())
    assert manifest["stage"] == "gen1/scores"
    assert manifest["fingerprint"] == made.fingerprint
    assert manifest["settings"] == {"seed": 5}
    assert manifest["counts"] == {"scored": 7}
    assert manifest["inputs"] == {
        "teacher": {"stage": teacher.name, "fingerprint": teacher.fingerprint}
    }
    assert manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }


def test_build_that_raises_leaves_nothing_finished_and_the_next_run_succeeds(tmp_path):
    def fail(folder):
        (folder / "half.txt").write_text("half")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        stage.run(tmp_path, "gen1/scores", fail, settings={}, inputs={})
    print_ = stage.fingerprint("gen1/scores", {}, {})
    assert not (tmp_path / f"gen1/scores-{print_}").exists()

    made = make(tmp_path)
    assert not made.reused
    # What the failed build left behind is not part of the result.
    assert sorted(path.name for path in made.path.iterdir()) == ["result.txt", "stage.json"]


def test_leftover_partial_folder_is_redone(tmp_path):
    print_ = stage.fingerprint("gen1/scores", {}, {})
    leftover = tmp_path / f"gen1/scores-{print_}.partial"
    (leftover / "sub").mkdir(parents=True)
    (leftover / "sub" / "old.txt").write_text("old")
    (leftover / "stage.json").write_text("{}")

    made = make(tmp_path)
    assert not made.reused and not leftover.exists()
    assert sorted(path.name for path in made.path.iterdir()) == ["result.txt", "stage.json"]


def test_second_process_is_refused_with_the_owner_and_goes_on_when_it_has_died(tmp_path):
    owner = start_process(tmp_path, "print('building', flush=True); time.sleep(60)")
    try:
        assert owner.stdout.readline().strip() == "building"
        with pytest.raises(UserError) as refused:
            stage.run(tmp_path, "gen1/slow", must_not_build, settings={}, inputs={})
        assert f"process {owner.pid} on {os.uname().nodename}" in str(refused.value)
        # Another stage is nobody's: locks are one for each.
        make(tmp_path)
    finally:
        owner.kill()
        owner.communicate()
    # The dead process left its lock file and its partial folder, which the next one takes over.
    assert list((tmp_path / "gen1").glob("slow-*.lock"))
    heir = start_process(tmp_path, "print('building', flush=True); time.sleep(60)")
    try:
        assert heir.stdout.readline().strip() == "building"
        with pytest.raises(UserError, match=f"made by process {heir.pid} on [^:]*: wait"):
            stage.run(tmp_path, "gen1/slow", must_not_build, settings={}, inputs={})
    finally:
        heir.kill()
        heir.communicate()
    made = stage.run(tmp_path, "gen1/slow", lambda folder: {"mine": 1}, settings={}, inputs={})
    assert made.counts == {"mine": 1}
    assert not list((tmp_path / "gen1").glob("slow-*.*"))


def test_stage_that_another_process_finished_is_used(tmp_path):
    start_process(tmp_path, "(folder / 'a').write_text('theirs')").communicate()
    made = stage.run(tmp_path, "gen1/slow", must_not_build, settings={}, inputs={})
    assert made.reused and (made.path / "a").read_text() == "theirs"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"text"', "{}", '{"fingerprint": "0"}', "\xff\xfe"]
)
def test_damaged_manifest_is_a_user_error(tmp_path, text):
    made = make(tmp_path)
    (made.path / "stage.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"stage\.json is damaged .*delete the folder"):
        make(tmp_path)


def test_folder_without_manifest_is_a_user_error(tmp_path):
    made = make(tmp_path)
    (made.path / "stage.json").unlink()
    with pytest.raises(UserError, match=r"not a finished stage.*stage\.json"):
        make(tmp_path)


def test_workdir_that_cannot_be_a_folder_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"cannot be made .*--workdir"):
            make(workdir)


def test_folder_that_cannot_be_written_into_is_a_user_error(tmp_path, monkeypatch):
    # The rights themselves do not stop an administrator, who may be running this test.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written into"):
        make(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_the_disk_refuses_is_a_user_error(tmp_path, code):
    def build(folder):
        raise OSError(code, os.strerror(code), os.fspath(folder / "shard"))

    with pytest.raises(UserError) as error:
        stage.run(tmp_path, "gen1/scores", build, settings={}, inputs={})
    assert os.strerror(code) in str(error.value) and "shard" in str(error.value)
    make(tmp_path)


def test_other_os_errors_of_a_build_are_bugs_and_stay_what_they_are(tmp_path):
    def build(folder):
        (folder / "not there").read_text()

    with pytest.raises(FileNotFoundError):
        stage.run(tmp_path, "gen1/scores", build, settings={}, inputs={})


def test_write_json_atomically_replaces_the_file_and_leaves_nothing_else(tmp_path):
    stage.write_json_atomically(tmp_path / "summary.json", {"a": 1})
    stage.write_json_atomically(tmp_path / "summary.json", {"a": 2})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    with pytest.raises(TypeError):
        stage.write_json_atomically(tmp_path / "summary.json", {"a": object()})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 2}


def test_log_tells_what_was_made_and_what_was_used_again(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "absl"):
        made = make(tmp_path, name="export")
        make(tmp_path, name="export")
    assert f"export-{made.fingerprint}: done in" in caplog.text
    assert f"export-{made.fingerprint}: already done, used again" in caplog.text
    assert f"{tmp_path.name}/export" not in caplog.text
