"""Which functions XLA compiles, and what happens where it cannot.

`--jit_compile=auto` compiles training steps and predictions on GPUs and TPUs. On the CPU XLA's
convolutions are slower than TensorFlow's own, so it compiles there only with `on`, as tests do.
"""

import re

import tensorflow as tf
from absl import logging

MODES = ("auto", "on", "off")
ACCELERATORS = ("GPU", "TPU")
# What TensorFlow raises, before a variable is changed, if XLA cannot compile a function.
ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.InternalError,
)
# Lines of TensorFlow's messages that say nothing about the reason.
UNINFORMATIVE = re.compile("Graph execution error|Detected at node|<stack traces unavailable>")
MAX_REASON = 300  # Characters.


def is_compiled(mode, strategy):
    """Whether a mode compiles what runs under a strategy.

    Args:
        mode: auto | on | off.
        strategy: a `tf.distribute.Strategy`.

    Raises:
        ValueError: the mode is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}.")
    if mode != "auto":
        return mode == "on"
    return device_type(strategy) in ACCELERATORS


def obstacle(strategy):
    """Why a training step cannot be compiled under a strategy: a string; None if it can be."""
    if isinstance(strategy, tf.distribute.OneDeviceStrategy | tf.distribute.TPUStrategy):
        return None
    return f"{type(strategy).__name__} sums gradients outside of what XLA compiles"


def device_type(strategy):
    """CPU, GPU or TPU: where a strategy's replicas compute."""
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return "TPU"
    if isinstance(strategy, tf.distribute.OneDeviceStrategy | tf.distribute.MirroredStrategy):
        return tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type
    return "GPU" if tf.config.list_logical_devices("GPU") else "CPU"


class Compilable:
    """A function of tensors that XLA compiles, unless that turns out to be impossible.

    Whether it is shows in the first call alone, so only an error of that call is a reason to go on
    without XLA.

    Args:
        function: what is called, from within a `tf.function`.
        is_compiled: bool.
        title: what it is, for the log.
    """

    def __init__(self, function, is_compiled, title):
        self._function, self._title = function, title
        self._compiled = tf.function(function, jit_compile=True) if is_compiled else None
        self._called = False

    @property
    def is_compiled(self):
        return self._compiled is not None

    def __call__(self, *args):
        return (self._compiled or self._function)(*args)

    def succeeded(self):
        """Notes that a call has gone well."""
        self._called = True

    def fall_back(self, error):
        """Runs the function plain from now on, if the first call failed because of XLA; logs why.

        The `tf.function` around it must then be made anew, and called again.

        Args:
            error: what was raised, one of `ERRORS`, or a string.

        Returns:
            bool, whether it is run plain from now on and was compiled before.
        """
        if self._called or not self.is_compiled:
            return False
        self._compiled = None
        logging.warning("%s: runs without XLA (%s)", self._title, _reason(error))
        return True


def _reason(error):
    """The line of an error's message that says what is wrong, without stack traces."""
    lines = getattr(error, "message", str(error)).strip().splitlines()
    said = [line for line in lines if line.strip() and not UNINFORMATIVE.match(line)]
    return (said or lines or [type(error).__name__])[0].strip()[:MAX_REASON]
