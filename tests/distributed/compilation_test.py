import pytest
import tensorflow as tf

from nsk.distributed import compilation
from nsk.distributed import strategy as strategies


@pytest.mark.parametrize(
    "mode, device, expected",
    [
        ("auto", "CPU", False),
        ("auto", "GPU", True),
        ("auto", "TPU", True),
        ("on", "CPU", True),
        ("off", "GPU", False),
    ],
)
def test_auto_compiles_on_accelerators_alone(mode, device, expected, monkeypatch):
    monkeypatch.setattr(compilation, "device_type", lambda strategy: device)
    assert compilation.is_compiled(mode, strategies.make_strategy("one")) == expected


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="mode='yes': expected one of auto, on, off"):
        compilation.is_compiled("yes", tf.distribute.get_strategy())


def test_the_device_is_that_of_the_strategy():
    for strategy in (
        tf.distribute.get_strategy(),
        strategies.make_strategy("one"),
        strategies.make_strategy("mirrored"),
    ):
        assert compilation.device_type(strategy) == "CPU"
    assert compilation.device_type(tf.distribute.OneDeviceStrategy("/gpu:0")) == "GPU"


def test_only_the_first_call_falls_back():
    error = tf.errors.InvalidArgumentError(None, None, "no such operation\nstack")
    function = compilation.Compilable(lambda: None, True, "It")
    function.succeeded()
    assert not function.fall_back(error) and function.is_compiled
    function = compilation.Compilable(lambda: None, True, "It")
    assert function.fall_back(error) and not function.is_compiled
    assert not function.fall_back(error)
    assert not compilation.Compilable(lambda: None, False, "It").fall_back(error)


@pytest.mark.parametrize(
    ("strategy", "mode", "expected"),
    [
        ("one", "auto", "Devices: 1 CPU, steps not compiled by XLA."),
        ("one", "on", "Devices: 1 CPU, steps compiled by XLA."),
        ("mirrored", "off", "Devices: 2 CPU, steps not compiled by XLA."),
        ("mirrored", "on", "Devices: 2 CPU, steps compiled by XLA if --batch_norm=replica."),
    ],
)
def test_a_run_says_what_it_runs_on(strategy, mode, expected):
    line = compilation.describe_devices(strategies.make_strategy(strategy), mode)
    assert line.startswith(expected)
