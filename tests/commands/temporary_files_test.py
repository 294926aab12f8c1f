"""Temporary files: in a folder of the process, deleted at its end or by the next one."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

PROGRAM = """
    import os, sys, tempfile
    from nsk import main
    from nsk.commands import temporary_files
    folder = temporary_files.use_private_folder()
    tempfile.NamedTemporaryFile(delete=False).close()
    print(folder, len(os.listdir(folder)), os.environ.get("KERAS_HOME"), flush=True)
    sys.stdin.read()
    main.exit_at_once(0)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a process with a folder for temporary files of its own; returns it and the folder."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").mkdir()

    def start_process():
        environment = {
            **os.environ,
            "TMPDIR": str(tmp_path / "tmp"),
            "HOME": str(tmp_path / "home"),
        }
        environment.pop("KERAS_HOME", None)
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return process, *process.stdout.readline().split()

    return start_process


def end(process):
    process.communicate()
    return process.returncode


def test_nothing_is_left(start, tmp_path):
    process, folder, num_files, keras_home = start()
    assert num_files == "2" and os.path.dirname(folder) == str(tmp_path / "tmp")
    assert keras_home == f"{folder}/keras"
    assert end(process) == 0
    assert not os.listdir(tmp_path / "tmp") and not os.listdir(tmp_path / "home")


def test_a_keras_configuration_of_the_user_is_used(start, tmp_path):
    (tmp_path / "home" / ".keras").mkdir()
    (tmp_path / "home" / ".keras" / "keras.json").write_text("{}")
    process, _, _, keras_home = start()
    assert keras_home == "None" and end(process) == 0


def test_what_a_killed_process_left_is_deleted_by_the_next_one(start, tmp_path):
    killed, left, *_ = start()
    running, kept, *_ = start()
    killed.send_signal(signal.SIGKILL)
    end(killed)
    assert os.path.isdir(left)
    assert end(start()[0]) == 0
    assert os.listdir(tmp_path / "tmp") == [os.path.basename(kept)]
    assert end(running) == 0


def test_what_a_process_left_that_was_killed_before_it_had_a_lock_is_deleted_later(start, tmp_path):
    for name, age in (("old", 7200), ("new", 0)):
        path = tmp_path / "tmp" / f"nsk-{name}" / "lock.new"
        path.parent.mkdir()
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    assert end(start()[0]) == 0
    assert os.listdir(tmp_path / "tmp") == ["nsk-new"]
