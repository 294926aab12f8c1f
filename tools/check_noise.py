"""Checks that every device draws exactly the same noise for training steps as the CPU.

    python -m tools.check_noise [--keys=50]

Draws with and without XLA, on the CPU and on every GPU, and compares with the results of
TensorFlow's own operations on the CPU without XLA. The last line is a JSON object; the exit code is
1 if a draw differs.
"""

import argparse
import json
import sys

import numpy as np
import tensorflow as tf

from nsk import noise

LAYERS = ("stage1_block1_depth", "stage3_block6_depth")
SHAPES = ((1, 1), (13, 7), (128, 64), (512, 1280))  # Global batch, features.


def native_noise(key, step, batch_size, features):
    """The draws of a step by TensorFlow's own operations on the CPU: a list of arrays."""
    with tf.device("CPU:0"):
        step_key = noise.fold_in(key, step)
        shapes = {name: [batch_size] for name in LAYERS} | {"dropout": [batch_size, features]}
        return [
            noise.uniform(noise.named(step_key, name), shape).numpy()
            for name, shape in shapes.items()
        ]


def make_draw(batch_size, features, is_compiled):
    """Function of (key, step) that draws as a training step does: a list of tensors."""

    @tf.function(jit_compile=is_compiled)
    def draw(key, step):
        positions = tf.range(batch_size)
        with noise.scope(noise.step_key(key, step), positions, batch_size, LAYERS):
            draws = [noise.example_uniform(name, batch_size) for name in LAYERS]
            return [*draws, noise.example_uniform("dropout", batch_size, [features])]

    return draw


def count_differences(device, is_compiled, num_keys):
    """Counts a device's draws and those that differ from the CPU's: (draws, differences)."""
    draws = differences = 0
    for batch_size, features in SHAPES:
        draw = make_draw(batch_size, features, is_compiled)
        for number in range(num_keys):
            key, step = noise.key(number, "check"), 1234 * number
            with tf.device(device):
                received = draw(tf.constant(key), tf.constant(step))
            for ours, native in zip(
                received, native_noise(key, step, batch_size, features), strict=True
            ):
                draws += native.size
                differences += int(np.sum(ours.numpy() != native))
    return draws, differences


def main(arguments=None):
    """Compares every device with the CPU; returns the exit code, 1 if draws differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--keys", type=int, default=50, help="number of keys and steps for each shape"
    )
    options = parser.parse_args(arguments)
    results = {}
    for device in tf.config.list_logical_devices():
        for is_compiled in (False, True):
            way = f"{device.device_type}:{device.name[-1]} {'compiled' if is_compiled else 'plain'}"
            draws, differences = count_differences(device.name, is_compiled, options.keys)
            print(f"{way}: {differences:,} of {draws:,} draws differ", flush=True)
            results[way] = {"draws": draws, "differences": differences}
    print(json.dumps(results))
    return int(any(result["differences"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
