"""Pseudo-labels: how unlabelled images are scored, selected and turned into targets."""

import dataclasses

from nsk.config.fields import Section, equals, per_generation, setting
from nsk.config.train import WITH_PSEUDO_LABELS

# With more classes, only the most probable ones of each image are stored.
DENSE_CLASSES = 1000
SPARSE_CLASSES = 100


@dataclasses.dataclass(frozen=True)
class ScoringConfig(Section):
    """How a teacher scores unlabelled images."""

    score_views: str = setting(
        "image",
        "Views of an image that a teacher scores: image: the clean image | mirror: the mean of the "
        "probabilities of the clean image and its mirror image, at twice the cost.",
        choices=("image", "mirror"),
    )
    first_scores: str = setting(
        "teacher",
        "Source of the first student's pseudo-labels: teacher | records: the probabilities stored "
        "with the images of --unlabeled_dataset=tfrecord:..., as in official pseudo-label records.",
        choices=("teacher", "records"),
    )
    top_k: int = setting(
        0,
        "Number of most probable classes whose log-probabilities are stored per unlabelled image; "
        "the remaining probability is stored as one number and spread evenly when read. 0: all of "
        f"up to {DENSE_CLASSES:,} classes, the top {SPARSE_CLASSES} of more.",
        minimum=0,
    )

    def num_stored_classes(self, num_classes: int) -> int:
        """How many log-probabilities are stored per image; 0: those of all classes."""
        top_k = self.top_k or (SPARSE_CLASSES if num_classes > DENSE_CLASSES else 0)
        return top_k if top_k < num_classes else 0


@dataclasses.dataclass(frozen=True)
class SelectionConfig(Section):
    """Filter and balance: which unlabelled images a student sees, and how often."""

    calibrate: bool = setting(
        False, "Compare confidences after temperature scaling with the temperature fitted on dev."
    )
    target_precision: float = setting(
        0.0,
        "Each class's threshold is the lowest confidence, at least --min_confidence, above which "
        "this share of the dev images predicted as the class is correct (20 images or more); "
        "0: off.",
        minimum=0.0,
        maximum=1.0,
    )
    policy: str = setting(
        "paper",
        "paper: the most confident --images_per_class of each class, repeated up to this number | "
        "gap: a minimum per class and a largest gap between classes, labelled images included | "
        "none: the confidence filter alone.",
        choices=("paper", "gap", "none"),
    )
    min_confidence: float = per_generation(
        0.3,
        help="Confidence threshold of pseudo-labels.",
        minimum=0.0,
        maximum=1.0,
        students_only=True,
    )
    images_per_class: int = setting(
        0,
        "Images per class under the paper policy; 0: the mean over classes of the number above the "
        "threshold.",
        minimum=0,
        used_if=equals("policy", "paper"),
    )
    gap_floor: int = setting(
        4000,
        "Minimum of images per class under the gap policy.",
        minimum=0,
        used_if=equals("policy", "gap"),
    )
    gap_margin: int = setting(
        1000,
        "Largest number of images by which a class may exceed the smallest under the gap policy.",
        minimum=0,
        used_if=equals("policy", "gap"),
    )


@dataclasses.dataclass(frozen=True)
class TargetConfig(Section):
    """What a student learns from a pseudo-label."""

    pseudo_label: str = setting(
        "soft",
        "soft: the teacher's probabilities | hard: its most probable class | smooth: 1 - e for the "
        "most probable class and e / (classes - 1) for each other class.",
        choices=("soft", "hard", "smooth"),
        used_if=WITH_PSEUDO_LABELS,
    )
    smooth_epsilon: float = setting(
        0.1,
        "e of --pseudo_label=smooth.",
        minimum=0.0,
        maximum=0.999,
        used_if=WITH_PSEUDO_LABELS & equals("pseudo_label", "smooth"),
    )
    temperature: float = setting(
        1.0,
        "Soft labels are p^(1/T), normalised: below 1 sharpens, above 1 flattens.",
        minimum=0.01,
        maximum=100.0,
        used_if=WITH_PSEUDO_LABELS & equals("pseudo_label", "soft"),
    )
