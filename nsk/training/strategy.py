"""Where a run's replicas are: one device, or all devices of this machine."""

import functools

import tensorflow as tf

from nsk.errors import UserError


def split_cpu(logical_devices):
    """Makes the CPU look like several devices, before TensorFlow has used it; 0: as it is."""
    if logical_devices:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * logical_devices
        )


def make_strategy(name):
    """The `tf.distribute.Strategy` for a name.

    Args:
        name: one | mirrored (all GPUs, or all logical CPU devices where there is no GPU) | auto
            (mirrored where there are several GPUs, else one).
    """
    gpus = tf.config.list_logical_devices("GPU")
    devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
    if name == "one" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.OneDeviceStrategy(devices[0])
    return _mirrored(tuple(devices))


@functools.cache
def _mirrored(devices):
    """One for each process: two over the same devices would number their collective operations
    alike, and TensorFlow then takes those of the one for those of the other."""
    return tf.distribute.MirroredStrategy(devices)


def check_divisible(strategy, **batch_sizes):
    """UserError where a global batch does not split evenly over the replicas."""
    replicas = strategy.num_replicas_in_sync
    for name, size in batch_sizes.items():
        if size % replicas:
            raise UserError(
                f"The {name.replace('_', ' ')} of {size} images does not divide over {replicas} "
                f"replicas: make it a multiple of {replicas}."
            )
