"""A disk that refuses, really: limits on file sizes, full and read-only disks, unreadable files.

Each time: one line that says what was refused, exit code 2, finished stages as they were; and when
the disk is willing again, the bytes of a run that was never disturbed.

A driver imports TensorFlow once and forks a process for each run; it has mounts of its own, which
end with it.
"""

import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from nsk.commands import verify
from nsk.errors import UserError
from nsk.store import folders as stage
from nsk.store.manifest import MANIFEST

FLAGS = shlex.split(
    "--dataset=digits --image_size=8 --num_labeled=50 --num_dev=50 --images_per_shard=300 "
    "--models=convnet5,convnet5 --train_images=1000,200 --labeled_batch_size=25 "
    "--learning_rate=0.05 --flip=off --crop_padding=0 --randaugment_num_ops=0 --dropout_rate=0 "
    "--min_confidence=0.1 --policy=gap --gap_floor=150 --evaluations=1"
)
DETERMINED = re.compile(r"\.(parquet|tfrecord|txt)$|^(manifest|temperature)\.json$")
PAGE = 4096

DRIVER = """
    import ctypes, json, os, resource, subprocess, sys, traceback
    from absl import flags
    from nsk import main
    main.define_flags()
    with main.native_messages_hidden():
        import tensorflow
        from nsk import self_training

    def forget_to_be_an_administrator():
        '''Takes the capabilities from this process that make rights on files mean nothing.'''
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # Version 3, this process.
        sets = (ctypes.c_uint32 * 6)()  # Effective, permitted, inheritable; and upper halves.
        assert libc.capget(header, sets) == 0
        for number in range(2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
            sets[number] &= ~0b110
        assert libc.capset(header, sets) == 0

    def run(arguments, file_size=None):
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.dup2(writing, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.close(reading)
            try:
                forget_to_be_an_administrator()
                flags.FLAGS(["nsk", *arguments])
                if file_size is not None:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
                code = main.run_main(["nsk"])
            except BaseException:
                traceback.print_exc()
                code = 1
            main.exit_at_once(code)
        os.close(writing)
        with open(reading, errors="replace") as told:
            text = told.read()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text

    def mount(*arguments):
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
        return done.returncode, done.stderr

    for line in sys.stdin:
        name, arguments, keywords = json.loads(line)
        print(json.dumps({"run": run, "mount": mount}[name](*arguments, **keywords)), flush=True)
"""


