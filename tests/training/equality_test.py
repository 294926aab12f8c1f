"""One device, two devices and two processes train the same: the gate for every strategy."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from tools import start_workers

PROGRAM = Path(__file__).with_name("equality_program.py")
MEASURED = {"losses": 1e-6, "norms": 1e-6}  # Relative tolerances: these are float32.
KINDS = {"one": 1, "mirrored": 1, "multi_worker": 2}  # Processes of each.


def train(folder, name, network, precision, steps=100, rate=0.1):
    """Results of the program's processes: a dict of arrays."""
    path, logs = folder / f"{name}.npz", [folder / f"{name}-{i}" for i in range(KINDS[name])]
    # The program's own folder is on Python's path, the project's is not.
    start = f"import runpy, sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); "
    start += f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    command = [sys.executable, "-c", start, name, network, precision, str(steps), str(rate), path]
    for process, log in zip(start_workers.start([command] * len(logs), logs), logs, strict=True):
        assert process.wait(timeout=550) == 0, log.read_text()[-3000:]
    with np.load(path) as arrays:
        return dict(arrays)


def assert_equal(first, second, tolerance, **tolerances_by_name):
    """Compares arrays with tolerances relative to their largest values.

    The gradient of a bias before BatchNorm is only rounding errors: values below 1e-3 count as
    1e-3.
    """
    assert first.keys() == second.keys()
    for name, array in first.items():
        relative = tolerances_by_name.get(name, tolerance)
        difference = np.abs(array - second[name]).max()
        assert difference <= relative * max(np.abs(array).max(), 1e-3), (name, difference)


def test_two_devices_and_two_processes_train_as_one(tmp_path):
    outcomes = {name: train(tmp_path, name, "small_noisy", "float64") for name in KINDS}
    single = outcomes["one"]
    for name in ("mirrored", "multi_worker"):
        assert_equal(single, outcomes[name], 1e-9, **MEASURED)
    # The training did something: every step is clipped, and averages lag behind.
    assert single["norms"].min() > 0.25
    assert single["losses"][-10:].mean() < single["losses"][:10].mean()
    pairs = [
        (single[name], single[name.replace("weight", "average")])
        for name in single
        if "weight" in name
    ]
    assert sum(np.abs(weight - average).max() > 1e-4 for weight, average in pairs) >= 5
    # Both divide the work in the same way.
    assert_equal(outcomes["mirrored"], outcomes["multi_worker"], 1e-12, **MEASURED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "rate", "tolerances"),
    [
        ("float64", 0.1, {"tolerance": 1e-9, **MEASURED}),
        # A rounding error that switches a single ReLU grows chaotically, faster at higher rates:
        # weights are not compared.
        ("float32", 0.01, {"tolerance": np.inf, "losses": 1e-3}),
    ],
)
def test_a_residual_network_trains_the_same_everywhere(tmp_path, precision, rate, tolerances):
    outcomes = {}
    for name, attempt in itertools.product(KINDS, range(2)):
        outcomes[name, attempt] = train(tmp_path, name, "noisy_resnet", precision, rate=rate)
    for name in KINDS:
        assert_equal(outcomes[name, 0], outcomes[name, 1], tolerance=0.0)
        assert_equal(outcomes["one", 0], outcomes[name, 0], **tolerances)


@pytest.mark.slow
def test_a_network_of_kerascv_trains_the_same_on_two_devices(tmp_path):
    outcomes = [
        train(tmp_path, name, "noisy_kerascv", "float64", steps=5) for name in ("one", "mirrored")
    ]
    # The pooling is float32, and followed by more layers than above.
    assert_equal(*outcomes, 1e-7, **MEASURED)
