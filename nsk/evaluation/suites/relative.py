"""Results relative to those of another model: mCE, relative mCE, mFR, and paired differences."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nsk.errors import UserError
from nsk.evaluation import robustness
from nsk.evaluation.robustness import BENCHMARK
from nsk.evaluation.suites import corruptions, perturbations

ALL_CORRUPTIONS = tuple(robustness.ALEXNET_ERRORS)
# What must be equal for two models to have seen the same corrupted or perturbed images.
CONDITIONS = ("images", "constants", "source", "seed", "frost")


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The results of the model that others are compared with.

    Attributes:
        name: for the report.
        results: what the suites found, by their names.
        is_published: whether they are constants of the literature, on ImageNet.
    """

    name: str
    results: Mapping[str, Mapping[str, Any]]
    is_published: bool = False


ALEXNET = Baseline(
    "AlexNet",
    {
        "corruptions": {
            "clean_error": robustness.ALEXNET_CLEAN_ERROR,
            "errors": robustness.ALEXNET_ERRORS,
        },
        "perturbations": {"flip_probability": robustness.ALEXNET_FLIP_PROBABILITIES},
    },
    is_published=True,
)


def compare(
    suite: str, folder: Path, result: Mapping[str, Any], baseline: Baseline | None
) -> dict[str, Any]:
    """Results of a suite relative to a baseline.

    Args:
        suite: name of the suite.
        folder: where the suite wrote its files.
        result: what it returned.
        baseline: results of another model; None, or without this suite: nothing is compared.

    Returns:
        For `corruptions`: `mce` and `relative_mce` with their 95 % intervals, in percent, and the
        values and denominators of each corruption; of the 15 corruptions of the benchmark, or of
        those that were evaluated if some of them were not; and with all 19 also `mce_of_19` and
        `relative_mce_of_19`. For `perturbations`: `mfr` and the flip rates.

    Raises:
        UserError: the baseline was evaluated on other images.
    """
    if baseline is None or suite not in baseline.results or suite not in _COMPARISONS:
        return {}
    _check_same_images(suite, result, baseline)
    return {"baseline": baseline.name, **_COMPARISONS[suite](folder, result, baseline)}


def _check_same_images(suite, result, baseline):
    """UserError if results cannot be compared."""
    found = baseline.results[suite]
    if baseline.is_published:
        if result["constants"] != "imagenet":
            raise UserError(
                f"--baseline=alexnet: its errors are those on ImageNet's images, but {suite} used "
                f"the constants {result['constants']!r}: give the evaluation.json of another model."
            )
        return
    for name in CONDITIONS:
        if found.get(name) != result.get(name):
            raise UserError(
                f"--baseline: {suite} of {baseline.name} has {name}={found.get(name)!r}, but here "
                f"it is {result.get(name)!r}: evaluate both models with the same settings."
            )


def _compare_corruptions(folder, result, baseline):
    errors, other = result["errors"], baseline.results["corruptions"]
    common = [name for name in errors if name in other["errors"]]
    if not common:
        return {"compared": []}
    complete = [name for name in common if name in BENCHMARK]
    names = complete if set(complete) == set(BENCHMARK) else common
    compared = {"compared": names, **_corruption_errors(folder, result, other, names)}
    if set(common) == set(ALL_CORRUPTIONS):
        of_all = _corruption_errors(folder, result, other, common)
        compared |= {f"{name}_of_19": of_all[name] for name in ("mce", "relative_mce")}
    return compared


def _corruption_errors(folder, result, other, names):
    """MCE and relative mCE of some corruptions, with intervals."""
    errors = result["errors"]
    mce = robustness.corruption_error(errors, other["errors"], names)
    baseline = np.array([other["errors"][name] for name in names])
    clean, wrong = corruptions.read_wrong(folder, names)

    def resampled_mce(means):
        return robustness.mean_corruption_error(means.reshape(-1, *baseline.shape), baseline)

    compared = {
        "mce": mce.mean,
        "mce_interval": list(robustness.bootstrap_interval(wrong, resampled_mce)),
        "corruption_error": mce.percent,
        "denominator": mce.denominators,
    }
    clean_errors = result["clean_error"], other["clean_error"]
    if None in clean_errors:
        return {**compared, "relative_mce": None}
    return compared | _relative_errors(errors, other["errors"], clean_errors, names, clean, wrong)


def _relative_errors(errors, other_errors, clean_errors, names, clean, wrong):
    """Relative mCE; without an interval if it is not known which clean image is which."""
    clean_error, other_clean_error = clean_errors
    relative = robustness.relative_corruption_error(
        errors, clean_error, other_errors, other_clean_error, names
    )
    baseline = np.array([other_errors[name] for name in names])

    def resampled_relative(means):
        return robustness.mean_corruption_error(
            means[:, 1:].reshape(-1, *baseline.shape), baseline, means[:, 0], other_clean_error
        )

    interval = (None, None)
    if clean is not None:
        values = np.concatenate([clean[:, np.newaxis], wrong], axis=1)
        interval = robustness.bootstrap_interval(values, resampled_relative)
    return {
        "relative_mce": relative.mean,
        "relative_mce_interval": list(interval),
        "relative_corruption_error": relative.percent,
        "relative_denominator": relative.denominators,
    }


def _compare_perturbations(folder, result, baseline):
    del folder
    other = baseline.results["perturbations"]
    compared = {}
    for name, metric in (
        ("mfr", "flip_probability"),
        ("mfr_against_first", "flip_probability_against_first"),
        ("mt5d", "top5_distance"),
    ):
        found, reference = result[metric], other.get(metric, {})
        common = {key: value for key, value in found.items() if key in reference}
        if common:
            rates = (
                robustness.mean_flip_rate(common, reference)
                if name != "mt5d"
                else (robustness.mean_top5_rate(common, reference))
            )
            compared |= {name: rates.mean, f"{name}_rates": rates.percent}
            compared |= {f"{name}_denominator": rates.denominators}
    return compared


_COMPARISONS = {"corruptions": _compare_corruptions, "perturbations": _compare_perturbations}


def paired_differences(suite: str, folder: Path, other: Path) -> dict[str, Any]:
    """How a model differs from another one on the same images, with 95 % intervals.

    Args:
        suite: name of the suite.
        folder: where the suite wrote the files of the model.
        other: the same of the other model.

    Returns:
        dict of `mean`, `lower` and `upper`: of the mean accuracy over all corruptions, or of the
        mean flip probability (less is better); empty for other suites.
    """
    if suite == "corruptions":
        values, other_values = (
            1 - corruptions.read_wrong(path, corruptions.names_in(path))[1].mean(axis=1)
            for path in (folder, other)
        )
    elif suite == "perturbations":
        values, other_values = (
            perturbations.read_flip_shares(path, perturbations.names_in(path)).mean(axis=1)
            for path in (folder, other)
        )
    else:
        return {}
    differences = values - other_values
    lower, upper = robustness.bootstrap_interval(differences)
    return {"mean": float(differences.mean()), "lower": lower, "upper": upper}
