"""The same bytes from Beam's workers as from this process, on real images."""

import functools
import io
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from nsk import models, stopping
from nsk.data import records
from nsk.data.shards import ShardSet, ShardWriter
from nsk.errors import UserError
from nsk.models.files import load_predictor
from nsk.pseudo import beam_engine as beam
from nsk.pseudo.engine import LOCAL
from nsk.stages import pseudo_shards as write
from nsk.stages import scoring as score
from nsk.stages import selection as select_stage

NAMES = [str(digit) for digit in range(10)]
RUNNER = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"
TWO_PROCESSES = f"{RUNNER} --direct_running_mode=multi_processing --direct_num_workers=2"
SETTINGS = {
    "policy": "paper",
    "images_per_class": 60,
    "min_confidence": 0.1,
    "calibrate": True,
    "target_precision": 0.0,
    "seed": 0,
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """120 unlabelled digits in shards of 15, labelled ones, dev, and an untrained network."""
    folder = tmp_path_factory.mktemp("given")
    digits = datasets.load_digits()
    rows = iter(range(len(digits.images)))
    for split, count in (("unlabeled", 120), ("labeled", 20), ("dev", 30)):
        with ShardWriter(folder / split, "images", NAMES, 15) as writer:
            for _ in range(count):
                row = next(rows)
                buffer = io.BytesIO()
                pixels = np.round(digits.images[row] * (255 / 16)).astype(np.uint8)
                Image.fromarray(pixels).save(buffer, "PNG")
                label = None if split == "unlabeled" else int(digits.target[row])
                writer.write(records.image_example(f"digits/{row}", buffer.getvalue(), label))
    model = models.build_model("convnet5", num_classes=10, image_size=8, seed=3)
    model.save(folder / "model.keras")
    return folder


def make_pseudo_labels(given, folder, engine):
    """Scores, selects and writes; a second call goes on where the first one was stopped."""
    sets = {split: ShardSet.load(given / split) for split in ("unlabeled", "labeled", "dev")}
    load = functools.partial(load_predictor, given / "model.keras", 32, None, "image")
    for name in ("scores", "selection", "pseudo"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    scores = folder / "scores"
    score.score(sets["unlabeled"], sets["dev"], load, scores, engine=engine)
    select_stage.select_images(
        SETTINGS,
        score.score_paths(sets["unlabeled"], scores),
        scores / score.DEV,
        sets["labeled"],
        folder / "selection",
        engine,
    )
    write.write(
        sets["unlabeled"],
        scores,
        folder / "selection",
        folder / "pseudo",
        shard_bytes=1000,
        engine=engine,
    )


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def expected(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    make_pseudo_labels(given, folder, LOCAL)
    pseudo = ShardSet.load(folder / "pseudo/shards")
    assert len(pseudo.names) == 8 and 120 > pseudo.num_images < sum(pseudo.copies)
    return contents(folder)


def test_beam_makes_the_same_bytes_as_this_process(given, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "MAX_MEMBERS", 4)  # Several rounds.
    monkeypatch.setattr(ranking, "HISTOGRAM_ENTRIES", 256)
    tmp_path.joinpath("kept").mkdir()
    engine = beam.Engine(f"{RUNNER} --direct_running_mode=in_memory", tmp_path / "kept", 3)
    make_pseudo_labels(given, tmp_path / "made", engine)
    assert contents(tmp_path / "made") == expected
    assert not list((tmp_path / "kept").iterdir())


def test_what_a_worker_raises_is_told_in_one_line(tmp_path):
    def fail(items):
        raise UserError(f"{items[0]} is broken: make it again.")

    engine = beam.Engine(f"{RUNNER} --direct_running_mode=in_memory", tmp_path)
    with pytest.raises(UserError, match=r"a\.parquet is broken: make it again") as error:
        engine.each(["a.parquet"], lambda: fail)
    assert "\n" not in str(error.value)


def test_nothing_to_do_starts_no_pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr(beam.beam, "Pipeline", None)
    beam.Engine("", tmp_path).each([], None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--runner=NoSuchRunner", "the runner 'NoSuchRunner' cannot be made"),
        ("--runner=no.such.Runner", "No module named 'no'"),
        ("--runner='FlinkRunner", "No closing quotation: close every quotation mark"),
        ("--runner=PortableRunner", "You must specify a --job_endpoint"),
        ("--runner=DataflowRunner", "Missing required option: project"),
        ("--direct_num_workers=x", "--direct_num_workers: invalid int value: 'x'"),
        ("--runer=FlinkRunner", "--runer=FlinkRunner is unknown: give options of Beam's"),
        ("FlinkRunner", "FlinkRunner is unknown"),
        ("-x --runner=FlinkRunner", "-x is unknown"),
    ],
)
def test_wrong_options_are_told_in_one_line_before_anything_is_done(
    tmp_path, capsys, options, told
):
    with pytest.raises(UserError) as error:
        beam.Engine(options, tmp_path)
    message = str(error.value)
    assert message.startswith("--beam_options=") and told in message and "\n" not in message
    assert not capsys.readouterr().err


def test_right_options_pass_and_a_job_servers_own_are_left_to_it(tmp_path):
    for options in ("", TWO_PROCESSES, "--runner=DirectRunner", "--runner=FlinkRunner --of_it=1"):
        beam.Engine(options, tmp_path)


def test_a_runner_that_does_not_start_is_told_in_one_line(tmp_path):
    options = "--runner=PortableRunner --job_endpoint=localhost:1 --job_server_timeout=1"
    with pytest.raises(UserError, match="the runner does not start"):
        beam.Engine(options, tmp_path).each([1], lambda: print)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_interrupts_and_is_no_error(tmp_path, number):
    kept = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    stopping.install()
    engine = beam.Engine("", tmp_path)
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.each([1], lambda: lambda items: os.kill(os.getpid(), number))
    finally:
        for one, handler in kept.items():
            signal.signal(one, handler)


def test_an_error_after_an_earlier_stop_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "_signals", 1)

    def fail(items):
        raise ValueError("a bug")

    with pytest.raises(Exception, match="a bug"):
        beam.Engine("", tmp_path).each([1], lambda: fail)


MAKE = """
import pathlib, sys
from nsk.pseudo import beam_engine as beam
from tests.pseudo import beam_engine_test as beam_test
given, folder, kept = map(pathlib.Path, sys.argv[1:])
beam_test.make_pseudo_labels(given, folder, beam.Engine(beam_test.TWO_PROCESSES, kept, 2))
"""


def start(given, folder, kept, stderr=subprocess.DEVNULL):
    command = [sys.executable, "-c", MAKE, given, folder, kept]
    return subprocess.Popen(command, stderr=stderr, start_new_session=True)


@pytest.mark.slow
def test_two_worker_processes_make_the_same_bytes(given, expected, tmp_path):
    (tmp_path / "kept").mkdir()
    with open(tmp_path / "told", "wb") as told:
        assert start(given, tmp_path / "made", tmp_path / "kept", told).wait(600) == 0
    assert contents(tmp_path / "made") == expected
    lines = (tmp_path / "told").read_text().splitlines()
    assert any(line.startswith("scoring: ") for line in lines)  # By a worker process.
    assert not [line for line in lines if "sdk_worker" in line]


@pytest.mark.slow
def test_a_killed_worker_leaves_nothing_half_written_and_the_rerun_completes_it(
    given, expected, tmp_path
):
    """Killed with SIGKILL when the first score file has appeared, then all processes."""
    made, kept = tmp_path / "made", tmp_path / "kept"
    kept.mkdir()
    process = start(given, made, kept)
    deadline = time.time() + 300
    while not list(made.glob("scores/unlabeled/*.parquet")):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.01)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    os.kill(workers[0], signal.SIGKILL)
    stopper = threading.Timer(60, os.killpg, (process.pid, signal.SIGKILL))
    stopper.start()  # A runner may wait for a lost worker for ever.
    process.wait(120)
    stopper.cancel()
    for name, content in contents(made).items():
        if not name.endswith(".unfinished"):
            assert content == expected[name], name
    assert start(given, made, kept).wait(600) == 0
    assert contents(made) == expected


def children_of(parent):
    """Process ids of Beam's workers below a process."""
    workers, waiting = [], [parent]
    while waiting:
        process = pathlib.Path(f"/proc/{waiting.pop()}")
        arguments = (process / "cmdline").read_bytes().split(b"\0")
        if b"-m" in arguments and any(b"sdk_worker_main" in one for one in arguments):
            workers.append(int(process.name))
        for thread in (process / "task").iterdir():
            waiting += map(int, (thread / "children").read_text().split())
    return workers
