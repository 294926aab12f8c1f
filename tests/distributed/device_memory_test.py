"""The memory of devices, and errors that say that it is full."""

import pytest
import tensorflow as tf

from nsk.distributed import device_memory
from nsk.distributed import strategy as strategies

GIBIBYTE = 2**30


def test_the_main_memory_is_divided_over_the_logical_devices():
    strategy = strategies.make_strategy("mirrored")
    one = device_memory.replica_bytes(strategy)
    assert one == device_memory._main_memory() // len(tf.config.list_logical_devices("CPU"))
    assert one > GIBIBYTE / 8
    assert device_memory.peak_bytes(strategy) is None


def test_a_container_limits_the_main_memory(tmp_path, monkeypatch):
    file = tmp_path / "memory.max"
    monkeypatch.setattr(device_memory, "CGROUP_LIMIT", file)
    without = device_memory._main_memory()
    for text, expected in (("max\n", without), ("1048576\n", 2**20)):
        file.write_text(text)
        assert device_memory._main_memory() == expected


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), True),
        (tf.errors.InternalError(None, None, "CUDA_ERROR_OUT_OF_MEMORY: out of memory"), True),
        (tf.errors.UnknownError(None, None, "RESOURCE_EXHAUSTED: Out of memory while"), True),
        (tf.errors.ResourceExhaustedError(None, None, "shard-7; Too many open files"), False),
        (tf.errors.InternalError(None, None, "Shared memory size limit exceeded"), False),
        (tf.errors.InternalError(None, None, "no algorithm worked"), False),
    ],
)
def test_errors_that_say_that_the_memory_is_full(error, is_full):
    assert device_memory.is_full(error, strategies.make_strategy("one")) == is_full


def test_a_full_main_memory_is_not_that_of_a_gpu(monkeypatch):
    message = "OOM when allocating tensor with shape[9] on CPU:0 by allocator cpu"
    error = tf.errors.ResourceExhaustedError(None, None, message)
    for kind, is_full in (("CPU", True), ("GPU", False)):
        monkeypatch.setattr(device_memory, "device_type", lambda _, kind=kind: kind)
        assert device_memory.is_full(error, None) == is_full
