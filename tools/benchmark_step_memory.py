"""Memory that each way of saving memory in training saves, and the time that it costs.

    python -m tools.benchmark_step_memory [--model=efficientnet_b0] [--image_size=224] [--batch=64]

Each of plain training, `--accumulation_steps=4`, `--rematerialize` and `--precision=bf16` runs in a
separate process. Memory is the growth of the process' peak memory from before its first step on,
which includes tracing; time is that of a step after the first. Networks and batches have to be
large enough for activations to outweigh the memory of the graphs. The last line is a JSON object.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

from nsk.commands.preparation import hide_native_messages
from nsk.errors import UserError
from nsk.main import WRONG_INPUT, print_error
from nsk.report.text_table import align_columns

METHODS = {
    "plain": {},
    "accumulation_steps=4": {"accumulation_steps": 4},
    "rematerialize": {"rematerialize": True},
    "precision=bf16": {"precision": "bf16"},
}
NUM_CLASSES, STEPS = 1000, 3


def measure(
    model: str, image_size: int, batch_size: int, precision: str = "float32", **recipe
) -> dict[str, float]:
    """Trains in this process; dict of `mebibytes` of memory growth and `seconds` of a step."""
    with hide_native_messages():
        import tensorflow as tf

        tf.config.list_physical_devices()
    from nsk import models, noise
    from nsk.distributed.runtime import Runtime
    from nsk.distributed.strategy import make_strategy
    from nsk.training.recipe import Recipe
    from nsk.training.trainer import Trainer

    def build(synchronized):
        return models.build_model(
            model,
            num_classes=NUM_CLASSES,
            image_size=image_size,
            dropout_rate=0.2,
            survival_probability=0.8,
            precision=precision,
            synchronized=synchronized,
        )

    learning_rates = np.full(STEPS, 0.01, np.float32)
    trainer = Trainer(
        build,
        Recipe(learning_rates, {"labeled": batch_size}, **recipe),
        noise.key(0),
        Runtime.from_strategy(make_strategy("one")),
    )
    batch = {
        "image": tf.zeros([batch_size, image_size, image_size, 3], tf.uint8),
        "target": tf.one_hot(tf.zeros([batch_size], tf.int32), NUM_CLASSES),
        "weight": tf.ones([batch_size]),
    }
    batches = iter(tf.data.Dataset.from_tensors((batch,)).repeat())
    initial = peak_mebibytes()
    trainer.call_steps(batches, 0, 1)
    started = time.perf_counter()
    trainer.call_steps(batches, 1, STEPS - 1)
    seconds = (time.perf_counter() - started) / (STEPS - 1)
    return {"mebibytes": round(peak_mebibytes() - initial), "seconds": round(seconds, 2)}


def _positive(text):
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def peak_mebibytes() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # In KiB on Linux.


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures each method in a process of its own and prints a table and a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--image_size", type=_positive, default=224, help="pixels")
    parser.add_argument("--batch", type=_positive, default=64, help="images per step")
    parser.add_argument("--method", choices=METHODS, help="measure only this, in this process")
    options = parser.parse_args(arguments)
    settings = (options.model, options.image_size, options.batch)
    if options.batch % 4:
        parser.error(f"--batch={options.batch} is not a multiple of 4: give 4, 8, ...")
    if options.method:
        try:
            print(json.dumps(measure(*settings, **METHODS[options.method])))
        except UserError as error:
            print_error(str(error))
            sys.exit(WRONG_INPUT)
        return
    results = {}
    for method in METHODS:
        command = [sys.executable, "-m", "tools.benchmark_step_memory", f"--method={method}"]
        flags = ("--model", "--image_size", "--batch")
        command += [f"{flag}={value}" for flag, value in zip(flags, settings, strict=True)]
        completed = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if completed.returncode:
            sys.exit(completed.returncode)  # It has printed the error.
        results[method] = json.loads(completed.stdout.splitlines()[-1])
    rows = [
        (method, f"{result['mebibytes']:,}", f"{result['seconds']:.2f}")
        for method, result in results.items()
    ]
    print(*align_columns([("method", "MiB", "s/step"), *rows], left=1), sep="\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
