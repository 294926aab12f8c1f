"""Errors of the disk: limits on file sizes, full and read-only disks, missing permissions.

Most tests run on a real disk that fails. Each time one line says what could not be written, the
exit code is 2 and finished stages are unchanged; when the disk works again, the same command gives
the bytes of an undisturbed run.

A driver imports TensorFlow once and forks a process for each run. Its mounts are private and end
with it.
"""

import errno
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
import tensorflow as tf

from nsk.commands import verify
from nsk.errors import UserError
from nsk.store.disk_errors import REMEDIES, make_folder, naming_disk_errors
from nsk.store.manifest import MANIFEST
from nsk.store.verification import finished_stages

# Single functions.


@pytest.mark.parametrize("code", sorted(REMEDIES))
def test_an_os_error_of_the_disk_names_the_file_and_the_remedy(tmp_path, code):
    message = rf"Cannot write /run/shard \({re.escape(os.strerror(code))}\): .*, and run again"
    with pytest.raises(UserError, match=message) as error, naming_disk_errors(tmp_path):
        raise OSError(code, os.strerror(code), "/run/shard")
    assert REMEDIES[code] in str(error.value)


def test_an_error_without_a_file_name_names_the_folder(tmp_path):
    with pytest.raises(UserError, match=f"a file below {tmp_path}"), naming_disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_error_of_the_disk_may_be_the_cause_of_another_one(tmp_path):
    with pytest.raises(UserError, match=r"/run/weights .*No space"), naming_disk_errors(tmp_path):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/weights")
        except OSError as error:
            raise ValueError("HDF5 failed") from error


def test_an_error_of_tensorflow_names_its_file(tmp_path):
    message = "{{function_node x}} /run/00000.tfrecord; No space left on device [Op:Write]"
    with (
        pytest.raises(UserError, match=r"Cannot write /run/00000\.tfrecord \(No space"),
        naming_disk_errors(tmp_path),
    ):
        raise tf.errors.ResourceExhaustedError(None, None, message)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "shard"),
        PermissionError(errno.EPERM, "Operation not permitted"),  # Not about a file.
        ValueError("a bug; No space left on device"),
        UserError("a wrong flag"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as raised, naming_disk_errors(tmp_path):
        raise error
    assert raised.value is error


def test_make_folder_needs_a_folder_that_can_be_written(tmp_path, monkeypatch):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"Cannot create the folder {path} .*--workdir"):
            make_folder(path)
    # Permissions do not stop an administrator, who may be running this test.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"Cannot write to the folder {tmp_path}: change its perm"):
        make_folder(tmp_path)


# Whole runs on a real disk.

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
    from nsk.commands import preparation
    main.define_flags()
    with preparation.hide_native_messages():
        import tensorflow
        from nsk import self_training
        from nsk.distributed import runtime
        from nsk.report import run_report

    def drop_capabilities():
        '''Drops the capabilities of an administrator to ignore the permissions of files.'''
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
                drop_capabilities()
                flags.FLAGS(["nsk", *arguments])
                if file_size is not None:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
                code = main.run_main(["nsk"])
            except BaseException:
                traceback.print_exc()
                code = 1
            main.exit_at_once(code)
        os.close(writing)
        with open(reading, errors="replace") as file:
            text = file.read()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text

    def mount(*arguments):
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
        return done.returncode, done.stderr

    for line in sys.stdin:
        name, arguments, keywords = json.loads(line)
        print(json.dumps({"run": run, "mount": mount}[name](*arguments, **keywords)), flush=True)
"""


class Driver:
    """The process that runs and mounts.

    Attributes:
        can_mount: whether the system allows private mounts.
    """

    def __init__(self):
        self._process = subprocess.Popen(
            [*self._namespace(), sys.executable, "-c", textwrap.dedent(DRIVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _namespace(self):
        """The start of a command line that gives the process private mounts, if allowed."""
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
        """(exit code, stderr) of a run."""
        return self._ask("run", [*FLAGS, *more, f"--workdir={workdir}"], **keywords)

    def mount(self, *arguments):
        code, text = self._ask("mount", *map(str, arguments))
        assert code == 0, text

    def outside(self, path):
        """The path at which this process sees a path below the driver's mounts."""
        return Path(f"/proc/{self._process.pid}/root{path}")

    def close(self):
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def driver():
    process = Driver()
    yield process
    process.close()


