"""The replicas of a run: on one device, all devices of this machine, or several machines."""

import functools
import os

import tensorflow as tf
from absl import logging

from nsk import stopping
from nsk.distributed.tf_config import read_tf_config
from nsk.errors import UserError


def split_cpu(logical_devices: int) -> None:
    """Splits the CPU into logical devices, before TensorFlow has used it; 0: no split."""
    if logical_devices:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * logical_devices
        )


def prepare_gpus() -> None:
    """Sets how TensorFlow uses GPUs, before it has used one.

    Memory is taken as it is needed, instead of all of it at the start. Kernels are launched by
    threads of their own, which do not wait for operations on the CPU.

    Reference: https://www.tensorflow.org/guide/gpu_performance_analysis
    """
    os.environ.setdefault("TF_GPU_THREAD_MODE", "gpu_private")
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def make_strategy(name: str, tpu: str = "") -> tf.distribute.Strategy:
    """The `tf.distribute.Strategy` for a name.

    Args:
        name: one | mirrored (all GPUs, or all logical CPU devices if there is no GPU) |
            multi_worker (the devices of every worker in TF_CONFIG; returns when all of them are
            connected) | tpu | auto (mirrored if there are several GPUs, else one).
        tpu: name or address of the TPU, under `tpu`.

    Raises:
        UserError: TF_CONFIG is missing or invalid, or the TPU cannot be reached.
    """
    if name == "multi_worker":
        return _multi_worker(os.environ.get("TF_CONFIG", ""))
    if name == "tpu":
        return _tpu(tpu)
    gpus = tf.config.list_logical_devices("GPU")
    if name == "one" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.OneDeviceStrategy((gpus or _cpus())[0].name)
    return _mirrored(tuple(device.name for device in gpus or _cpus()))


def local_strategy(strategy: tf.distribute.Strategy) -> tf.distribute.Strategy:
    """A strategy over the devices of this process alone, for work without the other workers."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return strategy
    devices = strategy.extended.worker_devices
    if len(devices) == 1:
        return tf.distribute.OneDeviceStrategy(devices[0])
    return _mirrored(tuple(devices))


def _cpus():
    return tf.config.list_logical_devices("CPU")


@functools.cache
def _mirrored(devices):
    """The one MirroredStrategy over some devices.

    A second one would give its collective operations the same numbers, and TensorFlow would confuse
    the two.
    """
    return tf.distribute.MirroredStrategy(devices)


@functools.cache
def _multi_worker(tf_config):
    cluster = read_tf_config(tf_config)
    logging.info("Worker %d of %d connects to the others", cluster.index, cluster.count)
    try:
        # While this waits for the others, Python's signal handlers do not run.
        with stopping.default_handlers():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"Worker {cluster.index} of {cluster.count} cannot connect to the others ({reason}): "
            "check that its address in TF_CONFIG is this machine's, that no earlier process holds "
            "the port, and that all workers are started."
        ) from None
    return strategy


@functools.cache
def _tpu(address):
    """Not covered by the project's tests, which have no TPU; all other code is shared.

    Reference: [Use TPUs](https://www.tensorflow.org/guide/tpu)
    """

    def connect():
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(address)
        if address != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return resolver

    logging.info("Connecting to the TPU %r", address)
    try:
        with stopping.default_handlers():
            resolver = connect()
    except (ValueError, OSError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0].partition(" Failed in init")[0]
        raise UserError(
            f"--strategy=tpu: the TPU {address!r} cannot be used ({reason}): give --tpu=NAME, its "
            "gRPC address, or --tpu=local on a TPU's own machine."
        ) from None
    strategy = tf.distribute.TPUStrategy(resolver)
    if strategy.extended.num_hosts > 1:
        raise UserError(
            f"--tpu={address} has {strategy.extended.num_hosts} hosts, each of which would "
            "get the same images: give a TPU of one host."
        )
    return strategy


def check_divisible(
    strategy: tf.distribute.Strategy, accumulation_steps: int = 1, **batch_sizes: int
) -> None:
    """UserError if a global batch does not divide evenly over replicas and micro-batches."""
    replicas = strategy.num_replicas_in_sync
    parts = replicas * accumulation_steps
    over = "1 replica" if replicas == 1 else f"{replicas} replicas"
    if accumulation_steps > 1:
        over += f" with --accumulation_steps={accumulation_steps}"
    for name, size in batch_sizes.items():
        if size % parts:
            remedies = ["--labeled_batch_size"] + ["--ratio"] * (name != "labeled_batch")
            remedies += ["a lower --accumulation_steps"] * (accumulation_steps > 1)
            raise UserError(
                f"The {name.replace('_', ' ')} of {size} images does not divide over {over}: make "
                f"it a multiple of {parts} by {' or '.join(remedies)}."
            )
