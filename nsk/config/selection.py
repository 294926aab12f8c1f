"""Filter and balance: which unlabelled images a student sees, and how often."""

import dataclasses

from nsk.config.fields import Section, equals, per_generation, setting


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
        "labeled_shares: the same, with the classes in the proportions of the labelled images | "
        "gap: a minimum per class and a largest gap between classes, labelled images included | "
        "none: the confidence filter alone.",
        choices=("paper", "labeled_shares", "gap", "none"),
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
        "Images per class under the paper policy, their mean number under labeled_shares; 0: the "
        "mean number above the threshold, over the classes that have any.",
        minimum=0,
        used_if=equals("policy", "paper", "labeled_shares"),
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
    min_kept_fraction: float = setting(
        0.001,
        "Smallest share of the unlabelled images that a selection must keep; a student that would "
        "learn from fewer is not trained, and the chain ends. 0: any.",
        minimum=0.0,
        maximum=1.0,
        changes_results=False,
    )
    unknown_classes: str = setting(
        "warn",
        "What to do about unlabelled images that are not like dev: warn: compare them with dev "
        "before a student is trained, and warn of differences | filter: also select no image that "
        "is farther from dev in features than 95 % of the dev images are | off: do not compare.",
        choices=("warn", "filter", "off"),
        changes_results=False,  # The greatest distance changes them, which comes from dev.
    )
