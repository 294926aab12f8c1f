"""Every setting once: its default, its help text and its check, in one dataclass for each part.

A setting that may differ between generations is a `PerGeneration` tuple, written as a comma list:
first the teacher's value, then each student's (what only students have begins with the first
student's); where the list is shorter than the chain, its last value goes on. So
`--survival_probability=1,0.8` is a teacher without stochastic depth and students with it.
"""

# ruff: noqa: RUF009 -- `setting` makes a dataclass field, it is no mutable default.

import dataclasses
import re

from nsk.errors import UserError
from nsk.settings import PerGeneration, Section, setting

RANDAUGMENT_OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "solarize_add",
    "cutout",
)

# Mirroring turns these data sets' classes into something else.
NEVER_FLIPPED = ("digits", "tfds:mnist", "tfds:svhn_cropped", "tfds:emnist", "tfds:kmnist")

# Of more classes, only the most probable ones of each image are stored.
DENSE_CLASSES = 1000
SPARSE_CLASSES = 100


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Where images come from and how they are split."""

    dataset: str = setting(
        "digits",
        "Images to learn from: digits (bundled with scikit-learn) | tfds:NAME[/config] | "
        "folder:PATH (class/*.jpg, or labeled/ unlabeled/ dev/ test/ below it) | tfrecord:PATTERN.",
    )
    unlabeled_dataset: str = setting(
        "",
        "Another source of unlabelled images; empty: the images of --dataset that are left over.",
    )
    test_dataset: str = setting(
        "", "Another source of test images; empty: the test split of --dataset."
    )
    train_split: str = setting(
        "train", "The TFDS split of --dataset that training images are taken from."
    )
    test_split: str = setting(
        "test", "The TFDS split of --dataset that test images are taken from."
    )
    unlabeled_split: str = setting(
        "",
        "The TFDS split of --unlabeled_dataset that unlabelled images are taken from; empty: what "
        "is called unlabeled, else train.",
    )
    first_label: int = setting(
        0,
        "Label of the first class in tfrecord: sources (ImageNet's official records: 1).",
        minimum=0,
    )
    num_labeled: int = setting(
        0,
        "Labelled training images, balanced over the classes; 0: see --labeled_fraction.",
        minimum=0,
    )
    labeled_fraction: float = setting(
        0.0,
        "Labelled share of the training images (all but test; those of dev count among them), "
        "instead of --num_labeled; 1: all that dev leaves.",
        minimum=0.0,
        maximum=1.0,
    )
    num_dev: int = setting(
        0, "Labelled images held out of training to decide on; 0: see --dev_fraction.", minimum=0
    )
    dev_fraction: float = setting(
        0.0,
        "Held-out share of the training images (all but test), instead of --num_dev.",
        minimum=0.0,
        maximum=0.9,
    )
    test_fraction: float = setting(
        0.2,
        "Share of the images held out as the test split, only where the source has none of its "
        "own. The same images for every seed.",
        minimum=0.01,
        maximum=0.9,
    )
    split_seed: int = setting(
        -1, "Seed of the choice of labelled and dev images; -1: --seed.", minimum=-1
    )
    images_per_shard: int = setting(
        4096, "Most images in a TFRecord shard of ingested images.", minimum=1
    )
    shard_mebibytes: int = setting(
        16,
        "A TFRecord shard of this size is full, MiB: a small part of --shuffle_mebibytes, so that "
        "windows are made of many shards.",
        minimum=1,
    )
    max_corrupt_fraction: float = setting(
        0.01,
        "Largest share of images that may be unreadable before the run is refused.",
        minimum=0.0,
        maximum=1.0,
    )
    max_image_bytes: int = setting(
        64 * 2**20, "Largest encoded image, bytes; larger ones count as unreadable.", minimum=1
    )
    max_image_pixels: int = setting(
        100_000_000,
        "Most pixels of an image; larger ones count as unreadable and are not decoded.",
        minimum=1,
    )

    def __post_init__(self):
        super().__post_init__()
        for count, fraction in (("num_labeled", "labeled_fraction"), ("num_dev", "dev_fraction")):
            if getattr(self, count) and getattr(self, fraction):
                raise UserError(
                    f"--{count}={getattr(self, count)} and --{fraction}={getattr(self, fraction)} "
                    "were both given: give one of them."
                )
        for name in ("dataset", "unlabeled_dataset", "test_dataset"):
            source = getattr(self, name)
            kind, _, rest = source.partition(":")
            known = source in ("", "digits") or (kind in ("tfds", "folder", "tfrecord") and rest)
            if not known or (name == "dataset" and not source):
                raise UserError(
                    f"--{name}={source!r} is not a data source: expected digits, tfds:NAME, "
                    "folder:PATH or tfrecord:PATTERN."
                )


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The chain of networks and the noise inside them."""

    models: PerGeneration = setting(
        ("resnet20", "resnet26"),
        "Network names: the teacher's, then each generation's student; with --teacher the "
        "students' alone. kerascv:NAME is a backbone of KerasCV.",
        of=str,
    )
    image_size: PerGeneration = setting(
        (0,),
        "Side of the square images that the networks are trained on, pixels; 0: the images' "
        "shorter side, where it is the same for all.",
        minimum=0,
        maximum=2048,
        of=int,
    )
    dropout_rate: PerGeneration = setting(
        (0.0, 0.5), "Dropout before the classifier.", minimum=0.0, maximum=0.99, of=float
    )
    survival_probability: PerGeneration = setting(
        (1.0, 0.8),
        "Stochastic depth: residual block i of L survives with 1 - (1 - this) i / L; 1: off. "
        "ConvNets, resnet6 and resnet9 have none.",
        minimum=0.01,
        maximum=1.0,
        of=float,
    )
    init_from: PerGeneration = setting(
        ("scratch",),
        "Where weights begin: scratch | teacher, which must be the same network (a warm start of "
        "students, for small budgets) | the path of a .keras or .h5 file of the same network, or "
        "of an official TensorFlow 1 checkpoint.",
        of=str,
    )
    batch_norm_momentum: float = setting(
        0.9, "Momentum of BatchNorm's moving statistics.", minimum=0.0, maximum=0.9999
    )
    precision: str = setting(
        "float32",
        "What networks compute in: float32 | bf16: bfloat16, but for weights, pixels, noise, "
        "BatchNorm, logits and the loss, which stay float32.",
        choices=("float32", "bf16"),
    )


