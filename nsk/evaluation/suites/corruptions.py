"""The suite `corruptions`: errors on corrupted images, as on CIFAR-10-C and ImageNet-C."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsk.evaluation import bootstrap
from nsk.evaluation import corruptions as library
from nsk.evaluation.image_files import Batch, Decode
from nsk.evaluation.predictor import Predictor, collect
from nsk.evaluation.suites.conditions import (
    ChosenImages,
    predict_condition,
    read_condition,
    transform_batches,
    write_condition,
    write_missing,
)
from nsk.evaluation.suites.published import PublishedCorruptions
from nsk.evaluation.suites.suite import SplitImages

PROCEDURAL_FROST = "procedural texture"
CLEAN = "clean"
# The clean images beside a published set: it is not known which of its images is which of them.
UNPAIRED = "test"


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the suite.

    Attributes:
        corruptions: names, or "benchmark" or "all".
        corruption_constants: see `corruptions.corrupt`.
        corruption_files: folder of a published set; "": the test images are corrupted here.
        frost_textures: folder of photographs; "": a procedural texture.
        evaluation_images: size of the random subset; 0: all images.
        evaluation_seed: of the subset and of the corruptions.
        class_names: names of the model's classes, for a published set.
        decode: for a published set, function of an encoded image that returns uint8 (side, side,
            3) and raises a ValueError if it cannot.
    """

    corruptions: Sequence[str]
    corruption_constants: str
    corruption_files: str
    frost_textures: str
    evaluation_images: int
    evaluation_seed: int
    class_names: Sequence[str] = ()
    decode: Decode | None = None

    @property
    def subset(self) -> tuple[int, int]:
        """Size and seed of the random subset."""
        return self.evaluation_images, self.evaluation_seed


def evaluate(
    predictor: Predictor, splits: Mapping[str, SplitImages], folder: Path, options: Options
) -> dict[str, Any]:
    """Measures the errors on corrupted test images.

    Writes `clean.parquet` and `NAME-SEVERITY.parquet`, every image's predictions.

    The images of a published set are not known to be in the order of the test images. If these are
    equally many in each class, they are its clean images, in `test.parquet`; else there is no
    `clean_error`.

    Args:
        predictor: makes the predictions of the model.
        splits: the clean images.
        folder: where files are written.
        options: the settings.

    Returns:
        `clean_error` and `mean_error`, its 95 % interval `mean_error_interval`; `errors` by
        corruption and severity; `images`, and what the images are (`source`, `constants`, `frost`);
        `clean_note`, why there is no `clean_error`.
    """
    start = _start_published if options.corruption_files else _start_generated
    names, batches_of, described = start(predictor, splits["test"], folder, options)

    def write(name, severity, path):
        write_condition(path, collect(predictor(batches_of(name, severity))))

    writers = {
        folder / f"{name}-{severity}.parquet": functools.partial(write, name, severity)
        for name, severity in conditions(names)
    }
    write_missing("corruptions", "conditions", writers)
    return {
        **measure(folder, names),
        "seed": options.evaluation_seed,
        "image_size": predictor.model.input_shape[1],
        **described,
    }


def _start_generated(predictor, split, folder, options):
    """Predicts the clean images that are corrupted here.

    Returns:
        Names of the corruptions, function of a name and a severity that returns batches, and what
        the images are.
    """
    names, side = names_of(options.corruptions), predictor.model.input_shape[1]
    images, textures = ChosenImages(split, *options.subset), options.frost_textures
    predict_condition(predictor, lambda: images, folder / f"{CLEAN}.parquet")
    batches_of = functools.partial(
        corrupted_batches,
        images,
        seed=options.evaluation_seed,
        constants=options.corruption_constants,
        textures=library.read_textures(Path(textures)) if textures else None,
    )
    constants = library.choose_constants((side, side), options.corruption_constants)
    described = {"source": "generated", "constants": constants}
    if "frost" in names:
        described["frost"] = "photographs" if textures else PROCEDURAL_FROST
    return names, batches_of, described


def _start_published(predictor, split, folder, options):
    """Opens a published set and predicts its clean images, if they are known.

    Returns:
        As `_start_generated`.
    """
    wanted, path = names_of(options.corruptions), Path(options.corruption_files)
    published = PublishedCorruptions(
        path, options.corruptions, wanted, options.class_names, *options.subset
    )
    batches_of = functools.partial(
        published.batches,
        batch_size=predictor.batch_size,
        side=predictor.model.input_shape[1],
        decode=options.decode,
    )
    described = {
        "source": path.resolve().name,
        "constants": "published",
        "frost": "published",
        "missing": [name for name in wanted if name not in published.names],
        "clean_note": _predict_clean(
            predictor, split, folder, published, options.evaluation_images
        ),
    }
    return published.names, batches_of, described


def corrupted_batches(
    images: Iterable[Batch], name: str, severity: int, **options: Any
) -> Iterator[Batch]:
    """Corrupts batches of images, several at a time.

    Args:
        images: the batches.
        name: of the corruption.
        severity: 1 to 5.
        **options: of `corruptions.corrupt`.
    """
    return transform_batches(
        images, lambda pixels, ids: library.corrupt(pixels, name, severity, ids, **options)
    )


def _predict_clean(predictor, split, folder, published, number):
    """Predicts the clean images of a published set; returns why not, or None."""
    if number:
        return "It is not known which clean images are those of a subset."
    images = ChosenImages(split)
    note = published.compare_labels(np.concatenate([batch["label"] for batch in images]))
    if not note:
        predict_condition(predictor, lambda: images, folder / f"{UNPAIRED}.parquet")
    return note or None


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
    return [(name, severity) for name in names for severity in library.SEVERITIES]


def measure(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """The errors in the files of a folder."""
    clean, wrong = read_wrong(folder, names)
    unpaired = folder / f"{UNPAIRED}.parquet"
    if clean is None and unpaired.exists():
        clean = ~read_condition(unpaired).is_correct
    errors = wrong.mean(axis=0).reshape(len(names), len(library.SEVERITIES))
    interval = bootstrap.bootstrap_interval(wrong)
    first = folder / f"{names[0]}-{library.SEVERITIES[0]}.parquet"
    return {
        "clean_error": None if clean is None else float(clean.mean()),
        "mean_error": float(errors.mean()),
        "mean_error_interval": list(interval),
        "errors": {name: row.tolist() for name, row in zip(names, errors, strict=True)},
        "images": len(wrong),
        "images_digest": read_condition(first).ids_digest,
    }


def read_wrong(folder: Path, names: Sequence[str]) -> tuple[np.ndarray | None, np.ndarray]:
    """Which predictions are wrong.

    Returns:
        bool (n,) of the clean images, None if it is not known which image is which; bool (n,
        conditions), in the order of `conditions`.
    """
    path = folder / f"{CLEAN}.parquet"
    clean = read_condition(path) if path.exists() else None
    ids, columns = None if clean is None else clean.ids, []
    for name, severity in conditions(names):
        condition = read_condition(folder / f"{name}-{severity}.parquet")
        ids = condition.ids if ids is None else ids
        if condition.ids != ids:
            raise ValueError(f"{name}-{severity} in {folder} has other images than the first.")
        columns.append(~condition.is_correct)
    return None if clean is None else ~clean.is_correct, np.stack(columns, axis=1)
