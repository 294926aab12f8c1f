"""What a trainer does, beside its model and its batches."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The numbers of one training.

    Attributes:
        learning_rates: float32 array (num_steps,); its length is the number of steps.
        batch_sizes: dict from the name of each stream to its global batch size, in the order of the
            global batch.
        optimizer, momentum, nesterov: see `optimizers.make_optimizer`.
        weight_decay: L2 penalty on weights that are not BatchNorm's (decoupled for AdamW).
        gradient_clip_norm: largest global gradient norm, L2 penalty included; 0: off.
        loss_normalization: `labelled`: the summed loss is divided by the first stream's weight |
            `all`: by the weight of all streams.
        ema_decay: decay of the averaged weights that are evaluated and kept; 0: the weights
            themselves.
        accumulation_steps: in so many parts, one after another, a replica makes its share of a
            step; divides each stream's share.
        frozen_blocks: that many blocks, and the stem, stay as they are; 0: nothing does.
        rematerialize: whether the backward pass computes a block's activations again.
    """

    learning_rates: object
    batch_sizes: dict
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    gradient_clip_norm: float = 0.0
    loss_normalization: str = "labelled"
    ema_decay: float = 0.0
    accumulation_steps: int = 1
    frozen_blocks: int = 0
    rematerialize: bool = False

    @property
    def num_steps(self):
        return len(self.learning_rates)

    @property
    def global_batch_size(self):
        return sum(self.batch_sizes.values())