@dataclasses.dataclass(frozen=True)
class NoiseConfig(Section):
    """The noise on training images."""

    randaugment_num_ops: PerGeneration = setting(
        (2,), "RandAugment operations for each image; 0: off.", minimum=0, maximum=16, of=int
    )
    randaugment_magnitude: PerGeneration = setting(
        (9.0,), "RandAugment strength, from 0 to --randaugment_max_level.", minimum=0.0, of=float
    )
    randaugment_max_level: float = setting(
        30.0, "The magnitude that means full strength.", minimum=0.001
    )
    randaugment_profile: str = setting(
        "increasing",
        "increasing: every operation grows with the magnitude | reference: the official code's "
        "arithmetic.",
        choices=("increasing", "reference"),
    )
    randaugment_operations: str = setting(
        "all",
        "Comma list of the operations that take part, or all: " + ",".join(RANDAUGMENT_OPERATIONS),
    )
    translate_share: float = setting(
        0.45,
        "Translation at full strength, as a share of the side (SVHN: 0.125).",
        minimum=0.0,
        maximum=1.0,
    )
    magnitude_mode: str = setting(
        "constant",
        "constant: every operation at the magnitude | uniform: drawn below it for each image.",
        choices=("constant", "uniform"),
    )
    fill: int = setting(
        128,
        "Gray level of what a geometric operation leaves empty, and of cutout.",
        minimum=0,
        maximum=255,
    )
    crop_padding: PerGeneration = setting(
        (4,),
        "Random crop after padding by this many pixels on each side; 0: off.",
        minimum=0,
        of=int,
    )
    crop_mode: str = setting(
        "constant",
        "What --crop_padding pads with: constant (black) | reflect (the mirrored image).",
        choices=("constant", "reflect"),
    )
    min_crop_area: PerGeneration = setting(
        (0.0,),
        "Random resized crop of at least this share of the image (ImageNet: 0.08), 3:4 to 4:3; 0: "
        "off, and the image's centre is trained on.",
        minimum=0.0,
        maximum=1.0,
        of=float,
    )
    cutout_side: PerGeneration = setting(
        (0,), "Side of a square that is cut out of every image, pixels; 0: off.", minimum=0, of=int
    )
    mixup_alpha: PerGeneration = setting(
        (0.0,),
        "Mixup of pairs of images with weights drawn from Beta(alpha, alpha); 0: off.",
        minimum=0.0,
        of=float,
    )
    cutmix_alpha: PerGeneration = setting(
        (0.0,),
        "CutMix with areas drawn from Beta(alpha, alpha); 0: off. With mixup: either, drawn for "
        "each step.",
        minimum=0.0,
        of=float,
    )
    flip: str = setting(
        "auto",
        "Random horizontal flip: on | off | auto (off for "
        f"{', '.join(NEVER_FLIPPED)}, on otherwise).",
        choices=("auto", "on", "off"),
    )

    def at(self, generation):
        return {**super().at(generation), "randaugment_operations": list(self.operations)}

    @property
    def operations(self):
        if self.randaugment_operations == "all":
            return RANDAUGMENT_OPERATIONS
        return tuple(name.strip() for name in self.randaugment_operations.split(","))

    def __post_init__(self):
        super().__post_init__()
        if not self.randaugment_operations:
            raise UserError(
                "--randaugment_operations is empty: name some, or give --randaugment_num_ops=0 for "
                "none."
            )
        unknown = sorted(set(self.operations) - set(RANDAUGMENT_OPERATIONS))
        if unknown:
            raise UserError(
                f"--randaugment_operations names {', '.join(map(repr, unknown))}: expected all or "
                f"some of {', '.join(RANDAUGMENT_OPERATIONS)}."
            )
        strongest = max(self.randaugment_magnitude)
        if self.randaugment_profile == "increasing" and strongest > self.randaugment_max_level:
            raise UserError(
                f"--randaugment_magnitude={strongest} is above "
                f"--randaugment_max_level={self.randaugment_max_level}: lower the one or raise the "
                "other."
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """One trainer for teacher and students; only these numbers differ."""

    labeled_batch_size: PerGeneration = setting(
        (128,), "Labelled images in a global batch.", minimum=1, of=int
    )
    ratio: PerGeneration = setting(
        (3.0,),
        "Pseudo-labelled images for each labelled one in a student's batch.",
        minimum=0.0,
        of=float,
        first=1,
    )
    cache: str = setting(
        "auto",
        "memory: a stage's images are decoded once and stay in memory | none: they are read from "
        "their shards in every epoch | auto: memory where they fit into --cache_mebibytes.",
        choices=("auto", "memory", "none"),
    )
    cache_mebibytes: int = setting(
        4096, "Memory that the images of a stage may take under --cache=auto, MiB.", minimum=1
    )
    shuffle_mebibytes: int = setting(
        256,
        "Size of the window that is shuffled where images are not in memory, MiB; up to three are "
        "held by each stream.",
        minimum=1,
    )
    accumulation_steps: PerGeneration = setting(
        (1,),
        "In so many parts, one after another, a device makes its share of a batch: less memory, "
        "the same update; BatchNorm alone takes its statistics over a part.",
        minimum=1,
        of=int,
    )
    rematerialize: bool = setting(
        False,
        "Keep only what is between a network's blocks for the backward pass, and compute the rest "
        "again: less memory, a third more time, the same weights.",
    )
    mixing: str = setting(
        "ratio",
        "ratio: labelled and pseudo-labelled images in the proportion of --ratio | union: batches "
        "of the same size drawn from both together.",
        choices=("ratio", "union"),
    )
    train_images: PerGeneration = setting(
        (0,),
        "Budget of a stage in images seen, labelled and pseudo-labelled together.",
        minimum=0,
        of=int,
    )
    train_steps: PerGeneration = setting((0,), "Budget of a stage in steps.", minimum=0, of=int)
    train_epochs: PerGeneration = setting(
        (0.0,), "Budget of a stage in epochs over the labelled images.", minimum=0.0, of=float
    )
    optimizer: str = setting(
        "sgd",
        "sgd (with momentum) | rmsprop (as TensorFlow 1 and the paper have it) | adamw.",
        choices=("sgd", "rmsprop", "adamw"),
    )
    learning_rate: PerGeneration = setting((0.1,), "Peak learning rate.", minimum=0.0, of=float)
    momentum: float = setting(
        0.9, "Momentum of SGD and RMSProp; AdamW's beta 1.", minimum=0.0, maximum=0.9999
    )
    nesterov: bool = setting(False, "Nesterov momentum for SGD.")
    weight_decay: PerGeneration = setting(
        (1e-4,),
        "L2 penalty, weight_decay x sum of 1/2 w^2 over trainable weights without BatchNorm's; "
        "decoupled for AdamW.",
        minimum=0.0,
        of=float,
    )
    gradient_clip_norm: float = setting(
        0.0, "Clip the global gradient norm to this; 0: off.", minimum=0.0
    )
    schedule: str = setting(
        "cosine",
        "Learning rate over a stage: constant | exponential (staircase) | multistep | cosine.",
        choices=("constant", "exponential", "multistep", "cosine"),
    )
    warmup_epochs: float = setting(
        0.0, "Linear warm-up from 0, in epochs over the labelled images.", minimum=0.0
    )
    decay_epochs: float = setting(
        2.4,
        "Length of a stair of the exponential schedule, in epochs over the labelled images.",
        minimum=1e-6,
    )
    decay_rate: float = setting(
        0.97, "Factor of each stair of the exponential schedule.", minimum=0.0, maximum=1.0
    )
    multistep_fractions: str = setting(
        "0.5,0.75",
        "Comma list of shares of the stage's steps after which the multistep schedule falls.",
    )
    multistep_factor: float = setting(
        0.1, "Factor of each fall of the multistep schedule.", minimum=0.0, maximum=1.0
    )
    label_smoothing: float = setting(
        0.0,
        "Smoothing of labels and hard pseudo-labels: (1 - e) one-hot + e / classes.",
        minimum=0.0,
        maximum=0.999,
    )
    loss_normalization: str = setting(
        "labelled",
        "What the summed loss is divided by: labelled (the paper: labelled mean + ratio x pseudo "
        "mean) | all (the mean over all images).",
        choices=("labelled", "all"),
    )
    ema_decay: float = setting(
        0.0,
        "Decay of the moving average of the weights that is kept; 0: off.",
        minimum=0.0,
        maximum=0.999999,
    )
    evaluations: int = setting(
        10, "How often a stage is evaluated on dev while it trains.", minimum=1
    )

    def at(self, generation):
        return {**super().at(generation), "multistep_fractions": self.fractions}

    @property
    def fractions(self):
        """`multistep_fractions` as a list of floats."""
        return [float(one) for one in self.multistep_fractions.split(",")]

    def __post_init__(self):
        super().__post_init__()
        try:
            in_range = all(0.0 <= one <= 1.0 for one in self.fractions)
        except ValueError:
            in_range = False
        if not in_range:
            raise UserError(
                f"--multistep_fractions={self.multistep_fractions!r} is not a comma list of "
                "numbers from 0 to 1: write it as 0.5,0.75."
            )
        budgets = ("train_images", "train_steps", "train_epochs")
        given = [name for name in budgets if any(getattr(self, name))]
        if len(given) != 1:
            received = " and ".join(f"--{name}" for name in given) or "none"
            raise UserError(
                f"{received} of --train_images, --train_steps and --train_epochs: give exactly one "
                "budget (0 takes back what a flagfile gives)."
            )
        if not all(getattr(self, given[0])):
            raise UserError(f"--{given[0]}: every value must be above 0.")
        if self.nesterov and self.optimizer != "sgd":
            raise UserError(
                f"--nesterov is for --optimizer=sgd, not {self.optimizer}: leave it "
                "out or change one."
            )
        if self.mixing == "union" and self.loss_normalization == "labelled":
            raise UserError(
                "--mixing=union draws batches without a fixed number of labelled images: give "
                "--loss_normalization=all with it."
            )


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Section):
    """The last step of a generation: fine-tuning at the resolution of the test."""

    finetune_resolution: PerGeneration = setting(
        (0,),
        "Side of the images that a trained network is fine-tuned on, and then used for, pixels: "
        "labelled ones without noise, at the resolution of the test; 0: no fine-tuning.",
        minimum=0,
        maximum=2048,
        of=int,
    )
    finetune_epochs: PerGeneration = setting(
        (1.5,),
        "Budget of fine-tuning in epochs over the labelled images.",
        minimum=0.001,
        of=float,
    )
    finetune_learning_rate: PerGeneration = setting(
        (1e-3,),
        "Learning rate that fine-tuning begins with, with a fresh optimizer; it falls to 0 as a "
        "cosine.",
        minimum=0.0,
        of=float,
    )
    finetune_frozen_blocks: PerGeneration = setting(
        (0,),
        "Blocks behind the stem that stay as they are, with the stem, while the rest is "
        "fine-tuned; 0: all is fine-tuned.",
        minimum=0,
        of=int,
    )


