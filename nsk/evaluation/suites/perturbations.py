"""The suite `perturbations`: how often predictions flip, as on CIFAR-10-P and ImageNet-P."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsk.evaluation import bootstrap, robustness
from nsk.evaluation import perturbations as library
from nsk.evaluation.corruptions import choose_constants
from nsk.evaluation.image_files import Batch
from nsk.evaluation.prediction_files import read_classes, write_classes
from nsk.evaluation.predictor import Predictor
from nsk.evaluation.suites.conditions import (
    ChosenImages,
    ids_of,
    transform_batches,
    write_missing,
)
from nsk.evaluation.suites.published import frame_batches, open_perturbations
from nsk.evaluation.suites.suite import SplitImages

TOP_CLASSES = 5
MAX_BYTES_OF_FRAMES, MAX_FRAMES = 2**28, 41  # Of the frames of a batch.


def evaluate(
    predictor: Predictor,
    splits: Mapping[str, SplitImages],
    folder: Path,
    *,
    perturbations: Sequence[str],
    corruption_constants: str,
    perturbation_files: str,
    evaluation_images: int,
    evaluation_seed: int,
) -> dict[str, Any]:
    """Measures how stable the predictions of slightly changed test images are.

    Writes `NAME.parquet`: for every image its id, true label and the most probable classes of every
    frame.

    Args:
        predictor: makes the predictions of the model.
        splits: the clean images.
        folder: where files are written.
        perturbations: names of sets, or "all".
        corruption_constants: see `perturbations.perturb`.
        perturbation_files: folder of a published set, of whose images no labels are known, nor are
            they needed; "": the test images are perturbed here.
        evaluation_images: size of the random subset; 0: all images.
        evaluation_seed: of the subset and of the perturbations.

    Returns:
        `mean_flip_probability` and its 95 % interval, `flip_probability`,
        `flip_probability_against_first` and `top5_distance` by set, `images`.
    """
    side = predictor.model.input_shape[1]
    constants = choose_constants((side, side), corruption_constants)
    subset = (evaluation_images, evaluation_seed)
    if perturbation_files:
        path = Path(perturbation_files)
        arrays = open_perturbations(path, perturbations, constants, side)
        names, source = list(arrays), path.resolve().name

        def frames_of(name):
            size = max(1, MAX_BYTES_OF_FRAMES // arrays[name][0].nbytes)
            return frame_batches(arrays[name], min(size, predictor.batch_size), *subset, path)
    else:
        names = [name for name in library.PERTURBATIONS if {name, "all"} & set(perturbations)]
        images, source = ChosenImages(splits["test"], *subset), "generated"

        def frames_of(name):
            options = {"seed": evaluation_seed, "constants": corruption_constants}
            perturb = functools.partial(_perturb, name, options)
            return transform_batches(_small_batches(images), perturb)

    def write(name, path):
        write_classes(path, *_predict(predictor, frames_of(name)))

    paths = {folder / f"{name}.parquet": functools.partial(write, name) for name in names}
    write_missing("perturbations", "sets", paths)
    return {
        **measure(folder, names),
        "constants": constants,
        "seed": evaluation_seed,
        "image_size": side,
        "source": source,
    }


def _perturb(name, options, images, ids):
    """All frames of images, uint8 (n, frames, height, width, 3)."""
    return np.stack(list(library.perturb(images, name, ids, **options)), axis=1)


def _small_batches(images: Iterable[Batch]) -> Iterator[Batch]:
    """Batches so small that all of their frames fit in memory."""
    for batch in images:
        pixels = batch["image"]
        size = max(1, MAX_BYTES_OF_FRAMES // (MAX_FRAMES * pixels[0].nbytes))
        for start in range(0, len(pixels), size):
            yield {name: values[start : start + size] for name, values in batch.items()}


def _predict(
    predictor: Predictor, batches: Iterable[Batch]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Ids, true labels (n,) and the most probable classes of every frame, int32 (n, frames, k)."""
    ids, labels, classes = [], [], []
    for batch in batches:
        count, num_frames, *shape = batch["image"].shape
        pixels = batch["image"].reshape(count * num_frames, *shape)
        log_probabilities = np.concatenate(
            [
                predictor.log_probabilities(pixels[start : start + predictor.batch_size])
                for start in range(0, len(pixels), predictor.batch_size)
            ]
        )
        # A stable sort: ties go to the first class, as in argmax.
        order = np.argsort(-log_probabilities, axis=1, kind="stable")[:, :TOP_CLASSES]
        classes.append(order.astype(np.int32).reshape(count, num_frames, -1))
        labels.append(batch["label"])
        ids += ids_of(batch)
    return ids, np.concatenate(labels), np.concatenate(classes)


def names_in(folder: Path) -> list[str]:
    """Names of the perturbation sets in a folder, in the published order."""
    return [name for name in library.PERTURBATIONS if (folder / f"{name}.parquet").exists()]


def read_flip_shares(folder: Path, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Ids of the images, and their share of flips in each set, float64 (n, sets)."""
    ids, columns = None, []
    for name in names:
        found, classes = read_classes(folder / f"{name}.parquet")
        ids = found if ids is None else ids
        if found != ids:
            raise ValueError(f"{name} in {folder} has other images than the first set.")
        columns.append(robustness.flip_shares(classes[..., 0], is_noise(name)))
    return ids, np.stack(columns, axis=1)


def is_noise(name: str) -> bool:
    """Whether the frames of a set are compared with the first one."""
    return library.PERTURBATIONS[name].is_noise


def measure(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """The flip probabilities in the files of a folder."""
    against_first, distances = {}, {}
    for name in names:
        _, classes = read_classes(folder / f"{name}.parquet")
        against_first[name] = robustness.flip_probability_against_first(classes[..., 0])
        if classes.shape[-1] == TOP_CLASSES:
            distances[name] = robustness.top5_distance(classes, is_noise(name))
    ids, shares = read_flip_shares(folder, names)
    return {
        "mean_flip_probability": float(shares.mean()),
        "mean_flip_probability_interval": list(bootstrap.bootstrap_interval(shares)),
        "flip_probability": dict(zip(names, shares.mean(axis=0).tolist(), strict=True)),
        "flip_probability_against_first": against_first,
        "top5_distance": distances,
        "images": len(ids),
    }
