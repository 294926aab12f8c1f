"""The benchmark of corruptions: what it counts and prints, not how fast they are."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ["--sizes=32,40", "--images=3,2", "--batch_sizes=2,2", "--peer_images=1,1", "--rounds=1"]


@pytest.fixture
def benchmark_corruptions(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("tools.benchmark_corruptions")


def test_speeds_are_images_by_the_sum_of_times(benchmark_corruptions):
    times = {
        "ours": {
            (name, severity): seconds * severity
            for name, seconds in (("fog", 0.1), ("contrast", 0.3), ("spatter", 1.0))
            for severity in range(1, 6)
        }
    }
    speeds = benchmark_corruptions.speeds(times, {"ours": 6}, ["fog", "contrast", "spatter"])
    assert {name: speed["ours"] for name, speed in speeds.items()} == {
        "fog": pytest.approx(5 * 6 / 1.5),
        "contrast": pytest.approx(5 * 6 / 4.5),
        "spatter": pytest.approx(5 * 6 / 15),
        "benchmark": pytest.approx(2 * 5 * 6 / 6),
    }


def test_contenders_take_turns_at_every_condition(benchmark_corruptions):
    calls = []

    def contender(number):
        return lambda name, severity: calls.append((number, name, severity))

    times = benchmark_corruptions.measure({"a": contender(1), "b": contender(2)}, ["fog"], 2)
    assert calls[:2] == [(1, "fog", 1), (2, "fog", 1)]
    turns = [(number, "fog", severity) for severity in range(1, 6) for number in (1, 2, 1, 2)]
    assert calls[2:] == turns
    assert list(times["b"]) == [("fog", severity) for severity in range(1, 6)]


def test_the_command_prints_tables_and_finally_json(benchmark_corruptions, capsys):
    benchmark_corruptions.main([*TINY, "--corruptions=contrast,spatter"])
    lines = capsys.readouterr().out.splitlines()
    results = json.loads(lines[-1])["images_per_second"]
    assert list(results) == ["32", "40"]
    assert lines[0].startswith("32 px")
    for name, line in zip(("contrast", "spatter", "benchmark"), lines[1:4], strict=True):
        speeds = results["32"][name]
        assert list(speeds) == list(benchmark_corruptions.CONTENDERS)
        ratio = speeds["ours"] / speeds["imagecorruptions"]
        assert line.split()[:2] == [name, f"{speeds['ours']:,.0f}"]
        assert line.split()[4] == f"{ratio:.1f}"


@pytest.mark.parametrize("argument", ["--corruptions=rain", "--sizes=32"])
def test_wrong_arguments_are_errors(benchmark_corruptions, argument, capsys):
    with pytest.raises(SystemExit):
        benchmark_corruptions.main([*TINY, argument])
    assert "expected" in capsys.readouterr().err
