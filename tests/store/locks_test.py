"""Locks: a stage is built by one process at a time, or by workers that share it."""

import concurrent.futures
import os
import subprocess
import sys
import textwrap

import pytest

from nsk.errors import UserError
from nsk.store.files import WRITTEN, atomic_write
from nsk.store.folders import StageKey, build_or_reuse
from nsk.store.locks import lock_folder, upgrade_to_exclusive

# A process that builds every NUM_WORKERS-th of TOTAL files when it reads a line from stdin.
PROGRAM = """
    import sys
    from pathlib import Path
    from nsk.errors import UserError
    from nsk.store.files import atomic_write
    from nsk.store.folders import StageKey, build_or_reuse

    workdir, (worker, num_workers, total) = Path(sys.argv[1]), map(int, sys.argv[2:])

    def build(folder):
        print("building", flush=True)
        sys.stdin.readline()
        for number in range(worker, total, num_workers):
            with atomic_write(folder / f"{number}.txt") as path:
                path.write_text(str(number))
        done = len(list(folder.glob("*.txt")))
        return {"files": done} if done == total else None

    try:
        stage = build_or_reuse(
            StageKey(workdir, "gen1/scores", {}, {}),
            build, resumes=True, worker=worker, num_workers=num_workers,
        )
        print("others have not finished" if stage is None else f"published {stage.counts['files']}")
    except UserError as error:
        print(error)
"""


def build_here(workdir, build, worker=0, num_workers=1, name="gen1/scores"):
    key = StageKey(workdir, name, {}, {})
    return build_or_reuse(key, build, resumes=True, worker=worker, num_workers=num_workers)


def must_not_build(folder):
    raise AssertionError(f"{folder} was built again.")


@pytest.fixture
def start(tmp_path):
    """Function that starts a worker and waits until it builds; all are killed at the end."""
    processes = []

    def start_worker(worker=0, num_workers=1, total=4):
        arguments = map(str, (tmp_path, worker, num_workers, total))
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline().strip() == "building"
        return process

    yield start_worker
    for process in processes:
        kill(process)


def kill(process):
    process.kill()
    process.communicate()


def finish(process):
    """Lets a worker write its files; returns its last line."""
    return process.communicate("write\n", timeout=120)[0].strip()


def test_a_second_process_is_refused_with_the_name_of_the_owner(tmp_path, start):
    owner = start()
    with pytest.raises(UserError) as error:
        build_here(tmp_path, must_not_build)
    assert f"process {owner.pid} on {os.uname().nodename}" in str(error.value)
    # Every stage has a lock of its own.
    build_here(tmp_path, lambda folder: {}, name="gen1/selection")


def test_the_stage_of_a_killed_process_is_built_by_the_next_one(tmp_path, start):
    kill(start())
    # The killed process has left its lock file and its partial folder.
    assert list((tmp_path / "gen1").glob("scores-*.lock"))
    assert list((tmp_path / "gen1").glob("scores-*.partial"))
    second = start()
    with pytest.raises(UserError, match=f"built by process {second.pid} on [^:]*: wait"):
        build_here(tmp_path, must_not_build)
    kill(second)
    stage = build_here(tmp_path, lambda folder: {"own": 1})
    assert stage.counts == {"own": 1}
    assert [path.name for path in (tmp_path / "gen1").iterdir()] == [stage.path.name]


def test_a_stage_that_another_process_has_finished_is_reused(tmp_path, start):
    assert finish(start(total=1)) == "published 1"
    stage = build_here(tmp_path, must_not_build)
    assert stage.reused and (stage.path / "0.txt").read_text() == "0"


def test_workers_share_a_stage_and_the_last_one_publishes_it(tmp_path, start):
    first, second = start(0, 2), start(1, 2)
    assert finish(first) == "others have not finished"
    assert list((tmp_path / "gen1").glob("*.partial"))
    assert finish(second) == "published 4"
    stage = build_here(tmp_path, must_not_build)
    names = sorted(path.name for path in stage.path.iterdir())
    assert names == ["0.txt", "1.txt", "2.txt", "3.txt", "stage.json"]


