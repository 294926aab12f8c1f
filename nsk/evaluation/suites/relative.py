"""Results relative to those of another model: mCE, relative mCE, mFR, and paired differences."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nsk.evaluation import alexnet, bootstrap, robustness
from nsk.evaluation.corruptions import BENCHMARK, CORRUPTIONS, SEVERITIES
from nsk.evaluation.suites import corruptions, perturbations
from nsk.evaluation.suites.conditions import read_condition

# What must be equal for two models to have seen the same corrupted or perturbed images.
CONDITIONS = (
    *("images", "images_digest", "image_size", "constants", "source", "seed", "frost"),
    "uncropped_side",
)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The results of the model that others are compared with.

    Attributes:
        name: for the report.
        results: what the suites found, by their names.
        is_published: whether they are constants of the literature, on ImageNet.
        folders: where the suites wrote their files, if that is known. Intervals then cover the
            chance of both models' results on the same images; otherwise those of the baseline are
            taken as constants.
    """

    name: str
    results: Mapping[str, Mapping[str, Any]]
    is_published: bool = False
    folders: Mapping[str, Path] = dataclasses.field(default_factory=dict)


ALEXNET = Baseline(
    "AlexNet",
    {
        "corruptions": {
            "clean_error": alexnet.CLEAN_ERROR,
            "errors": alexnet.CORRUPTION_ERRORS,
        },
        "perturbations": {"flip_probability": alexnet.FLIP_PROBABILITIES},
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
        `relative_mce_of_19`. For `perturbations`: `mfr`, `mfr_against_first` and `mt5d` with their
        95 % intervals, in percent, and the rates and denominators of each set.

        If the baseline was evaluated on other images, `baseline_note` says so instead.
    """
    if baseline is None or suite not in _COMPARISONS:
        return {}
    reason = _why_not_comparable(suite, result, baseline)
    if reason:
        return {"baseline": baseline.name, "baseline_note": reason}
    return {"baseline": baseline.name, **_COMPARISONS[suite](folder, result, baseline)}


def _why_not_comparable(suite, result, baseline):
    """Why results cannot be compared with those of the baseline; "" if they can."""
    if suite not in baseline.results:
        return f"{suite} of {baseline.name} is not known: evaluate it with this suite, too."
    if baseline.is_published:
        if result["constants"] in ("imagenet", "published"):
            return ""
        return (
            f"The errors of {baseline.name} are those on ImageNet's images, but {suite} used the "
            f"constants {result['constants']!r}: give the evaluation.json of another model."
        )
    found = baseline.results[suite]
    for name in CONDITIONS:
        if found.get(name) != result.get(name):
            return (
                f"{suite} of {baseline.name} has {name}={found.get(name)!r}, but here it is "
                f"{result.get(name)!r}: evaluate both models with the same settings."
            )
    return ""


def _compare_corruptions(folder, result, baseline):
    errors, other = result["errors"], baseline.results["corruptions"]
    common = [name for name in errors if name in other["errors"]]
    if not common:
        return {"compared": []}
    complete = [name for name in common if name in BENCHMARK]
    names = complete if set(complete) == set(BENCHMARK) else common
    other_folder = baseline.folders.get("corruptions")
    compared = {
        "compared": names,
        **_corruption_errors(folder, result, other, names, other_folder),
    }
    if set(names) != set(BENCHMARK):
        compared["mce_note"] = (
            f"The mCE is of {len(names)} corruptions, not of the {len(BENCHMARK)} of the benchmark."
        )
    if set(common) == set(CORRUPTIONS):
        of_all = _corruption_errors(folder, result, other, common, other_folder)
        compared |= {f"{name}_of_19": of_all[name] for name in ("mce", "relative_mce")}
    return compared


def _corruption_errors(folder, result, other, names, other_folder):
    """The mCE and relative mCE of some corruptions, with intervals."""
    mce = robustness.corruption_error(result["errors"], other["errors"], names)
    model = _Resampled.read(folder, names)
    baseline = _Resampled.read_same_images(other_folder, names, folder) or _Resampled.constant(
        other, names
    )

    def interval(are_relative):
        columns = np.concatenate(
            [part.values for part in (model, baseline) if part.values is not None], axis=1
        )

        def statistic(means):
            ours, theirs = means, means[:, model.values.shape[1] :]
            return robustness.mean_corruption_error(
                model.errors(ours),
                baseline.errors(theirs),
                *((model.clean(ours), baseline.clean(theirs)) if are_relative else ()),
            )

        return list(bootstrap.bootstrap_interval(columns, statistic))

    compared = {
        "mce": mce.mean,
        "mce_interval": interval(are_relative=False),
        "corruption_error": mce.percent,
        "denominator": mce.denominators,
    }
    if None in (result["clean_error"], other["clean_error"]):
        return {**compared, "relative_mce": None}
    relative = robustness.relative_corruption_error(
        result["errors"], result["clean_error"], other["errors"], other["clean_error"], names
    )
    has_clean = model.has_clean and baseline.has_clean
    return compared | {
        "relative_mce": relative.mean,
        # It is not known which clean image of published files is which.
        "relative_mce_interval": interval(are_relative=True) if has_clean else [None, None],
        "relative_corruption_error": relative.percent,
        "relative_denominator": relative.denominators,
    }


@dataclasses.dataclass(frozen=True)
class _Resampled:
    """A model's errors in bootstrap resamples, or the constants of a baseline.

    Attributes:
        names: corruptions.
        values: bool (n, 1 + conditions): which images are misclassified, the clean ones first; or
            without the clean ones; None: constants.
        has_clean: whether the clean errors are known.
        constants: (clean error, float array (corruptions, severities)), of constants.
    """

    names: list[str]
    values: np.ndarray | None
    has_clean: bool
    constants: tuple[float | None, np.ndarray] | None = None

    @classmethod
    def read(cls, folder, names):
        """The errors in the files of a folder."""
        clean, wrong = corruptions.read_wrong(folder, names)
        if clean is None:
            return cls(names, wrong, False)
        return cls(names, np.concatenate([clean[:, np.newaxis], wrong], axis=1), True)

    @classmethod
    def read_same_images(cls, folder, names, other):
        """The errors in the files of a folder; None if they are missing or of other images."""
        first = f"{names[0]}-1.parquet"
        if folder is None or not (folder / first).exists():
            return None
        if read_condition(folder / first).ids != read_condition(other / first).ids:
            return None
        return cls.read(folder, names)

    @classmethod
    def constant(cls, result, names):
        """Errors that are not resampled."""
        errors = np.array([result["errors"][name] for name in names])
        clean_error = result["clean_error"]
        return cls(names, None, clean_error is not None, (clean_error, errors))

    def errors(self, means):
        """Errors (..., corruptions, severities), from the means of all columns from `values` on."""
        if self.values is None:
            return self.constants[1]
        first, count = int(self.has_clean), len(self.names) * len(SEVERITIES)
        return means[:, first : first + count].reshape(len(means), len(self.names), -1)

    def clean(self, means):
        """Clean errors, likewise."""
        return self.constants[0] if self.values is None else means[:, 0]


def _compare_perturbations(folder, result, baseline):
    other = baseline.results["perturbations"]
    other_folder = baseline.folders.get("perturbations")
    compared = {}
    for name, (metric, relate) in _FLIP_RATES.items():
        reference = other.get(metric, {})
        common = {key: value for key, value in result[metric].items() if key in reference}
        if common:
            rate = relate(common, reference)
            compared |= {
                name: rate.mean,
                f"{name}_interval": _flip_rate_interval(folder, other_folder, metric, rate),
                f"{name}_rates": rate.percent,
                f"{name}_denominator": rate.denominators,
            }
    return compared


# The relative values of perturbations, and the metrics that they are means of ratios of.
_FLIP_RATES = {
    "mfr": ("flip_probability", robustness.mean_flip_rate),
    "mfr_against_first": ("flip_probability_against_first", robustness.mean_flip_rate),
    "mt5d": ("top5_distance", robustness.mean_top5_rate),
}


def _flip_rate_interval(folder, other_folder, metric, rate):
    """The 95 % interval of `rate.mean`."""
    names = list(rate.percent)
    ids, values = perturbations.read_values(folder, names, metric)
    others = _read_same_flips(other_folder, names, metric, ids)
    if others is None:
        constants = np.array(list(rate.denominators.values()))
        columns, baseline = values, lambda means: constants
    else:
        columns, baseline = np.hstack([values, others]), lambda means: means[:, len(names) :]

    def statistic(means):
        return robustness.percentages(means[:, : len(names)], baseline(means)).mean(axis=1)

    return list(bootstrap.bootstrap_interval(columns, statistic))


def _read_same_flips(folder, names, metric, ids):
    """`perturbations.read_values` of a baseline; None if its files are missing or of other ids."""
    if folder is None or not set(names) <= set(perturbations.names_in(folder)):
        return None
    other_ids, values = perturbations.read_values(folder, names, metric)
    return values if other_ids == ids else None


_COMPARISONS = {"corruptions": _compare_corruptions, "perturbations": _compare_perturbations}


def paired_differences(suite: str, folder: Path, other: Path) -> dict[str, Any]:
    """How a model differs from another one on the same images, with 95 % intervals.

    Args:
        suite: name of the suite.
        folder: where the suite wrote the files of the model.
        other: the same of the other model.

    Returns:
        dict of `mean`, `lower` and `upper`: of the mean accuracy over all corruptions, or of the
        mean flip probability (less is better); empty for other suites, and if the models were
        evaluated on other images.
    """
    if suite not in _VALUES_OF_IMAGES:
        return {}
    ids, values = _VALUES_OF_IMAGES[suite](folder)
    other_ids, other_values = _VALUES_OF_IMAGES[suite](other)
    if ids != other_ids:
        return {}
    differences = values - other_values
    lower, upper = bootstrap.bootstrap_interval(differences)
    return {"mean": float(differences.mean()), "lower": lower, "upper": upper}


def _accuracies(folder):
    """Ids, and the share of conditions in which each image is classified correctly."""
    names = corruptions.names_in(folder)
    ids = read_condition(folder / f"{names[0]}-1.parquet").ids
    return ids, 1 - corruptions.read_wrong(folder, names)[1].mean(axis=1)


def _flips(folder):
    """Ids, and each image's share of flips."""
    ids, shares = perturbations.read_flip_shares(folder, perturbations.names_in(folder))
    return ids, shares.mean(axis=1)


_VALUES_OF_IMAGES = {"corruptions": _accuracies, "perturbations": _flips}
