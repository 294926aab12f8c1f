"""Networks: the noise inside them, BatchNorm and precision."""

import dataclasses

from nsk.config.fields import Section, per_generation, setting


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """Networks: the noise inside them, BatchNorm and precision."""

    dropout_rate: float = per_generation(
        0.0, 0.5, help="Dropout before the classifier.", minimum=0.0, maximum=0.99
    )
    survival_probability: float = per_generation(
        1.0,
        0.8,
        help="Stochastic depth: residual block i of L survives with probability "
        "1 - (1 - this) i / L; 1: off. ConvNets, resnet6 and resnet9 have none.",
        minimum=0.01,
        maximum=1.0,
    )
    batch_norm_momentum: float = setting(
        0.9, "Momentum of BatchNorm's moving statistics.", minimum=0.0, maximum=0.9999
    )
    precision: str = setting(
        "float32",
        "Compute type: float32 | bf16: mixed precision with bfloat16; weights, pixels, noise, "
        "BatchNorm, logits and the loss stay float32.",
        choices=("float32", "bf16"),
    )
