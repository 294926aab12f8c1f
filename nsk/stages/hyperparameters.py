"""Hyperparameters of a training or fine-tuning stage: all that it depends on beside its inputs."""

import dataclasses
from typing import Any, Self

import numpy as np

from nsk import noise
from nsk.config.config import Config
from nsk.config.fields import used_values
from nsk.config.finetune import FinetuneConfig
from nsk.config.model import ModelConfig
from nsk.config.noise import NoiseConfig
from nsk.config.targets import TargetConfig
from nsk.config.train import TrainConfig
from nsk.data import pipeline
from nsk.data.resident_images import bytes_in_memory
from nsk.data.shards import ShardSet
from nsk.errors import UserError


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """All that a training stage depends on beside its inputs.

    Attributes:
        name: folder and kind, such as `gen1/student`. All noise of the stage depends on it.
        seed: the run's seed.
        architecture: name of the network.
        image_size: side of the square images, pixels.
        num_labeled: labelled training images.
        init_from: initial weights: "scratch", "teacher", "trained" (for fine-tuning), a path, or
            {"sha256": ...} of its content.
        model, noise, train: sections of the configuration with the values of one generation.
        targets: what is learned from a teacher; None: for a teacher and for fine-tuning.
        finetune: the section of fine-tuning; None: for training.
        resize_mode: how images become squares, see `nsk.data.decoding.decode_image`.
        significant_bits: bits that 16-bit images use, see `nsk.data.ingest`; None: there are none.
        is_pretraining: whether a student is trained on pseudo-labelled images alone.
    """

    name: str
    seed: int
    architecture: str
    image_size: int
    num_labeled: int
    init_from: str | dict[str, str]
    model: ModelConfig
    noise: NoiseConfig
    train: TrainConfig
    targets: TargetConfig | None = None
    finetune: FinetuneConfig | None = None
    resize_mode: str = "crop"
    significant_bits: int | None = None
    is_pretraining: bool = False

    @property
    def is_student(self) -> bool:
        """Whether there is a teacher."""
        return self.targets is not None

    @property
    def learns_pseudo_labels(self) -> bool:
        """Whether pseudo-labelled images are part of the batches."""
        return self.is_student and self.train.ratio > 0

    @property
    def distillation(self) -> dict[str, float]:
        """The settings of distillation by name; {}: the loss has no such term."""
        if not self.is_student or not self.targets.distillation_alpha:
            return {}
        names = ("distillation_alpha", "distillation_temperature")
        return {name: getattr(self.targets, name) for name in names}

    @property
    def weights_classes(self) -> bool:
        """Whether labelled images have the weights of their classes in the loss."""
        return self.train.class_weights == "balanced"

    @property
    def mixes_images(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return bool(self.noise.mixup_alpha or self.noise.cutmix_alpha)

    @property
    def stored_size(self) -> int | None:
        """Side of training images in memory; None: encoded, for random resized crops."""
        return None if self.noise.min_crop_area else self.image_size

    @property
    def noise_key(self) -> np.ndarray:
        """Key of all noise of the stage, int64 (2,)."""
        return noise.key(self.seed, self.name)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Global batch size of each stream: labelled and pseudo-labelled images, or their union."""
        labeled = self.train.labeled_batch_size
        if not self.learns_pseudo_labels or self.is_pretraining:
            return (labeled,)
        pseudo = round(labeled * self.train.ratio)
        return (labeled + pseudo,) if self.train.mixing == "union" else (labeled, pseudo)

    @property
    def frozen_blocks(self) -> int:
        """Blocks after the stem that are not trained, with the stem; 0: none."""
        return self.finetune.finetune_frozen_blocks if self.finetune else 0

    @property
    def num_steps(self) -> int:
        """Steps of the budget, at least 1."""
        train = self.train
        if train.train_steps:
            return train.train_steps
        if train.train_images:
            return max(1, round(train.train_images / sum(self.batch_sizes)))
        return max(1, round(train.train_epochs * self.steps_per_epoch))

    @property
    def steps_per_epoch(self) -> float:
        """Steps of an epoch over the labelled images."""
        return self.num_labeled / self.train.labeled_batch_size

    def for_fingerprint(self) -> dict[str, Any]:
        """The settings that can change the result, JSON-like.

        Settings of a schedule, optimizer or label type that is not used are left out.
        """
        optional = filter(None, [self.targets, self.finetune])
        sections = [self.model, self.noise, self.train, *optional]
        return {
            "name": self.name,
            "seed": self.seed,
            "architecture": self.architecture,
            "image_size": self.image_size,
            "num_labeled": self.num_labeled,
            "init_from": self.init_from,
            **used_values(sections, is_student=self.is_student),
            **self._unusual_decoding(),
        }

    def _unusual_decoding(self):
        """How images are decoded, as far as it is not as usual."""
        found = {"resize_mode": self.resize_mode, "significant_bits": self.significant_bits}
        usual = {"resize_mode": ("crop",), "significant_bits": (None, 16)}
        return {name: value for name, value in found.items() if value not in usual[name]}

    def with_cache(self, labeled: ShardSet, dev: ShardSet, pseudo: ShardSet | None) -> Self:
        """The same with `cache` as `memory` or `none`: `auto` depends on the size of all images."""
        train = self.train
        if train.cache != "auto":
            return self
        needed = bytes_in_memory(dev, self.image_size)
        for shards in filter(None, (labeled, pseudo)):
            needed += bytes_in_memory(shards, self.stored_size)
        fits = needed <= train.cache_mebibytes * pipeline.MEBIBYTE
        cache = "memory" if fits else "none"
        return dataclasses.replace(self, train=train.with_values(cache=cache))


def training_hyperparameters(
    config: Config, generation: int, counts: dict[str, Any], member: int = 1
) -> Hyperparameters:
    """Hyperparameters of a generation's training.

    Args:
        config: all settings.
        generation: 0 is the teacher.
        counts: those of the ingested images.
        member: number of a teacher in an ensemble, from 1.
    """
    image_noise, train = config.noise.at(generation), config.train.at(generation)
    return Hyperparameters(
        name=f"gen{generation}/{'student' if generation else 'teacher'}{_suffix(member)}",
        seed=config.run.seed,
        architecture=config.model_name(generation),
        image_size=training_image_size(config, generation, counts),
        num_labeled=counts["images"]["labeled"],
        init_from=str(config.init_from(generation)),
        model=config.model.at(generation),
        # Equal values that were written in different ways have the same fingerprint.
        noise=image_noise.with_values(
            flip="on" if config.flips else "off",
            randaugment_operations=",".join(image_noise.operations),
        ),
        train=train.with_values(multistep_fractions=",".join(map(str, train.fractions))),
        targets=config.targets.at(generation) if generation else None,
        resize_mode=config.chain.training_resize_mode,
        significant_bits=counts.get("significant_bits"),
    )


def _suffix(member):
    """Ends the name of a stage: the first member of an ensemble is the teacher without others."""
    return "" if member == 1 else str(member)


def training_parts(
    config: Config, generation: int, counts: dict[str, Any], member: int = 1
) -> tuple[Hyperparameters, ...]:
    """Hyperparameters of the stages that train a generation, without fine-tuning.

    That is one, or with `--mixing=pretrain` a student's pre-training on pseudo-labelled images and
    its training on labelled ones. Both together have the steps and batch size of the training on
    both at the same time, and divide the images as its batches do. Arguments as for
    `training_hyperparameters`.

    Raises:
        UserError: the budget is a single step.
    """
    joint = training_hyperparameters(config, generation, counts, member)
    if not joint.learns_pseudo_labels or joint.train.mixing != "pretrain":
        return (joint,)
    train, batch_size, steps = joint.train, sum(joint.batch_sizes), joint.num_steps
    if steps < 2:
        raise UserError(
            f"--mixing=pretrain: the budget of student {generation} is a single step of "
            f"{batch_size} images: give two or more, one for each part."
        )
    labeled, pseudo = joint.batch_sizes
    pretraining_steps = min(max(1, round(steps * pseudo / batch_size)), steps - 1)
    # Epochs are those over the labelled images: of larger batches, they have fewer steps. So the
    # warm-up and the stairs have the same share of each part as of the joint training.
    budget = {"train_images": 0, "train_epochs": 0.0, "labeled_batch_size": batch_size}
    epochs = {
        name: getattr(train, name) * pseudo / labeled for name in ("warmup_epochs", "decay_epochs")
    }
    pretraining = dataclasses.replace(
        joint,
        name=f"gen{generation}/pretraining",
        train=train.with_values(
            **budget,
            **epochs,
            train_steps=pretraining_steps,
            # Settings of the other part.
            labeled_learning_rate=0.0,
            class_weights="none",
        ),
        is_pretraining=True,
    )
    learning_rate = train.labeled_learning_rate or train.learning_rate / 10
    training = dataclasses.replace(
        joint,
        init_from="pretrained",
        train=train.with_values(
            **budget, ratio=0.0, train_steps=steps - pretraining_steps, learning_rate=learning_rate
        ),
    )
    return pretraining, training


def finetuning_hyperparameters(
    config: Config, generation: int, counts: dict[str, Any], member: int = 1
) -> Hyperparameters | None:
    """Hyperparameters of a generation's fine-tuning; None if it has none.

    Arguments as for `training_hyperparameters`.
    """
    finetune = config.finetune.at(generation)
    if not finetune.finetune_resolution:
        return None
    trained = training_hyperparameters(config, generation, counts, member)
    return dataclasses.replace(
        trained,
        name=f"gen{generation}/finetune{_suffix(member)}",
        image_size=finetune.finetune_resolution,
        init_from="trained",
        finetune=finetune,
        noise=trained.noise.without_noise(),
        train=trained.train.with_values(
            train_images=0,
            train_steps=0,
            train_epochs=finetune.finetune_epochs,
            learning_rate=finetune.finetune_learning_rate,
            schedule="cosine",
            warmup_epochs=0.0,
        ),
        targets=None,
    )


def network_trainings(
    config: Config, generation: int, counts: dict[str, Any], member: int = 1
) -> list[Hyperparameters]:
    """Hyperparameters of all stages that train a network: `training_parts`, and fine-tuning if any.

    Arguments as for `training_hyperparameters`.
    """
    finetuning = finetuning_hyperparameters(config, generation, counts, member)
    parts = training_parts(config, generation, counts, member)
    return [*parts, *filter(None, [finetuning])]


def training_image_size(config: Config, generation: int, counts: dict[str, Any]) -> int:
    """Side of the images that a generation's network is trained on, pixels.

    Raises:
        UserError: the images have several sizes, and none was given.
    """
    size = config.chain.image_size.at(generation) or counts["image_side"]
    if size is None:
        smallest, largest = counts["image_sizes"].values()
        raise UserError(
            f"The images' shorter sides are {smallest} to {largest} pixels: give --image_size."
        )
    return size
