"""The trainer of teachers and students: streams and hyperparameters differ, the code does not.

A custom loop instead of `model.fit`: the noise of a step must depend on the step and on positions
in the global batch (layers under `fit` draw the same mask on every replica), the loss is a sum over
the global batch divided by the rows of some of its streams, gradients are reduced before they are
clipped, and the moving average covers BatchNorm.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from nsk import noise, stopping
from nsk.distributed import compilation, device_memory
from nsk.distributed.batch_share import Share
from nsk.distributed.runtime import Runtime
from nsk.errors import UserError
from nsk.models import blocks
from nsk.models.cost import estimate_cost
from nsk.training import optimizers
from nsk.training.checkpoint import Checkpoints
from nsk.training.curves import Curves
from nsk.training.ema import ExponentialMovingAverage
from nsk.training.recipe import Recipe
from nsk.training.rematerialization import recomputed_segments
from nsk.training.session import Session
from nsk.training.step import ReplicaStep
from nsk.training.step_memory import StepMemory

SECONDS_PER_CALL = 1.0  # Python, and so a signal's handler, runs only between calls.


class Trainer:
    """Trains one model.

    Args:
        build_model: function of `synchronized` (whether BatchNorm computes its statistics over all
            replicas) that returns a new `keras.Model`, with the same initial weights each time,
            from float32 pixels in [0, 255] to logits.
        recipe: a `Recipe`.
        noise_key: int64 (2,), the stage's key (`noise.key`).
        runtime: the run's devices and workers.
        jit_compile: auto | on | off, whether XLA compiles a replica's step, see `compilation`.
    """

    def __init__(
        self,
        build_model: Callable[..., keras.Model],
        recipe: Recipe,
        noise_key: noise.Key,
        runtime: Runtime,
        jit_compile: str = "auto",
    ):
        strategy = runtime.strategy
        self.recipe, self.strategy, self.workers = recipe, strategy, runtime.workers
        self.workers.wait()  # Variables are created by all workers together.
        with self.workers.detect_lost_workers(), strategy.scope():
            replicas = strategy.num_replicas_in_sync
            self.model = build_model(synchronized=replicas > 1 and recipe.synchronized)
            for layer in blocks.shallow_layers(self.model, recipe.frozen_blocks):
                layer.trainable = False
            self.optimizer = optimizers.make_optimizer(
                recipe.optimizer,
                recipe.learning_rates,
                self.model.trainable_variables,
                momentum=recipe.momentum,
                nesterov=recipe.nesterov,
                weight_decay=recipe.weight_decay,
            )
            self.average = (
                ExponentialMovingAverage(self.model, recipe.ema_decay) if recipe.ema_decay else None
            )
            self._replica_step = ReplicaStep(
                self.model,
                self.optimizer,
                recipe,
                noise_key,
                replicas,
                self.average if replicas == 1 else None,
            )
        self._compiled = self._compile(jit_compile)
        self.run_steps = tf.function(self._run_steps)
        # Outside the scope and not synchronized: the model that is evaluated, saved and served.
        self.published_model = build_model(synchronized=False)

    def _compile(self, mode):
        """Makes XLA compile the replicas' steps if the mode requires it; returns what is compiled.

        On one replica that is a whole step, on several all but the sums over replicas and the
        update that follows from them.
        """
        is_compiled = compilation.is_compiled(mode, self.strategy)
        title = f"Training steps of {self.model.name}"
        if self.strategy.num_replicas_in_sync == 1:
            self._replica_step = compilation.Compilable(self._replica_step, is_compiled, title)
            return self._replica_step
        step = self._replica_step
        step.compute = compilation.Compilable(step.compute, is_compiled, title)
        reason = compilation.obstacle(self.strategy, self.recipe.synchronized)
        if reason:
            step.compute.fall_back(reason)
        return step.compute

    @property
    def is_compiled(self) -> bool:
        """Whether XLA compiles the steps."""
        return self._compiled.is_compiled

    def _try_steps(self, batches, first_step, count, title):
        """`call_steps`, or None if XLA cannot compile them: the next call runs without XLA."""
        try:
            return self.call_steps(batches, first_step, count)
        except tf.errors.OpError as error:
            if device_memory.is_full(error, self.strategy):
                described = self._describe_memory()
                raise UserError(f"{title}: the device's memory is full: {described}") from error
            if not (isinstance(error, compilation.ERRORS) and self._compiled.fall_back(error)):
                raise
            self.run_steps = tf.function(self._run_steps)
            return None

    def _describe_memory(self):
        recipe, replicas = self.recipe, self.strategy.num_replicas_in_sync
        recomputed = recomputed_segments(self.model, recipe.rematerialize)
        cost = estimate_cost(self.model, recomputed)
        memory = StepMemory.of(cost, list(recipe.batch_sizes.values()), recipe, replicas)
        return memory.describe(device_memory.replica_bytes(self.strategy))

    def train(
        self,
        make_batches: Callable[..., tf.data.Dataset],
        *,
        evaluate: Callable[[], dict[str, float | None]],
        evaluations: int,
        summary_folder: Path,
        title: str,
        checkpoint_folder: Path,
        checkpoint_seconds: float,
    ) -> dict[str, Any]:
        """Runs all steps, from the last checkpoint if there is one.

        Args:
            make_batches: function of (first_step, num_steps, share=WHOLE) that returns a
                `tf.data.Dataset` with an element for each step and replica of the `Share`: a tuple
                over streams of dicts `image` uint8 (batch, height, width, 3), `target` float32
                (batch, classes), `weight` float32 (batch,), where batch is a replica's part of the
                global batch.
            evaluate: function that measures `published_model`: a dict of floats (None if not
                defined), among them `accuracy`.
            evaluations: how often `evaluate` is called, including the end.
            summary_folder: where TensorBoard's events are written.
            title: name of the work in the progress line.
            checkpoint_folder: where checkpoints are kept during the training.
            checkpoint_seconds: float, longest time between checkpoints.

        Returns:
            dict: `steps`, `images_seen`, `seconds`, `final_loss` and `dev`, the last evaluation.

        Raises:
            GenerationFailedError: the loss, a gradient or a weight is not finite.
            LostWorkerError: another worker is lost.
            Stopped: a stop was requested; a checkpoint of the last step is on disk.
            UserError: the memory of a device is full.
        """
        stops = evaluation_steps(self.recipe.num_steps, evaluations)
        session = self._start(
            make_batches, title, summary_folder, checkpoint_folder, checkpoint_seconds
        )
        batches, pace = self.iterate(make_batches, session.step, self.recipe.num_steps), Pace()
        with stopping.graceful_stop() as stop:
            while not session.is_finished:
                until_stop = min(end for end in stops if end > session.step) - session.step
                count = min(pace.steps, until_stop)
                called = time.monotonic()
                measured = self._try_steps(batches, session.step, count, title)
                if measured is None:  # The failed call has consumed a batch.
                    batches = self.iterate(make_batches, session.step, self.recipe.num_steps)
                    continue
                seconds, (losses, norms) = time.monotonic() - called, measured
                memory = device_memory.peak_bytes(self.strategy)
                session.add_steps(losses, norms, seconds, memory)
                if session.step in stops:
                    session.curves.add_evaluation(self.measured(evaluate, publish=True))
                pace.update(count, seconds)
                is_due, pace.steps, stopped = self._agree(
                    session.checkpoints.is_due, pace.steps, stop.requested
                )
                if is_due or stopped:
                    session.save(wait=stopped, write=self.workers.is_chief)
                if stopped:
                    self._stop(title, session.step)
                session.show(losses)
        return session.finish()

    def _start(self, make_batches, title, summary_folder, checkpoint_folder, checkpoint_seconds):
        """The `Session` of a training, restored from its last checkpoint; see `train`."""
        is_chief, recipe = self.workers.is_chief, self.recipe
        curves = Curves(summary_folder if is_chief else None, recipe.learning_rates)
        if is_chief:
            curves.add_images(self._first_images(make_batches))
        checkpoints = Checkpoints(checkpoint_folder, self.variables(), checkpoint_seconds)
        step, seconds = self._restore(checkpoints, curves)
        if step:
            logging.info("%s: resumes from step %d of %d", title, step, recipe.num_steps)
        return Session(title, recipe, curves, checkpoints, step, seconds)

    def _stop(self, title, step):
        """Ends the training on all workers at the same step."""
        self.workers.wait()
        logging.info("%s: stopped after step %d of %d", title, step, self.recipe.num_steps)
        raise stopping.Stopped

    def _first_images(self, make_batches):
        """Images of the first step by stream: as many as a worker holds at a time."""
        (streams,) = make_batches(0, 1, Share(0, self.workers.count))
        return dict(zip(self.recipe.batch_sizes, streams, strict=True))

    def _restore(self, checkpoints, curves):
        """(steps that were trained, seconds they took) of the last intact checkpoint."""
        step, state = 0, {"seconds": 0.0}
        if self.workers.is_chief:
            step, state = checkpoints.restore() or (step, state)
        (step,) = self.workers.broadcast_from_chief(step)
        if step and not self.workers.is_chief:
            state = checkpoints.restore_step(step)
        seconds = state.pop("seconds")
        if step:
            curves.restore(state)
        return step, seconds

    def _agree(self, is_due, steps_per_call, stop):
        """Makes all workers take the same next action.

        The chief decides whether a checkpoint is due and how many steps a call has; any worker may
        request a stop.

        Returns:
            (bool, int, bool).
        """
        chief = self.workers.is_chief
        due, steps, stops = self.workers.sum(chief and is_due, chief * steps_per_call, stop)
        return bool(due), steps, bool(stops)

    def variables(self) -> dict[str, Any]:
        """All variables that a step changes, by name.

        Names are positions: Keras' own names number networks and optimizers in the order of their
        creation in a process.
        """
        parts = {"model": self.model.variables, "optimizer": self.optimizer.variables}
        if self.average:
            parts["average"] = self.average.averages
        return {
            f"{part}/{number}": variable
            for part, variables in parts.items()
            for number, variable in enumerate(variables)
        }

    def iterate(
        self, make_batches: Callable[..., tf.data.Dataset], first_step: int, num_steps: int
    ) -> Iterator:
        """An iterator over batches for `call_steps`; for `make_batches` see `train`."""
        make = functools.partial(make_batches, first_step, num_steps, self.workers.share)
        if self.strategy.num_replicas_in_sync == 1:
            # The autotuning of a distributed iterator cannot be switched off, and can delay the end
            # of the iterator by a minute.
            return iter(make())
        return iter(self.strategy.distribute_datasets_from_function(lambda _: make()))

    def call_steps(
        self, batches: Iterator, first_step: int, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`run_steps` for ints, with all workers; float32 arrays (count,)."""
        losses, norms = self.workers.call(
            self.run_steps, batches, tf.constant(first_step), tf.constant(count)
        )
        self._compiled.succeeded()
        return losses.numpy(), norms.numpy()

    def measured(
        self, evaluate: Callable[[], dict[str, float | None]], publish: bool = False
    ) -> dict[str, float | None]:
        """Metrics of the published model; {} for all workers but the chief.

        Args:
            evaluate: see `train`.
            publish: whether the current weights are assigned to it first.
        """
        with self.workers.propagate_errors():
            if not self.workers.is_chief:
                return {}
            if publish:
                self.publish()
            return evaluate()

    def publish(self) -> keras.Model:
        """Updates the published model, with the averaged weights if there is an average."""
        if self.average:
            self.average.copy_to(self.published_model)
        else:
            for target, source in zip(
                self.published_model.variables, self.model.variables, strict=True
            ):
                target.assign(source.value)
        return self.published_model

    def _run_steps(self, batches, first_step, count):
        """Several steps in one call.

        Args:
            batches: iterator of `iterate` that continues with the batch of `first_step`.
            first_step: int32 scalar tensor, number of the first step, from 0.
            count: int32 scalar tensor, number of steps.

        Returns:
            loss and gradient norm (L2 penalty included, before clipping) of each step, float32
            (count,).
        """
        measured = tf.TensorArray(tf.float32, count)
        for i in tf.range(count):
            step = first_step + i
            replica_sums = self.strategy.run(self._replica_step, args=(next(batches), step))
            if self.average and self.strategy.num_replicas_in_sync > 1:
                self.average.update_replicas(self.strategy, step)
            measured = measured.write(i, self.strategy.reduce("SUM", replica_sums, axis=None))
        return tf.unstack(tf.ensure_shape(measured.stack(), [None, 2]), axis=1)


class Pace:
    """Number of steps per call, so that a call takes about a second.

    Attributes:
        steps: int, at least 1.
    """

    def __init__(self):
        self.steps = 1
        self._compiled = False

    def update(self, count: int, seconds: float) -> None:
        """Adapts to the time of the last call of `count` steps; the first call also compiles."""
        if self._compiled:
            self.steps = max(1, math.ceil(SECONDS_PER_CALL * count / seconds))
        self._compiled = True


def evaluation_steps(num_steps: int, evaluations: int) -> set[int]:
    """The steps after which a training is evaluated: evenly spread, including the last."""
    evaluations = min(evaluations, num_steps)
    return {round(num_steps * (i + 1) / evaluations) for i in range(evaluations)}
