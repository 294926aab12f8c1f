"""What a student learns from a pseudo-label."""

import dataclasses

from nsk.config.fields import Section, equals, setting
from nsk.config.train import WITH_PSEUDO_LABELS


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
