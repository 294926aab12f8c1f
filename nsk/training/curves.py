"""TensorBoard curves of one training, and its images with noise."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

POINTS = 200  # Approximate number of points per curve, for any number of steps.
# A sheet of images: maximum number per row and column, and approximate maximum side in pixels.
SHEET_IMAGES, SHEET_PIXELS = 8, 1024
FINAL_STEPS = 100  # The final loss is the mean over at most this many steps, and a tenth of all.


class Curves:
    """Collects the measurements of every step and writes means over fixed numbers of steps.

    The number of steps per call depends on the speed of the machine; the points do not, so equal
    runs have equal curves.

    A training that resumes rewrites its curves from the start (`restore`): otherwise the points
    that the interrupted process wrote after its last checkpoint would be duplicated.

    Args:
        folder: where events are written; its content is removed. None: nothing is written.
        learning_rates: float32 array (num_steps,).
    """

    def __init__(self, folder: Path | None, learning_rates: np.ndarray):
        self._rates = learning_rates
        self._losses = np.zeros(len(learning_rates), np.float32)
        self._norms = np.zeros(len(learning_rates), np.float32)
        self._every = max(1, len(learning_rates) // POINTS)
        # One entry for each point.
        self._speeds, self._memory, self._evaluations = [], [], []
        self._steps = self._written = 0
        if folder is None:
            self._writer = tf.summary.create_noop_writer()
            return
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = tf.summary.create_file_writer(str(folder))

    @property
    def state(self) -> dict[str, Any]:
        """The content of the curves, for a checkpoint: a dict of arrays and JSON-like values."""
        return {
            "losses": self._losses[: self._steps].copy(),
            "norms": self._norms[: self._steps].copy(),
            "speeds": list(self._speeds),
            "memory": list(self._memory),
            "evaluations": list(self._evaluations),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Writes the curves from the `state` of an earlier process."""
        evaluations = iter(state["evaluations"])
        speeds, evaluation = state["speeds"], next(evaluations, None)
        memory = state.get("memory", [None] * len(speeds))  # Earlier versions did not save it.
        for start in range(0, len(state["losses"]), self._every):
            window = slice(start, start + self._every)
            # The last window may be incomplete, and have no point yet.
            point = len(self._speeds)
            measured = (speeds[point], memory[point]) if point < len(speeds) else (0.0, None)
            self.add_steps(state["losses"][window], state["norms"][window], *measured)
            while evaluation and evaluation["step"] <= self._steps:
                self._write_evaluation(evaluation)
                evaluation = next(evaluations, None)

    @property
    def last_evaluation(self) -> dict[str, float | None]:
        """The metrics of the last evaluation; {} before the first one."""
        return self._evaluations[-1]["metrics"] if self._evaluations else {}

    def add_steps(
        self,
        losses: Sequence[float],
        norms: Sequence[float],
        images_per_second: float,
        device_bytes: int | None = None,
    ) -> None:
        """Adds the next steps.

        Args:
            losses: float32 (count,).
            norms: float32 (count,), gradient norms.
            images_per_second: their speed.
            device_bytes: the most memory that a GPU has used so far; None without a GPU.
        """
        after = self._steps + len(losses)
        self._losses[self._steps : after], self._norms[self._steps : after] = losses, norms
        self._steps = after
        with self._writer.as_default():
            while self._written + self._every <= after:
                window = slice(self._written, self._written + self._every)
                self._written = step = window.stop
                self._speeds.append(float(images_per_second))
                self._memory.append(device_bytes)
                tf.summary.scalar("train/loss", self._losses[window].mean(), step)
                tf.summary.scalar("train/gradient_norm", self._norms[window].mean(), step)
                tf.summary.scalar("train/learning_rate", self._rates[step - 1], step)
                tf.summary.scalar("train/images_per_second", images_per_second, step)
                if device_bytes is not None:
                    tf.summary.scalar("train/device_memory_gib", device_bytes / 2**30, step)

    def add_images(self, streams: Mapping[str, Mapping[str, tf.Tensor]]) -> None:
        """Writes training images, noise included: a sheet of the first images of each stream.

        Args:
            streams: by the name of a stream a dict with `image` uint8 (batch, height, width, 3).
        """
        with self._writer.as_default(self._steps):
            for name, stream in streams.items():
                tf.summary.image(f"train/{name}_images", sheet(stream["image"])[None])

    def add_evaluation(self, metrics: dict[str, float | None]) -> None:
        """Adds dev metrics after the steps so far: a dict of floats, None if not defined."""
        self._write_evaluation({"step": self._steps, "metrics": metrics})

    def _write_evaluation(self, evaluation):
        self._evaluations.append(evaluation)
        with self._writer.as_default(evaluation["step"]):
            for name, value in evaluation["metrics"].items():
                if value is not None:  # Top-5 accuracy with five classes or fewer.
                    tf.summary.scalar(f"dev/{name}", value)

    @property
    def final_loss(self) -> float:
        """Mean loss of the last steps."""
        count = max(1, min(FINAL_STEPS, self._steps // 10))
        return float(self._losses[self._steps - count : self._steps].mean())

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def sheet(images: tf.Tensor) -> tf.Tensor:
    """A sheet of the first images of a batch: at most 8 x 8, and fewer if they are large.

    Args:
        images: uint8 (batch, height, width, 3), batch >= 1.

    Returns:
        uint8 tensor (rows * height, columns * width, 3), black in place of missing images.
    """
    _, height, width, _ = images.shape
    side = min(SHEET_IMAGES, max(1, SHEET_PIXELS // max(height, width)))
    shown = images[: side**2]
    columns = min(len(shown), side)
    rows = -(-len(shown) // columns)
    cells = tf.pad(shown, [[0, rows * columns - len(shown)], [0, 0], [0, 0], [0, 0]])
    cells = tf.transpose(tf.reshape(cells, [rows, columns, height, width, 3]), [0, 2, 1, 3, 4])
    return tf.reshape(cells, [rows * height, columns * width, 3])
