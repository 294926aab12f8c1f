"""Two worker processes run a whole generation, and resume with the same result if one is lost."""

import re
import shlex
import signal
import sys
import time

import pytest

from nsk.main import STOPPED, WRONG_INPUT
from nsk.store.folders import load_stage
from tools import chaos, start_workers

FLAGS = f"{chaos.FLAGS} --train_images=4800 --finetune_epochs=10 --strategy=multi_worker"
SECONDS_UNTIL_LOSS_IS_NOTICED = 30
RESUMED = "gen{} convnet5: resumes from step"  # In the log.


class Job:
    """Two workers of one run, as two machines would start them.

    Args:
        folder: where the workdir and the workers' logs are.
        own_flags: more flags of each worker.
    """

    def __init__(self, folder, own_flags=("", "")):
        self.workdir = folder / "run"
        logs = [folder / f"worker-{index}" for index in range(2)]
        self._log_starts = [log.stat().st_size if log.exists() else 0 for log in logs]
        program = [sys.executable, "-m", "nsk.main", f"--workdir={self.workdir}"]
        commands = [[*program, *shlex.split(f"{FLAGS} {own}")] for own in own_flags]
        self.logs, self.processes = logs, start_workers.start(commands, logs)

    def wait(self):
        return [process.wait(timeout=400) for process in self.processes]

    def wait_for(self, pattern):
        """Returns when the workdir has a file of this pattern."""
        while not list(self.workdir.glob(pattern)):
            assert all(process.poll() is None for process in self.processes), self.outputs()
            time.sleep(0.02)

    def outputs(self):
        """What each worker of this job has written: a list of texts."""
        pairs = zip(self.logs, self._log_starts, strict=True)
        return [log.read_bytes()[start:].decode() for log, start in pairs]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    job = Job(tmp_path_factory.mktemp("undisturbed"))
    assert job.wait() == [0, 0], job.outputs()
    return job


def test_two_workers_share_the_work_and_the_chief_alone_writes(undisturbed):
    chief, other = undisturbed.outputs()
    for output in (chief, other):
        assert "gen0/teacher convnet5: 4,800 images" in output
        assert "gen1/student convnet5: 4,800 images" in output
    pattern = r"gen1/scores: ([\d,]+) images"
    scored = [int(re.search(pattern, output)[1]) for output in (chief, other)]
    assert sum(scored) == 1318 and min(scored) > 500
    assert "precision" in chief and "precision" not in other
    assert "done in" in chief and "done in" not in other
    folders = [path.parent.name for path in undisturbed.workdir.rglob("events.out.*")]
    # Two trainings, a fine-tuning and the generations.
    assert len(folders) == len(set(folders)) == 4
    assert not list(undisturbed.workdir.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_worker_ends_the_other_and_both_resume(undisturbed, tmp_path, victim):
    job = Job(tmp_path)
    job.wait_for("gen1/student-*.checkpoints/step-?????????")
    job.processes[victim].kill()
    killed = time.monotonic()
    codes = job.wait()
    assert time.monotonic() - killed < SECONDS_UNTIL_LOSS_IS_NOTICED
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == STOPPED
    output = job.outputs()[1 - victim]
    (line,) = (line for line in output.splitlines() if line.startswith("nsk: "))
    assert re.match(r"nsk: another worker has ended .*: start all workers again; training", line)

    again = Job(tmp_path)
    assert again.wait() == [0, 0], again.outputs()
    resumed = RESUMED.format("1/student")
    assert all(re.search(resumed, output) for output in again.outputs())
    assert chaos.digests(job.workdir) == chaos.digests(undisturbed.workdir)


@pytest.mark.slow
def test_a_stop_of_one_worker_stops_all_and_saves(undisturbed, tmp_path):
    """The stopped run may resume with one worker: the global batches are the same."""
    job = Job(tmp_path)
    job.wait_for("gen0/teacher-*.checkpoints/step-?????????")
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait() == [STOPPED, STOPPED], job.outputs()
    assert all("nsk: stopped, everything is saved" in output for output in job.outputs())

    command = [sys.executable, "-m", "nsk.main", *shlex.split(FLAGS), f"--workdir={job.workdir}"]
    (process,) = start_workers.start([[*command, "--strategy=one"]], [tmp_path / "single"])
    assert process.wait(timeout=400) == 0
    assert re.search(RESUMED.format("0/teacher"), (tmp_path / "single").read_text())

    def final_loss(workdir):
        (teacher,) = workdir.glob("gen0/teacher-??????????")
        return load_stage(teacher).counts["final_loss"]

    assert final_loss(job.workdir) == pytest.approx(final_loss(undisturbed.workdir), rel=0.05)


@pytest.mark.slow  # A fast test of the same is in rendezvous_test.py.
@pytest.mark.parametrize("flag", ["--num_labeled=70", "--evaluations=7"])
def test_workers_with_different_flags_are_refused(tmp_path, flag):
    job = Job(tmp_path, ["", flag])
    assert job.wait() == [WRONG_INPUT] * 2, job.outputs()
    for output in job.outputs():
        assert "was given other flags than worker" in output


@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_waiting_worker_names_the_missing_one_and_can_be_stopped(tmp_path, index):
    job = Job(tmp_path)
    job.processes[1 - index].kill()
    job.processes[1 - index].wait()
    while "waits for worker" not in job.outputs()[index]:
        assert job.processes[index].poll() is None, job.outputs()
        time.sleep(0.1)
    assert f"waits for worker {1 - index}: is it started" in job.outputs()[index]
    job.processes[index].send_signal(signal.SIGTERM)
    assert job.processes[index].wait(timeout=60) == STOPPED
