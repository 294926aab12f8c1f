"""Kills a small real run at random moments until it is finished, and compares what it left.

    python -m tools.chaos [--kills=50] [--signal=KILL] [--seed=0] [--flags="--models=..."]

An undisturbed run and a killed one have the same flags: handwritten digits, a teacher and a
student, checkpoints as often as can be. The killed one is started again after every kill; where it
finishes before all kills are done, another one begins. Compared are the SHA-256 of every
generation's weights and predictions, of scores, selections and pseudo-label shards, of the points
of all curves, and of summary.json without its times; and no checkpoint may be told as damaged. With
`--signal=TERM` every exit code must be 75, once the process has begun, and training must go on from
the step at which it was stopped. The last line is one JSON object; `resumed` says how often which
training went on from a checkpoint, `repeated_steps` how many steps were trained twice after a stop
that had saved.
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
from pathlib import Path

from nsk.main import OK, STOPPED

FLAGS = (
    "--dataset=digits --image_size=8 --num_labeled=60 --num_dev=60 --images_per_shard=64 "
    "--models=convnet5,convnet5 --train_images=24000 --labeled_batch_size=32,16 --ratio=2 "
    "--loss_normalization=all --optimizer=sgd --learning_rate=0.05 --ema_decay=0.99 --flip=off "
    "--crop_padding=0 --fill=0 --randaugment_operations=rotate,shear_x --min_confidence=0.2 "
    "--weight_decay=1e-3 --dropout_rate=0.3 --seed=3 --evaluations=3 --checkpoint_minutes=0 "
    "--finetune_resolution=0,12 --finetune_epochs=50 --finetune_frozen_blocks=1"
)
# Of a whole run's time, the latest moment of a kill.
LATEST_KILL = 0.8
# What summary.json tells that is not a function of the flags.
TIMES = ("seconds",)
# A process that has begun this long ago handles signals.
SECONDS_UNTIL_HANDLED = 5.0
SHOWN_OF_A_TRACEBACK = 60  # Lines.


def start(flags, workdir, log):
    """A process of its own session, as a terminal or a scheduler starts it."""
    command = [sys.executable, "-m", "nsk.main", *shlex.split(flags), f"--workdir={workdir}"]
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


@contextlib.contextmanager
def running(flags, workdir, log):
    """A started process that does not outlive what is done with it."""
    process = start(flags, workdir, log)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_through(flags, workdir, log):
    """Runs to the end; seconds."""
    started = time.monotonic()
    with running(flags, workdir, log) as process:
        code = process.wait()
    if code != OK:
        raise SystemExit(f"The run ended with the exit code {code}: see {log.name}.")
    return time.monotonic() - started


def run_killed(flags, workdir, log, kills, signal_number, latest, chance):
    """Starts and kills until the run is finished or all kills are done, then runs to the end.

    Returns:
        list of dicts `stage`, what was being made at the time of a kill, `code`, the exit code, and
        `seconds`, how long the process had lived.
    """
    told = []
    while len(told) < kills:
        moment = chance.uniform(0, latest)
        with running(flags, workdir, log) as process:
            try:
                code = process.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                making = stages_in_making(workdir)
                os.killpg(process.pid, signal_number)
                told.append({"stage": making, "code": process.wait(), "seconds": moment})
                continue
        if code != OK:
            raise SystemExit(f"The run ended with the exit code {code}: see {log.name}.")
        return told
    run_through(flags, workdir, log)
    return told


def stages_in_making(workdir):
    """Names of the stages that have begun and are not finished, without their fingerprints."""
    partial = sorted(workdir.rglob("*-*.partial"))
    names = [path.relative_to(workdir).as_posix().rpartition("-")[0] for path in partial]
    return ",".join(names) or "between stages"


def digests(workdir):
    """{what: SHA-256 or value} of all that a run leaves and that its flags determine."""
    import keras
    import numpy as np
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from nsk import models

    assert models  # Registers the layers that saved models have.
    found = {}
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir).as_posix()
        if path.suffix in (".parquet", ".tfrecord") or path.name == "manifest.json":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".keras":
            digest = hashlib.sha256()
            for weight in keras.models.load_model(path, compile=False).get_weights():
                digest.update(np.ascontiguousarray(weight))
            found[name] = digest.hexdigest()
        elif path.name == "summary.json":
            found[name] = without_times(json.loads(path.read_text()))
    for folder in sorted({path.parent for path in workdir.rglob("events.out.*")}):
        events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
        events.Reload()
        for tag in events.Tags()["tensors"]:
            if tag != "train/images_per_second":
                points = [
                    (
                        one.step,
                        one.tensor_proto.tensor_content.hex() or list(one.tensor_proto.float_val),
                    )
                    for one in events.Tensors(tag)
                ]
                text = json.dumps(points)
                found[f"{folder.relative_to(workdir)} {tag}"] = hashlib.sha256(
                    text.encode()
                ).hexdigest()
    leftovers = [
        path for path in workdir.rglob("*") if ".partial" in path.name or ".unfinished" in path.name
    ]
    found["leftovers"] = sorted(path.relative_to(workdir).as_posix() for path in leftovers)
    return found


def repeated_steps(lines):
    """Steps that trainings made again although a stop had saved them, from the lines of the log."""
    stopped, repeated = {}, 0
    for line in lines:
        found = re.search(r"(gen\S+) \S+: (stopped after|goes on from) step (\d+) of", line)
        if found:
            name, step = found[1], int(found[3])
            if found[2] == "goes on from":
                repeated += max(0, stopped.pop(name, 0) - step)
            else:  # Two stops without one between: the training began anew.
                repeated += stopped.get(name, 0)
                stopped[name] = step
    return repeated + sum(stopped.values())


def without_times(value):
    """JSON without the entries that tell times."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--flags", default="", help="more flags of nsk.main, behind the tool's own")
    options = parser.parse_args(arguments)
    flags = f"{FLAGS} {options.flags}"
    signal_number = getattr(signal, f"SIG{options.signal}")
    chance = random.Random(options.seed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Nothing is left behind.
    told, differing, runs = [], set(), 0
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w") as log:
        folder = Path(folder)
        seconds = run_through(flags, folder / "undisturbed", log)
        expected = digests(folder / "undisturbed")
        print(f"Undisturbed: {seconds:.0f} s, {len(expected)} digests.", flush=True)
        while len(told) < options.kills:
            runs += 1
            workdir = folder / f"killed-{runs}"
            told += run_killed(
                flags,
                workdir,
                log,
                options.kills - len(told),
                signal_number,
                LATEST_KILL * seconds,
                chance,
            )
            received = digests(workdir)
            wrong = {
                name
                for name in expected.keys() | received.keys()
                if expected.get(name) != received.get(name)
            }
            print(f"Run {runs}: {len(told)} kills so far, {len(wrong)} differences.", flush=True)
            differing |= wrong
        if differing:
            print(*sorted(differing), sep="\n")
        lines = Path(log.name).read_text().splitlines()
    resumed = collections.Counter(line.split()[1] for line in lines if "goes on from step" in line)
    damaged = [line for line in lines if "is damaged" in line]
    for number, line in enumerate(lines):
        if line.startswith("Traceback"):
            print(*lines[number : number + SHOWN_OF_A_TRACEBACK], sep="\n")
    print(*damaged, sep="\n", end="")
    by_stage = collections.Counter(one["stage"] for one in told)
    for stage, count in sorted(by_stage.items()):
        print(f"{count:4d} kills while making {stage}")
    codes = collections.Counter(one["code"] for one in told)
    result = {
        "kills": len(told),
        "signal": options.signal,
        "identical": not differing,
        "resumed": dict(sorted(resumed.items())),
        "damaged_checkpoints": len(damaged),
        "repeated_steps": repeated_steps(lines),
        "runs": runs,
        "exit_codes": {str(code): count for code, count in sorted(codes.items())},
        "stages": dict(sorted(by_stage.items())),
    }
    print(json.dumps(result))
    # Before its handlers are there, a process ends by the signal itself; at its end it is done.
    graceful = options.signal == "KILL" or all(
        one["code"] in (STOPPED, OK)
        or (one["code"] == -signal_number and one["seconds"] < SECONDS_UNTIL_HANDLED)
        for one in told
    )
    return not differing and not damaged and graceful and not result["repeated_steps"]


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