@pytest.fixture(scope="module")
def undisturbed(driver, tmp_path_factory):
    """Workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    code, log = driver.run(workdir)
    assert code == 0, log
    return workdir


def digests(workdir):
    """{name: SHA-256} of all files that the flags determine; of models, of their weights.

    A SavedModel holds the weights of the `.keras` file beside it in an order that varies.
    """
    result = {}
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
        result[path.relative_to(workdir).as_posix()] = hashlib.sha256(content).hexdigest()
    return result


def modification_times(workdir):
    """{path: time} of the files of each finished stage."""
    return {
        path: path.stat().st_mtime_ns
        for folder in finished_stages(workdir)
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_one_line(outcome, *words):
    """One line, and no more, says what could not be done and how to fix it."""
    code, log = outcome
    lines = log.splitlines()
    assert code == 2, log
    assert "Traceback" not in log and "Error" not in log
    assert [line for line in lines if line.startswith("nsk: ")] == lines[-1:]
    assert all(word in lines[-1] for word in words), lines[-1]


class Disk:
    """A copy of a run on a disk that can be made to fail.

    Args:
        driver: `Driver`.
        workdir: the run's folder, as the driver sees it.
        visible: the same folder, as this process sees it.
        undisturbed: the folder of the run that is copied.
    """

    def __init__(self, driver, workdir, visible, undisturbed):
        self.driver, self.workdir, self.visible = driver, workdir, visible
        self._undisturbed = undisturbed
        shutil.copytree(undisturbed, visible)

    def assert_fails(self, remove, words, *more, **keywords):
        """A run that rebuilds removed stages fails; finished stages are unchanged."""
        self.remove(remove)
        before = modification_times(self.visible)
        assert_one_line(self.driver.run(self.workdir, *more, **keywords), *words)
        assert modification_times(self.visible).items() >= before.items()
        # Unfinished files would waste space. (A .keras file blocks no other.)
        left = {path.name for path in self.visible.rglob("*.unfinished")}
        assert left <= {"model.keras.unfinished"}

    def remove(self, pattern):
        for path in list(self.visible.glob(pattern)) if pattern else []:
            shutil.rmtree(path)

    def assert_works(self):
        """The run finishes and equals the undisturbed one."""
        code, log = self.driver.run(self.workdir)
        assert code == 0, log
        expected = digests(self._undisturbed)
        assert digests(self.visible) == expected and len(expected) > 40
        assert verify.verify_workdir(self.visible) == 10
        left = [path for path in self.visible.rglob("*") if ".partial" in path.name]
        assert not left and not list(self.visible.rglob("*.checkpoints"))


# Removed stages, a limit in bytes, what the line names, more flags: a SavedModel's variables,
# TFRecord, Parquet, TensorBoard; and .keras, NumPy, files that Python writes.
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
def test_a_limit_on_the_size_of_files(driver, undisturbed, tmp_path, limits):
    disk = Disk(driver, tmp_path / "run", tmp_path / "run", undisturbed)
    words = ["Cannot write ", "(File too large): raise the limit", "ulimit -f", "run again"]
    for remove, file_size, place, more in limits:
        disk.assert_fails(remove, [*words, place], *more, file_size=file_size)
    disk.assert_works()


@pytest.fixture
def small_disk(driver, undisturbed, tmp_path):
    """A `Disk` in memory, mounted for one test."""
    if not driver.can_mount:
        pytest.skip("This system does not allow private mounts.")
    mounted = tmp_path / "disk"
    mounted.mkdir()
    driver.mount("-t", "tmpfs", "-o", "size=64m", "none", mounted)
    yield Disk(driver, mounted / "run", driver.outside(mounted) / "run", undisturbed)
    driver.mount("-o", "remount,rw,size=64m", mounted)


def remount(disk, options):
    disk.driver.mount("-o", f"remount,{options}", disk.workdir.parent)


# Removed stages, the number of free pages, what the line names: a SavedModel, TFRecord, Parquet,
# JSON; and TensorBoard, .keras, ingested images.
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
    words = ["Cannot write ", "(No space left on device): free some space, and run again"]
    for remove, free, place in pages:
        remount(small_disk, "size=64m")
        small_disk.remove(remove)
        state = os.statvfs(small_disk.visible)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize
        remount(small_disk, f"size={used + free * PAGE}")
        small_disk.assert_fails("", [*words, place])
    remount(small_disk, "size=64m")
    small_disk.assert_works()


def test_a_read_only_disk(small_disk):
    remount(small_disk, "ro")
    small_disk.assert_fails("", ["Cannot write to", "change its permissions", "--workdir"])
    remount(small_disk, "rw")
    small_disk.assert_works()


@pytest.mark.slow
def test_a_read_only_folder(small_disk):
    small_disk.remove("gen1/student-*")
    curves = small_disk.workdir / "tensorboard"
    small_disk.driver.mount("--bind", curves, curves)
    small_disk.driver.mount("-o", "remount,bind,ro", curves)
    words = ["Cannot write ", "/tensorboard/gen1/student-", "(Read-only file system): change"]
    small_disk.assert_fails("", words)
    small_disk.driver.mount("-o", "remount,bind,rw", curves)
    small_disk.assert_works()


def test_missing_permissions(driver, undisturbed, tmp_path):
    disk = Disk(driver, tmp_path / "run", tmp_path / "run", undisturbed)

    def assert_fails(path, mode, *words):
        previous = path.stat().st_mode
        path.chmod(mode)
        try:
            assert_one_line(driver.run(disk.workdir), *words)
        finally:
            path.chmod(previous)

    (model,) = disk.visible.glob("gen0/teacher-*/model.keras")
    gen0, gen1 = disk.visible / "gen0", disk.visible / "gen1"
    assert_fails(model, 0, f"{model}: it cannot be read: Permission denied")
    unreadable = "cannot be read (Permission denied): make it readable"
    assert_fails(model.with_name(MANIFEST), 0, unreadable)
    assert_fails(model.parent, 0, unreadable)
    assert_fails(gen0, 0, "Cannot write", "gen0", "(Permission denied): change its")
    cannot_write = "Cannot write to the folder"
    assert_fails(disk.visible, 0o555, f"{cannot_write} {disk.visible}: change its permissions")
    disk.remove("gen1/scores-*")
    assert_fails(gen1, 0o555, f"{cannot_write} {gen1}: change its permissions")
    disk.assert_works()


def test_an_image_without_permission_to_read(driver, tmp_path):
    for name in ("cats", "dogs"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(200):  # Enough for the splits.
            (folder / f"{number}.png").write_bytes(b"never decoded")
    (tmp_path / "photos" / "cats" / "1.png").chmod(0)
    outcome = driver.run(tmp_path / "run", f"--dataset=folder:{tmp_path / 'photos'}")
    assert_one_line(outcome, "cats/1.png", "Permission denied")


def test_the_command_line_reports_a_disk_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "nsk.main", *FLAGS, f"--workdir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert_one_line((done.returncode, done.stderr), "File too large", f"{tmp_path}/run")
    assert done.stdout == ""
    with pytest.raises(UserError, match="no finished stage"):
        verify.verify_workdir(tmp_path / "run")
