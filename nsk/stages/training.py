"""Training: the teacher on the labelled images, or a student on pseudo-labels as well.

Teachers and students share this module; they differ only in their hyperparameters and inputs.
"""

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from nsk import models, noise
from nsk.data import pipeline
from nsk.data.shards import ShardSet
from nsk.distributed.runtime import Runtime
from nsk.distributed.strategy import check_divisible
from nsk.evaluation import metrics
from nsk.evaluation.predictor import Predictor, collect
from nsk.models import blocks, weights
from nsk.models.cost import Cost, estimate_cost
from nsk.models.weight_assignment import assign
from nsk.stages.hyperparameters import Hyperparameters, training_parts
from nsk.stages.input_streams import (
    Stream,
    describe_stream,
    log_stream,
    make_batches,
    make_streams,
)
from nsk.stages.pseudo_shards import SHARDS_FOLDER
from nsk.stages.runner import MODEL_FILE, StageRunner, shard_set, summary_folder
from nsk.stages.selection import read_labeled_copies
from nsk.store.files import CHECKPOINTS, UNFINISHED
from nsk.store.folders import StageFolder
from nsk.training import schedules
from nsk.training.recipe import Recipe
from nsk.training.rematerialization import recomputed_segments
from nsk.training.trainer import Trainer


def train(
    runner: StageRunner,
    generation: int,
    images: StageFolder,
    pseudo_labels: StageFolder | None = None,
    teacher: StageFolder | None = None,
    scored: StageFolder | None = None,
    pretrained: StageFolder | None = None,
    member: int = 1,
) -> StageFolder:
    """Returns the stage that trains a teacher (generation 0), or a student.

    Args:
        runner: the runner of stages.
        generation: 0 is the teacher.
        images: the ingested images.
        pseudo_labels: the pseudo-label shards of a student; None if it learns from labelled images
            alone.
        teacher: the model of the generation before.
        scored: the labelled images with the teacher's predictions; None without distillation.
        pretrained: the student after its pre-training; None: it has none.
        member: number of a teacher in an ensemble, from 1; each has other random numbers.
    """
    *_, settings = training_parts(runner.config, generation, images.counts, member)
    inputs, labeled_copies, pseudo = {}, {}, None
    if pseudo_labels is not None:
        labeled_copies = read_labeled_copies(pseudo_labels.path)
    if settings.learns_pseudo_labels:
        pseudo = shard_set(pseudo_labels, SHARDS_FOLDER)
    if settings.learns_pseudo_labels or labeled_copies:
        inputs["pseudo_labels"] = pseudo_labels
    if scored is not None:
        inputs["labeled"] = scored
    if pretrained is None:
        start = find_initial_weights(runner, generation, settings, teacher)
    else:
        start = InitialWeights(settings, pretrained.path / MODEL_FILE, {"pretrained": pretrained})
    inputs |= start.inputs
    return run_training(runner, start.settings, images, inputs, start.path, pseudo, labeled_copies)


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """What a training starts from.

    Attributes:
        settings: its hyperparameters; `init_from` has the content of a file.
        path: of the weights; None: random ones.
        inputs: the stages that they are from, by role.
    """

    settings: Hyperparameters
    path: Path | None = None
    inputs: dict[str, StageFolder] = dataclasses.field(default_factory=dict)


def find_initial_weights(
    runner: StageRunner, generation: int, settings: Hyperparameters, teacher: StageFolder | None
) -> InitialWeights:
    """The initial weights of a generation by `--init_from`.

    Args:
        runner: the runner of stages.
        generation: 0 is the teacher.
        settings: hyperparameters of its first training.
        teacher: the model of the generation before.
    """
    init_from = runner.config.init_from(generation)
    if init_from == "scratch":
        return InitialWeights(settings)
    if init_from == "teacher":
        return InitialWeights(settings, teacher.path / MODEL_FILE, {"teacher": teacher})
    content = {"sha256": weights.sha256(init_from)}
    return InitialWeights(dataclasses.replace(settings, init_from=content), init_from)


