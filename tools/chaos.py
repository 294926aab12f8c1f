"""Kills a small real run at random times until it finishes, and compares its results.

    python -m tools.chaos [--kills=50] [--signal=KILL] [--seed=0] [--flags="--models=..."]

An undisturbed run and a killed run have the same flags: handwritten digits, a teacher and a
student, and checkpoints as often as possible. The killed run is restarted after every kill; if it
finishes before all kills are done, another run is started. Compared are the SHA-256 of the weights
and predictions of every generation, of scores, selections and pseudo-label shards, of the points of
all curves, and summary.json without its times. No checkpoint may be reported as damaged.
With `--signal=TERM` all exit codes must be 75, once the process handles signals, and training must
resume from the step at which it was stopped.

The last line is a JSON object: `resumed` counts how often each training resumed from a checkpoint,
`repeated_steps` the steps that were trained twice although a stop had saved them.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from nsk.main import OK, STOPPED

FLAGS = (
    "--dataset=digits --image_size=8 --num_labeled=60 --num_dev=60 --images_per_shard=64 "
    "--models=convnet5,convnet5 --train_images=24000 --labeled_batch_size=32,16 --ratio=2 "
    "--loss_normalization=all --optimizer=sgd --learning_rate=0.05 --ema_decay=0.99 --flip=off "
    "--crop_padding=0 --fill=0 --randaugment_operations=rotate,shear_x --min_confidence=0.2 "
    "--weight_decay=1e-3 --dropout_rate=0.3 --seed=3 --evaluations=3 --checkpoint_minutes=0 "
    "--finetune_resolution=0,12 --finetune_epochs=50 --finetune_frozen_blocks=1"
)
# Time of the latest kill, as a fraction of the undisturbed run's time.
LATEST_KILL = 0.8
# Keys of summary.json that are not a function of the flags.
TIME_KEYS = ("seconds",)
# A process that was started this long ago handles signals.
SECONDS_UNTIL_HANDLED = 5.0
MAX_TRACEBACK_LINES = 60
# Messages of trainings in the log.
RESUMED = "resumes from step"
STOPPED_AFTER = "stopped after step"


def start(flags: str, workdir: Path, log: TextIO) -> subprocess.Popen:
    """Starts a run in a session of its own, as a terminal or a scheduler does."""
    command = [sys.executable, "-m", "nsk.main", *shlex.split(flags), f"--workdir={workdir}"]
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


@contextlib.contextmanager
def running(flags: str, workdir: Path, log: TextIO) -> Iterator[subprocess.Popen]:
    """Starts a run, and kills it on exit if it is still running."""
    process = start(flags, workdir, log)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_to_completion(flags: str, workdir: Path, log: TextIO) -> float:
    """Runs without a kill; returns its seconds."""
    started = time.monotonic()
    with running(flags, workdir, log) as process:
        code = process.wait()
    if code != OK:
        raise SystemExit(f"The run ended with the exit code {code}: see {log.name}.")
    return time.monotonic() - started


def run_killed(
    flags: str,
    workdir: Path,
    log: TextIO,
    max_kills: int,
    signal_number: int,
    delays: Iterator[float],
) -> list[dict[str, Any]]:
    """Starts and kills a run until it finishes or all kills are done, then runs it to the end.

    Args:
        flags: flags of `nsk.main`.
        workdir: workdir of the run.
        log: output of the processes.
        max_kills: number of kills at most.
        signal_number: signal that is sent.
        delays: seconds from the start of each process to its kill.

    Returns:
        For each kill a dict of `stage`, the unfinished stages at that time, `code`, the exit code,
        and `seconds`, the age of the process.
    """
    kills = []
    while len(kills) < max_kills:
        delay = next(delays)
        with running(flags, workdir, log) as process:
            try:
                code = process.wait(timeout=delay)
            except subprocess.TimeoutExpired:
                stages = unfinished_stages(workdir)
                os.killpg(process.pid, signal_number)
                kills.append({"stage": stages, "code": process.wait(), "seconds": delay})
                continue
        if code != OK:
            raise SystemExit(f"The run ended with the exit code {code}: see {log.name}.")
        return kills
    run_to_completion(flags, workdir, log)
    return kills


def unfinished_stages(workdir: Path) -> str:
    """Names of the stages that were started and are not finished, without their fingerprints."""
    partial = sorted(workdir.rglob("*-*.partial"))
    names = [path.relative_to(workdir).as_posix().rpartition("-")[0] for path in partial]
    return ",".join(names) or "between stages"


def digests(workdir: Path) -> dict[str, Any]:
    """SHA-256 or value of each result that is a function of the flags, by its name."""
    import numpy as np
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from nsk.models.files import load_model

    results = {}
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir).as_posix()
        if path.suffix in (".parquet", ".tfrecord") or path.name == "manifest.json":
            results[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".keras":
            digest = hashlib.sha256()
            for weight in load_model(path).get_weights():
                digest.update(np.ascontiguousarray(weight))
            results[name] = digest.hexdigest()
        elif path.name == "summary.json":
            results[name] = without_times(json.loads(path.read_text()))
    for folder in sorted({path.parent for path in workdir.rglob("events.out.*")}):
        events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
        events.Reload()
        for tag in events.Tags()["tensors"]:
            if tag != "train/images_per_second":
                tensors = [(event.step, event.tensor_proto) for event in events.Tensors(tag)]
                points = json.dumps(
                    [
                        (step, tensor.tensor_content.hex() or list(tensor.float_val))
                        for step, tensor in tensors
                    ]
                )
                name = f"{folder.relative_to(workdir)} {tag}"
                results[name] = hashlib.sha256(points.encode()).hexdigest()
    leftovers = [
        path for path in workdir.rglob("*") if ".partial" in path.name or ".unfinished" in path.name
    ]
    results["leftovers"] = sorted(path.relative_to(workdir).as_posix() for path in leftovers)
    return results


def repeated_steps(lines: Iterable[str]) -> int:
    """Number of steps that were trained again although a stop had saved them.

    Args:
        lines: the log of all processes of a run.
    """
    stopped_after, repeated = {}, 0
    for line in lines:
        match = re.search(rf"(gen\S+) \S+: ({RESUMED}|{STOPPED_AFTER}) (\d+) of", line)
        if match:
            name, step = match[1], int(match[3])
            if match[2] != STOPPED_AFTER:
                repeated += max(0, stopped_after.pop(name, 0) - step)
            else:  # After another stop without resuming in between, the training restarted.
                repeated += stopped_after.get(name, 0)
                stopped_after[name] = step
    return repeated + sum(stopped_after.values())


def without_times(value: Any) -> Any:
    """A JSON value without its times."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIME_KEYS}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def main(arguments: Sequence[str] | None = None) -> bool:
    """Runs the test and returns whether every killed run has the results of the undisturbed one."""
    options = parse_arguments(arguments)
    flags = f"{FLAGS} {options.flags}"
    signal_number = getattr(signal, f"SIG{options.signal}")
    random_delays = random.Random(options.seed)
    # Interrupted by SIGTERM, the tool still kills its process and removes its files.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    kills, differing, runs = [], set(), 0
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w") as log:
        folder = Path(folder)
        seconds = run_to_completion(flags, folder / "undisturbed", log)
        expected = digests(folder / "undisturbed")
        print(f"Undisturbed: {seconds:.0f} s, {len(expected)} digests.", flush=True)
        delays = iter(lambda: random_delays.uniform(0, LATEST_KILL * seconds), None)
        while len(kills) < options.kills:
            runs += 1
            workdir, remaining = folder / f"killed-{runs}", options.kills - len(kills)
            kills += run_killed(flags, workdir, log, remaining, signal_number, delays)
            received = digests(workdir)
            differences = {
                name
                for name in expected.keys() | received.keys()
                if expected.get(name) != received.get(name)
            }
            print(f"Run {runs}: {len(kills)} kills, {len(differences)} differences.", flush=True)
            differing |= differences
        if differing:
            print(*sorted(differing), sep="\n")
        lines = Path(log.name).read_text().splitlines()
    result = {
        "kills": len(kills),
        "signal": options.signal,
        "identical": not differing,
        **summarize_log(lines),
        "runs": runs,
        "exit_codes": count(str(kill["code"]) for kill in kills),
        "stages": count(kill["stage"] for kill in kills),
    }
    for stage, number in result["stages"].items():
        print(f"{number:4d} kills during {stage}")
    print(json.dumps(result))
    return (
        not differing
        and not result["damaged_checkpoints"]
        and not result["repeated_steps"]
        and (options.signal == "KILL" or all(is_graceful(kill, signal_number) for kill in kills))
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the tool's command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="number of kills")
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times of the kills")
    parser.add_argument("--flags", default="", help="additional flags of nsk.main")
    return parser.parse_args(arguments)


def summarize_log(lines: Sequence[str]) -> dict[str, Any]:
    """Prints tracebacks and damaged checkpoints; counts resumed trainings and repeated steps."""
    damaged = [line for line in lines if "is damaged" in line]
    for number, line in enumerate(lines):
        if line.startswith("Traceback"):
            print(*lines[number : number + MAX_TRACEBACK_LINES], sep="\n")
    print(*damaged, sep="\n", end="\n" if damaged else "")
    return {
        "resumed": count(line.split()[1] for line in lines if re.search(RESUMED, line)),
        "damaged_checkpoints": len(damaged),
        "repeated_steps": repeated_steps(lines),
    }


def count(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, sorted by name."""
    return dict(sorted(collections.Counter(names).items()))


def is_graceful(kill: dict[str, Any], signal_number: int) -> bool:
    """Whether a process stopped as requested, finished, or did not handle signals yet."""
    handles_signals = kill["seconds"] >= SECONDS_UNTIL_HANDLED
    return kill["code"] in (STOPPED, OK) or (kill["code"] == -signal_number and not handles_signals)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
