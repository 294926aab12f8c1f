"""TensorBoard's view of a whole chain: one point for each generation."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

GROUPS = ("dev", "test", "pseudo")


def write_generations(summary: Mapping[str, Any], folder: Path) -> None:
    """Writes all dev and test metrics and pseudo-label counts, by the index of the generation.

    Args:
        summary: the content of `summary.json`.
        folder: where the events are written; those of an earlier call are replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        for generation in summary["generations"]:
            for group in GROUPS:
                for name, value in generation.get(group, {}).items():
                    if isinstance(value, int | float):
                        tf.summary.scalar(f"{group}/{name}", value, step=generation["index"])
    writer.close()
