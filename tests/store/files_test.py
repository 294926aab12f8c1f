import errno
import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from nsk.store.files import atomic_write, num_cores, remove_unfinished, write_once


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "scores.parquet"
    with atomic_write(path) as unfinished:
        unfinished.write_text("half")
        assert not path.exists() and unfinished.parent == tmp_path
        unfinished.write_text("whole")
    assert [one.name for one in tmp_path.iterdir()] == ["scores.parquet"]
    assert path.read_text() == "whole"


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "scores.parquet"
    path.write_text("old")
    with atomic_write(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_midway_leaves_what_was_there_and_nothing_else(tmp_path, error):
    for number, old in enumerate((None, "old")):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "scores.parquet"
        if old:
            path.write_text(old)
        with pytest.raises(error), atomic_write(path) as unfinished:
            unfinished.write_text("half")
            raise error
        assert [one.read_text() for one in folder.iterdir()] == ([old] if old else [])


def test_a_process_killed_midway_leaves_no_file_of_that_name(tmp_path):
    program = f"""
        import time
        from nsk.store.files import written_whole
        with written_whole({os.fspath(tmp_path / "a" / "scores.parquet")!r}) as unfinished:
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
    (left,) = (tmp_path / "a").iterdir()
    assert re.fullmatch(r"scores\.parquet\.[0-9a-f]{8}\.unfinished", left.name)
    (tmp_path / "a" / "other.parquet").write_text("whole")
    remove_unfinished(tmp_path)
    assert [one.name for one in (tmp_path / "a").iterdir()] == ["other.parquet"]


def test_several_may_write_one_file_at_the_same_time(tmp_path):
    """Workers on machines that share a disk may have equal process ids."""
    path = tmp_path / "dev.parquet"
    with atomic_write(path) as one:
        one.write_text("whole")
        with atomic_write(path) as other:
            other.write_text("whole")
        assert path.read_text() == "whole"
    assert [one.name for one in tmp_path.iterdir()] == ["dev.parquet"]


@pytest.mark.parametrize("has_links", [True, False])
def test_what_is_first_written_stays(tmp_path, monkeypatch, has_links):
    def link(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if not has_links:
        monkeypatch.setattr(os, "link", link)
    assert write_once(tmp_path / "a.json", b"1") == b"1"
    assert write_once(tmp_path / "a.json", b"2") == b"1"
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_num_cores_is_at_least_one():
    assert 1 <= num_cores() <= os.cpu_count()