def run_training(
    runner: StageRunner,
    settings: Hyperparameters,
    images: StageFolder,
    inputs: dict[str, StageFolder],
    initial_weights: Path | None,
    pseudo: ShardSet | None = None,
    labeled_copies: dict[str, int] | None = None,
) -> StageFolder:
    """Runs a stage of training or fine-tuning.

    Args:
        runner: the runner of stages.
        settings: the stage's hyperparameters.
        images: the ingested images, of which it depends on labelled and dev images alone.
        inputs: the other stages that it is built from, by role; of the role `labeled` are the
            labelled images with a teacher's predictions.
        initial_weights: path of the initial weights; None: random ones.
        pseudo: the student's pseudo-labelled images; None for a teacher.
        labeled_copies: copies in an epoch by the id of a labelled image; None: one each.
    """
    labeled, dev = (shard_set(images, split) for split in ("labeled", "dev"))
    if "labeled" in inputs:
        labeled = shard_set(inputs["labeled"], SHARDS_FOLDER)
    settings = settings.with_cache(labeled, dev, pseudo)
    run = runner.config.run

    def build(folder):
        job = Job(
            settings=settings,
            labeled=labeled,
            dev=dev,
            pseudo=pseudo,
            labeled_copies=labeled_copies or {},
            initial_weights=weights.read(initial_weights) if initial_weights else None,
            summary_folder=summary_folder(runner.workdir, folder),
            checkpoint_folder=folder.with_suffix(CHECKPOINTS),
            checkpoint_seconds=60 * run.checkpoint_minutes,
            eval_batch_size=run.eval_batch_size,
            jit_compile=run.jit_compile,
        )
        return train_model(job, runner.runtime, folder / MODEL_FILE)

    stage = runner.build_or_reuse(
        settings.name,
        build,
        settings.for_fingerprint(),
        join=build,
        resumes=True,
        images=images.part("labeled", "dev"),
        **inputs,
    )
    if runner.workers.is_chief:  # Only now is the model on disk under its final name.
        checkpoints = stage.path.with_name(stage.path.name + CHECKPOINTS)
        shutil.rmtree(checkpoints, ignore_errors=True)
    return stage


