"""Trains some steps under one strategy; run by `equality_test.py` in separate processes.

    python tests/training/equality_program.py STRATEGY NETWORK PRECISION STEPS RATE FILE

Writes losses, norms, weights and averages to FILE, an .npz. All features of training are on: noise
on images and in layers, synchronised BatchNorm, averages, clipping, weight decay and different
weights of images.
"""

import dataclasses
import sys

import keras
import numpy as np
import tensorflow as tf
import trainer_test

from nsk import noise
from nsk.distributed import strategy as strategies
from nsk.distributed.runtime import Runtime
from nsk.training.trainer import Trainer


def weighted(first_step, num_steps, share):
    """The batches of trainer_test with a weight for each image, a function of its target."""

    def weigh(*element):
        return tuple(
            {**stream, "weight": 0.2 + 2.0 * tf.reduce_max(stream["target"], axis=1)}
            for stream in element
        )

    return trainer_test.batches(first_step, num_steps, share).map(weigh)


def main(name, network, precision, steps, rate, path):
    strategies.split_cpu(2 if name == "mirrored" else 0)
    strategy = strategies.make_strategy(name)

    def build(synchronized):
        keras.config.set_dtype_policy(precision)
        return getattr(trainer_test, network)(synchronized)

    recipe = dataclasses.replace(
        trainer_test.RECIPE,
        learning_rates=np.linspace(rate, rate / 10, steps, dtype=np.float32),
        gradient_clip_norm=0.25,
    )
    trainer = Trainer(build, recipe, noise.key(0, "equality"), Runtime.from_strategy(strategy))
    batches = trainer.iterate(weighted, 0, steps)
    first = trainer.call_steps(batches, 0, 1)
    rest = trainer.call_steps(batches, 1, steps - 1)
    losses, norms = (np.concatenate(parts) for parts in zip(first, rest, strict=True))
    averages = trainer.publish().get_weights()
    if trainer.workers.is_chief:
        arrays = {
            f"weight {i}": variable.numpy() for i, variable in enumerate(trainer.model.variables)
        }
        arrays |= {f"average {i}": average for i, average in enumerate(averages)}
        np.savez(path, losses=losses, norms=norms, **arrays)
    trainer.workers.wait()


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), float(sys.argv[5]), sys.argv[6])
