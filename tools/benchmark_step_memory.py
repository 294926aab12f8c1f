"""What the ways to train with less memory save, and what they cost in time.

    python -m tools.benchmark_step_memory [--model=efficientnet_b0] [--image_size=224] [--batch=64]

A process for each way: plain, `--accumulation_steps=4`, `--rematerialize` and `--precision=bf16`.
Memory is the peak of the process beyond what it has before its first step, so that tracing counts;
time is that of a step after the first one. Networks and batches must be large enough for
activations to outweigh the graphs' own memory. The last line is one JSON object.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from nsk.errors import UserError
from nsk.main import WRONG_INPUT, native_messages_hidden, tell
from nsk.report.text_table import columns

WAYS = {
    "plain": {},
    "accumulation_steps=4": {"accumulation_steps": 4},
    "rematerialize": {"rematerialize": True},
    "precision=bf16": {"precision": "bf16"},
}
NUM_CLASSES, STEPS = 1000, 3


def measure(model, image_size, batch_size, precision="float32", **recipe):
    """{"mebibytes": memory beyond what there was before, "seconds": of a step} in this process."""
    with native_messages_hidden():
        import tensorflow as tf

        tf.config.list_physical_devices()
    from nsk import models, noise
    from nsk.distributed import strategy as strategies
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

    rates = np.full(STEPS, 0.01, np.float32)
    trainer = Trainer(
        build,
        Recipe(rates, {"labeled": batch_size}, **recipe),
        noise.key(0),
        strategies.make_strategy("one"),
    )
    batch = {
        "image": tf.zeros([batch_size, image_size, image_size, 3], tf.uint8),
        "target": tf.one_hot(tf.zeros([batch_size], tf.int32), NUM_CLASSES),
        "weight": tf.ones([batch_size]),
    }
    batches = iter(tf.data.Dataset.from_tensors((batch,)).repeat())
    before = peak_mebibytes()
    trainer.call_steps(batches, 0, 1)
    started = time.perf_counter()
    trainer.call_steps(batches, 1, STEPS - 1)
    seconds = (time.perf_counter() - started) / (STEPS - 1)
    return {"mebibytes": round(peak_mebibytes() - before), "seconds": round(seconds, 2)}


def _positive(text):
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def peak_mebibytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--image_size", type=_positive, default=224, help="pixels")
    parser.add_argument("--batch", type=_positive, default=64, help="images in a step, 4, 8, ...")
    parser.add_argument("--way", choices=WAYS, help="measured in this process alone")
    options = parser.parse_args(arguments)
    settings = (options.model, options.image_size, options.batch)
    if options.batch % 4:
        parser.error(f"--batch={options.batch} does not divide into 4 parts: give 4, 8, ...")
    if options.way:
        try:
            print(json.dumps(measure(*settings, **WAYS[options.way])))
        except UserError as error:
            tell(str(error))
            sys.exit(WRONG_INPUT)
        return
    results = {}
    for way in WAYS:
        command = [sys.executable, "-m", "tools.benchmark_step_memory", f"--way={way}"]
        flags = ("--model", "--image_size", "--batch")
        command += [f"{flag}={value}" for flag, value in zip(flags, settings, strict=True)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.returncode)  # It has told why.
        results[way] = json.loads(done.stdout.splitlines()[-1])
    rows = [(way, f"{one['mebibytes']:,}", f"{one['seconds']:.2f}") for way, one in results.items()]
    print(*columns([("way", "MiB", "s a step"), *rows], left=1), sep="\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