@dataclasses.dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        settings: hyperparameters with a resolved `cache`.
        labeled, dev: labelled and dev images; under distillation the labelled ones have a teacher's
            predictions.
        pseudo: the student's pseudo-labelled images; None for a teacher.
        labeled_copies: copies in an epoch by the id of a labelled image; {}: one each.
        initial_weights: None: random ones.
        summary_folder: where TensorBoard's events are written.
        checkpoint_folder: where checkpoints are kept during the training.
        checkpoint_seconds: longest time between checkpoints.
        eval_batch_size: images per batch of evaluation.
        jit_compile: auto | on | off, whether XLA compiles steps and predictions.
    """

    settings: Hyperparameters
    labeled: ShardSet
    dev: ShardSet
    pseudo: ShardSet | None
    labeled_copies: dict[str, int]
    initial_weights: weights.Weights | None
    summary_folder: Path
    checkpoint_folder: Path
    checkpoint_seconds: float
    eval_batch_size: int
    jit_compile: str = "auto"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.labeled.class_names)

    def open_streams(self) -> tuple[Stream, ...]:
        """The streams of training images, which may decode all of them."""
        return make_streams(self.settings, self.labeled, self.pseudo, self.labeled_copies)


def train_model(job: Job, runtime: Runtime, model_path: Path) -> dict[str, Any]:
    """Trains, saves the model and returns the stage's counts.

    Every worker calls it, with a job and a path that name the same files; only the chief writes.

    Args:
        job: what to train on what.
        runtime: devices and workers.
        model_path: path of the `.keras` file, which holds the averaged weights if there is an
            average.

    Returns:
        dict: `model`, `parameters` (trainable), `class_names`, `image_size`, `resize_mode`,
        `significant_bits`, `dev_before` (metrics of the initial weights; None for random ones),
        `streams` and what `Trainer.train` returns.
    """
    settings, streams = job.settings, job.open_streams()
    sizes = {f"{stream.name}_batch": stream.batch_size for stream in streams}
    check_divisible(runtime.strategy, settings.train.accumulation_steps, **sizes)
    trainer = make_trainer(job, streams, runtime)
    num_steps = trainer.recipe.num_steps
    descriptions = {stream.name: describe_stream(stream, num_steps) for stream in streams}
    for stream in streams:
        log_stream(stream.name, stream, descriptions[stream.name])
    with contextlib.ExitStack() as readers:
        for shards in (job.labeled, job.dev, *filter(None, [job.pseudo])):
            readers.enter_context(shards.naming_broken_shards())
        evaluate = make_evaluation(job, trainer.published_model)
        dev_before = trainer.measured(evaluate) if job.initial_weights is not None else None
        counts = trainer.train(
            make_batches(settings, streams),
            evaluate=evaluate,
            evaluations=settings.train.evaluations,
            summary_folder=job.summary_folder,
            checkpoint_folder=job.checkpoint_folder,
            checkpoint_seconds=job.checkpoint_seconds,
            title=f"{settings.name} {settings.architecture}",
        )
    model = trainer.publish()
    if runtime.workers.is_chief:
        save_model(model, model_path)
    return {
        "model": settings.architecture,
        "parameters": trainable_parameters(model),
        "class_names": list(job.labeled.class_names),
        "image_size": settings.image_size,
        "resize_mode": settings.resize_mode,
        "significant_bits": settings.significant_bits,
        "dev_before": dev_before,
        "streams": descriptions,
        **counts,
    }


def save_model(model: keras.Model, model_path: Path) -> None:
    """Writes a `.keras` file atomically."""
    # Keras requires the suffix, so the file's folder has the unfinished name.
    unfinished = model_path.with_name(f"{model_path.name}{UNFINISHED}") / model_path.name
    unfinished.parent.mkdir()
    model.save(unfinished)
    unfinished.rename(model_path)
    unfinished.parent.rmdir()


def make_trainer(job: Job, streams: tuple[Stream, ...], runtime: Runtime) -> Trainer:
    """The `Trainer` of a job."""
    settings = job.settings
    build = functools.partial(
        build_network, settings, job.num_classes, initial_weights=job.initial_weights
    )
    recipe = make_recipe(settings, streams)
    return Trainer(build, recipe, settings.noise_key, runtime, job.jit_compile)


def make_evaluation(job: Job, model: keras.Model) -> Callable[[], dict[str, float | None]]:
    """Function without arguments that measures the model on dev."""
    settings = job.settings
    dev = pipeline.clean_batches(
        job.dev, settings.image_size, job.eval_batch_size, resize_mode=settings.resize_mode
    )
    if settings.train.cache == "memory":
        dev = dev.cache()
    predict = Predictor(model, job.eval_batch_size, jit_compile=job.jit_compile)

    def evaluate():
        predictions = collect(predict(dev))
        return metrics.summarize(predictions.log_probabilities, predictions.labels)

    return evaluate


def make_recipe(settings: Hyperparameters, streams: tuple[Stream, ...]) -> Recipe:
    """The trainer's `Recipe` for these hyperparameters and streams."""
    train = settings.train
    rates = schedules.learning_rates(
        train.schedule,
        train.learning_rate,
        settings.num_steps,
        warmup_steps=round(train.warmup_epochs * settings.steps_per_epoch),
        decay_steps=train.decay_epochs * settings.steps_per_epoch,
        decay_rate=train.decay_rate,
        multistep_fractions=train.fractions,
        multistep_factor=train.multistep_factor,
    )
    return Recipe(
        learning_rates=rates,
        batch_sizes={stream.name: stream.batch_size for stream in streams},
        optimizer=train.optimizer,
        momentum=train.momentum,
        nesterov=train.nesterov,
        weight_decay=train.weight_decay,
        gradient_clip_norm=train.gradient_clip_norm,
        loss_normalization=train.loss_normalization,
        **settings.distillation,
        ema_decay=train.ema_decay,
        accumulation_steps=train.accumulation_steps,
        frozen_blocks=settings.frozen_blocks,
        synchronized=train.batch_norm == "synchronized",
        rematerialize=train.rematerialize,
    )


def build_network(
    settings: Hyperparameters,
    num_classes: int,
    synchronized: bool,
    initial_weights: weights.Weights | None = None,
) -> keras.Model:
    """The network of a stage with its initial weights.

    Args:
        settings: the stage's hyperparameters.
        num_classes: number of classes.
        synchronized: whether BatchNorm computes its statistics over all replicas.
        initial_weights: weights to assign, BatchNorm's statistics included; None: random ones.
    """
    model = models.build_model(
        settings.architecture,
        num_classes=num_classes,
        image_size=settings.image_size,
        synchronized=synchronized,
        seed=noise.python_seed(settings.seed, settings.name, "weights"),
        **settings.model.values(),
    )
    if initial_weights is not None:
        assign(model, initial_weights)
    return model


def training_cost(model: keras.Model, frozen_blocks: int, rematerialize: bool) -> Cost:
    """The cost of training a network, whose first blocks become not trainable.

    Args:
        model: the network.
        frozen_blocks: blocks after the stem that are not trained, with the stem; 0: none.
        rematerialize: whether activations inside blocks are recomputed in the backward pass.
    """
    for layer in blocks.shallow_layers(model, frozen_blocks):
        layer.trainable = False
    return estimate_cost(model, recomputed_segments(model, rematerialize))


def trainable_parameters(model: keras.Model) -> int:
    """Number of trainable parameters."""
    return int(sum(np.prod(variable.shape) for variable in model.trainable_variables))
