"""The state of a training while it runs: its step and time, curves, checkpoints and progress."""

import math
import time
from typing import Any

import numpy as np

from nsk.errors import GenerationFailedError
from nsk.progress import Progress
from nsk.training.checkpoint import Checkpoints
from nsk.training.curves import Curves
from nsk.training.recipe import Recipe


class Session:
    """The state of one call of `Trainer.train`.

    Attributes:
        step: steps that were trained, those before a resume included.
        curves, checkpoints: see the arguments.

    Args:
        title: name of the work in the progress line.
        recipe: hyperparameters.
        curves: where measurements are collected.
        checkpoints: where the state is saved.
        step: steps that were trained before a resume.
        seconds: time that these steps took.
    """

    def __init__(
        self,
        title: str,
        recipe: Recipe,
        curves: Curves,
        checkpoints: Checkpoints,
        step: int,
        seconds: float,
    ):
        self.step, self.curves, self.checkpoints = step, curves, checkpoints
        self._recipe, self._seconds_before, self._started = recipe, seconds, time.monotonic()
        batch = recipe.global_batch_size
        self._progress = Progress(title, recipe.num_steps * batch, done=step * batch)
        self._note = ""

    @property
    def is_finished(self) -> bool:
        """Whether all steps were trained."""
        return self.step >= self._recipe.num_steps

    @property
    def seconds(self) -> float:
        """Time of the training so far, that before a resume included."""
        return self._seconds_before + time.monotonic() - self._started

    def add_steps(
        self,
        losses: np.ndarray,
        norms: np.ndarray,
        seconds: float,
        device_bytes: int | None = None,
    ) -> None:
        """Adds the next steps.

        Args:
            losses: float32 (count,).
            norms: float32 (count,), gradient norms.
            seconds: the time that they took.
            device_bytes: the most memory that a GPU has used so far; None without a GPU.

        Raises:
            GenerationFailedError: a loss or gradient norm is not finite.
        """
        self._check_finite("loss", losses)
        self._check_finite("gradient norm", norms)
        self.step += len(losses)
        images = len(losses) * self._recipe.global_batch_size
        self.curves.add_steps(losses, norms, images / seconds, device_bytes)

    def _check_finite(self, name, values):
        for offset, value in enumerate(values):
            if not math.isfinite(value):
                last = self.step + len(values) - 1
                raise GenerationFailedError(
                    f"The {name} became {value} at step {self.step + offset}, in the steps "
                    f"{self.step} to {last}; {self.checkpoints.last}. Lower "
                    "--learning_rate, lengthen --warmup_epochs or set --gradient_clip_norm."
                )

    def save(self, wait: bool, write: bool) -> None:
        """Saves a checkpoint; arguments as for `Checkpoints.save`."""
        state = {"seconds": self.seconds, **self.curves.state}
        self.checkpoints.save(self.step, state, wait=wait, write=write)

    def show(self, losses: np.ndarray) -> None:
        """Updates the progress line."""
        self._note = f"loss {losses.mean():.3f}"
        if self.curves.last_evaluation:
            self._note += f", dev accuracy {self.curves.last_evaluation['accuracy']:.2%}"
        self._progress.update(self.step * self._recipe.global_batch_size, self._note)

    def finish(self) -> dict[str, Any]:
        """Waits for the last checkpoint, closes curves and progress, and returns the counts."""
        self.checkpoints.finish()
        self.curves.close()
        self._progress.close(note=self._note)
        return {
            "steps": self._recipe.num_steps,
            "images_seen": self._recipe.num_steps * self._recipe.global_batch_size,
            "seconds": round(self.seconds, 1),
            "final_loss": self.curves.final_loss,
            "dev": self.curves.last_evaluation,
        }
