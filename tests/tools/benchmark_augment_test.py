"""The benchmark of RandAugment: that its contenders are correct, not how fast they are."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nsk.data import image_operations
from nsk.data.randaugment_table import OPERATIONS

ROOT = Path(__file__).parents[2]
TINY = ["--sizes=8,12", "--batch_sizes=4,2", "--rounds=1", "--seconds=0.001"]


@pytest.fixture
def benchmark_augment(monkeypatch):
    # Importable by its name, since the processes that it starts import it, too.
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("tools.benchmark_augment")


def test_pillow_does_the_same_operations_as_ours(benchmark_augment):
    images, level = benchmark_augment.photographs(4, 64), 0.3
    operations = benchmark_augment.pillow_operations(level, 64)
    assert len(operations) == len(benchmark_augment.PILLOW_OPERATIONS) == 16
    assert list(operations) == [name for name in OPERATIONS if name in operations]
    signs, centers = np.array([-1, 1, -1, 1]), np.array([[0.5, 0.2], [0.9, 0.1], [0, 0], [0.3, 1]])
    for name, operation in operations.items():
        theirs = [
            np.asarray(operation(Image.fromarray(image), sign, center[::-1]), int)
            for image, sign, center in zip(images, signs, centers, strict=True)
        ]
        ours = image_operations.apply_operation(name, images, level, signs, centers).numpy()
        assert np.mean(np.abs(np.stack(theirs) - ours) > 1) < 0.002, name
        assert np.any(ours != images)


def test_a_turn_has_the_batches_that_fill_its_time(benchmark_augment):
    requested = []

    class Steady:
        def seconds(self, num_images):
            requested.append(num_images)
            return num_images / 100

    speeds = benchmark_augment.compare({"steady": Steady()}, batch_size=8, seconds=2.0, rounds=3)
    assert speeds == {"steady": 100.0}
    assert requested == [8, 8, 200, 200, 200]
    benchmark_augment.compare({"slow": Steady()}, batch_size=500, seconds=2.0, rounds=1)
    assert requested[-1] == 500


def run(benchmark_augment, capsys, contenders):
    benchmark_augment.main([*TINY, f"--contenders={contenders}"])
    lines = capsys.readouterr().out.splitlines()
    speeds = json.loads(lines[-1])["images_per_second"]
    names = contenders.split(",")
    assert {size: list(results) for size, results in speeds.items()} == {"8": names, "12": names}
    assert all(speed > 0 for results in speeds.values() for speed in results.values())
    assert [line.split()[0] for line in lines[1:-1]] == names
    for name, line in zip(names, lines[1:-1], strict=True):
        expected = (speeds["8"][name], speeds["8"]["ours"] / speeds["8"][name])
        assert line.split()[1:3] == [f"{expected[0]:,.0f}", f"{expected[1]:.1f}"]


def test_the_command_prints_a_table_and_finally_json(benchmark_augment, capsys):
    run(benchmark_augment, capsys, "ours,pillow_2proc")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # KerasCV raises warnings.
def test_all_contenders_run(benchmark_augment, capsys):
    run(benchmark_augment, capsys, "ours,keras_cv,keras,pillow_2proc")


@pytest.mark.parametrize(
    ("argument", "part"), [("--contenders=ours,torch", "torch"), ("--sizes=8,9,10", "--sizes")]
)
def test_bad_arguments_are_refused(benchmark_augment, capsys, argument, part):
    with pytest.raises(SystemExit) as stop:
        benchmark_augment.main([*TINY, argument])
    assert stop.value.code == 2
    assert part in capsys.readouterr().err
