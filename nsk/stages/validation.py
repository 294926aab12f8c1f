"""Validates all generations of a chain before the first one is trained for hours."""

import dataclasses
from typing import Any

import keras
import numpy as np
from absl import logging

from nsk import models
from nsk.config.config import Config
from nsk.data.class_names import normalize_name
from nsk.distributed import device_memory
from nsk.distributed.strategy import check_divisible
from nsk.errors import UserError, list_names
from nsk.models import blocks, weights
from nsk.models.model_files import read_class_names
from nsk.models.weight_assignment import assign, describe_pixel_mismatch, variables_by_layer
from nsk.stages.adoption import load_teacher
from nsk.stages.hyperparameters import (
    Hyperparameters,
    finetuning_hyperparameters,
    training_hyperparameters,
    training_image_size,
    training_parts,
)
from nsk.stages.runner import StageRunner
from nsk.stages.training import build_network, training_cost
from nsk.training.step_memory import StepMemory

# Side of the largest images that networks for small images are usual for, pixels.
SMALL_SIDE = 64
# Share of the pixels outside of the central square that is worth a warning, on average: those of
# cameras are 25 % (4:3) and 33 % (3:2), of videos and panoramas 44 % (16:9) and more.
MAX_UNSEEN = 0.4
MAX_LONG_IMAGES = 0.1  # Share of the images that are more than twice as long as wide.


def check_chain(runner: StageRunner, counts: dict[str, Any]) -> None:
    """Checks every generation of a chain.

    Args:
        runner: the runner of stages.
        counts: those of the ingested images, or placeholders.

    Raises:
        UserError: settings do not fit the images, the devices or each other.
    """
    config, strategy = runner.config, runner.runtime.strategy
    _check_first_scores(config, counts)
    teacher = _checked_teacher(config, counts) if config.chain.teacher else None
    warnings = dict.fromkeys(_framing_warnings(config, counts))  # In order, each once.
    built = {}  # Only the last network: the largest take seconds, and gigabytes.
    for generation in config.trained_generations:
        settings = training_hyperparameters(config, generation, counts)
        parts = training_parts(config, generation, counts)
        names = ("labeled_batch", "pseudo_batch") if len(parts) == 1 else ("batch",)
        sizes = dict(zip(names, parts[0].batch_sizes, strict=False))
        check_divisible(strategy, settings.train.accumulation_steps, **sizes)
        _check_budget(generation, settings)
        _check_noise(settings)
        if generation and config.scoring.label_with_noise:  # The teacher sees it, too.
            size = training_image_size(config, generation - 1, counts)
            _check_noise(dataclasses.replace(settings, image_size=size))
        network = (settings.architecture, settings.image_size, *settings.model.values().items())
        if network not in built:
            num_classes = counts["num_classes"]
            built = {network: build_network(settings, num_classes, synchronized=False)}
        model = built[network]
        warnings.update(dict.fromkeys(_warnings(settings, model)))
        warnings.update(dict.fromkeys(_memory_warnings(parts[0], model, strategy)))
        _check_initial_weights(config, generation, model, teacher)
        finetuning = finetuning_hyperparameters(config, generation, counts)
        if finetuning:
            _check_finetuning(strategy, finetuning, model)
            tuned = build_network(finetuning, counts["num_classes"], synchronized=False)
            warnings.update(dict.fromkeys(_memory_warnings(finetuning, tuned, strategy)))
        teacher = model
    for line in warnings:
        logging.warning("%s", line)


def _framing_warnings(config: Config, counts: dict[str, Any]):
    """A line if much of the images is outside of the squares that networks see."""
    outside = counts.get("outside_square")
    if config.chain.training_resize_mode != "crop" or not outside:
        return
    if outside["mean"] > MAX_UNSEEN or outside["above_half"] > MAX_LONG_IMAGES:
        yield (
            f"--resize_mode=crop: on average {outside['mean']:.0%} of an image's pixels are "
            "outside of its central square and never seen, and "
            f"{outside['above_half']:.0%} of the images "
            "lose more than half. Give --resize_mode=pad for whole images between gray margins, or "
            "--resize_mode=squash for stretched ones."
        )


def _warnings(settings: Hyperparameters, model: keras.Model):
    """Lines about a network that does not fit its settings."""
    name, side = settings.architecture, settings.image_size
    if models.is_for_small_images(name) and side > SMALL_SIDE:
        yield (
            f"{name} is a network for small images: at {side} pixels it takes much time and "
            "memory; imagenet_resnet18, efficientnet_b0 and kerascv:resnet50, say, are for large "
            "images."
        )
    if settings.train.labeled_batch_size > settings.num_labeled:
        epochs = 1 / settings.steps_per_epoch
        yield (
            f"--labeled_batch_size={settings.train.labeled_batch_size} exceeds the "
            f"{settings.num_labeled:,} labelled images: a step is {epochs:,.1f} epochs; lower it."
        )
    if settings.train.rematerialize and not blocks.block_names(model):
        yield f"--rematerialize has no effect on {name}, whose blocks are not known."


def _memory_warnings(settings, model, strategy):
    """A line about a training step that does not fit into a device's memory, by the estimate."""
    replicas, available = strategy.num_replicas_in_sync, device_memory.replica_bytes(strategy)
    cost = training_cost(model, settings.frozen_blocks, settings.train.rematerialize)
    memory = StepMemory.of(cost, settings.batch_sizes, settings.train, replicas)
    if available and not memory.fits(available):
        yield f"{settings.name} {settings.architecture}: {memory.describe(available)}"


