"""Two real workers agree, fail, stop and are lost together."""

import sys
from pathlib import Path

import pytest

from nsk.distributed import strategy as strategies
from nsk.distributed.workers import Workers
from nsk.errors import GenerationFailedError
from nsk.main import OK, STOPPED
from tools import start_workers

PROGRAM = Path(__file__).with_name("workers_program.py")


def run(tmp_path, case):
    """(exit codes, lines that each worker has written) of a case of the program."""
    start = f"import runpy, sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); "
    start += f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    command = [sys.executable, "-c", start, case, str(tmp_path / "folder")]
    logs = [tmp_path / f"worker-{index}" for index in range(2)]
    codes = [one.wait(timeout=200) for one in start_workers.start([command] * 2, logs)]
    return codes, [log.read_text().splitlines() for log in logs]


def test_a_worker_alone_agrees_with_itself():
    workers = Workers(strategies.make_strategy("one"))
    assert (workers.index, workers.count, workers.is_chief) == (0, 1, True)
    assert workers.sum(3, True) == workers.broadcast_from_chief(3, True) == [3, 1]
    workers.wait()
    with pytest.raises(GenerationFailedError, match="mine"), workers.propagate_errors():
        raise GenerationFailedError("mine")


def test_what_workers_tell_each_other(tmp_path):
    codes, told = run(tmp_path, "sums")
    assert codes == [OK, OK], told
    for lines in told:
        assert f"[3, 2, {2**41}] [7]" in lines


@pytest.mark.parametrize(
    ("case", "code", "said"),
    [
        ("one_cannot_teach", OK, (["worker 0", "Another worker tells"], ["Another", "worker 1"])),
        ("evaluation_cannot_teach", OK, (["no finite prediction"], ["Another worker tells why"])),
        pytest.param(
            "stopped_in_the_last_evaluation",
            STOPPED,
            (["stopped after step 60 of 60"],) * 2,
            marks=pytest.mark.slow,
        ),
        ("lost_before_the_trainer", STOPPED, (["nsk: another worker has ended"], [])),
    ],
)
def test_what_one_worker_meets_is_met_by_all(tmp_path, case, code, said):
    codes, told = run(tmp_path, case)
    expected = [code, 9] if case == "lost_before_the_trainer" else [code, code]
    assert codes == expected, told
    for lines, parts in zip(told, said, strict=True):
        assert all(part in "\n".join(lines) for part in parts), lines


@pytest.mark.slow
def test_workers_at_different_places_are_a_bug_and_no_loss(tmp_path):
    codes, told = run(tmp_path, "at_different_places")
    assert 1 in codes and OK not in codes, told
    assert "mismatch" in "".join(map(str, told))
