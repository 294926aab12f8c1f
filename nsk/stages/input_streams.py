"""Inputs of a training stage: streams over shard sets, targets, noise on images, batches.

A teacher has one stream, the labelled images; a student has a second one, the pseudo-labelled
images, or with `--mixing=union` one stream over both; in pre-training, that of pseudo-labelled
images alone.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging

from nsk.config.noise import NoiseConfig
from nsk.data import perturb, pipeline, records
from nsk.data.augment import ImageNoise
from nsk.data.image_operations import RandAugmentOptions
from nsk.data.resident_images import resident_stream
from nsk.data.shard_stream import ShardStream
from nsk.data.shards import ShardSet
from nsk.data.streams import ResidentStream
from nsk.stages.hyperparameters import Hyperparameters
from nsk.training import losses

FEW_SHARDS = 8
# Records that are parsed in one call.
PARSED_RECORDS = 256

Stream = ResidentStream | ShardStream


def make_streams(
    settings: Hyperparameters,
    labeled: ShardSet,
    pseudo: ShardSet | None,
    labeled_copies: dict[str, int],
) -> tuple[Stream, ...]:
    """The streams of a stage: (labelled,), (labelled, pseudo-labelled), (pseudo,) or (union,).

    Args:
        settings: hyperparameters with a resolved `cache`.
        labeled: labelled images; under distillation with a teacher's predictions of them.
        pseudo: pseudo-labelled images; None for a teacher.
        labeled_copies: copies in an epoch by the id of a labelled image; {}: one each.
    """
    train = settings.train
    if pseudo is None or not settings.learns_pseudo_labels:
        parts = {"labeled": (labeled,)}
    elif settings.is_pretraining:
        parts = {"pseudo": (pseudo,)}
    elif train.mixing == "union":
        parts = {"union": (labeled, pseudo)}
    else:
        parts = {"labeled": (labeled,), "pseudo": (pseudo,)}
    make_targets = functools.partial(_targets, settings, labeled.num_classes, pseudo is not None)
    if settings.weights_classes:
        counts = count_labeled_rows(labeled, labeled_copies)
        class_weights = losses.balanced_class_weights(counts)
        make_targets = functools.partial(_weighted_targets, make_targets, class_weights)
    streams = []
    for (name, shard_sets), batch_size in zip(parts.items(), settings.batch_sizes, strict=True):
        common = (name, shard_sets, make_targets, labeled_copies, batch_size)
        if train.cache == "memory":
            streams.append(resident_stream(*common, settings.stored_size, settings.resize_mode))
        else:
            window_bytes = train.shuffle_mebibytes * pipeline.MEBIBYTE
            streams.append(ShardStream(*common, window_bytes))
            _warn_of_few_shards(streams[-1])
    return tuple(streams)


def _warn_of_few_shards(stream):
    num_shards = sum(len(shard_set.names) for shard_set in stream.shard_sets)
    shards_in_window = num_shards / stream.num_windows
    if stream.num_windows > 1 and shards_in_window < FEW_SHARDS:
        logging.warning(
            "%s: a shuffle window spans about %.1f shards, %d or more are better: raise "
            "--shuffle_mebibytes or lower --shard_mebibytes.",
            stream.name,
            shards_in_window,
            FEW_SHARDS,
        )


def _targets(settings, num_classes, has_pseudo_labels, parsed):
    """Targets of parsed records (see `records.parse_examples`).

    Returns:
        float32 (n, classes); under distillation (n, 2, classes), see `losses.distillation_targets`.
    """
    smoothing = settings.train.label_smoothing
    if settings.distillation:
        return losses.distillation_targets(
            parsed["label"],
            parsed["log_probabilities"],
            temperature=settings.targets.distillation_temperature,
            label_smoothing=smoothing,
        )
    label_targets = losses.label_targets(parsed["label"], num_classes, smoothing)
    if not has_pseudo_labels:
        return label_targets
    pseudo_targets = losses.pseudo_targets(
        parsed["label"],
        parsed["log_probabilities"],
        settings.targets.pseudo_label,
        temperature=settings.targets.temperature,
        smooth_epsilon=settings.targets.smooth_epsilon,
        label_smoothing=smoothing,
    )
    return tf.where(parsed["is_pseudo"][:, None], pseudo_targets, label_targets)


def _weighted_targets(make_targets, class_weights, parsed):
    """Targets times the weights of their images, which are 1 for pseudo-labelled images.

    Each distribution sums to its image's weight. So mixup and CutMix, which are linear in the
    targets, mix weighted losses.
    """
    weights = tf.gather(class_weights, parsed["label"])
    weights = tf.where(parsed["is_pseudo"], tf.ones_like(weights), weights)
    targets = make_targets(parsed)
    return tf.reshape(weights, [-1] + [1] * (targets.shape.rank - 1)) * targets


def count_labeled_rows(labeled: ShardSet, copies: dict[str, int]) -> np.ndarray:
    """Rows of each class in an epoch over the labelled images, from a pass over their shards.

    Args:
        labeled: labelled images.
        copies: copies in an epoch by the id of an image; 1 if it is missing.

    Returns:
        int64 array (num_classes,).
    """
    counts = np.zeros(labeled.num_classes, np.int64)
    with labeled.naming_broken_shards():
        for serialized in labeled.read().batch(PARSED_RECORDS):
            parsed = records.parse_images(serialized)
            rows = [copies.get(id.decode(), 1) for id in parsed["id"].numpy()]
            np.add.at(counts, parsed["label"].numpy(), rows)
    return counts


def make_batches(settings: Hyperparameters, streams: tuple[Stream, ...]) -> Callable:
    """Function of (first_step, num_steps, share=WHOLE), see `Trainer.train`."""
    make = functools.partial(
        pipeline.training_batches,
        streams,
        settings.noise_key,
        make_perturbation(settings),
        settings.image_size,
        mixes=settings.mixes_images,
    )
    if not settings.weights_classes:
        return make
    return lambda *arguments, **options: make(*arguments, **options).map(_separate_weights)


def _separate_weights(*streams):
    """Targets that sum to 1, and the weights of the images from those of the streams."""
    separated = []
    for stream in streams:
        sums = tf.reduce_sum(stream["target"], axis=-1, keepdims=True)
        # Under distillation an image's two distributions have the same weight.
        weights = tf.reshape(sums, [-1, math.prod(sums.shape[1:])])[:, 0]
        separated.append({**stream, "target": stream["target"] / sums, "weight": weights})
    return tuple(separated)


def make_perturbation(settings: Hyperparameters) -> Callable:
    """Function of (images, targets, key, batch_size, first_step): all noise, see `perturb`."""
    return functools.partial(
        perturb.perturb,
        image_size=settings.image_size,
        image_noise=make_image_noise(settings.noise, settings.num_steps),
        resize_mode=settings.resize_mode,
    )


def make_image_noise(noise_config: NoiseConfig, num_steps: int = 1) -> ImageNoise:
    """The `ImageNoise` of a section with the values of one generation and a resolved `flip`.

    Args:
        noise_config: the section.
        num_steps: of the training over which a magnitude may grow.
    """
    return ImageNoise(
        min_crop_area=noise_config.min_crop_area,
        crop_padding=noise_config.crop_padding,
        crop_mode=noise_config.crop_mode,
        flip=noise_config.flip == "on",
        rand_augment=RandAugmentOptions(
            num_ops=noise_config.randaugment_num_ops,
            magnitude=noise_config.randaugment_magnitude,
            max_level=noise_config.randaugment_max_level,
            profile=noise_config.randaugment_profile,
            operations=noise_config.operations,
            magnitude_mode=noise_config.magnitude_mode,
            growth_steps=num_steps,
            translate_share=noise_config.translate_share,
            fill=noise_config.fill,
        ),
        cutout_side=noise_config.cutout_side,
        mixup_alpha=noise_config.mixup_alpha,
        cutmix_alpha=noise_config.cutmix_alpha,
    )


def describe_stream(stream: Stream, num_steps: int) -> dict[str, float]:
    """How often a stage sees a stream: images, rows in an epoch with copies, epochs."""
    return {
        "images": stream.num_images,
        "epoch": stream.epoch_size,
        "epochs": round(num_steps * stream.batch_size / stream.epoch_size, 2),
    }


def log_stream(name: str, stream: Stream, description: dict[str, float]) -> None:
    """Logs what `describe_stream` returned."""
    logging.info(
        "%s, %s: %s images, %s in an epoch with copies, seen %.2f times",
        name,
        "in memory" if isinstance(stream, ResidentStream) else "read from shards",
        f"{description['images']:,}",
        f"{description['epoch']:,}",
        description["epochs"],
    )
