"""Two real workers communicate, fail, stop and are lost together."""

import re
import signal
import sys
import threading
from pathlib import Path

import pytest
import tensorflow as tf

from nsk.distributed.strategy import make_strategy
from nsk.distributed.workers import Workers, call_interruptibly
from nsk.errors import GenerationFailedError, LostWorkerError
from nsk.main import OK, STOPPED
from tools import start_workers

PROGRAM = Path(__file__).with_name("workers_program.py")


def run(folder, *cases):
    """(exit codes, output by worker) of some cases of the program, one after the other."""
    start = f"import runpy; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    command = [sys.executable, "-c", start, str(folder / "training"), *cases]
    logs = [folder / f"worker-{index}" for index in range(2)]
    processes = start_workers.start([command] * 2, logs)
    codes = [process.wait(timeout=400) for process in processes]
    return codes, [log.read_text() for log in logs]


def test_a_single_worker_agrees_with_itself():
    workers = Workers(make_strategy("one"))
    assert (workers.index, workers.count, workers.is_chief) == (0, 1, True)
    assert workers.share.is_whole and workers.share.replicas == 1
    assert workers.sum(3, True) == workers.broadcast_from_chief(3, True) == [3, 1]
    workers.wait()
    with pytest.raises(GenerationFailedError, match="own error"), workers.propagate_errors():
        raise GenerationFailedError("own error")


def test_errors_of_a_single_worker_are_never_the_loss_of_another():
    workers = Workers(make_strategy("one"))
    with pytest.raises(tf.errors.UnavailableError), workers.detect_lost_workers():
        raise tf.errors.UnavailableError(None, None, "Collective ops is aborted by: /task:1")


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("unhealthy: /job:worker/task:0, /job:worker/replica:0/task:2", "^worker 0, worker 2$"),
        ("timeout", "^unknown which$"),
    ],
)
def test_lost_workers_are_named(message, named):
    workers = Workers(make_strategy("one"))
    workers.index, workers.count = 1, 3
    with pytest.raises(LostWorkerError, match=named), workers.detect_lost_workers():
        raise tf.errors.InternalError(None, None, f"Collective ops is aborted by: {message}")
    with pytest.raises(tf.errors.InternalError), workers.detect_lost_workers():
        raise tf.errors.InternalError(None, None, "Collective ops is aborted by: shape mismatch")


def test_signals_interrupt_a_call_that_blocks():
    released = threading.Event()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            call_interruptibly(released.wait, 60)
        assert not released.is_set()
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        released.set()


def test_a_call_that_blocks_returns_its_result_or_error():
    def fail():
        raise ValueError("from the thread")

    assert call_interruptibly(lambda value: value + 1, 2) == 3
    with pytest.raises(ValueError, match="from the thread"):
        call_interruptibly(fail)


@pytest.fixture(scope="module")
def output_of_cases(tmp_path_factory):
    """{case: output by worker} of all cases after which both workers continue."""
    cases = ("sums", "each_cannot_teach", "evaluation_cannot_teach")
    codes, logs = run(tmp_path_factory.mktemp("cases"), *cases)
    assert codes == [OK, OK], logs
    parts = [re.split(r"^case .*\n", log, flags=re.MULTILINE)[1:] for log in logs]
    return dict(zip(cases, zip(*parts, strict=True), strict=True))


def test_sums_and_broadcasts_of_two_workers(output_of_cases):
    for output in output_of_cases["sums"]:
        assert f"received [3, 2, {2**41}] [7]\n" in output


OTHER_REPORTS = "The generation has failed on another worker, which reports why"


def test_an_error_of_either_worker_is_raised_on_both(output_of_cases):
    chief, other = output_of_cases["each_cannot_teach"]
    assert re.search(rf"worker 0\n(.*\n)*{OTHER_REPORTS}", chief) and "worker 1" not in chief
    assert re.search(rf"{OTHER_REPORTS}.\n(.*\n)*worker 1\n", other) and "worker 0" not in other


def test_an_error_of_the_evaluation_by_the_chief_is_raised_on_both(output_of_cases):
    chief, other = output_of_cases["evaluation_cannot_teach"]
    assert "no finite prediction\n" in chief and OTHER_REPORTS not in chief
    assert f"{OTHER_REPORTS}.\n" in other


@pytest.mark.slow
def test_a_stop_during_the_last_evaluation_stops_both(tmp_path):
    codes, logs = run(tmp_path, "stopped_in_the_last_evaluation")
    assert codes == [STOPPED, STOPPED], logs
    assert all("stopped after step 60 of 60" in log for log in logs)


def test_a_lost_worker_is_detected_before_training(tmp_path):
    codes, logs = run(tmp_path, "lost_before_the_trainer")
    assert codes == [STOPPED, 9], logs
    assert "nsk: another worker has ended" in logs[0]


@pytest.mark.slow
def test_different_operations_are_a_bug_and_not_a_loss(tmp_path):
    codes, logs = run(tmp_path, "different_operations")
    assert 1 in codes and OK not in codes, logs
    assert "mismatch" in "".join(logs)
