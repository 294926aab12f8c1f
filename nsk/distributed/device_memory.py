"""Memory of the devices of a strategy, and errors of TensorFlow that say that it is full."""

import os
import re
from pathlib import Path

import tensorflow as tf

from nsk.distributed.compilation import device_type

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
# In messages: XLA and CUDA report a full memory as errors of several types, and files or shared
# memory that are exhausted have the same type.
OUT_OF_MEMORY = re.compile("out.of.memory|OOM when allocating|failed to allocate", re.I)
MAIN_MEMORY = "by allocator cpu"


def replica_bytes(strategy: tf.distribute.Strategy) -> int | None:
    """Memory of a replica's device in bytes: a GPU's, or its part of the main memory.

    Args:
        strategy: the run's strategy.

    Returns:
        int; None for a TPU, or if the system does not say it.
    """
    kind = device_type(strategy)
    if kind == "CPU":
        total = _main_memory()
        return total and total // len(tf.config.list_logical_devices("CPU"))
    # TensorFlow has no public function for the size of a GPU's memory.
    from tensorflow.python.client import device_lib

    limits = [
        device.memory_limit
        for device in device_lib.list_local_devices()
        if device.device_type == kind
    ]
    return min(limits, default=None) or None


def peak_bytes(strategy: tf.distribute.Strategy) -> int | None:
    """The most memory that a GPU of this process has used so far, in bytes; None without a GPU."""
    if device_type(strategy) != "GPU":
        return None
    names = [device.name for device in tf.config.list_logical_devices("GPU")]
    return max(tf.config.experimental.get_memory_info(name)["peak"] for name in names)


def is_full(error: tf.errors.OpError, strategy: tf.distribute.Strategy) -> bool:
    """Whether an error says that the memory of a strategy's devices is full.

    Args:
        error: an error of TensorFlow.
        strategy: the strategy under which it was raised.
    """
    if MAIN_MEMORY in error.message and device_type(strategy) != "CPU":
        return False
    return bool(OUT_OF_MEMORY.search(error.message))


def _main_memory():
    """Main memory in bytes, or the limit of the container; None if unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    try:
        return min(total, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # Another system, or "max".
        return total
