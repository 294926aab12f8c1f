"""The memory that a training step takes on a device, and the settings with which it fits."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Self

import keras

from nsk.models import blocks
from nsk.models.cost import estimate_cost
from nsk.training.recipe import Recipe
from nsk.training.rematerialization import segments
from nsk.units import format_bytes

FLOAT_BYTES = 4
# Variables of an optimizer for each trainable weight.
SLOTS = {"sgd": 1, "rmsprop": 2, "adamw": 2}
# The share of a device's memory that the estimate may take: work space of kernels is not in it.
MAX_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Estimated memory of a training step on a replica's device.

    Attributes:
        state_bytes: weights, those of the published model, gradients, the optimizer's variables
            and the average.
        image_bytes: activations of an image that the backward pass needs.
        batch_sizes: images of each stream on a replica.
        accumulation_steps: micro-batches of a step.
    """

    state_bytes: int
    image_bytes: int
    batch_sizes: tuple[int, ...]
    accumulation_steps: int

    @classmethod
    def of(
        cls, model: keras.Model, batch_sizes: Sequence[int], recipe: Recipe, num_replicas: int
    ) -> Self:
        """The estimate for a network and its hyperparameters.

        Args:
            model: the network; its layers that are not trainable have no gradients.
            batch_sizes: global batch size of each stream.
            recipe: a `Recipe`, or settings that have its `optimizer`, `ema_decay`,
                `accumulation_steps` and `rematerialize`.
            num_replicas: over which a global batch is divided.
        """
        recomputed = segments(model) if recipe.rematerialize and blocks.block_names(model) else ()
        return cls(
            state_bytes(model, recipe.optimizer, bool(recipe.ema_decay)),
            estimate_cost(model, recomputed).activation_bytes,
            tuple(size // num_replicas for size in batch_sizes),
            recipe.accumulation_steps,
        )

    @property
    def images(self) -> int:
        """Images that a replica processes at a time."""
        return sum(self.batch_sizes) // self.accumulation_steps

    @property
    def bytes(self) -> int:
        """The memory of a step."""
        return self.bytes_with(self.accumulation_steps)

    def bytes_with(self, accumulation_steps: int) -> int:
        """The memory of a step with another number of micro-batches."""
        images = sum(self.batch_sizes) // accumulation_steps
        return self.state_bytes + self.image_bytes * images

    def fits(self, device_bytes: int, accumulation_steps: int | None = None) -> bool:
        """Whether a step fits into a device's memory, by the estimate.

        Args:
            device_bytes: memory of a replica's device.
            accumulation_steps: another number of micro-batches.
        """
        needed = self.bytes_with(accumulation_steps or self.accumulation_steps)
        return needed <= MAX_SHARE * device_bytes

    def describe(self, device_bytes: int | None) -> str:
        """Images at a time, the estimate, and what reduces it: the end of a message.

        Args:
            device_bytes: memory of a replica's device; None: unknown.
        """
        available = f" of {format_bytes(device_bytes)}" if device_bytes else ""
        return (
            f"{self.images} images at a time take at least {format_bytes(self.bytes)}{available} "
            f"on a device; give {self._advice(device_bytes)}."
        )

    def _advice(self, device_bytes):
        others = "--rematerialize, --precision=bf16 or a smaller --labeled_batch_size"
        common = math.gcd(*self.batch_sizes)
        for steps in range(self.accumulation_steps + 1, common + 1):
            if common % steps == 0 and (device_bytes is None or self.fits(device_bytes, steps)):
                images = sum(self.batch_sizes) // steps
                same = f"{images} images at a time, the same update"
                return f"--accumulation_steps={steps} ({same}), {others}"
        return others


def state_bytes(model: keras.Model, optimizer: str, has_average: bool) -> int:
    """Bytes of weights, their published copy and average, gradients and the optimizer's variables.

    Args:
        model: the network; its layers that are not trainable have no gradients.
        optimizer: sgd | rmsprop | adamw.
        has_average: whether there is a moving average of the weights.
    """
    trained = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    total = sum(math.prod(variable.shape) for variable in model.variables)
    copies = 3 if has_average else 2
    return FLOAT_BYTES * (copies * total + (1 + SLOTS[optimizer]) * trained)
