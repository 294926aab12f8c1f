"""Atomic files: complete or absent, whatever interrupts the process that writes them."""

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from nsk.store.files import (
    WRITTEN,
    atomic_write,
    changed_since_written,
    num_cores,
    remove_unfinished,
    write_once,
)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def write(path, content):
    with atomic_write(path) as unfinished:
        unfinished.write_text(content)


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "scores.parquet"
    with atomic_write(path) as unfinished:
        unfinished.write_text("half")
        assert not path.exists() and unfinished.parent == tmp_path
        unfinished.write_text("complete")
    assert names_in(tmp_path) == ["scores.parquet"]
    assert path.read_text() == "complete"


def test_a_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "scores.parquet"
    path.write_text("old")
    with atomic_write(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_keeps_the_previous_file_and_leaves_no_other(tmp_path, error):
    for number, old in enumerate((None, "old")):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "scores.parquet"
        if old:
            path.write_text(old)
        with pytest.raises(error), atomic_write(path) as unfinished:
            unfinished.write_text("half")
            raise error
        assert [path.read_text() for path in folder.iterdir()] == ([old] if old else [])


def test_a_killed_process_leaves_an_unfinished_file_alone(tmp_path):
    program = f"""
        import time
        from nsk.store.files import atomic_write
        with atomic_write({os.fspath(tmp_path / "a" / "scores.parquet")!r}) as unfinished:
            unfinished.write_text("half")
            print("half", flush=True)
            time.sleep(60)
    """
    (tmp_path / "a").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline().strip() == "half"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (name,) = names_in(tmp_path / "a")
    assert re.fullmatch(r"scores\.parquet\.[0-9a-f]{8}\.unfinished", name)
    (tmp_path / "a" / "dev.parquet").write_text("complete")
    remove_unfinished(tmp_path)
    assert names_in(tmp_path / "a") == ["dev.parquet"]


def test_several_processes_may_write_the_same_file(tmp_path):
    """Workers on machines that share a disk may have equal process ids."""
    path = tmp_path / "dev.parquet"
    with atomic_write(path) as first:
        first.write_text("complete")
        with atomic_write(path) as second:
            second.write_text("complete")
        assert path.read_text() == "complete"
    assert names_in(tmp_path) == ["dev.parquet"]


@pytest.mark.parametrize("has_links", [True, False])
def test_write_once_keeps_the_first_content(tmp_path, monkeypatch, has_links):
    def link(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if not has_links:
        monkeypatch.setattr(os, "link", link)
    assert write_once(tmp_path / "a.json", b"1") == b"1"
    assert write_once(tmp_path / "a.json", b"2") == b"1"
    assert names_in(tmp_path) == ["a.json"]


def test_changed_files_of_a_partial_folder_are_found(tmp_path):
    """Also those without a recorded digest; not those that are still being written."""
    folder = tmp_path / "scores-0123456789.partial"
    (folder / "unlabeled").mkdir(parents=True)
    for name in ("dev", "unlabeled/0", "unlabeled/1"):
        write(folder / name, name)
    write_once(folder / "temperature", b"1.5")
    assert changed_since_written(folder) == []
    assert (folder / WRITTEN).is_dir()
    (folder / "unlabeled" / "0").write_text("unlabeled/1")
    (folder / "not recorded").write_text("")
    (folder / "model.unfinished").mkdir()
    for unfinished in ("0.77.unfinished", "model.unfinished/model.keras"):
        (folder / unfinished).write_text("half")
    assert changed_since_written(folder) == [folder / "not recorded", folder / "unlabeled" / "0"]
    write(folder / "unlabeled" / "0", "another version")  # Written again, and so recorded.
    assert changed_since_written(folder) == [folder / "not recorded"]


def test_digests_are_recorded_in_partial_folders_alone(tmp_path):
    write(tmp_path / "summary.json", "{}")
    assert names_in(tmp_path) == ["summary.json"]


def test_num_cores_is_at_least_one():
    assert 1 <= num_cores() <= os.cpu_count()
