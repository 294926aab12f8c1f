"""Hyperparameters of a trainer."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a trainer.

    Attributes:
        learning_rates: float32 array (num_steps,); its length is the number of steps.
        batch_sizes: global batch size of each stream by name, in the order of the global batch.
        optimizer, momentum, nesterov: see `optimizers.make_optimizer`.
        weight_decay: L2 penalty on all weights but BatchNorm's (decoupled for AdamW).
        gradient_clip_norm: largest global gradient norm, L2 penalty included; 0: off.
        loss_normalization: `labelled`: the summed loss is divided by the first stream's rows |
            `all`: by the rows of all streams.
        distillation_alpha: weight of the teacher's probabilities in the loss, see
            `losses.summed_distillation_loss`; targets are then (batch, 2, classes). 0: targets are
            (batch, classes).
        distillation_temperature: temperature of these probabilities.
        ema_decay: decay of the averaged weights, which are evaluated and saved; 0: no average.
        accumulation_steps: micro-batches per step and replica; divides each stream's share.
        frozen_blocks: blocks after the stem that are not trained, with the stem; 0: none.
        synchronized: whether BatchNorm computes its statistics over the images of all replicas, or
            those of each replica alone.
        rematerialize: whether activations inside blocks are recomputed in the backward pass.
    """

    learning_rates: np.ndarray
    batch_sizes: dict[str, int]
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    gradient_clip_norm: float = 0.0
    loss_normalization: str = "labelled"
    distillation_alpha: float = 0.0
    distillation_temperature: float = 1.0
    ema_decay: float = 0.0
    accumulation_steps: int = 1
    frozen_blocks: int = 0
    synchronized: bool = True
    rematerialize: bool = False

    @property
    def num_steps(self) -> int:
        """Steps of the training."""
        return len(self.learning_rates)

    @property
    def global_batch_size(self) -> int:
        """Images of all streams in a step."""
        return sum(self.batch_sizes.values())
