"""What two workers say to each other; run by `workers_test.py`, with TF_CONFIG.

python tests/training/workers_program.py CASE
"""

import os
import signal
import sys
import time

import numpy as np
import trainer_test
from absl import app

from nsk import main, stopping
from nsk.distributed import strategy as strategies
from nsk.distributed.batch_share import WHOLE
from nsk.distributed.workers import Workers
from nsk.errors import GenerationFailedError
from nsk.training.recipe import Recipe
from nsk.training.trainer import Trainer


def sums(workers):
    print(
        workers.sum(workers.index + 1, True, 2**40), workers.broadcast_from_chief(7 - workers.index)
    )


def one_cannot_teach(workers):
    for unlucky in range(2):
        try:
            with workers.propagate_errors():
                if workers.index == unlucky:
                    raise GenerationFailedError(f"worker {unlucky}")
        except GenerationFailedError as error:
            print(error)
    workers.wait()


def make_trainer(workers):
    recipe = Recipe(np.full(60, 0.01, np.float32), {"labeled": 16, "pseudo": 48})
    return Trainer(trainer_test.small_noisy, recipe, trainer_test.KEY, workers._strategy)


def train(workers, evaluate):
    make_trainer(workers).train(
        lambda first, last, share=WHOLE: trainer_test.batches(first, last, share),
        evaluate=evaluate,
        evaluations=1,
        summary_folder=sys.argv[2],
        title="gen0/teacher small",
        checkpoint_folder=f"{sys.argv[2]}/checkpoints",
        checkpoint_seconds=0.0,
    )


def evaluation_cannot_teach(workers):
    def evaluate():
        raise GenerationFailedError("no finite prediction")

    try:
        train(workers, evaluate)
    except GenerationFailedError as error:
        print(error)
    workers.wait()


def stopped_in_the_last_evaluation(workers):
    """The other worker is asked to stop while the chief evaluates."""

    def evaluate():
        time.sleep(4)
        return {"accuracy": 0.5}

    if workers.index == 1:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        call_steps = Trainer.call_steps

        def last_call(self, batches, first, count):
            result = call_steps(self, batches, first, count)
            if first + count == 60:
                signal.alarm(1)
            return result

        Trainer.call_steps = last_call
    train(workers, evaluate)


def lost_before_the_trainer(workers):
    if workers.index == 1:
        os._exit(9)
    make_trainer(workers)


def at_different_places(workers):
    if workers.index:
        workers.sum(1, 2)
    else:
        workers.sum(1)


def run(argv):
    stopping.install_handlers()
    globals()[sys.argv[1]](Workers(strategies.make_strategy("multi_worker")))
    return main.OK


if __name__ == "__main__":
    app.run(lambda argv: main.exit_at_once(main.run_main(argv, run)))
