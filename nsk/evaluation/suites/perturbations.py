"""The suite `perturbations`: how often predictions flip, as on CIFAR-10-P and ImageNet-P."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsk.evaluation import bootstrap, robustness
from nsk.evaluation import perturbations as library
from nsk.evaluation.corruptions import choose_constants
from nsk.evaluation.image_files import Batch
from nsk.evaluation.prediction_files import read_classes, write_classes
from nsk.evaluation.predictor import Predictor
from nsk.evaluation.suites.conditions import ids_of, write_missing
from nsk.evaluation.suites.frames import GeneratedFrames, PublishedFrames, Subset
from nsk.evaluation.suites.suite import SplitImages

TOP_CLASSES = 5


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the suite.

    Attributes:
        perturbations: names of sets, or "all".
        corruption_constants: see `perturbations.perturb`.
        perturbation_files: folder of a published set, of whose images no labels are known, nor are
            they needed; "": the test images are perturbed here.
        evaluation_images: size of the random subset; 0: all images.
        evaluation_seed: of the subset and of the perturbations.
        decode_uncropped: for the test images with ImageNet's constants, see `GeneratedFrames`.
        resize: for a published set, see `PublishedFrames`.
    """

    perturbations: Sequence[str]
    corruption_constants: str
    perturbation_files: str
    evaluation_images: int
    evaluation_seed: int
    decode_uncropped: Callable[[bytes, int], np.ndarray]
    resize: Callable[[np.ndarray], np.ndarray]


def evaluate(
    predictor: Predictor, splits: Mapping[str, SplitImages], folder: Path, options: Options
) -> dict[str, Any]:
    """Measures how stable the predictions of slightly changed test images are.

    Writes `NAME.parquet`: for every image its id, true label and the most probable classes of every
    frame.

    Args:
        predictor: makes the predictions of the model.
        splits: the clean images.
        folder: where files are written.
        options: the settings.

    Returns:
        `mean_flip_probability` and its 95 % interval, `flip_probability`,
        `flip_probability_against_first` and `top5_distance` by set, `images`, and what the images
        are (`source`, `constants`, `image_size`, `seed`); of test images that are cropped to frames
        `uncropped_side`, of a published set `missing`, names of the sets that it lacks.
    """
    side = predictor.model.input_shape[1]
    subset = Subset(options.evaluation_images, options.evaluation_seed)
    common = options.perturbations, options.corruption_constants, side, subset
    if options.perturbation_files:
        frames = PublishedFrames(Path(options.perturbation_files), *common, options.resize)
    else:
        frames = GeneratedFrames(splits["test"], *common, options.decode_uncropped)

    def write(name, path):
        write_classes(path, *_predict(predictor, frames.batches(name)))

    paths = {folder / f"{name}.parquet": functools.partial(write, name) for name in frames.names}
    write_missing("perturbations", "sets", paths)
    return {
        **measure(folder, frames.names),
        "seed": options.evaluation_seed,
        "image_size": side,
        **frames.description,
    }


def variant(image_size: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What results depend on, see `Suite`: the side of images that are cropped to frames.

    Args:
        image_size: side of the model's images, pixels.
        settings: of the suite.
    """
    constants = choose_constants((image_size, image_size), settings["corruption_constants"])
    side = library.uncropped_side(image_size, constants)
    return {} if side is None or settings["perturbation_files"] else {"uncropped_side": side}


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
    return read_values(folder, names, "flip_probability")


def read_values(folder: Path, names: Sequence[str], metric: str) -> tuple[list[str], np.ndarray]:
    """Reads what a metric is the mean of.

    Args:
        folder: of the files.
        names: of the sets.
        metric: a key of `METRICS`.

    Returns:
        Ids of the images, and a value of each image in each set, float64 (n, sets).

    Raises:
        ValueError: the sets are of different images.
    """
    ids, columns = None, []
    for name in names:
        found, classes = read_classes(folder / f"{name}.parquet")
        ids = found if ids is None else ids
        if found != ids:
            raise ValueError(f"{name} in {folder} has other images than the first set.")
        columns.append(METRICS[metric](classes, is_noise(name)))
    return ids, np.stack(columns, axis=1)


def is_noise(name: str) -> bool:
    """Whether the frames of a set are compared with the first one."""
    return library.PERTURBATIONS[name].is_noise


# By metric, the function of the most probable classes of each frame, int (n, frames, k), and of
# whether frames are compared with the first one, that returns a value of each image, float64 (n,).
METRICS: dict[str, Callable[[np.ndarray, bool], np.ndarray]] = {
    "flip_probability": lambda classes, is_noise: robustness.flip_shares(classes[..., 0], is_noise),
    "flip_probability_against_first": lambda classes, is_noise: robustness.flip_shares(
        classes[..., 0], True
    ),
    "top5_distance": robustness.top5_distances,
}


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
