"""Results of a sweep: values of each run, and their means and differences over the seeds."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from nsk.evaluation.corruptions import BENCHMARK, CORRUPTIONS
from nsk.evaluation.robustness import mean_flip_rate, relative_corruption_error
from nsk.sweep.grid import Cell, Grid

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Metric:
    """A column of the table.

    Attributes:
        title: its title.
        factor: values are shown multiplied by it.
        digits: after the decimal point.
        is_compared: whether differences are shown.
    """

    title: str
    factor: float = 100.0
    digits: int = 2
    is_compared: bool = False


METRICS = {
    "dev_accuracy": Metric("dev, %", is_compared=True),
    "test_accuracy": Metric("test, %", is_compared=True),
    "test_top5": Metric("top-5, %"),
    "test_ece": Metric("ECE", 1, 4),
    "mean_error": Metric("error under corruptions, %"),
    "relative_mce": Metric("relative mCE", 1, 1),
    "flip_probability": Metric("flips, %"),
    "mfr": Metric("mFR", 1, 1),
    "kept": Metric("pseudo-labels", 1, 0),
    "precision": Metric("precision, %"),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run has found about one of its generations.

    Attributes:
        cell: the run.
        generation: its index.
        is_best: whether it is the best one on dev.
        description: its part of `summary.json`.
        values: the metrics, by the names of `METRICS`; unknown ones are left out.
    """

    cell: Cell
    generation: int
    is_best: bool
    description: Mapping[str, Any]
    values: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: the mean.
        margin: half the width of its 95 % interval by Student's t; NaN for a single seed.
        count: number of seeds.
    """

    mean: float
    margin: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """The estimate from at least one value."""
        count, mean = len(values), float(np.mean(values))
        if count == 1:
            return cls(mean, math.nan, 1)
        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
        return cls(mean, float(quantile * np.std(values, ddof=1) / math.sqrt(count)), count)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: a cell, or one generation of it.

    Attributes:
        name: of the cell, with the generation if several are shown.
        estimates: by metric, over the seeds for which it is known.
        differences: to the cell of comparison, by metric, paired by seed.
        seeds: number of finished runs.
    """

    name: str
    estimates: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    seeds: int


def collect(cells: Sequence[Cell], summaries: Sequence[Mapping[str, Any]], grid: Grid):
    """The results of all generations of finished runs.

    Args:
        cells: the finished runs.
        summaries: the content of their `summary.json`.
        grid: names the baseline of relative errors: its generation that the table shows, with the
            same seed.

    Returns:
        list of `Result`, in the order of the runs.
    """
    baselines = {
        cell.seed: _shown(summary, "best" if grid.generations == "best" else "last")
        for cell, summary in zip(cells, summaries, strict=True)
        if cell.name == grid.baseline
    }
    return [
        Result(
            cell,
            generation["index"],
            generation["index"] == summary["best"]["index"],
            generation,
            _measure(generation, baselines.get(cell.seed)),
        )
        for cell, summary in zip(cells, summaries, strict=True)
        for generation in summary["generations"]
    ]


def _shown(summary, which):
    """A generation of a summary."""
    index = summary["best"]["index"] if which == "best" else -1
    return summary["generations"][index]


def _measure(generation, baseline):
    """Metrics of a generation by name, those that are known."""
    dev, test, suites = (generation.get(name, {}) for name in ("dev", "test", "suites"))
    pseudo = generation.get("pseudo") or {}
    others = (baseline or {}).get("suites", {})
    corruptions, flips = suites.get("corruptions", {}), suites.get("perturbations", {})
    values = {
        "dev_accuracy": dev.get("accuracy"),
        "test_accuracy": test.get("accuracy"),
        "test_top5": test.get("top5"),
        "test_ece": test.get("ece"),
        "mean_error": corruptions.get("mean_error"),
        "relative_mce": _relative_mce(corruptions, others.get("corruptions")),
        "flip_probability": flips.get("mean_flip_probability"),
        "mfr": _mfr(flips, others.get("perturbations")),
        "kept": pseudo.get("kept"),
        "precision": pseudo.get("precision"),
    }
    return {name: value for name, value in values.items() if value is not None}


def _relative_mce(found, baseline):
    """Over all 19 corruptions, or the 15 of the benchmark; None if it is not known."""
    if not found or not baseline:
        return None
    common = found["errors"].keys() & baseline["errors"].keys()
    names = next((names for names in (CORRUPTIONS, BENCHMARK) if set(names) <= common), None)
    if names is None:
        return None
    return relative_corruption_error(
        found["errors"],
        found["clean_error"],
        baseline["errors"],
        baseline["clean_error"],
        names,
    ).mean


def _mfr(found, baseline):
    if not found or not baseline:
        return None
    theirs = baseline["flip_probability"]
    if not theirs.keys() <= found["flip_probability"].keys():
        return None
    return mean_flip_rate(found["flip_probability"], theirs).mean


def make_rows(results: Sequence[Result], grid: Grid) -> list[Row]:
    """The rows of the table, in the order of the grid; cells without a finished run are left out.

    Args:
        results: what `collect` returned.
        grid: says which generations are shown, and which cell the others are compared with.
    """
    found = {}  # {(name of the cell, shown generation): {seed: values}}
    for name in grid.names:
        for seed in grid.seeds:
            own = [r for r in results if (r.cell.name, r.cell.seed) == (name, seed)]
            for shown, result in _choose(own, grid.generations):
                found.setdefault((name, shown), {})[seed] = result.values
    return [
        _row(key, values, found.get((grid.compare_with, key[1]))) for key, values in found.items()
    ]


def _choose(results, generations):
    """(what a row shows, result) of the generations of a run that the table shows."""
    if not results:
        return []
    if generations == "all":
        return [(result.generation, result) for result in results]
    if generations == "best":
        return [("best", next(result for result in results if result.is_best))]
    return [("last", results[-1])]


def _row(key, by_seed, reference):
    name, shown = key
    if not isinstance(shown, str):
        name += f", {f'student {shown}' if shown else 'teacher'}"
    values = list(by_seed.values())
    differences = {}
    if reference is not None and reference is not by_seed:
        pairs = [(by_seed[seed], reference[seed]) for seed in by_seed if seed in reference]
        for metric in METRICS:
            paired = [a[metric] - b[metric] for a, b in pairs if metric in a and metric in b]
            if paired and METRICS[metric].is_compared:
                differences[metric] = Estimate.of(paired)
    return Row(
        name=name,
        estimates={
            metric: Estimate.of([found[metric] for found in values if metric in found])
            for metric in METRICS
            if any(metric in found for found in values)
        },
        differences=differences,
        seeds=len(values),
    )
