"""Means, intervals and paired differences of a sweep."""

import math

import numpy as np
import pytest
from scipy import stats

from nsk.evaluation.corruptions import CORRUPTIONS
from nsk.sweep.grid import Cell, Grid
from nsk.sweep.results import Estimate, collect, make_rows

RANDOM = np.random.default_rng(0)
# {(cell, seed): test accuracies of the teacher and two students}
ACCURACIES = {
    (name, seed): RANDOM.uniform(0.5, 0.9, 3) for name in ("a", "b") for seed in (0, 1, 2)
}


def make_grid(**values):
    defaults = {
        "title": "t",
        "seeds": (0, 1, 2),
        "compare_with": "a",
        "baseline": "a",
        "generations": "last",
        "changes": {"a": {}, "b": {}},
    }
    return Grid(**{**defaults, **values})


def make_summary(accuracies, **suites):
    generations = [
        {
            "index": index,
            "dev": {"accuracy": 1 - accuracy},
            "test": {"accuracy": accuracy, "top5": 1.0, "ece": 0.1},
            "pseudo": {"kept": 10, "precision": None} if index else None,
            "suites": suites,
        }
        for index, accuracy in enumerate(accuracies)
    ]
    return {"generations": generations, "best": {"index": 1}}


def results(grid, left_out=(), **suites):
    chosen = {key: values for key, values in ACCURACIES.items() if key not in left_out}
    cells = [Cell(name, seed, {}) for name, seed in chosen]
    summaries = [make_summary(values, **suites) for values in chosen.values()]
    return collect(cells, summaries, grid)


def test_an_estimate_is_the_mean_with_students_interval():
    values = [3.0, 5.0, 4.5, 8.0]
    estimate = Estimate.of(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (estimate.mean - estimate.margin, estimate.mean + estimate.margin) == pytest.approx(
        (low, high)
    )
    assert math.isnan(Estimate.of([1.0]).margin)


@pytest.mark.parametrize(("generations", "index"), [("last", 2), ("best", 1)])
def test_rows_are_of_the_chosen_generation(generations, index):
    grid = make_grid(generations=generations)
    a, b = make_rows(results(grid), grid)
    assert (a.name, b.name, a.seeds) == ("a", "b", 3)
    expected = {name: [ACCURACIES[name, seed][index] for seed in range(3)] for name in "ab"}
    assert a.estimates["test_accuracy"] == Estimate.of(expected["a"])
    assert b.estimates["dev_accuracy"].mean == pytest.approx(1 - np.mean(expected["b"]))
    assert b.estimates["kept"].mean == 10 and "precision" not in b.estimates
    assert a.differences == {}
    paired = np.subtract(expected["b"], expected["a"])
    assert b.differences["test_accuracy"].mean == pytest.approx(paired.mean())
    margin = stats.t.ppf(0.975, 2) * stats.sem(paired)
    assert b.differences["test_accuracy"].margin == pytest.approx(margin)


def test_all_generations_are_compared_with_the_same_generation():
    grid = make_grid(generations="all")
    rows = make_rows(results(grid), grid)
    assert [row.name for row in rows] == [
        f"{name}, {role}" for name in "ab" for role in ("teacher", "student 1", "student 2")
    ]
    student = rows[4]
    expected = [ACCURACIES["b", seed][1] - ACCURACIES["a", seed][1] for seed in range(3)]
    assert student.differences["test_accuracy"].mean == pytest.approx(np.mean(expected))


def test_differences_are_of_the_seeds_that_both_have():
    grid = make_grid()
    a, b = make_rows(results(grid, left_out=[("a", 0), ("b", 2)]), grid)
    assert (a.seeds, b.seeds) == (2, 2)
    only = ACCURACIES["b", 1][2] - ACCURACIES["a", 1][2]
    assert b.differences["test_accuracy"].mean == pytest.approx(only)
    assert b.differences["test_accuracy"].count == 1
    (b,) = make_rows(results(grid, left_out=[("a", seed) for seed in range(3)]), grid)
    assert b.name == "b" and not b.differences


def test_robustness_is_relative_to_the_baseline_with_the_same_seed():
    grid = make_grid(baseline="b")
    cells = [Cell(name, seed, {}) for name in "ab" for seed in (0, 1)]
    summaries, increases = [], {}
    for cell in cells:
        increase = increases[cell.name, cell.seed] = RANDOM.uniform(0.1, 0.3, len(CORRUPTIONS))
        suites = {
            "corruptions": {
                "clean_error": 0.1,
                "mean_error": 0.5,
                "errors": {
                    name: [0.1 + value] * 5
                    for name, value in zip(CORRUPTIONS, increase, strict=True)
                },
            },
            "perturbations": {
                "mean_flip_probability": 0.2,
                "flip_probability": {"snow": increase[0], "tilt": increase[1]},
            },
        }
        summaries.append(make_summary([0.5, 0.6], **suites))
    a, b = make_rows(collect(cells, summaries, grid), grid)
    assert b.estimates["relative_mce"].mean == pytest.approx(100)
    assert b.estimates["mfr"].mean == pytest.approx(100)
    ratios = [100 * increases["a", seed] / increases["b", seed] for seed in (0, 1)]
    assert a.estimates["relative_mce"].mean == pytest.approx(np.mean(ratios))
    assert a.estimates["mfr"].mean == pytest.approx(np.mean([ratio[:2] for ratio in ratios]))
    assert a.estimates["mean_error"].mean == 0.5
