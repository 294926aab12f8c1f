"""The memory that a training step takes on a device, and the settings with which it fits."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Self

from nsk.models.cost import Cost
from nsk.training.recipe import Recipe
from nsk.units import format_bytes

FLOAT_BYTES = 4
# The share of a device's memory that the estimate may take: work space of kernels is not in it.
MAX_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Estimated memory of a training step on a replica's device.

    Attributes:
        state_bytes: weights, their published copy and average, and the optimizer's variables.
        gradient_bytes: gradients of all weights.
        image_bytes: activations of an image that the backward pass needs.
        batch_sizes: images of each stream on a replica.
        accumulation_steps: micro-batches of a step.
    """

    state_bytes: int
    gradient_bytes: int
    image_bytes: int
    batch_sizes: tuple[int, ...]
    accumulation_steps: int

    @classmethod
    def of(cls, cost: Cost, batch_sizes: Sequence[int], recipe: Recipe, num_replicas: int) -> Self:
        """The estimate for a network and its hyperparameters.

        Args:
            cost: the network's.
            batch_sizes: global batch size of each stream.
            recipe: a `Recipe`, or settings that have its `optimizer`, `momentum`, `ema_decay` and
                `accumulation_steps`.
            num_replicas: over which a global batch is divided.
        """
        copies = 3 if recipe.ema_decay else 2
        return cls(
            FLOAT_BYTES * (copies * cost.variables + _num_slots(recipe) * cost.trained),
            FLOAT_BYTES * cost.trained,
            cost.activation_bytes,
            tuple(size // num_replicas for size in batch_sizes),
            recipe.accumulation_steps,
        )

    @property
    def images(self) -> int:
        """Images that a replica processes at a time."""
        return sum(self.batch_sizes) // self.accumulation_steps

    @property
    def activation_bytes(self) -> int:
        """Activations of these images."""
        return self.images * self.image_bytes

    @property
    def bytes(self) -> int:
        """The memory of a step."""
        # Accumulation keeps the sum of the gradients beside those of a micro-batch.
        gradients = self.gradient_bytes * (2 if self.accumulation_steps > 1 else 1)
        return self.state_bytes + gradients + self.activation_bytes

    def fits(self, device_bytes: int) -> bool:
        """Whether a step fits into a device's memory, by the estimate.

        Args:
            device_bytes: memory of a replica's device.
        """
        return self.bytes <= MAX_SHARE * device_bytes

    def describe(self, device_bytes: int | None) -> str:
        """Images at a time, the estimate, and what reduces it: the end of a message.

        Args:
            device_bytes: memory of a replica's device; None: unknown.
        """
        available = f" of {format_bytes(device_bytes)}" if device_bytes else ""
        smaller, remedies = self._fitting(device_bytes), "a smaller --labeled_batch_size"
        if smaller:
            steps = f"--accumulation_steps={smaller.accumulation_steps}"
            remedies = f"{steps} ({smaller.images} images at a time), {remedies}"
        return (
            f"{self.images} images at a time take about {format_bytes(self.bytes)}{available} on a "
            f"device, without work space; give {remedies} or, where they are off, --rematerialize "
            "and --precision=bf16."
        )

    def _fitting(self, device_bytes):
        """The same with the fewest further micro-batches that divide and fit; None without any."""
        common = math.gcd(*self.batch_sizes)
        for steps in range(self.accumulation_steps + 1, common + 1):
            smaller = dataclasses.replace(self, accumulation_steps=steps)
            if common % steps == 0 and (device_bytes is None or smaller.fits(device_bytes)):
                return smaller
        return None


def _num_slots(recipe):
    """Variables of the optimizer for each trained weight."""
    momentum = int(recipe.momentum > 0)
    return {"sgd": momentum, "rmsprop": 1 + momentum, "adamw": 2}[recipe.optimizer]
