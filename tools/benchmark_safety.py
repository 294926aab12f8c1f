"""Cost of fault tolerance: of checkpoints and checks, and the time to resume after a kill.

    python -m tools.benchmark_safety [--model=resnet9] [--rounds=5] [--steps=300]

- Images per second of `Trainer.train` with everything on (checkpoints, checks for finite values,
  curves, an evaluation, polling for signals) and of only the compiled steps on the same batches.
  The two alternate, and ratios are of adjacent measurements. Checkpoints are written as often as
  in a run, but at least every --checkpoint_seconds.
- How long a checkpoint pauses training, the time between checkpoints that follows from it, and the
  fraction of that time.
- Seconds from the start of `python -m nsk.main` to the end of the first new step after a kill.

The last line is a JSON object.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nsk.config.config import Config
from nsk.data.shards import ShardSet
from nsk.distributed.runtime import Runtime
from nsk.distributed.strategy import make_strategy
from nsk.stages import training
from nsk.stages.input_streams import make_batches
from nsk.training.checkpoint import Checkpoints
from nsk.training.trainer import Trainer
from tools import chaos
from tools.benchmark_training import (
    BUFFER_SECONDS,
    alternate,
    make_job,
    summarize,
    write_shards,
)

# Runs nsk.main until the first training steps have ended.
UNTIL_FIRST_STEP = """
import os, sys, time
from nsk.training import trainer

call_steps = trainer.Trainer.call_steps

def timed(self, batches, first_step, count):
    call_steps(self, batches, first_step, count)
    print(first_step, time.time() - float(os.environ["STARTED"]), flush=True)
    os._exit(0)

trainer.Trainer.call_steps = timed
from nsk import main
main.console()
"""


def make_trainer(
    model: str, steps: int, shard_sets: dict[str, ShardSet], folder: Path
) -> tuple[Trainer, Callable, Callable]:
    """(trainer, its make_batches, its evaluate) of a student with all noise, cached in memory."""
    job = make_job(model, "memory", shard_sets, folder)
    train = job.settings.train.with_values(train_steps=steps)
    settings = dataclasses.replace(job.settings, train=train)
    job = dataclasses.replace(job, settings=settings)
    streams = job.open_streams()
    trainer = training.make_trainer(job, streams, Runtime.from_strategy(make_strategy("one")))
    evaluate = training.make_evaluation(job, trainer.published_model)
    return trainer, make_batches(settings, streams), evaluate


def benchmark_training(
    trainer: Trainer,
    make_batches: Callable,
    evaluate: Callable,
    folder: Path,
    rounds: int,
    checkpoint_seconds: float,
) -> dict[str, float]:
    """Images per second with everything on and of only the steps; see `summarize`."""
    num_steps, batch = trainer.recipe.num_steps, trainer.recipe.global_batch_size
    num_checkpoints = []

    def with_everything():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            time.sleep(BUFFER_SECONDS)
            result = trainer.train(
                make_batches,
                evaluate=evaluate,
                evaluations=1,
                summary_folder=Path(work) / "tensorboard",
                title="everything on",
                checkpoint_folder=Path(work) / "checkpoints",
                checkpoint_seconds=checkpoint_seconds,
            )
            # Folders of the last checkpoints, numbered by step, are kept.
            num_checkpoints.append(len(list((Path(work) / "checkpoints").glob("step-*"))))
        return num_steps * batch / result["seconds"]

    def only_steps():
        time.sleep(BUFFER_SECONDS)
        batches = trainer.iterate(make_batches, 0, num_steps)
        started = time.perf_counter()
        count = max(1, num_steps // 10)
        for step in range(0, num_steps, count):
            trainer.call_steps(batches, step, min(count, num_steps - step))
        return num_steps * batch / (time.perf_counter() - started)

    pairs = alternate(rounds, with_everything, only_steps)
    if not min(num_checkpoints):
        raise SystemExit("A round has written no checkpoint: raise --steps.")
    return summarize("training", pairs, "everything on", "only steps")


def benchmark_checkpoints(trainer: Trainer, folder: Path, rounds: int) -> dict[str, float]:
    """Pause for a checkpoint and time between checkpoints in seconds, bytes, paused fraction."""
    seconds, intervals = [], []
    longest = 60 * Config.from_values({"train_steps": [1]}).run.checkpoint_minutes
    for step in range(1, rounds + 1):
        checkpoints = Checkpoints(folder / "checkpoints", trainer.variables(), longest)
        checkpoints.save(step, {})
        checkpoints.finish()
        seconds.append(checkpoints.pause_seconds)
        intervals.append(checkpoints.interval)
    last = max((folder / "checkpoints").glob("step-*"))
    size = sum(file.stat().st_size for file in last.iterdir())
    pause, interval = statistics.median(seconds), statistics.median(intervals)
    print(
        f"A checkpoint of {size / 2**20:.1f} MiB pauses training for {1000 * pause:.0f} ms, "
        f"{pause / interval:.2%} of the time at one per {interval:.1f} s"
    )
    return {
        "bytes": size,
        "pause_seconds": pause,
        "interval_seconds": interval,
        "paused_fraction": pause / interval,
    }


def benchmark_restart(folder: Path, rounds: int) -> dict[str, float]:
    """Seconds until the first new step of a small killed run on digits."""
    workdir, flags = folder / "run", f"{chaos.FLAGS} --train_images=1000000"
    with open(folder / "log", "w") as log:
        process = chaos.start(flags, workdir, log)
        while not list(workdir.glob("gen0/teacher-*.checkpoints/step-?????????")):
            if process.poll() is not None:
                raise SystemExit(f"The run ended before it could be killed: see {log.name}.")
            time.sleep(0.05)
        process.kill()
        process.wait()
    command = [sys.executable, "-c", UNTIL_FIRST_STEP, *flags.split(), f"--workdir={workdir}"]
    seconds = []
    for _ in range(rounds):
        environment = {**os.environ, "STARTED": str(time.time())}
        completed = subprocess.run(command, env=environment, capture_output=True, text=True)
        step, elapsed = completed.stdout.split()[-2:]
        if int(step) == 0:
            raise SystemExit("The run did not resume from its checkpoint.")
        seconds.append(float(elapsed))
    restart = statistics.median(seconds)
    print(f"From the start of the process to the end of the first new step: {restart:.1f} s")
    return {"restart_seconds": restart}


def main(arguments: Sequence[str] | None = None) -> None:
    """Times training, checkpoints and restarts and prints a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet9", help="network that is trained")
    parser.add_argument("--rounds", type=int, default=5, help="number of timed rounds")
    parser.add_argument("--steps", type=int, default=300, help="training steps per round")
    parser.add_argument("--checkpoint_seconds", type=float, default=300.0, help="longest interval")
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