class Driver:
    """The process that runs and mounts."""

    def __init__(self):
        self._process = subprocess.Popen(
            [*self._namespace(), sys.executable, "-c", textwrap.dedent(DRIVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _namespace(self):
        """What gives the process mounts of its own, where that is allowed."""
        command = ["unshare", "--map-root-user", "--mount"]
        self.can_mount = (
            shutil.which("unshare") is not None
            and subprocess.run(
                [*command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True
            ).returncode
            == 0
        )
        return [*command, "--"] if self.can_mount else []

    def _ask(self, name, *arguments, **keywords):
        self._process.stdin.write(json.dumps([name, arguments, keywords]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def run(self, workdir, *more, **keywords):
        """(exit code, what it said) of a run."""
        return self._ask("run", [*FLAGS, *more, f"--workdir={workdir}"], **keywords)

    def mount(self, *arguments):
        code, text = self._ask("mount", *map(str, arguments))
        assert code == 0, text

    def outside(self, path):
        """The path by which this process sees what the driver has mounted."""
        return Path(f"/proc/{self._process.pid}/root{path}")

    def close(self):
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def driver():
    one = Driver()
    yield one
    one.close()


@pytest.fixture(scope="module")
def whole(driver, tmp_path_factory):
    """Workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    code, told = driver.run(workdir)
    assert code == 0, told
    return workdir


def digests(workdir):
    """{name: SHA-256} of all that the flags determine; of models, of their weights.

    A SavedModel holds the weights of the `.keras` file beside it in an order that varies.
    """
    found = {}
    for path in sorted(path for path in workdir.rglob("*") if path.is_file()):
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                content = archive.read("model.weights.h5")
        elif path.name == MANIFEST:
            content = b"a finished stage"
        elif DETERMINED.search(path.name):
            content = path.read_bytes()
        else:
            continue
        found[path.relative_to(workdir).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def times(workdir):
    """When the files of each finished stage were written."""
    return {
        path: path.stat().st_mtime_ns
        for folder in stage.finished(workdir)
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_refused(done, *words):
    """One line, and no more, says what was refused and what to do."""
    code, told = done
    lines = told.splitlines()
    assert code == 2, told
    assert "Traceback" not in told and "Error" not in told
    assert [line for line in lines if line.startswith("nsk: ")] == lines[-1:]
    assert all(word in lines[-1] for word in words), lines[-1]


class Disk:
    """A run's folder whose disk is made to refuse: (driver's path, the path of this process)."""

    def __init__(self, driver, workdir, seen, whole):
        self.driver, self.workdir, self.seen = driver, workdir, seen
        self._whole = whole
        shutil.copytree(whole, seen)

    def refuses(self, remove, words, *more, **keywords):
        """A run that makes some stages anew is refused; all that is finished stays as it is."""
        self.remove(remove)
        before = times(self.seen)
        assert_refused(self.driver.run(self.workdir, *more, **keywords), *words)
        assert times(self.seen).items() >= before.items()
        # What is not whole takes up room for nothing. (A .keras file is in the way of none.)
        left = {path.name for path in self.seen.rglob("*.unfinished")}
        assert left <= {"model.keras.unfinished"}

    def remove(self, pattern):
        for path in list(self.seen.glob(pattern)) if pattern else []:
            shutil.rmtree(path)

    def is_willing(self):
        """The run ends as an undisturbed one."""
        code, told = self.driver.run(self.workdir)
        assert code == 0, told
        expected = digests(self._whole)
        assert digests(self.seen) == expected and len(expected) > 40
        assert verify.verify(self.seen) == 9
        left = [path for path in self.seen.rglob("*") if ".partial" in path.name]
        assert not left and not list(self.seen.rglob("*.checkpoints"))


# What is made anew, a limit in bytes, what the line names, more flags: a SavedModel's variables,
# TFRecord, Parquet, TensorBoard; and .keras, NumPy, what Python writes.
LIMITS = [
    ("export-*", 600_000, ".partial/saved_model/variables/", ()),
    ("gen1/pseudo-*", 100_000, "/gen1/pseudo-", ()),
    ("gen1/scores-*", 8_000, "/gen1 ", ()),
    ("gen0/teacher-*", 5_000, "/tensorboard/gen0/teacher-", ()),
]
MORE_LIMITS = [
    ("", 300_000, "/gen0 ", ()),
    ("", 600_000, "/gen0 ", ("--checkpoint_minutes=0", "--evaluations=4")),
    ("data/images-*", 100_000, "/data ", ()),
    ("", 1_000, "/run ", ()),
]


@pytest.mark.parametrize(
    "limits", [LIMITS, pytest.param([*LIMITS, *MORE_LIMITS], marks=pytest.mark.slow)]
)
def test_a_limit_on_the_size_of_files(driver, whole, tmp_path, limits):
    disk = Disk(driver, tmp_path / "run", tmp_path / "run", whole)
    words = ["The disk refuses ", "(File too large): raise the limit", "ulimit -f", "run again"]
    for remove, file_size, place, more in limits:
        disk.refuses(remove, [*words, place], *more, file_size=file_size)
    disk.is_willing()


@pytest.fixture
def small_disk(driver, whole, tmp_path):
    """A disk of its own, of some memory."""
    if not driver.can_mount:
        pytest.skip("This system lets no user mount a disk of his own.")
    mounted = tmp_path / "disk"
    mounted.mkdir()
    driver.mount("-t", "tmpfs", "-o", "size=64m", "none", mounted)
    yield Disk(driver, mounted / "run", driver.outside(mounted) / "run", whole)
    driver.mount("-o", "remount,rw,size=64m", mounted)


def remount(disk, options):
    disk.driver.mount("-o", f"remount,{options}", disk.workdir.parent)


# What is made anew, how many pages are free, what the line names: a SavedModel, TFRecord, Parquet,
# JSON; and TensorBoard, .keras, ingest.
PAGES = [
    ("export-*", 150, ".partial/saved_model/"),
    ("gen1/pseudo-*", 30, "/gen1/pseudo-"),
    ("gen1/scores-*", 6, "/gen1 "),
    ("", 0, "/run "),
]
MORE_PAGES = [
    ("**/gen0/teacher-*", 3, "/tensorboard/gen0/teacher-"),
    ("", 40, "/gen0 "),
    ("data/images-*", 80, "/data/images-"),
]


@pytest.mark.parametrize(
    "pages", [PAGES, pytest.param([*PAGES, *MORE_PAGES], marks=pytest.mark.slow)]
)
def test_a_full_disk(small_disk, pages):
    words = ["The disk refuses ", "(No space left on device): make room, and run again"]
    for remove, free, place in pages:
        remount(small_disk, "size=64m")
        small_disk.remove(remove)
        told = os.statvfs(small_disk.seen)
        used = (told.f_blocks - told.f_bfree) * told.f_frsize
        remount(small_disk, f"size={used + free * PAGE}")
        small_disk.refuses("", [*words, place])
    remount(small_disk, "size=64m")
    small_disk.is_willing()


def test_a_read_only_disk(small_disk):
    remount(small_disk, "ro")
    small_disk.refuses("", ["cannot be written into", "change its rights", "--workdir"])
    remount(small_disk, "rw")
    small_disk.is_willing()


@pytest.mark.slow
def test_a_read_only_folder(small_disk):
    small_disk.remove("gen1/student-*")
    curves = small_disk.workdir / "tensorboard"
    small_disk.driver.mount("--bind", curves, curves)
    small_disk.driver.mount("-o", "remount,bind,ro", curves)
    words = ["The disk refuses ", "/tensorboard/gen1/student-", "(Read-only file system): change"]
    small_disk.refuses("", words)
    small_disk.driver.mount("-o", "remount,bind,rw", curves)
    small_disk.is_willing()


def test_rights_that_are_missing(driver, whole, tmp_path):
    disk = Disk(driver, tmp_path / "run", tmp_path / "run", whole)

    def refused(path, mode, *words):
        kept = path.stat().st_mode
        path.chmod(mode)
        try:
            assert_refused(driver.run(disk.workdir), *words)
        finally:
            path.chmod(kept)

    (model,) = disk.seen.glob("gen0/teacher-*/model.keras")
    refused(model, 0, f"{model}: it cannot be read: Permission denied")
    refused(model.with_name(MANIFEST), 0, "cannot be read (Permission denied): mend that")
    refused(model.parent, 0, "cannot be read (Permission denied): mend that")
    refused(disk.seen / "gen0", 0, "The disk refuses", "gen0", "(Permission denied): change its")
    refused(disk.seen, 0o555, f"{disk.seen} cannot be written into: change its rights")
    disk.remove("gen1/scores-*")
    refused(disk.seen / "gen1", 0o555, f"{disk.seen}/gen1 cannot be written into")
    disk.is_willing()


def test_an_image_that_cannot_be_read(driver, tmp_path):
    path = tmp_path / "photos" / "cats" / "1.png"
    for one in (path, tmp_path / "photos" / "dogs" / "2.png"):
        one.parent.mkdir(parents=True)
        one.write_bytes(b"never looked at")
    path.chmod(0)
    done = driver.run(tmp_path / "run", f"--dataset=folder:{tmp_path / 'photos'}")
    assert_refused(done, "cats/1.png", "Permission denied")


def test_the_command_line_itself(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "nsk.main", *FLAGS, f"--workdir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert_refused((done.returncode, done.stderr), "File too large", f"{tmp_path}/run")
    assert done.stdout == ""
    with pytest.raises(UserError, match="no finished stage"):
        verify.verify(tmp_path / "run")
