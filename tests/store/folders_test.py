import concurrent.futures
import dataclasses
import errno
import functools
import hashlib
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading

import pytest

from nsk.errors import UserError
from nsk.store import folders as stage
from nsk.store.files import WRITTEN, atomic_write
from nsk.store.manifest import write_json


def write(path, content):
    with atomic_write(path) as unfinished:
        unfinished.write_text(content)


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
        from nsk.store import folders as stage
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


# Stages that go on, and several workers.


def goes_on(workdir, build, worker=0, num_workers=1, settings=None):
    return stage.run(
        workdir,
        "gen1/scores",
        build,
        settings=settings or {},
        inputs={},
        goes_on=True,
        worker=worker,
        num_workers=num_workers,
    )


def left(folder):
    """Names of what is in a folder, beside the notes of what was written."""
    return sorted(path.name for path in folder.iterdir() if path.name != WRITTEN)


def test_a_build_that_goes_on_finds_what_a_stopped_one_has_left(tmp_path):
    def stop(folder):
        write(folder / "0.txt", "zero")
        raise KeyboardInterrupt

    def go_on(folder):
        assert left(folder) == ["0.txt"]
        write(folder / "1.txt", "one")
        return {"files": 2}

    with pytest.raises(KeyboardInterrupt):
        goes_on(tmp_path, stop)
    with pytest.raises(AssertionError):  # Another setting has a folder of its own.
        goes_on(tmp_path, go_on, settings={"seed": 1})
    made = goes_on(tmp_path, go_on)
    assert made.counts == {"files": 2} and left(made.path) == ["0.txt", "1.txt", "stage.json"]
    assert goes_on(tmp_path, must_not_build).reused


def test_a_file_of_which_nothing_is_noted_is_made_anew(tmp_path, caplog):
    """Nobody can tell whether it is as it was written."""

    def stop(folder):
        (folder / "0.txt").write_text("zero")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        goes_on(tmp_path, stop)
    goes_on(tmp_path, lambda folder: {"left": left(folder)})
    assert "0.txt is damaged: it is made anew" in caplog.text


def test_what_a_stopped_process_was_writing_is_removed_before_a_build_goes_on(tmp_path):
    def stop(folder):
        (folder / "0.txt.77.unfinished").write_text("ze")
        (folder / "model.unfinished").mkdir()
        (folder / "model.unfinished" / "model.keras").write_text("mo")
        raise KeyboardInterrupt

    def go_on(folder):
        assert left(folder) == []
        return {}

    with pytest.raises(KeyboardInterrupt):
        goes_on(tmp_path, stop)
    assert left(goes_on(tmp_path, go_on).path) == ["stage.json"]


def test_a_build_that_goes_on_is_not_described_by_the_manifest_of_a_killed_one(
    tmp_path, monkeypatch
):
    """A process may be killed between writing its manifest and renaming its folder."""

    def build(folder):
        (folder / "result.txt").write_text("x")
        return {}

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def killed(*_):
            raise KeyboardInterrupt

        patch.setattr(os, "rename", killed)
        goes_on(tmp_path, build)
    made = goes_on(tmp_path, build)
    files = json.loads((made.path / "stage.json").read_text())["files"]
    assert set(files) == {"result.txt"}


def test_a_build_that_does_not_go_on_begins_with_an_empty_folder(tmp_path):
    def stop(folder):
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_or_stop(tmp_path, stop)
    made = make_or_stop(tmp_path, lambda folder: {"left": left(folder)})
    assert made.counts == {"left": []}


def make_or_stop(workdir, build):
    return stage.run(workdir, "gen1/scores", build, settings={}, inputs={})


def share_of(worker, num_workers, total=5):
    """A build of every `num_workers`-th of some files; complete where all are there."""

    def build(folder):
        for number in range(worker, total, num_workers):
            write(folder / f"{number}.txt", f"{number}")
        done = len(list(folder.glob("*.txt")))
        return {"files": done} if done == total else None

    return build


def test_the_last_worker_publishes_what_all_have_made(tmp_path):
    assert goes_on(tmp_path, share_of(2, 3), 2, 3) is None
    assert goes_on(tmp_path, share_of(0, 3), 0, 3) is None
    assert stage.find(tmp_path, "gen1/scores", settings={}, inputs={}) is None
    (partial,) = (tmp_path / "gen1").glob("*.partial")
    assert left(partial) == ["0.txt", "2.txt", "3.txt"]
    (partial / "4.txt.999.unfinished").write_text("of a worker that was killed")
    made = goes_on(tmp_path, share_of(1, 3), 1, 3)
    assert made.counts == {"files": 5} and not made.reused
    names = [f"{number}.txt" for number in range(5)]
    assert left(made.path) == [*names, "stage.json"]
    assert set(json.loads((made.path / "stage.json").read_text())["files"]) == set(names)
    assert goes_on(tmp_path, must_not_build, 0, 3).reused


def test_the_same_worker_may_come_again_until_the_others_are_done(tmp_path):
    for _ in range(2):
        assert goes_on(tmp_path, share_of(0, 2), 0, 2) is None
    # One process alone takes up what workers have left.
    assert goes_on(tmp_path, share_of(0, 1)).counts == {"files": 5}


