"""What it costs that nothing is lost: checkpoints, checks, and the time to go on after a kill.

    python -m tools.benchmark_safety [--model=resnet9] [--rounds=5] [--steps=300]

- Images per second of `Trainer.train` with everything on (checkpoints, checks that all is finite,
  curves, an evaluation, looks for signals) against the bare compiled steps on the same batches. The
  two alternate; each ratio is of neighbours. A checkpoint is due every --checkpoint_seconds, far
  more often than by default.
- How long a checkpoint stops training, and which share of the time that is at the default interval.
- Seconds from the start of `python -m nsk.main` to the end of the first new step after a kill.

The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nsk.config.config import Config
from nsk.distributed import strategy as strategies
from nsk.stages import training as train_stage
from nsk.training.checkpoint import Checkpoints
from tools import chaos
from tools.benchmark_training import (
    SECONDS_TO_FILL,
    alternate,
    make_job,
    summarize,
    write_shards,
)

# Runs nsk.main until the first call of training steps has returned.
UNTIL_FIRST_STEP = """
import os, sys, time
from nsk.training import trainer

call_steps = trainer.Trainer.call_steps

def timed(self, batches, first_step, count):
    call_steps(self, batches, first_step, count)
    print(first_step, time.time() - float(os.environ["STARTED"]), flush=True)
    os._exit(0)

trainer.Trainer.call_steps = timed
from absl import app
from nsk import main
main.define_flags()
app.run(main.run_main, flags_parser=main.parse_flags)
"""


def make_trainer(model, steps, sets, folder):
    """(trainer, its make_batches), of a student's job with all the noise, in memory."""
    job = make_job(model, "memory", sets, folder)
    job.settings["train"]["train_steps"] = steps
    streams = train_stage.make_streams(job)
    trainer = train_stage.make_trainer(job, streams, strategies.make_strategy("one"))
    make_batches = train_stage.make_batches(job.settings, streams)
    return trainer, make_batches, train_stage.make_evaluation(job, trainer.published_model)


def benchmark_training(trainer, make_batches, evaluate, folder, rounds, checkpoint_seconds):
    """Images per second with everything on and of bare steps."""
    num_steps, batch = trainer.recipe.num_steps, trainer.recipe.global_batch_size
    written = []

    def on():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            time.sleep(SECONDS_TO_FILL)
            result = trainer.train(
                make_batches,
                evaluate=evaluate,
                evaluations=1,
                summary_folder=Path(work) / "tensorboard",
                title="everything on",
                checkpoint_folder=Path(work) / "checkpoints",
                checkpoint_seconds=checkpoint_seconds,
            )
            # The last ones' folders are numbered by their steps and stay.
            written.append(len(list((Path(work) / "checkpoints").glob("step-*"))))
        return num_steps * batch / result["seconds"]

    def off():
        time.sleep(SECONDS_TO_FILL)
        batches = trainer.iterate(make_batches, 0, num_steps)
        started = time.perf_counter()
        count = max(1, num_steps // 10)
        for step in range(0, num_steps, count):
            trainer.call_steps(batches, step, min(count, num_steps - step))
        return num_steps * batch / (time.perf_counter() - started)

    pairs = alternate(rounds, on, off)
    if not min(written):
        raise SystemExit("A turn has written no checkpoint: raise --steps.")
    return summarize("training", pairs, "everything on", "bare steps")


def benchmark_checkpoints(trainer, folder, rounds):
    """Seconds that a checkpoint stops training, its bytes, and the share at the interval."""
    seconds = []
    for step in range(1, rounds + 1):
        checkpoints = Checkpoints(folder / "checkpoints", trainer.variables(), 0.0)
        checkpoints.save(step, {})
        seconds.append(checkpoints.seconds_spent)
        checkpoints.finish()
    last = max((folder / "checkpoints").glob("step-*"))
    size = sum(one.stat().st_size for one in last.iterdir())
    interval = 60 * Config.from_values({"train_steps": [1]}).run.checkpoint_minutes
    stop = statistics.median(seconds)
    print(
        f"A checkpoint of {size / 2**20:.1f} MiB stops training for {1000 * stop:.0f} ms, "
        f"{stop / interval:.4%} of the time at one every {interval:.0f} s"
    )
    return {"bytes": size, "stop_seconds": stop, "share_at_default": stop / interval}


def benchmark_restart(folder, rounds):
    """Seconds until the first new step of a small run on digits that was killed."""
    workdir, flags = folder / "run", f"{chaos.FLAGS} --train_images=1000000"
    with open(folder / "log", "w") as log:
        process = chaos.start(flags, workdir, log)
        while not list(workdir.glob("gen0/teacher-*.checkpoints/step-?????????")):
            if process.poll() is not None:
                raise SystemExit(f"The run has ended by itself: see {log.name}.")
            time.sleep(0.05)
        process.kill()
        process.wait()
    command = [sys.executable, "-c", UNTIL_FIRST_STEP, *flags.split(), f"--workdir={workdir}"]
    seconds = []
    for _ in range(rounds):
        environment = {**os.environ, "STARTED": str(time.time())}
        outcome = subprocess.run(command, env=environment, capture_output=True, text=True)
        step, needed = outcome.stdout.split()[-2:]
        if int(step) == 0:
            raise SystemExit("The run did not go on from its checkpoint.")
        seconds.append(float(needed))
    needed = statistics.median(seconds)
    print(f"From the start of the process to the end of the first new step: {needed:.1f} s")
    return {"restart_seconds": needed}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet9")
    parser.add_argument("--rounds", type=int, default=5, help="alternations that are timed")
    parser.add_argument("--steps", type=int, default=300, help="training steps in a turn")
    parser.add_argument("--checkpoint_seconds", type=float, default=10.0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        trainer, make_batches, evaluate = make_trainer(
            options.model, options.steps, write_shards(folder), folder
        )
        training = benchmark_training(
            trainer, make_batches, evaluate, folder, options.rounds, options.checkpoint_seconds
        )
        checkpoints = benchmark_checkpoints(trainer, folder, options.rounds)
        restart = benchmark_restart(folder, options.rounds)
    settings = {"model": options.model, "checkpoint_seconds": options.checkpoint_seconds}
    print(json.dumps({**settings, **training, **checkpoints, **restart}))


if __name__ == "__main__":
    main()
