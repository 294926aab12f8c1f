"""The suite `corruptions`: errors on corrupted images, as on CIFAR-10-C and ImageNet-C."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsk.evaluation import corruptions as library
from nsk.evaluation import robustness
from nsk.evaluation.predictor import Predictor
from nsk.evaluation.suites.conditions import (
    ChosenImages,
    predict_condition,
    read_condition,
    transform_batches,
)
from nsk.evaluation.suites.suite import SplitImages
from nsk.progress import Progress

SEVERITIES = range(1, 6)
CLEAN = "clean"


def evaluate(  # noqa: PLR0913 (keyword arguments only)
    predictor: Predictor,
    splits: Mapping[str, SplitImages],
    folder: Path,
    *,
    corruptions: Sequence[str],
    corruption_constants: str,
    corruption_files: str,
    frost_textures: str,
    evaluation_images: int,
    evaluation_seed: int,
) -> dict[str, Any]:
    """Measures the errors on corrupted test images.

    Writes `clean.parquet` and `NAME-SEVERITY.parquet`, every image's predictions.

    Args:
        predictor: makes the predictions of the model.
        splits: the clean images.
        folder: where files are written.
        corruptions: names, or "benchmark" or "all".
        corruption_constants: see `corruptions.corrupt`.
        corruption_files: folder of a published set; "": the test images are corrupted here.
        frost_textures: folder of photographs; "": a procedural texture.
        evaluation_images: size of the random subset; 0: all images.
        evaluation_seed: of the subset and of the corruptions.

    Returns:
        `clean_error` and `mean_error`, its 95 % interval `mean_error_interval`; `errors` by
        corruption and severity; `images`, and what the images are (`source`, `constants`, `frost`).
    """
    names = names_of(corruptions)
    images = ChosenImages(splits["test"], evaluation_images, evaluation_seed)
    clean = predict_condition(predictor, lambda: images, folder / f"{CLEAN}.parquet")
    textures = library.read_textures(Path(frost_textures)) if frost_textures else None
    side = predictor.model.input_shape[1]
    progress = Progress("corruptions", len(names) * len(SEVERITIES), "conditions")
    for index, (name, severity) in enumerate(conditions(names)):
        corrupt = functools.partial(
            _corrupt, name, severity, evaluation_seed, corruption_constants, textures
        )
        predict_condition(
            predictor,
            lambda corrupt=corrupt: transform_batches(images, corrupt),
            folder / f"{name}-{severity}.parquet",
        )
        progress.update(index + 1)
    progress.close()
    return {
        **measure(folder, names),
        "images": len(clean.ids),
        "seed": evaluation_seed,
        "source": "generated",
        "constants": library.choose_constants((side, side), corruption_constants),
        "frost": "photographs" if frost_textures else "procedural texture",
    }


def names_of(chosen):
    """Names of corruptions in the published order."""
    groups = {"benchmark": library.BENCHMARK, "all": tuple(library.CORRUPTIONS)}
    wanted = {name for part in chosen for name in groups.get(part, (part,))}
    return [name for name in library.CORRUPTIONS if name in wanted]


def names_in(folder: Path) -> list[str]:
    """Names of the corruptions in a folder, in the published order."""
    return [name for name in library.CORRUPTIONS if (folder / f"{name}-1.parquet").exists()]


def conditions(names: Sequence[str]) -> list[tuple[str, int]]:
    """(name, severity) of all conditions, in order."""
    return [(name, severity) for name in names for severity in SEVERITIES]


def _corrupt(name, severity, seed, constants, textures, images, ids):
    return library.corrupt(
        images, name, severity, ids, seed=seed, constants=constants, textures=textures
    )


def measure(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """The errors in the files of a folder."""
    clean, wrong = read_wrong(folder, names)
    errors = wrong.mean(axis=0).reshape(len(names), len(SEVERITIES))
    interval = robustness.bootstrap_interval(wrong)
    return {
        "clean_error": float(clean.mean()),
        "mean_error": float(errors.mean()),
        "mean_error_interval": list(interval),
        "errors": {name: row.tolist() for name, row in zip(names, errors, strict=True)},
    }


def read_wrong(folder: Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which predictions are wrong.

    Returns:
        bool (n,) of the clean images; bool (n, conditions), in the order of `conditions`.
    """
    clean = read_condition(folder / f"{CLEAN}.parquet")
    columns = []
    for name, severity in conditions(names):
        condition = read_condition(folder / f"{name}-{severity}.parquet")
        if condition.ids != clean.ids:
            raise ValueError(f"{name}-{severity} in {folder} has other images than {CLEAN}.")
        columns.append(~condition.is_correct)
    return ~clean.is_correct, np.stack(columns, axis=1)
