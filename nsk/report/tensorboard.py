"""TensorBoard's view of a whole chain: one point a generation."""

import shutil

import tensorflow as tf


def write_generations(summary, folder):
    """Writes dev and test metrics and pseudo-label counts over the number of the generation.

    Args:
        summary: the summary, as in `summary.json`.
        folder: where the events go; what an earlier call wrote there is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        for generation in summary["generations"]:
            for group in ("dev", "test", "pseudo"):
                for name, value in generation.get(group, {}).items():
                    if isinstance(value, int | float):
                        tf.summary.scalar(f"{group}/{name}", value, step=generation["index"])
    writer.close()