def _check_initial_weights(config, generation, model, teacher):
    """UserError if a network cannot be initialised as configured.

    Args:
        config: all settings.
        generation: 0 is the teacher.
        model: the network; initial weights from a file are assigned to it.
        teacher: a network like its teacher; None for a chain's first network.
    """
    init_from = config.init_from(generation)
    if init_from == "teacher" and generation == 1 and config.chain.teacher:
        init_from = config.teacher_path
    if init_from == "scratch":
        return
    if init_from == "teacher":
        if _shapes(model) != _shapes(teacher):
            raise UserError(
                f"--init_from=teacher: student {generation} is a {model.name}, which cannot take "
                "the weights of its teacher: name the same network twice in --models, or give "
                "scratch."
            )
        return
    given = weights.read(init_from)
    fresh_head = assign(model, given)
    assigned = [
        layer
        for name, layer in given.layers.items()
        if not (fresh_head and name == weights.CLASSIFIER)
    ]
    details = [f"{sum(map(len, assigned))} tensors"]
    if given.averaged:
        details.append(f"{given.averaged} of them moving averages")
    if given.ignored:
        details.append(f"{given.ignored} others ignored")
    if fresh_head:
        details.append(f"new classifier for {model.output_shape[-1]} classes")
    logging.info(
        "Generation %d is initialised from %s: %s.", generation, init_from, ", ".join(details)
    )
    mismatch = describe_pixel_mismatch(model, given)
    if mismatch:
        logging.warning(
            "%s expects pixels of %s: training has to compensate for it.", init_from, mismatch
        )


def _check_first_scores(config, counts):
    """UserError if the first scores are to come from records that have none."""
    with_scores, unlabeled = counts["external_teacher"], counts["images"]["unlabeled"]
    if config.scoring.first_scores == "records" and with_scores < unlabeled:
        raise UserError(
            f"--first_scores=records: {unlabeled - with_scores:,} of {unlabeled:,} unlabelled "
            "images have no probabilities, or label and prob: give records that have them in "
            f"--unlabeled_dataset={config.data.unlabeled_dataset}."
        )


def _check_budget(generation, settings):
    """UserError if a budget of images is less than one batch."""
    budget, batch_size = settings.train.train_images, sum(settings.batch_sizes)
    if 0 < budget < batch_size:
        raise UserError(
            f"--train_images={budget} of generation {generation} is less than "
            f"its batch of {batch_size} images: raise it, or lower --labeled_batch_size or "
            "--ratio."
        )


def _check_noise(settings):
    """UserError if the noise on the images is larger than the images."""
    size, image_noise = settings.image_size, settings.noise
    if image_noise.crop_mode == "reflect" and image_noise.crop_padding >= size:
        raise UserError(
            f"--crop_padding={image_noise.crop_padding} of images of {size} pixels: give less "
            "than their side, or --crop_mode=constant."
        )
    if image_noise.cutout_side >= size:
        raise UserError(
            f"--cutout_side={image_noise.cutout_side} of images of {size} pixels would cut out the "
            "whole image: give less than their side."
        )


def _check_finetuning(strategy, settings, model):
    """UserError if a network cannot be fine-tuned as configured."""
    check_divisible(
        strategy,
        settings.train.accumulation_steps,
        labeled_batch=settings.train.labeled_batch_size,
    )
    models.check_image_size(settings.architecture, settings.image_size, "finetune_resolution")
    num_blocks, frozen = len(blocks.block_names(model)), settings.frozen_blocks
    if frozen > num_blocks:
        raise UserError(
            f"--finetune_frozen_blocks={frozen} of {settings.architecture}, which has "
            f"{num_blocks or 'no known'} blocks: give "
            f"{f'at most {num_blocks}' if num_blocks else 0} for it."
        )


def _checked_teacher(config: Config, counts):
    """The given teacher; UserError if it does not fit the run's images and classes."""
    path, class_names = config.teacher_path, counts["class_names"]
    model = load_teacher(config)
    height, width, channels = model.input_shape[1:]
    if height is None or height != width or channels != 3:
        raise UserError(
            f"--teacher={path} takes images of {model.input_shape[1:]}: expected (side, side, 3), "
            "all three fixed."
        )
    if model.output_shape[-1] != len(class_names):
        raise UserError(
            f"--teacher={path} has {model.output_shape[-1]} classes; the run has "
            f"{len(class_names)}: give a teacher that fits, or another --dataset."
        )
    known = read_class_names(path)
    if known is None:
        logging.warning(
            "--teacher: no class names found beside %s; assuming those of the run, in the same "
            "order.",
            path,
        )
    elif list(map(normalize_name, known)) != list(map(normalize_name, class_names)):
        differing = [
            f"{found!r} for {expected!r}"
            for found, expected in zip(known, class_names, strict=False)
            if normalize_name(found) != normalize_name(expected)
        ] or [f"{len(known)} for {len(class_names)}"]
        raise UserError(
            f"--teacher={path} was trained on the classes {list_names(known)}; the run has "
            f"{list_names(class_names)} (different: {list_names(differing)}): give a teacher of "
            "the same classes in the same order."
        )
    grays = np.linspace(0, 255, 8, dtype=np.float32).reshape(-1, 1, 1, 1)
    outputs = np.asarray(model(np.ones((1, *model.input_shape[1:]), np.float32) * grays))
    if (outputs >= 0).all() and np.allclose(outputs.sum(axis=1), 1.0, atol=1e-3):
        raise UserError(
            f"--teacher={path} returns probabilities; expected logits: remove its softmax."
        )
    return model


def _shapes(model):
    """Shapes of all of a model's weights, by layer and name."""
    return {
        (layer, name): tuple(variable.shape)
        for layer, variables in variables_by_layer(model).items()
        for name, variable in variables.items()
    }
