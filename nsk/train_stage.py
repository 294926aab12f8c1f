"""A training stage: its streams, recipe, model and trainer, from settings and shard sets.

Teachers and students go the same way. A teacher has one stream, the labelled images; a student has
a second one, the pseudo-labelled images, or with `--mixing=union` one stream over both.
"""

import contextlib
import dataclasses
import functools
from pathlib import Path

import tensorflow as tf
from absl import logging

from nsk import models, noise
from nsk.data import perturb, pipeline
from nsk.data.streams import ResidentStream, ShardStream
from nsk.evaluation import metrics
from nsk.evaluation.predict import Predictor, collect
from nsk.files import UNFINISHED
from nsk.models import weights
from nsk.training import losses, schedules
from nsk.training import strategy as strategies
from nsk.training.recipe import Recipe
from nsk.training.trainer import Trainer

FEW_SHARDS = 8
# What fine-tuning has of the noise on images.
NO_NOISE = {
    "randaugment_num_ops": 0,
    "crop_padding": 0,
    "min_crop_area": 0.0,
    "cutout_side": 0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "flip": False,
}
# What says nothing where RandAugment is off.
RANDAUGMENT_SETTINGS = (
    "randaugment_num_ops",
    "randaugment_magnitude",
    "randaugment_max_level",
    "randaugment_profile",
    "randaugment_operations",
    "magnitude_mode",
    "translate_share",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """One training stage.

    Attributes:
        settings: the stage's settings, as `Stages.training_settings` makes them. Their `name`
            (folder and kind, as `gen1/student`) tells the stage's noise from every other's.
        labeled, dev: `ShardSet`s.
        pseudo: the student's `ShardSet` of pseudo-labels; None for a teacher.
        labeled_copies: dict from the id of a labelled image to its copies in an epoch; {}: one
            each.
        initial: `nsk.models.weights.Weights` that training starts from; None: fresh ones.
        summary_folder: where TensorBoard's events go.
        checkpoint_folder: where checkpoints are kept while the stage trains.
        checkpoint_seconds: float, from one checkpoint to the next one.
        eval_batch_size: images in a batch of evaluation.
        jit_compile: auto | on | off, whether XLA compiles steps and predictions.
    """

    settings: dict
    labeled: object
    dev: object
    pseudo: object
    labeled_copies: dict
    initial: object
    summary_folder: object
    checkpoint_folder: Path
    checkpoint_seconds: float
    eval_batch_size: int
    jit_compile: str = "auto"

    @property
    def num_classes(self):
        return len(self.labeled.class_names)


def train(job, strategy, model_path):
    """Trains, saves the model and returns the stage's counts.

    Every worker of the strategy calls it, with a job and a path that name the same files; the chief
    alone writes them.

    Args:
        job: a `Job`.
        strategy: a `tf.distribute.Strategy`.
        model_path: where the `.keras` file goes, with the averaged weights where there is an
            average.

    Returns:
        dict: `model`, `parameters` (trainable), `class_names`, `image_size`, `dev_before` (metrics
        of the weights that it starts from; None for fresh ones), `streams` and what `Trainer.train`
        returns.
    """
    settings = job.settings
    streams = make_streams(job)
    sizes = {f"{stream.name}_batch": stream.batch_size for stream in streams}
    strategies.check_divisible(strategy, settings["train"]["accumulation_steps"], **sizes)
    trainer = make_trainer(job, streams, strategy)
    accounting = {stream.name: account(stream, trainer.recipe.num_steps) for stream in streams}
    for name, seen in accounting.items():
        logging.info(
            "%s, %s: %s images, %s in an epoch with copies, seen %.2f times",
            name,
            "in memory" if isinstance(streams[0], ResidentStream) else "read from shards",
            f"{seen['images']:,}",
            f"{seen['epoch']:,}",
            seen["epochs"],
        )
    with contextlib.ExitStack() as readers:
        for shard_set in (job.labeled, job.dev, *filter(None, [job.pseudo])):
            readers.enter_context(shard_set.naming_broken_shards())
        evaluate = make_evaluation(job, trainer.published_model)
        before = trainer.measured(evaluate) if job.initial is not None else None
        counts = trainer.train(
            make_batches(settings, streams),
            evaluate=evaluate,
            evaluations=settings["train"]["evaluations"],
            summary_folder=job.summary_folder,
            checkpoint_folder=job.checkpoint_folder,
            checkpoint_seconds=job.checkpoint_seconds,
            title=f"{settings['name']} {settings['architecture']}",
        )
    model = trainer.publish()
    if trainer.workers.is_chief:
        _save(model, model_path)
    return {
        "model": settings["architecture"],
        "parameters": trainable_parameters(model),
        "class_names": list(job.labeled.class_names),
        "image_size": settings["image_size"],
        "dev_before": before,
        "streams": accounting,
        **counts,
    }


def _save(model, model_path):
    """Writes a `.keras` file that is there whole or not at all."""
    # Keras goes by the suffix, so that it is the folder which has the name of what is unfinished.
    unfinished = model_path.with_name(f"{model_path.name}{UNFINISHED}") / model_path.name
    unfinished.parent.mkdir()
    model.save(unfinished)
    unfinished.rename(model_path)
    unfinished.parent.rmdir()


def make_trainer(job, streams, strategy):
    """The `Trainer` of a job."""
    build = functools.partial(build_model, job.settings, job.num_classes, initial=job.initial)
    recipe, key = make_recipe(job.settings, streams), stage_key(job.settings)
    return Trainer(build, recipe, key, strategy, job.jit_compile)


def stage_key(settings):
    """The key of all noise of a stage."""
    return noise.key(settings["seed"], settings["name"])


def make_batches(settings, streams):
    """Function of (first_step, num_steps, share=WHOLE), see `Trainer.train`."""
    return functools.partial(
        pipeline.training_batches,
        streams,
        stage_key(settings),
        make_perturbation(settings),
        settings["image_size"],
        mixes=mixes(settings),
    )


def mixes(settings):
    """Whether images of a batch are mixed with each other."""
    return bool(settings["noise"]["mixup_alpha"] or settings["noise"]["cutmix_alpha"])


def make_evaluation(job, model):
    """Function of nothing that measures the model on dev."""
    dev = pipeline.clean_batches(job.dev, job.settings["image_size"], job.eval_batch_size)
    if job.settings["train"]["cache"] == "memory":
        dev = dev.cache()
    predict = Predictor(model, job.eval_batch_size, jit_compile=job.jit_compile)

    def evaluate():
        predictions = collect(predict(dev))
        return metrics.summarize(predictions.log_probabilities, predictions.labels)

    return evaluate


def make_streams(job):
    """(labelled,), (labelled, pseudo-labelled) or (union,): streams of `nsk.data.streams`."""
    train = job.settings["train"]
    sizes = stream_batch_sizes(train, with_pseudo=job.pseudo is not None)
    if job.pseudo is None or train["ratio"] == 0:
        parts = {"labeled": (job.labeled,)}
    elif train["mixing"] == "union":
        parts = {"union": (job.labeled, job.pseudo)}
    else:
        parts = {"labeled": (job.labeled,), "pseudo": (job.pseudo,)}
    make_targets = functools.partial(_targets, job)
    streams = []
    for (name, shard_sets), batch_size in zip(parts.items(), sizes, strict=True):
        common = (name, shard_sets, make_targets, job.labeled_copies, batch_size)
        if train["cache"] == "memory":
            streams.append(pipeline.resident_stream(*common, _kept_size(job.settings)))
        else:
            window_bytes = train["shuffle_mebibytes"] * pipeline.MEBIBYTE
            streams.append(ShardStream(*common, window_bytes))
            _warn_of_few_shards(streams[-1])
    return tuple(streams)


def _warn_of_few_shards(stream):
    shards_in_window = sum(len(one.names) for one in stream.shard_sets) / stream.num_windows
    if stream.num_windows > 1 and shards_in_window < FEW_SHARDS:
        logging.warning(
            "%s: about %.1f shards are mixed at a time, %d or more are better: raise "
            "--shuffle_mebibytes or lower --shard_mebibytes.",
            stream.name,
            shards_in_window,
            FEW_SHARDS,
        )


def _kept_size(settings):
    """Side of the training images in memory; None: encoded, as random resized crops want them."""
    return None if settings["noise"]["min_crop_area"] else settings["image_size"]


def resolve_cache(settings, labeled, dev, pseudo):
    """The settings with `cache` as `memory` or `none`: `auto` asks whether all images fit.

    Args:
        settings: as `Stages.training_settings` makes them; unchanged.
        labeled, dev, pseudo: `ShardSet`s; `pseudo` is None for a teacher.
    """
    train = dict(settings["train"])
    budget = train.pop("cache_mebibytes") * pipeline.MEBIBYTE
    if train["cache"] == "auto":
        needed = pipeline.bytes_in_memory(dev, settings["image_size"])
        for shard_set in filter(None, (labeled, pseudo)):
            needed += pipeline.bytes_in_memory(shard_set, _kept_size(settings))
        train["cache"] = "memory" if needed <= budget else "none"
    return {**settings, "train": train}


def _targets(job, parsed):
    """What is learned from parsed records (see `records.parse_examples`): float32 (n, classes)."""
    smoothing = job.settings["train"]["label_smoothing"]
    true = losses.label_targets(parsed["label"], job.num_classes, smoothing)
    if job.pseudo is None:
        return true
    targets = job.settings["targets"]
    taught = losses.pseudo_targets(
        parsed["label"],
        parsed["log_probabilities"],
        targets["pseudo_label"],
        temperature=targets["temperature"],
        smooth_epsilon=targets["smooth_epsilon"],
        label_smoothing=smoothing,
    )
    return tf.where(parsed["is_pseudo"][:, None], taught, true)


def stream_batch_sizes(train, with_pseudo):
    """Global batch size of each stream of a stage.

    Args:
        train: the `TrainConfig` values of one generation, a dict.
        with_pseudo: whether there are pseudo-labels.
    """
    labeled = train["labeled_batch_size"]
    if not with_pseudo or train["ratio"] == 0:
        return (labeled,)
    pseudo = round(labeled * train["ratio"])
    return (labeled + pseudo,) if train["mixing"] == "union" else (labeled, pseudo)


def relevant(settings):
    """The settings that can change what a stage makes, for its fingerprint.

    Those of a schedule, optimizer or label type that is not the chosen one are left out, so that
    changing them retrains nothing.

    Args:
        settings: as `resolve_cache` returns them; unchanged.
    """
    train, noises = dict(settings["train"]), dict(settings["noise"])
    unused = ["evaluations", "rematerialize"]
    if train["schedule"] != "exponential":
        unused += ["decay_epochs", "decay_rate"]
    if train["schedule"] != "multistep":
        unused += ["multistep_fractions", "multistep_factor"]
    if train["optimizer"] != "sgd":
        unused += ["nesterov"]
    if "targets" not in settings:
        unused += ["ratio"]
    learns_pseudo_labels = "targets" in settings and train["ratio"]
    if not learns_pseudo_labels:  # One stream, so nothing is mixed.
        unused += ["mixing", "loss_normalization"]
    if train["cache"] == "memory":
        unused += ["shuffle_mebibytes"]
    for name in unused:
        del train[name]
    if not noises["randaugment_num_ops"]:
        for name in RANDAUGMENT_SETTINGS:
            del noises[name]
        if not noises["cutout_side"]:
            del noises["fill"]
    elif noises["randaugment_profile"] == "reference":
        del noises["translate_share"]
    if not noises["crop_padding"]:
        del noises["crop_mode"]
    kept = {**settings, "train": train, "noise": noises}
    kept.pop("targets", None)
    if learns_pseudo_labels:
        kind = settings["targets"]["pseudo_label"]
        used = {"soft": ("temperature",), "smooth": ("smooth_epsilon",), "hard": ()}[kind]
        kept["targets"] = {name: settings["targets"][name] for name in ("pseudo_label", *used)}
    return kept


def num_training_steps(train, num_labeled, global_batch_size):
    """Steps of a stage's budget, at least 1.

    Args:
        train: the `TrainConfig` values of one generation, a dict.
        num_labeled: labelled images.
        global_batch_size: images of all streams in a step.
    """
    if train["train_steps"]:
        return train["train_steps"]
    if train["train_images"]:
        return max(1, round(train["train_images"] / global_batch_size))
    return max(1, round(train["train_epochs"] * num_labeled / train["labeled_batch_size"]))


def make_recipe(settings, streams):
    """The trainer's `Recipe` for these settings and streams."""
    train, num_labeled = settings["train"], settings["num_labeled"]
    sizes = {stream.name: stream.batch_size for stream in streams}
    num_steps = num_training_steps(train, num_labeled, sum(sizes.values()))
    steps_per_epoch = num_labeled / train["labeled_batch_size"]
    rates = schedules.learning_rates(
        train["schedule"],
        train["learning_rate"],
        num_steps,
        warmup_steps=round(train["warmup_epochs"] * steps_per_epoch),
        decay_steps=train["decay_epochs"] * steps_per_epoch,
        decay_rate=train["decay_rate"],
        multistep_fractions=train["multistep_fractions"],
        multistep_factor=train["multistep_factor"],
    )
    return Recipe(
        learning_rates=rates,
        batch_sizes=sizes,
        optimizer=train["optimizer"],
        momentum=train["momentum"],
        nesterov=train["nesterov"],
        weight_decay=train["weight_decay"],
        gradient_clip_norm=train["gradient_clip_norm"],
        loss_normalization=train["loss_normalization"],
        ema_decay=train["ema_decay"],
        accumulation_steps=train["accumulation_steps"],
        frozen_blocks=settings.get("frozen_blocks", 0),
        rematerialize=train["rematerialize"],
    )


def make_perturbation(settings):
    """Function of (images, targets, key, batch_size), all noise on a stage's images; `perturb`."""
    noises = settings["noise"]
    return functools.partial(
        perturb.perturb,
        image_size=settings["image_size"],
        min_crop_area=noises["min_crop_area"],
        mixup_alpha=noises["mixup_alpha"],
        cutmix_alpha=noises["cutmix_alpha"],
        crop_padding=noises["crop_padding"],
        crop_mode=noises["crop_mode"],
        flip=noises["flip"],
        cutout_side=noises["cutout_side"],
        num_ops=noises["randaugment_num_ops"],
        magnitude=noises["randaugment_magnitude"],
        max_level=noises["randaugment_max_level"],
        profile=noises["randaugment_profile"],
        operations=noises["randaugment_operations"],
        magnitude_mode=noises["magnitude_mode"],
        translate_share=noises["translate_share"],
        fill=noises["fill"],
    )


def build_model(settings, num_classes, synchronized, initial=None):
    """The network of a stage with its initial weights.

    Args:
        settings: the stage's settings.
        num_classes: int.
        synchronized: whether BatchNorm takes its statistics over all replicas.
        initial: `nsk.models.weights.Weights` that it takes, BatchNorm's statistics included; None:
            fresh ones.
    """
    model = models.build_model(
        settings["architecture"],
        num_classes=num_classes,
        image_size=settings["image_size"],
        synchronized=synchronized,
        seed=noise.python_seed(settings["seed"], settings["name"], "weights"),
        **settings["model"],
    )
    if initial is not None:
        weights.assign(model, initial)
    return model


def account(stream, num_steps):
    """How often a stage sees a stream: images, rows in an epoch with copies, epochs."""
    return {
        "images": stream.num_images,
        "epoch": stream.epoch_size,
        "epochs": round(num_steps * stream.batch_size / stream.epoch_size, 2),
    }


def trainable_parameters(model):
    return int(sum(tf.size(variable.value) for variable in model.trainable_variables))