@dataclasses.dataclass(frozen=True)
class PseudoConfig(Section):
    """Filter and balance, and what a student learns from a pseudo-label."""

    score_views: str = setting(
        "image",
        "What a teacher labels: image: the clean image | mirror: the mean of its probabilities for "
        "the clean image and for its mirror image, at twice the cost.",
        choices=("image", "mirror"),
    )
    first_scores: str = setting(
        "teacher",
        "Whose scores the first student learns from: the teacher's | records: those that come with "
        "the images of --unlabeled_dataset=tfrecord:..., as in official pseudo-label records.",
        choices=("teacher", "records"),
    )
    top_k: int = setting(
        0,
        "Log-probabilities that are stored of each unlabelled image: those of the most probable so "
        "many classes, and what remains in one number, which is spread evenly when read; 0: all of "
        f"up to {DENSE_CLASSES:,} classes, of more the top {SPARSE_CLASSES}.",
        minimum=0,
    )
    calibrate: bool = setting(
        False,
        "Compare confidences at the temperature that fits dev best, and not as the network has "
        "them.",
    )
    target_precision: float = setting(
        0.0,
        "Each class's threshold is the least confidence from which on this share of the dev images "
        "given its label is right, of 20 or more, and --min_confidence at least; 0: off.",
        minimum=0.0,
        maximum=1.0,
    )
    policy: str = setting(
        "paper",
        "paper: the most confident --images_per_class of each class, repeated up to it | gap: a "
        "floor and a largest gap between classes, labelled images included | none: the confidence "
        "filter alone.",
        choices=("paper", "gap", "none"),
    )
    min_confidence: PerGeneration = setting(
        (0.3,),
        "Least confidence of a pseudo-label that is kept for a student.",
        minimum=0.0,
        maximum=1.0,
        of=float,
        first=1,
    )
    images_per_class: int = setting(
        0,
        "Images of each class under the paper policy; 0: as many as the mean over classes above "
        "the threshold.",
        minimum=0,
    )
    gap_floor: int = setting(4000, "Least images of each class under the gap policy.", minimum=0)
    gap_margin: int = setting(
        1000,
        "Most images by which a class may exceed the smallest under the gap policy.",
        minimum=0,
    )
    select: str = setting(
        "each_generation",
        "each_generation: every teacher selects anew | once: the first selection stays and is "
        "re-labelled.",
        choices=("each_generation", "once"),
    )
    pseudo_label: str = setting(
        "soft",
        "soft: the teacher's probabilities | hard: its first choice | smooth: 1 - e on the first "
        "choice and e / (classes - 1) on each other.",
        choices=("soft", "hard", "smooth"),
    )
    smooth_epsilon: float = setting(0.1, "e of --pseudo_label=smooth.", minimum=0.0, maximum=0.999)
    temperature: float = setting(
        1.0,
        "Soft labels are p^(1/T), normalised: below 1 sharpens, above 1 flattens.",
        minimum=0.01,
        maximum=100.0,
    )
    engine: str = setting(
        "local",
        "Where unlabelled images are scored, selected and written: local: this process | beam: "
        "Apache Beam pipelines, by --beam_options; they need requirements-beam.txt, and a "
        "--workdir that every worker reaches.",
        choices=("local", "beam"),
    )
    beam_options: str = setting(
        "",
        "Options of Beam's own under --engine=beam, as '--runner=FlinkRunner "
        "--flink_master=localhost:8081'.",
    )
    chance_p_value: float = setting(
        0.01,
        "A teacher is refused where guessing the most common class would do as well on dev with a "
        "probability above this (one-sided binomial test).",
        minimum=0.0,
        maximum=1.0,
    )

    def stored_classes(self, num_classes):
        """How many log-probabilities are stored of an image; 0: those of all classes."""
        top_k = self.top_k or (SPARSE_CLASSES if num_classes > DENSE_CLASSES else 0)
        return top_k if top_k < num_classes else 0


