"""TensorBoard's view of a whole chain: one point for each generation."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from nsk.data.class_names import with_descriptions

GROUPS = ("dev", "test", "pseudo")
CLASS_METRICS = ("recall", "precision")
# With more classes, a curve for each of them is of no use: their distribution is shown alone.
MAX_CLASS_CURVES = 50


def write_generations(summary: Mapping[str, Any], folder: Path) -> None:
    """Writes all dev and test metrics and pseudo-label counts, by the index of the generation.

    Recall and precision of classes are histograms and, with at most 50 classes, curves.

    Args:
        summary: the content of `summary.json`.
        folder: where the events are written; those of an earlier call are replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        for generation in summary["generations"]:
            for group in GROUPS:
                metrics = generation.get(group, {})
                for name, value in metrics.items():
                    if isinstance(value, int | float):
                        tf.summary.scalar(f"{group}/{name}", value, step=generation["index"])
                for metric in CLASS_METRICS:
                    values = metrics.get("per_class", {}).get(metric, [])
                    _write_classes(f"{group}_{metric}", values, summary, generation["index"])
    writer.close()


def _write_classes(title, values, summary, step):
    """Writes the values of all classes, None where they are not defined."""
    names = with_descriptions(summary["class_names"], summary.get("class_descriptions"))
    known = {name: value for name, value in zip(names, values, strict=False) if value is not None}
    if known:
        tf.summary.histogram(f"{title}/all_classes", list(known.values()), step=step)
    if len(values) <= MAX_CLASS_CURVES:
        for name, value in known.items():
            tf.summary.scalar(f"{title}/{name}", value, step=step)
