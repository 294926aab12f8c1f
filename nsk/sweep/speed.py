"""How long trainings and predictions take: measured on this machine, estimated for one H200."""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nsk import models
from nsk.distributed.runtime import Runtime
from nsk.evaluation.predictor import Predictor
from nsk.stages.hyperparameters import Hyperparameters
from nsk.stages.input_streams import make_batches
from nsk.stages.runner import shard_set
from nsk.stages.training import Job, make_trainer, trainable_parameters, training_cost
from nsk.store.folders import StageFolder

# A measurement takes at least so long after the steps are compiled.
MEASURED_SECONDS = 2.0
# Steps that are in prefetch buffers when the clock starts.
WARM_UP_STEPS = 3

# One H200 with TensorFlow 2.21: multiply-adds per second of whole training steps that XLA has
# compiled. CIFAR ResNets of batch 512 reached 8.6e12 to 9.4e12 in float32, 12e12 to 13e12 in
# bfloat16, EfficientNet-B0 of 224 pixels 5.5e12 in float32. Compiling took 7 to 23 s and
# 131 s, about 0.3 s for each layer.
H200_RATES = {"float32": 9e12, "bf16": 12.5e12}
H200_RATE_WITH_DEPTHWISE_LAYERS = 5.5e12
H200_COMPILE_SECONDS_PER_LAYER = 0.3


@dataclasses.dataclass(frozen=True)
class Speed:
    """Times of a network's work on a machine.

    Attributes:
        setup_seconds: of a training: the network is built and its steps are compiled.
        image_seconds: of a training image.
        predict_seconds: of an image that is predicted.
    """

    setup_seconds: float
    image_seconds: float
    predict_seconds: float

    def training(self, images: float, dev_images: float) -> float:
        """Seconds of a training with its evaluations on dev."""
        return self.setup_seconds + images * self.image_seconds + dev_images * self.predict_seconds


def work_key(settings: Hyperparameters) -> tuple:
    """What the speed of a training depends on; learning rates and magnitudes are left out."""
    noise, model, train = settings.noise, settings.model, settings.train
    return (
        settings.architecture,
        settings.image_size,
        settings.batch_sizes,
        settings.frozen_blocks,
        (model.precision, model.dropout_rate > 0, model.survival_probability < 1),
        (noise.randaugment_num_ops, noise.crop_padding > 0, noise.min_crop_area > 0),
        (noise.cutout_side > 0, settings.mixes_images),
        (train.accumulation_steps, train.rematerialize, train.optimizer, train.ema_decay > 0),
    )


def measure(settings: Hyperparameters, images: StageFolder, runtime: Runtime) -> Speed:
    """Measures a training's speed on labelled images, which stand for pseudo-labelled ones, too.

    Args:
        settings: hyperparameters of the training.
        images: the ingested images.
        runtime: devices and workers.
    """
    labeled, dev = (shard_set(images, split) for split in ("labeled", "dev"))
    # A teacher with the whole batch of a student: all images cost the same.
    train = settings.train.with_values(
        labeled_batch_size=sum(settings.batch_sizes), train_images=0, train_steps=10**6
    )
    settings = dataclasses.replace(settings, targets=None, is_pretraining=False, train=train)
    settings = settings.with_cache(labeled, dev, None)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(settings, labeled, dev, None, {}, None, Path(folder), Path(folder), 1e9, 512)
        started = time.monotonic()
        streams = job.open_streams()
        trainer = make_trainer(job, streams, runtime)
        batches = trainer.iterate(make_batches(settings, streams), 0, trainer.recipe.num_steps)
        trainer.call_steps(batches, 0, 1)
        setup = time.monotonic() - started
        call = functools.partial(trainer.call_steps, batches, 1)
        steps_seconds = _seconds_per_call(lambda: call(1), WARM_UP_STEPS)
        predictor = Predictor(trainer.published_model, 512)
        pixels = np.zeros((512, settings.image_size, settings.image_size, 3), np.uint8)
        predict_seconds = _seconds_per_call(lambda: predictor.log_probabilities(pixels), 1)
    return Speed(setup, steps_seconds / trainer.recipe.global_batch_size, predict_seconds / 512)


def _seconds_per_call(call: Callable[[], object], warm_up: int) -> float:
    """Mean time of calls during `MEASURED_SECONDS`, after some that are not counted."""
    for _ in range(warm_up):
        call()
    started, count = time.monotonic(), 0
    while count < 2 or time.monotonic() - started < MEASURED_SECONDS:
        call()
        count += 1
    return (time.monotonic() - started) / count


@dataclasses.dataclass(frozen=True)
class _Network:
    """A network: multiply-adds of an image, and sizes."""

    forward: int
    training: int
    layers: int
    parameters: int
    is_depthwise: bool


def estimate_h200(settings: Hyperparameters, num_classes: int) -> Speed:
    """Estimates the speed on one H200 from the network's multiply-adds; see `H200_RATES`."""
    network = _describe(settings, num_classes)
    rate = H200_RATES[settings.model.precision]
    if network.is_depthwise:
        rate = H200_RATE_WITH_DEPTHWISE_LAYERS
    setup = H200_COMPILE_SECONDS_PER_LAYER * network.layers
    return Speed(setup, network.training / rate, network.forward / rate)


def num_parameters(settings: Hyperparameters, num_classes: int) -> int:
    """Trainable parameters of the network of a training."""
    return _describe(settings, num_classes).parameters


def _describe(settings, num_classes):
    values = tuple(settings.model.values().items())
    size, frozen = settings.image_size, settings.frozen_blocks
    return _describe_network(settings.architecture, frozen, num_classes, size, values)


@functools.cache
def _describe_network(architecture, frozen_blocks, num_classes, image_size, model_values):
    model = models.build_model(
        architecture, num_classes=num_classes, image_size=image_size, **dict(model_values)
    )
    parameters = trainable_parameters(model)
    cost = training_cost(model, frozen_blocks, rematerialize=False)
    is_depthwise = any("Depthwise" in type(layer).__name__ for layer in model.layers)
    return _Network(cost.forward, cost.training, len(model.layers), parameters, is_depthwise)