def test_a_duplicated_worker_is_refused(tmp_path, start):
    first = start(1, 3, total=2)
    with pytest.raises(UserError, match=f"is being built by process {first.pid} on"):
        build_here(tmp_path, must_not_build, 1, 3)
    with pytest.raises(UserError, match="is being built by"):
        build_here(tmp_path, must_not_build)  # A single process would build all shares.

    def build(folder):
        with atomic_write(folder / "0.txt") as path:
            path.write_text("0")

    assert build_here(tmp_path, build, 0, 3) is None  # Other workers may build.
    assert finish(first) == "published 2"


def test_a_worker_is_refused_beside_a_process_that_builds_alone(tmp_path, start):
    owner = start(0, 1)
    with pytest.raises(UserError, match=f"is being built by process {owner.pid} on"):
        build_here(tmp_path, must_not_build, 0, 2)
    assert finish(owner) == "published 4"
    assert build_here(tmp_path, must_not_build, 0, 2).reused


def test_the_share_of_a_killed_worker_is_built_by_the_next_one(tmp_path, start):
    killed, other = start(0, 2), start(1, 2)
    kill(killed)
    assert finish(other) == "others have not finished"
    (partial,) = (tmp_path / "gen1").glob("*.partial")
    names = sorted(path.name for path in partial.iterdir() if path.name != WRITTEN)
    assert names == ["1.txt", "3.txt"]
    assert finish(start(0, 2)) == "published 4"


def test_a_damaged_lock_file_still_locks(tmp_path):
    def build(folder):
        (lock,) = folder.parent.glob("*.lock")
        lock.write_bytes(b"\xff\x00\n")
        with pytest.raises(UserError, match="is being built by"):
            build_here(tmp_path, must_not_build)
        return {}

    build_here(tmp_path, build)
    assert not list(tmp_path.rglob("*.lock"))


def test_shared_locks_exclude_an_exclusive_one_alone(tmp_path):
    path = tmp_path / "scores"
    with lock_folder(path, shared=True) as first:
        with lock_folder(path, shared=True):
            with pytest.raises(UserError, match="is being built by process"):
                lock_folder(path).__enter__()
            with lock_folder(path, ".worker-0-of-2"):  # A lock of its own.
                pass
        upgrade_to_exclusive(first)
        with pytest.raises(UserError), lock_folder(path, shared=True):
            pass
    with lock_folder(path):
        pass
    assert (tmp_path / "scores.lock").exists()  # The stage is not published.


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_process_can_wait_for_another_one(tmp_path, start, is_killed):
    """It reuses what the other publishes, or builds what a killed one does not."""
    other, key = start(), StageKey(tmp_path, "gen1/scores", {}, {})
    build = (lambda folder: {"files": 0}) if is_killed else must_not_build
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(build_or_reuse, key, build, wait=True)
        with pytest.raises(concurrent.futures.TimeoutError):
            waiting.result(0.2)
        if is_killed:
            kill(other)
        else:
            assert finish(other) == "published 4"
        stage = waiting.result(10)
    assert stage.reused != is_killed and stage.counts == {"files": 0 if is_killed else 4}


def test_locks_of_other_stages_are_kept(tmp_path):
    """Names may start alike, or be patterns."""
    path = tmp_path / "[s]cores"
    path.mkdir()
    kept = [tmp_path / f"{name}.lock" for name in ("[s]cores2", "[s]cores-2", "scores")]
    kept.append(tmp_path / "scores.worker-0-of-2.lock")
    (tmp_path / "[s]cores.worker-1-of-2.lock").touch()
    for file in kept:
        file.touch()
    with lock_folder(path):
        pass
    assert sorted(tmp_path.glob("*.lock")) == sorted(kept)
