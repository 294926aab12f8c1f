"""Training: batches, budget, optimizer, schedule and loss; the same for teacher and students."""

import dataclasses

from nsk.config.fields import Condition, Section, equals, per_generation, setting
from nsk.errors import UserError

BUDGETS = ("train_images", "train_steps", "train_epochs")

STUDENT = Condition("a student", lambda values: values["is_student"])
WITH_PSEUDO_LABELS = Condition(
    "a student with --ratio above 0", lambda values: values["is_student"] and values["ratio"] > 0
)


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """Training; teacher and students differ only in these values."""

    labeled_batch_size: int = per_generation(
        128, help="Labelled images in a global batch.", minimum=1
    )
    ratio: float = per_generation(
        3.0,
        help="Pseudo-labelled images per labelled image in a student's batch.",
        minimum=0.0,
        students_only=True,
        used_if=STUDENT,
    )
    cache: str = setting(
        "auto",
        "memory: the images of a stage are decoded once and stay in memory | none: they are read "
        "from their shards in every epoch | auto: memory if they fit into --cache_mebibytes.",
        choices=("auto", "memory", "none"),
    )
    cache_mebibytes: int = setting(
        4096,
        "Memory for the images of a stage under --cache=auto, MiB.",
        minimum=1,
        used_if=equals("cache", "auto"),
    )
    shuffle_mebibytes: int = setting(
        256,
        "Size of the shuffle window if images are read from shards, MiB; each stream holds up to "
        "three windows.",
        minimum=1,
        used_if=equals("cache", "auto", "none"),
    )
    accumulation_steps: int = per_generation(
        1,
        help="Gradient accumulation: micro-batches per step and device. Less memory, the same "
        "update; only BatchNorm sees micro-batches instead of the batch.",
        minimum=1,
    )
    batch_norm: str = setting(
        "synchronized",
        "Statistics of BatchNorm in training on several devices: synchronized: over the whole "
        "batch, so that the number of devices does not change the result | replica: over each "
        "device's part of the batch, without communication, so that XLA can compile the steps.",
        choices=("synchronized", "replica"),
    )
    rematerialize: bool = setting(
        False,
        "Gradient checkpointing: recompute activations inside blocks in the backward pass. Less "
        "memory, a third more time, the same weights.",
        changes_results=False,
    )
    mixing: str = setting(
        "ratio",
        "ratio: labelled and pseudo-labelled images in the proportion of --ratio | union: batches "
        "of the same size drawn from the union of both | pretrain: in the same proportion one "
        "after the other, a training on the pseudo-labelled images and then one on the labelled "
        "images, each with batches of this size and its whole schedule.",
        choices=("ratio", "union", "pretrain"),
        used_if=WITH_PSEUDO_LABELS,
    )
    labeled_learning_rate: float = per_generation(
        0.0,
        help="Peak learning rate of the training on labelled images that follows pre-training; 0: "
        "a tenth of --learning_rate.",
        minimum=0.0,
        students_only=True,
        used_if=WITH_PSEUDO_LABELS & equals("mixing", "pretrain"),
    )
    train_images: int = per_generation(
        0,
        help="Budget of a training in images, labelled and pseudo-labelled together.",
        minimum=0,
    )
    train_steps: int = per_generation(0, help="Budget of a training in steps.", minimum=0)
    train_epochs: float = per_generation(
        0.0, help="Budget of a training in epochs over the labelled images.", minimum=0.0
    )
    optimizer: str = setting(
        "sgd",
        "sgd (with momentum) | rmsprop (as in TensorFlow 1 and the paper) | adamw.",
        choices=("sgd", "rmsprop", "adamw"),
    )
    learning_rate: float = per_generation(0.1, help="Peak learning rate.", minimum=0.0)
    momentum: float = setting(
        0.9, "Momentum of SGD and RMSProp; beta 1 of AdamW.", minimum=0.0, maximum=0.9999
    )
    nesterov: bool = setting(
        False, "Nesterov momentum for SGD.", used_if=equals("optimizer", "sgd")
    )
    weight_decay: float = per_generation(
        1e-4,
        help="L2 penalty, weight_decay x sum of 1/2 w^2 over trainable weights other than "
        "BatchNorm's; decoupled for AdamW.",
        minimum=0.0,
    )
    gradient_clip_norm: float = setting(
        0.0, "Clip the global gradient norm to this; 0: off.", minimum=0.0
    )
    schedule: str = setting(
        "cosine",
        "Learning rate schedule: constant | exponential (staircase) | multistep | cosine.",
        choices=("constant", "exponential", "multistep", "cosine"),
    )
    warmup_epochs: float = setting(
        0.0, "Linear warm-up from 0, in epochs over the labelled images.", minimum=0.0
    )
    decay_epochs: float = setting(
        2.4,
        "Length of a stair of the exponential schedule, in epochs over the labelled images.",
        minimum=1e-6,
        used_if=equals("schedule", "exponential"),
    )
    decay_rate: float = setting(
        0.97,
        "Factor of each stair of the exponential schedule.",
        minimum=0.0,
        maximum=1.0,
        used_if=equals("schedule", "exponential"),
    )
    multistep_fractions: str = setting(
        "0.5,0.75",
        "Comma list of fractions of the training's steps after which the multistep schedule drops.",
        used_if=equals("schedule", "multistep"),
    )
    multistep_factor: float = setting(
        0.1,
        "Factor of each drop of the multistep schedule.",
        minimum=0.0,
        maximum=1.0,
        used_if=equals("schedule", "multistep"),
    )
    label_smoothing: float = setting(
        0.0,
        "Label smoothing of labels and hard pseudo-labels: (1 - e) one-hot + e / classes.",
        minimum=0.0,
        maximum=0.999,
    )
    class_weights: str = setting(
        "none",
        "Weights of the labelled images in the loss: none: 1 | balanced: inversely proportional to "
        "the number of labelled images of their class, with a mean of 1. Pseudo-labelled images "
        "have the weight 1: --policy balances their classes.",
        choices=("none", "balanced"),
    )
    loss_normalization: str = setting(
        "labelled",
        "Divisor of the summed loss: labelled (as in the paper: labelled mean + ratio x pseudo "
        "mean) | all (the mean over all images). Images count, not --class_weights.",
        choices=("labelled", "all"),
        used_if=WITH_PSEUDO_LABELS & equals("mixing", "ratio", "union"),
    )
    ema_decay: float = setting(
        0.0,
        "Decay of the exponential moving average of the weights, which is what is evaluated and "
        "saved; 0: off.",
        minimum=0.0,
        maximum=0.999999,
    )
    evaluations: int = setting(
        10,
        "Number of evaluations on dev during a training.",
        minimum=1,
        changes_results=False,
    )

    @property
    def fractions(self) -> list[float]:
        """`multistep_fractions` as numbers."""
        return [float(fraction) for fraction in self.multistep_fractions.split(",")]

    def __post_init__(self):
        super().__post_init__()
        self._check_fractions()
        self._check_budget()
        if self.nesterov and self.optimizer != "sgd":
            raise UserError(
                f"--nesterov is for --optimizer=sgd, not {self.optimizer}: leave it "
                "out or change the optimizer."
            )
        if self.mixing == "union" and self.loss_normalization == "labelled":
            raise UserError(
                "--mixing=union draws batches without a fixed number of labelled images: give "
                "--loss_normalization=all with it."
            )

    def _check_fractions(self):
        try:
            in_range = all(0.0 <= fraction <= 1.0 for fraction in self.fractions)
        except ValueError:
            in_range = False
        if not in_range:
            raise UserError(
                f"--multistep_fractions={self.multistep_fractions!r} is not a comma list of "
                "numbers from 0 to 1: write it as 0.5,0.75."
            )

    def _check_budget(self):
        given = [name for name in BUDGETS if any(getattr(self, name))]
        if len(given) != 1:
            received = " and ".join(f"--{name}" for name in given)
            problem = f"{received} were given" if received else "No budget was given"
            raise UserError(
                f"{problem}: give exactly one of --train_images, --train_steps and --train_epochs "
                "(0 cancels that of a flagfile)."
            )
        if not all(getattr(self, given[0])):
            raise UserError(f"--{given[0]}: every value must be above 0.")
