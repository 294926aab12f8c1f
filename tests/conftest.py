"""Splits the CPU into two logical devices, so that replicas can be tested; forgets interrupts."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest
import tensorflow as tf

from nsk import stopping

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(autouse=True)
def no_earlier_interrupt(monkeypatch):
    """An interrupt that one test has caught would stop the training of the next one."""
    monkeypatch.setattr(stopping, "_interrupted", False)
