"""Fine-tuning at the resolution of the test, the last step of a generation."""

import dataclasses

from nsk.config.fields import Section, above_zero, per_generation

WITH_FINETUNING = above_zero("finetune_resolution")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Section):
    """Fine-tuning at the resolution of the test."""

    finetune_resolution: int = per_generation(
        0,
        help="Side of the images, pixels, at which a trained network is fine-tuned and then used: "
        "on labelled images without noise, at the resolution of the test; 0: no fine-tuning.",
        minimum=0,
        maximum=2048,
    )
    finetune_epochs: float = per_generation(
        1.5,
        help="Budget of fine-tuning in epochs over the labelled images.",
        minimum=0.001,
        used_if=WITH_FINETUNING,
    )
    finetune_learning_rate: float = per_generation(
        1e-3,
        help="Initial learning rate of fine-tuning, with a fresh optimizer and a cosine schedule.",
        minimum=0.0,
        used_if=WITH_FINETUNING,
    )
    finetune_frozen_blocks: int = per_generation(
        0,
        help="Number of blocks after the stem that are frozen, with the stem, during fine-tuning; "
        "0: everything is fine-tuned.",
        minimum=0,
        used_if=WITH_FINETUNING,
    )
