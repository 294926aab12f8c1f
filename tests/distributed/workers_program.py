"""Cases of communication between two workers; run by `workers_test.py`, with TF_CONFIG.

python tests/distributed/workers_program.py FOLDER CASE...
"""

import os
import signal
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app

from nsk import main, noise, stopping
from nsk.distributed.batch_share import WHOLE
from nsk.distributed.runtime import Runtime
from nsk.distributed.strategy import make_strategy
from nsk.errors import GenerationFailedError
from nsk.training.recipe import Recipe
from nsk.training.trainer import Trainer

NUM_STEPS = 60


def sums(runtime):
    workers = runtime.workers
    received = workers.sum(workers.index + 1, True, 2**40)
    print("received", received, workers.broadcast_from_chief(7 - workers.index))


def each_cannot_teach(runtime):
    workers = runtime.workers
    for failing in range(2):
        try:
            with workers.propagate_errors():
                if workers.index == failing:
                    raise GenerationFailedError(f"worker {failing}")
        except GenerationFailedError as error:
            print(error)
    workers.wait()


def build_model(synchronized):
    return keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed=0)),
        ]
    )


def batches(first_step, num_steps, share=WHOLE):
    """Each step has the same 16 images, and each replica gets its share of them."""
    random = np.random.default_rng(0)
    (positions,) = share.positions([16])
    labels = random.integers(10, size=16)[positions]
    stream = {
        "image": random.integers(256, size=(16, 4, 4, 3), dtype=np.uint8)[positions],
        "target": np.eye(10, dtype=np.float32)[labels],
        "weight": np.ones(len(positions), np.float32),
    }
    return tf.data.Dataset.from_tensors((stream,)).repeat(num_steps)


def make_trainer(runtime):
    recipe = Recipe(np.full(NUM_STEPS, 0.01, np.float32), {"labeled": 16})
    return Trainer(build_model, recipe, noise.key(0, "workers"), runtime)


def train(runtime, evaluate):
    make_trainer(runtime).train(
        batches,
        evaluate=evaluate,
        evaluations=1,
        summary_folder=sys.argv[1],
        title="gen0/teacher small",
        checkpoint_folder=f"{sys.argv[1]}/checkpoints",
        checkpoint_seconds=0.0,
    )


def evaluation_cannot_teach(runtime):
    def evaluate():
        raise GenerationFailedError("no finite prediction")

    try:
        train(runtime, evaluate)
    except GenerationFailedError as error:
        print(error)
    runtime.workers.wait()


def stopped_in_the_last_evaluation(runtime):
    """The other worker is asked to stop while the chief evaluates."""

    def evaluate():
        time.sleep(4)
        return {"accuracy": 0.5}

    if runtime.workers.index == 1:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        call_steps = Trainer.call_steps

        def call_and_set_alarm(self, batches, first_step, count):
            result = call_steps(self, batches, first_step, count)
            if first_step + count == NUM_STEPS:
                signal.alarm(1)
            return result

        Trainer.call_steps = call_and_set_alarm
    train(runtime, evaluate)


def lost_before_the_trainer(runtime):
    if runtime.workers.index == 1:
        os._exit(9)
    make_trainer(runtime)


def different_operations(runtime):
    if runtime.workers.index:
        runtime.workers.sum(1, 2)
    else:
        runtime.workers.sum(1)


def run(argv):
    stopping.install_handlers()
    runtime = Runtime.from_strategy(make_strategy("multi_worker"))
    for case in sys.argv[2:]:
        print(f"case {case}", flush=True)
        globals()[case](runtime)
        sys.stdout.flush()
    return main.OK


if __name__ == "__main__":
    app.run(lambda argv: main.exit_at_once(main.run_main(argv, run)))
