"""Two worker processes make a whole generation together, and lose nothing when one is lost."""

import re
import shlex
import signal
import sys
import time

import pytest

from nsk.main import STOPPED, WRONG_INPUT
from nsk.store import folders as stage
from tools import chaos, start_workers

FLAGS = f"{chaos.FLAGS} --train_images=4800 --strategy=multi_worker"
SECONDS_UNTIL_LOSS_IS_TOLD = 30


class Job:
    """Two workers of one run, as two machines would start them.

    Args:
        folder: where the workdir and what the workers say are.
        more: flags of each worker, beside those of both.
    """

    def __init__(self, folder, more=("", "")):
        self.workdir = folder / "run"
        logs = [folder / f"worker-{index}" for index in range(2)]
        self.began = [log.stat().st_size if log.exists() else 0 for log in logs]
        program = [sys.executable, "-m", "nsk.main", f"--workdir={self.workdir}"]
        commands = [[*program, *shlex.split(f"{FLAGS} {own}")] for own in more]
        self.logs, self.processes = logs, start_workers.start(commands, logs)

    def wait(self):
        return [process.wait(timeout=400) for process in self.processes]

    def wait_for(self, pattern):
        """Returns when there is a file of this pattern in the workdir."""
        while not list(self.workdir.glob(pattern)):
            assert all(process.poll() is None for process in self.processes), self.told()
            time.sleep(0.02)

    def told(self):
        """What each worker has said: a list of texts."""
        pairs = zip(self.logs, self.began, strict=True)
        return [log.read_bytes()[start:].decode() for log, start in pairs]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    job = Job(tmp_path_factory.mktemp("undisturbed"))
    assert job.wait() == [0, 0], job.told()
    return job


def test_two_workers_share_the_work_and_the_chief_alone_writes(undisturbed):
    chief, other = undisturbed.told()
    for told in (chief, other):
        assert re.search(r"gen0/teacher convnet5: 4,800 images", told)
        assert re.search(r"gen1/student convnet5: 4,800 images", told)
    scored = [int(re.search(r"gen1/scores: ([\d,]+) images", one)[1]) for one in (chief, other)]
    assert sum(scored) == 1318 and min(scored) > 500
    assert "precision" in chief and "precision" not in other
    assert "done in" in chief and "done in" not in other
    folders = [path.parent.name for path in undisturbed.workdir.rglob("events.out.*")]
    # Of two trainings, a fine-tuning and the generations.
    assert len(folders) == len(set(folders)) == 4
    assert not list(undisturbed.workdir.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_worker_ends_the_other_and_both_go_on(undisturbed, tmp_path, victim):
    job = Job(tmp_path)
    job.wait_for("gen1/student-*.checkpoints/step-?????????")
    job.processes[victim].kill()
    killed = time.monotonic()
    codes = job.wait()
    assert time.monotonic() - killed < SECONDS_UNTIL_LOSS_IS_TOLD
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == STOPPED
    (line,) = (one for one in job.told()[1 - victim].splitlines() if one.startswith("nsk: "))
    assert re.match(r"nsk: another worker has ended .*: start all workers again; training", line)

    again = Job(tmp_path)
    assert again.wait() == [0, 0], again.told()
    assert all("gen1/student convnet5: goes on from step" in told for told in again.told())
    assert chaos.digests(job.workdir) == chaos.digests(undisturbed.workdir)


@pytest.mark.slow
def test_a_stop_of_one_worker_stops_all_and_saves(undisturbed, tmp_path):
    """The stopped run may go on with one worker: the sequence of global batches stays."""
    job = Job(tmp_path)
    job.wait_for("gen0/teacher-*.checkpoints/step-?????????")
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait() == [STOPPED, STOPPED], job.told()
    assert all("nsk: stopped, everything is saved" in told for told in job.told())

    command = [sys.executable, "-m", "nsk.main", *shlex.split(FLAGS), f"--workdir={job.workdir}"]
    (alone,) = start_workers.start([[*command, "--strategy=one"]], [tmp_path / "alone"])
    assert alone.wait(timeout=300) == 0
    told = (tmp_path / "alone").read_text()
    assert "gen0/teacher convnet5: goes on from step" in told

    def final_loss(workdir):
        (teacher,) = workdir.glob("gen0/teacher-??????????")
        return stage.load_stage(teacher).counts["final_loss"]

    assert final_loss(job.workdir) == pytest.approx(final_loss(undisturbed.workdir), rel=0.05)


@pytest.mark.parametrize(
    "flag", [pytest.param("--num_labeled=70", marks=pytest.mark.slow), "--evaluations=7"]
)
def test_workers_with_other_flags_are_told(tmp_path, flag):
    job = Job(tmp_path, ["", flag])
    assert job.wait() == [WRONG_INPUT] * 2, job.told()
    for told in job.told():
        assert "was given other flags than worker" in told


@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_worker_alone_says_who_is_missing_and_can_be_stopped(tmp_path, index):
    job = Job(tmp_path)
    job.processes[1 - index].kill()
    job.processes[1 - index].wait()
    while "waits for worker" not in job.told()[index]:
        assert job.processes[index].poll() is None, job.told()
        time.sleep(0.1)
    assert f"waits for worker {1 - index}: is it started" in job.told()[index]
    job.processes[index].send_signal(signal.SIGTERM)
    assert job.processes[index].wait(timeout=10) == STOPPED