def start_worker(workdir, worker, num_workers, total=4):
    """A process that makes its share of files when it is told to; then it is told the rest."""
    program = f"""
        import sys
        from nsk.store import folders as stage
        from nsk.errors import UserError
        from nsk.store.files import written_whole
        def build(folder):
            print("building", flush=True)
            sys.stdin.readline()
            for number in range({worker}, {total}, {num_workers}):
                with written_whole(folder / f"{{number}}.txt") as path:
                    path.write_text(str(number))
            done = len(list(folder.glob("*.txt")))
            return {{"files": done}} if done == {total} else None
        try:
            made = stage.run(
                {os.fspath(workdir)!r}, "gen1/scores", build, settings={{}}, inputs={{}},
                goes_on=True, worker={worker}, num_workers={num_workers},
            )
            print("left to others" if made is None else f"published {{made.counts['files']}}")
        except UserError as error:
            print(error)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Tells a worker to go on; what it says at its end."""
    return process.communicate("go on\n", timeout=60)[0].strip()


@pytest.fixture
def workers(tmp_path):
    """Function that starts a worker and waits until it builds; all are stopped at the end."""
    started = []

    def start(worker, num_workers):
        started.append(start_worker(tmp_path, worker, num_workers))
        assert started[-1].stdout.readline().strip() == "building"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_workers_share_a_stage_and_the_last_one_publishes_it(tmp_path, workers):
    first, second = workers(0, 2), workers(1, 2)
    assert finish(first) == "left to others"
    assert list((tmp_path / "gen1").glob("*.partial"))
    assert finish(second) == "published 4"
    made = goes_on(tmp_path, must_not_build)
    assert left(made.path) == ["0.txt", "1.txt", "2.txt", "3.txt", "stage.json"]


def test_the_same_worker_twice_is_refused(tmp_path, workers):
    first = workers(1, 3)
    with pytest.raises(UserError, match=f"is being made by process {first.pid} on"):
        goes_on(tmp_path, must_not_build, 1, 3)
    with pytest.raises(UserError, match="is being made by"):
        goes_on(tmp_path, must_not_build)  # One process alone would take all shares.
    assert goes_on(tmp_path, share_of(0, 3, 4), 0, 3) is None  # The others may.


def test_a_worker_is_refused_beside_a_process_that_makes_the_stage_alone(tmp_path, workers):
    owner = workers(0, 1)
    with pytest.raises(UserError, match=f"is being made by process {owner.pid} on"):
        goes_on(tmp_path, must_not_build, 0, 2)
    assert finish(owner) == "published 4"
    assert goes_on(tmp_path, must_not_build, 0, 2).reused


def test_the_share_of_a_worker_that_was_killed_is_made_by_the_next_one(tmp_path, workers):
    killed, other = workers(0, 2), workers(1, 2)
    killed.kill()
    killed.communicate()
    assert finish(other) == "left to others"
    assert finish(workers(0, 2)) == "published 4"


def test_of_two_workers_that_find_it_complete_one_publishes_and_both_have_it(tmp_path):
    """Both have seen the last file before either has published: the second one finds it done."""
    both_complete = threading.Barrier(2)

    def build(folder):
        share_of(0, 1)(folder)
        both_complete.wait(timeout=30)
        return {"files": 5}

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda worker: goes_on(tmp_path, build, worker, 2), range(2)))
    assert sorted(one.reused for one in made) == [False, True]
    assert made[0].path == made[1].path and made[0].counts == made[1].counts == {"files": 5}
    assert not list((tmp_path / "gen1").glob("*.partial"))


def test_no_lock_is_left_of_a_stage_that_workers_have_published(tmp_path):
    for worker in range(3):
        made = goes_on(tmp_path, share_of(worker, 3), worker, 3)
    assert left(tmp_path / "gen1") == [made.path.name]


def test_find_makes_nothing(tmp_path):
    found = stage.find(tmp_path / "run", "gen1/scores", settings={"seed": 1}, inputs={})
    assert found is None and not (tmp_path / "run").exists()
    teacher = make(tmp_path, name="gen0/teacher")
    made = make(tmp_path, settings={"seed": 1}, inputs={"teacher": teacher})
    find = functools.partial(stage.find, tmp_path, "gen1/scores")
    found = find(settings={"seed": 1}, inputs={"teacher": teacher})
    assert found == dataclasses.replace(made, reused=True)
    assert find(settings={"seed": 2}, inputs={"teacher": teacher}) is None
    assert find(settings={"seed": 1}, inputs={}) is None
    (made.path / "stage.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        find(settings={"seed": 1}, inputs={"teacher": teacher})


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
    write_json(tmp_path / "summary.json", {"a": 1})
    write_json(tmp_path / "summary.json", {"a": 2})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    with pytest.raises(TypeError):
        write_json(tmp_path / "summary.json", {"a": object()})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 2}


def test_log_tells_what_was_made_and_what_was_used_again(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "absl"):
        made = make(tmp_path, name="export")
        make(tmp_path, name="export")
    assert f"export-{made.fingerprint}: done in" in caplog.text
    assert f"export-{made.fingerprint}: already done, used again" in caplog.text
    assert f"{tmp_path.name}/export" not in caplog.text