@dataclasses.dataclass(frozen=True)
class RunConfig(Section):
    """The chain as a whole and the machine it runs on."""

    workdir: str = setting("", "Folder of the run; finished stages in it are used again. Required.")
    seed: int = setting(0, "Seed of everything random.", minimum=0)
    teacher: str = setting(
        "",
        "A .keras model that starts the chain instead of a trained teacher; --models are then the "
        "students.",
    )
    patience: int = setting(
        0, "Stop after this many students in a row that are not better; 0: off.", minimum=0
    )
    strategy: str = setting(
        "auto",
        "one: one device | mirrored: every device of this machine | multi_worker: every device of "
        "all machines in TF_CONFIG, each of which runs the same command; the workdir must be on a "
        "file system that they share | tpu: the TPU named by --tpu | auto: mirrored where there "
        "are several GPUs, else one.",
        choices=("auto", "one", "mirrored", "multi_worker", "tpu"),
    )
    tpu: str = setting(
        "local", "Name or gRPC address of the TPU under --strategy=tpu; local: of this machine."
    )
    jit_compile: str = setting(
        "auto",
        "Whether XLA compiles training steps and predictions: auto: on GPUs and TPUs | on: on the "
        "CPU, too, where it is slower | off. What it cannot compile runs without it, and the log "
        "says why.",
        choices=("auto", "on", "off"),
    )
    compilation_cache: str = setting(
        "",
        "Folder where XLA keeps compiled programs and the results of its autotuning for later "
        "processes on the same kind of machine and card; empty: none.",
    )
    logical_devices: int = setting(
        0,
        "Split the CPU into this many logical devices (to try --strategy=mirrored without GPUs); "
        "0: as it is.",
        minimum=0,
        maximum=64,
    )
    eval_batch_size: int = setting(512, "Images in a batch of scoring and evaluation.", minimum=1)
    checkpoint_minutes: float = setting(
        5.0,
        "Wall-clock time from one checkpoint of a training stage to the next one, minutes; longer "
        "where writing them would take more than 1 % of the time, 0 included.",
        minimum=0.0,
    )
    plan_images: str = setting(
        "",
        "LABELED,UNLABELED,CLASSES: the command plan counts with so many images and classes, and "
        "reads none, as 1281167,130000000,1000.",
    )
    generation: int = setting(
        1,
        "What the commands score and select work on: 1 is what the teacher makes for the first "
        "student, 2 what that one makes for the second.",
        minimum=0,
    )
    shard_index: int = setting(
        0, "Of --num_shard_workers processes that score, which one this is.", minimum=0
    )
    num_shard_workers: int = setting(
        1, "So many processes score at the same time, each a share of the shards.", minimum=1
    )

    @property
    def stated_images(self):
        """`plan_images` as (labelled images, unlabelled images, classes), ints."""
        return tuple(int(one) for one in self.plan_images.split(","))

    def __post_init__(self):
        super().__post_init__()
        if self.plan_images and not re.fullmatch(
            "[0-9]+,[0-9]+,[0-9]+", self.plan_images, re.ASCII
        ):
            raise UserError(
                f"--plan_images={self.plan_images!r}: expected three whole numbers, of labelled "
                "images, unlabelled images and classes, as 1281167,130000000,1000."
            )
        if self.teacher and not self.teacher.endswith(".keras"):
            raise UserError(
                f"--teacher={self.teacher} is not the name of a .keras file: give the "
                "model.keras of an earlier run."
            )
        if self.shard_index >= self.num_shard_workers:
            raise UserError(
                f"--shard_index={self.shard_index} of --num_shard_workers="
                f"{self.num_shard_workers}: expected 0 to {self.num_shard_workers - 1}."
            )
