"""Beam's workers write the same bytes as this process, on real images."""

import dataclasses
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
from nsk.config.selection import SelectionConfig
from nsk.data import records
from nsk.data.shards import ShardSet, ShardWriter
from nsk.errors import UserError
from nsk.evaluation.shard_predictor import load_predictor
from nsk.pseudo import beam_engine, radix_selection
from nsk.pseudo.beam_engine import BeamEngine
from nsk.pseudo.engine import LOCAL
from nsk.stages.distillation import write_scored_shards
from nsk.stages.pseudo_shards import write_pseudo_shards
from nsk.stages.score_files import DEV_FILE, score_paths
from nsk.stages.scoring import ScoringOptions, score_shards
from nsk.stages.selection import select_images

NAMES = [str(digit) for digit in range(10)]
RUNNER = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"
TWO_PROCESSES = f"{RUNNER} --direct_running_mode=multi_processing --direct_num_workers=2"
SETTINGS = SelectionConfig(
    policy="paper",
    images_per_class=60,
    min_confidence=0.1,
    calibrate=True,
    target_precision=0.0,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """120 unlabelled digits in shards of 15, labelled ones, dev, and an untrained network."""
    folder = tmp_path_factory.mktemp("inputs")
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


def make_pseudo_labels(inputs, folder, engine):
    """Scores, selects and writes; a second call resumes."""
    sets = {split: ShardSet.load(inputs / split) for split in ("unlabeled", "labeled", "dev")}
    load = functools.partial(load_predictor, inputs / "model.keras", 32, None, "image")
    for name in ("scores", "selection", "pseudo", "scored"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    scores = folder / "scores"
    score_shards(sets["unlabeled"], sets["dev"], load, scores, engine=engine)
    select_images(
        SETTINGS,
        0,
        score_paths(sets["unlabeled"], scores),
        scores / DEV_FILE,
        sets["labeled"],
        folder / "selection",
        engine,
    )
    write_pseudo_shards(
        sets["unlabeled"],
        scores,
        folder / "selection",
        folder / "pseudo",
        shard_bytes=1000,
        engine=engine,
    )
    write_scored_shards(sets["labeled"], load, folder / "scored", ScoringOptions(), engine)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    make_pseudo_labels(inputs, folder, LOCAL)
    pseudo = ShardSet.load(folder / "pseudo/shards")
    assert len(pseudo.names) == 8 and 120 > pseudo.num_images < sum(pseudo.copies)
    return contents(folder)


def test_beam_writes_the_same_bytes_as_this_process(inputs, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(radix_selection, "MAX_MEMBERS", 4)  # Several passes.
    monkeypatch.setattr(radix_selection, "HISTOGRAM_ENTRIES", 256)
    tmp_path.joinpath("results").mkdir()
    engine = BeamEngine(f"{RUNNER} --direct_running_mode=in_memory", tmp_path / "results", 3)
    make_pseudo_labels(inputs, tmp_path / "made", engine)
    assert contents(tmp_path / "made") == expected
    assert not list((tmp_path / "results").iterdir())


def test_beam_selects_the_same_in_the_proportions_of_the_labelled_images(
    inputs, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(radix_selection, "MAX_MEMBERS", 4)
    settings = dataclasses.replace(SETTINGS, policy="labeled_shares", images_per_class=5)
    for name, content in expected.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    sets = {split: ShardSet.load(inputs / split) for split in ("unlabeled", "labeled")}
    counts = []
    for name in ("local", "beam"):
        (tmp_path / name).mkdir()
        engine = LOCAL
        if name == "beam":
            engine = BeamEngine(f"{RUNNER} --direct_running_mode=in_memory", tmp_path / name, 3)
        scores = tmp_path / "scores"
        paths = score_paths(sets["unlabeled"], scores)
        (tmp_path / name / "made").mkdir()
        counts.append(
            select_images(
                settings,
                0,
                paths,
                scores / DEV_FILE,
                sets["labeled"],
                tmp_path / name / "made",
                engine,
            )
        )
    assert counts[0] == counts[1] and counts[0]["copies"] % 5 == 0
    assert contents(tmp_path / "beam/made") == contents(tmp_path / "local/made")


def test_a_user_error_of_a_worker_is_raised_as_one_line(tmp_path):
    def fail(items):
        raise UserError(f"{items[0]} is broken: make it again.")

    engine = BeamEngine(f"{RUNNER} --direct_running_mode=in_memory", tmp_path)
    with pytest.raises(UserError, match=r"a\.parquet is broken: make it again") as error:
        engine.run(["a.parquet"], lambda: fail)
    assert "\n" not in str(error.value)


def test_no_items_start_no_pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr(beam_engine.beam, "Pipeline", None)
    BeamEngine("", tmp_path).run([], None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--runner=NoSuchRunner", "the runner 'NoSuchRunner' cannot be created"),
        ("--runner=no.such.Runner", "No module named 'no'"),
        ("--runner='FlinkRunner", "No closing quotation: close every quotation mark"),
        ("--runner=PortableRunner", "You must specify a --job_endpoint"),
        ("--runner=DataflowRunner", "Missing required option: project"),
        ("--direct_num_workers=x", "--direct_num_workers: invalid int value: 'x'"),
        ("--runer=FlinkRunner", "--runer=FlinkRunner is unknown: give Beam's options"),
        ("FlinkRunner", "FlinkRunner is unknown"),
        ("-x --runner=FlinkRunner", "-x is unknown"),
    ],
)
def test_invalid_options_are_an_error_of_one_line_before_any_work(
    tmp_path, capsys, options, reason
):
    with pytest.raises(UserError) as error:
        BeamEngine(options, tmp_path)
    message = str(error.value)
    assert message.startswith("--beam_options=") and reason in message and "\n" not in message
    assert not capsys.readouterr().err


def test_valid_options_pass_and_unknown_ones_are_left_to_a_job_server(tmp_path):
    for options in ("", TWO_PROCESSES, "--runner=DirectRunner", "--runner=FlinkRunner --its_own=1"):
        BeamEngine(options, tmp_path)


def test_a_runner_that_does_not_start_is_a_user_error(tmp_path):
    options = "--runner=PortableRunner --job_endpoint=localhost:1 --job_server_timeout=1"
    with pytest.raises(UserError, match="the runner does not start"):
        BeamEngine(options, tmp_path).run([1], lambda: print)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_interrupts_and_is_not_an_error(tmp_path, number):
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    stopping.install_handlers()
    engine = BeamEngine("", tmp_path)
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.run([1], lambda: lambda items: os.kill(os.getpid(), number))
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)


def test_an_error_after_an_earlier_stop_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "_signal_count", 1)

    def fail(items):
        raise ValueError("a bug")

    with pytest.raises(Exception, match="a bug"):
        BeamEngine("", tmp_path).run([1], lambda: fail)


PROGRAM = """
import pathlib, sys
from nsk.pseudo.beam_engine import BeamEngine
from tests.pseudo import beam_engine_test
inputs, folder, results = map(pathlib.Path, sys.argv[1:])
engine = BeamEngine(beam_engine_test.TWO_PROCESSES, results, 2)
beam_engine_test.make_pseudo_labels(inputs, folder, engine)
"""


def start(inputs, folder, results, stderr=subprocess.DEVNULL):
    command = [sys.executable, "-c", PROGRAM, inputs, folder, results]
    return subprocess.Popen(command, stderr=stderr, start_new_session=True)


@pytest.mark.slow
def test_two_worker_processes_write_the_same_bytes(inputs, expected, tmp_path):
    (tmp_path / "results").mkdir()
    with open(tmp_path / "stderr", "wb") as stderr:
        assert start(inputs, tmp_path / "made", tmp_path / "results", stderr).wait(600) == 0
    assert contents(tmp_path / "made") == expected
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert any(line.startswith("scoring: ") for line in lines)  # By a worker process.
    assert not [line for line in lines if "sdk_worker" in line]


@pytest.mark.slow
def test_a_killed_worker_leaves_no_partial_file_and_a_rerun_completes_the_work(
    inputs, expected, tmp_path
):
    """Killed with SIGKILL when the first score file has appeared, then all processes."""
    made, results = tmp_path / "made", tmp_path / "results"
    results.mkdir()
    process = start(inputs, made, results)
    deadline = time.time() + 300
    while not list(made.glob("scores/unlabeled/*.parquet")):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.01)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    os.kill(workers[0], signal.SIGKILL)
    stopper = threading.Timer(60, os.killpg, (process.pid, signal.SIGKILL))
    stopper.start()  # A runner may wait for a lost worker forever.
    process.wait(120)
    stopper.cancel()
    for name, content in contents(made).items():
        if not name.endswith(".unfinished"):
            assert content == expected[name], name
    assert start(inputs, made, results).wait(600) == 0
    assert contents(made) == expected


def children_of(parent):
    """Process ids of Beam's workers below a process."""
    workers, waiting = [], [parent]
    while waiting:
        process = pathlib.Path(f"/proc/{waiting.pop()}")
        arguments = (process / "cmdline").read_bytes().split(b"\0")
        if b"-m" in arguments and any(b"sdk_worker_main" in argument for argument in arguments):
            workers.append(int(process.name))
        for thread in (process / "task").iterdir():
            waiting += map(int, (thread / "children").read_text().split())
    return workers
