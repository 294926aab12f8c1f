"""What a student learns from its teacher: pseudo-labels as targets, or distillation."""

import dataclasses

from nsk.config.fields import Condition, Section, above_zero, equals, per_generation, setting
from nsk.config.train import STUDENT, WITH_PSEUDO_LABELS

WITH_DISTILLATION = STUDENT & above_zero("distillation_alpha")
# Otherwise the loss itself says what is learned from pseudo-labels.
WITH_PSEUDO_TARGETS = WITH_PSEUDO_LABELS & Condition(
    "--distillation_alpha=0", lambda values: not values["distillation_alpha"]
)


@dataclasses.dataclass(frozen=True)
class TargetConfig(Section):
    """What a student learns from its teacher."""

    pseudo_label: str = setting(
        "soft",
        "soft: the teacher's probabilities | hard: its most probable class | smooth: 1 - e for the "
        "most probable class and e / (classes - 1) for each other class.",
        choices=("soft", "hard", "smooth"),
        used_if=WITH_PSEUDO_TARGETS,
    )
    smooth_epsilon: float = setting(
        0.1,
        "e of --pseudo_label=smooth.",
        minimum=0.0,
        maximum=0.999,
        used_if=WITH_PSEUDO_TARGETS & equals("pseudo_label", "smooth"),
    )
    temperature: float = setting(
        1.0,
        "Soft labels are p^(1/T), normalised: below 1 sharpens, above 1 flattens.",
        minimum=0.01,
        maximum=100.0,
        used_if=WITH_PSEUDO_TARGETS & equals("pseudo_label", "soft"),
    )
    distillation_alpha: float = per_generation(
        0.0,
        help="Knowledge distillation: the loss of every image, labelled or pseudo-labelled, is "
        "(1 - alpha) x its cross entropy with the hard label + alpha x T^2 x the Kullback-Leibler "
        "divergence of the student's softmax at temperature T from the teacher's; 0: off. With "
        "--ratio=0 a student learns from the labelled images alone.",
        minimum=0.0,
        maximum=1.0,
        students_only=True,
        used_if=WITH_DISTILLATION,
    )
    distillation_temperature: float = per_generation(
        4.0,
        help="T of --distillation_alpha.",
        minimum=0.01,
        maximum=100.0,
        students_only=True,
        used_if=WITH_DISTILLATION,
    )
