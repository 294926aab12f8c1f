"""Which functions XLA compiles, and the fallback for those that it cannot compile.

`--jit_compile=auto` compiles training steps and predictions on GPUs and TPUs. On the CPU XLA's
convolutions are slower than TensorFlow's own, so it compiles there only with `on`, as tests do.
"""

import re
from collections.abc import Callable
from typing import Any

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
# Lines of TensorFlow's messages that do not contain the reason.
UNINFORMATIVE = re.compile("Graph execution error|Detected at node|<stack traces unavailable>")
MAX_REASON_CHARACTERS = 300


def is_compiled(mode: str, strategy: tf.distribute.Strategy) -> bool:
    """Whether functions under a strategy are compiled.

    Args:
        mode: auto | on | off.
        strategy: a `tf.distribute.Strategy`.

    Raises:
        ValueError: the mode is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}.")
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return False  # The strategy itself compiles what runs on a replica.
    if mode != "auto":
        return mode == "on"
    return device_type(strategy) in ACCELERATORS


def describe_devices(strategy: tf.distribute.Strategy, mode: str) -> str:
    """The devices of a strategy, and whether XLA compiles for them, in one line.

    Args:
        strategy: the run's strategy.
        mode: auto | on | off.
    """
    kind, count = device_type(strategy), strategy.num_replicas_in_sync
    name = ""
    gpus = tf.config.list_physical_devices("GPU") if kind == "GPU" else []
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        name = f" ({details.get('device_name', gpus[0].name)})"
    if kind != "TPU" and not is_compiled(mode, strategy):
        how = "not compiled by XLA"
    elif obstacle(strategy, synchronized=True):
        how = "compiled by XLA if --batch_norm=replica"
    else:
        how = "compiled by XLA"
    return f"Devices: {count} {kind}{name}, steps {how}."


def obstacle(strategy: tf.distribute.Strategy, synchronized: bool) -> str | None:
    """Why a training step cannot be compiled under a strategy; None if it can be.

    Args:
        strategy: the run's strategy.
        synchronized: whether BatchNorm computes its statistics over all replicas.
    """
    is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    if is_tpu or strategy.num_replicas_in_sync == 1 or not synchronized:
        return None
    return "BatchNorm sums over replicas, outside of what XLA compiles; see --batch_norm"


def device_type(strategy: tf.distribute.Strategy) -> str:
    """Device type of a strategy's replicas: CPU, GPU or TPU."""
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return "TPU"
    if isinstance(strategy, tf.distribute.OneDeviceStrategy | tf.distribute.MirroredStrategy):
        return tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type
    return "GPU" if tf.config.list_logical_devices("GPU") else "CPU"


class Compilable:
    """A function of tensors that XLA compiles, or that runs without XLA if it cannot be compiled.

    Compilation fails in the first call, so only an error of that call causes the fallback.

    Args:
        function: the function, which is called inside a `tf.function`.
        is_compiled: bool, whether to compile it.
        title: its name in the log.
    """

    def __init__(self, function: Callable, is_compiled: bool, title: str):
        self._function, self._title = function, title
        self._compiled = tf.function(function, jit_compile=True) if is_compiled else None
        self._called = False

    @property
    def is_compiled(self) -> bool:
        """Whether calls run the function compiled by XLA."""
        return self._compiled is not None

    def __call__(self, *args: Any) -> Any:
        """Calls the function, compiled unless it has fallen back."""
        return (self._compiled or self._function)(*args)

    def succeeded(self) -> None:
        """Records that a call has succeeded."""
        self._called = True

    def fall_back(self, error: Exception | str) -> bool:
        """Switches to the function without XLA if its first call failed, and logs the reason.

        The surrounding `tf.function` must then be created again, and called again.

        Args:
            error: the error, one of `ERRORS`, or a string.

        Returns:
            Whether the function was compiled and now runs without XLA.
        """
        if self._called or not self.is_compiled:
            return False
        self._compiled = None
        logging.warning("%s: runs without XLA (%s)", self._title, _reason(error))
        return True


def _reason(error):
    """The line of an error's message that contains the reason, without stack traces."""
    lines = getattr(error, "message", str(error)).strip().splitlines()
    informative = [line for line in lines if line.strip() and not UNINFORMATIVE.match(line)]
    return (informative or lines or [type(error).__name__])[0].strip()[:MAX_REASON_CHARACTERS]
