"""The suite `perturbations`: how often predictions flip, as on CIFAR-10-P and ImageNet-P."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nsk.evaluation import perturbations as library
from nsk.evaluation import robustness
from nsk.evaluation.corruptions import choose_constants
from nsk.evaluation.prediction_files import read_table
from nsk.evaluation.predictor import Predictor
from nsk.evaluation.suites.conditions import Batch, ChosenImages, transform_batches
from nsk.evaluation.suites.published import frame_batches, open_perturbations
from nsk.evaluation.suites.suite import SplitImages
from nsk.progress import Progress
from nsk.store.files import atomic_write

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

    progress = Progress("perturbations", len(names), "sets")
    for index, name in enumerate(names):
        path = folder / f"{name}.parquet"
        if not path.exists():
            _write(path, *_predict(predictor, frames_of(name)))
        progress.update(index + 1)
    progress.close()
    return {
        **measure(folder, names),
        "constants": constants,
        "seed": evaluation_seed,
        "image_size": predictor.model.input_shape[1],
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
        ids += [id.decode() for id in batch["id"]]
    return ids, np.concatenate(labels), np.concatenate(classes)


def _write(path: Path, ids: list[str], labels: np.ndarray, classes: np.ndarray) -> None:
    """Writes the predictions of all frames of a set."""
    _, num_frames, num_classes = classes.shape
    per_frame = pa.FixedSizeListArray.from_arrays(pa.array(classes.ravel()), num_classes)
    table = {
        "id": pa.array(ids, pa.string()),
        "truth": pa.array(labels, pa.int32()),
        "classes": pa.FixedSizeListArray.from_arrays(per_frame, num_frames),
    }
    with atomic_write(path) as unfinished:
        pq.write_table(pa.table(table), unfinished, compression="zstd")


def read_classes(path: Path) -> np.ndarray:
    """The most probable classes of every frame in a set's file, int32 (n, frames, k)."""
    column = read_table(path, ["classes"])["classes"].combine_chunks()
    frames, classes = column.type.list_size, column.type.value_type.list_size
    return column.flatten().flatten().to_numpy().reshape(-1, frames, classes)


def names_in(folder: Path) -> list[str]:
    """Names of the perturbation sets in a folder, in the published order."""
    return [name for name in library.PERTURBATIONS if (folder / f"{name}.parquet").exists()]


def read_flip_shares(folder: Path, names: Sequence[str]) -> np.ndarray:
    """Share of flips of every image in each set, float64 (n, sets)."""
    columns = []
    for name in names:
        predictions = read_classes(folder / f"{name}.parquet")[..., 0]
        is_noise = library.PERTURBATIONS[name].is_noise
        columns.append(robustness.flip_shares(predictions, is_noise))
    return np.stack(columns, axis=1)


def measure(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """The flip probabilities in the files of a folder."""
    against_first, distances = {}, {}
    for name in names:
        classes = read_classes(folder / f"{name}.parquet")
        against_first[name] = robustness.flip_probability_against_first(classes[..., 0])
        if classes.shape[-1] == TOP_CLASSES:
            is_noise = library.PERTURBATIONS[name].is_noise
            distances[name] = robustness.top5_distance(classes, is_noise)
    shares = read_flip_shares(folder, names)
    return {
        "mean_flip_probability": float(shares.mean()),
        "mean_flip_probability_interval": list(robustness.bootstrap_interval(shares)),
        "flip_probability": dict(zip(names, shares.mean(axis=0).tolist(), strict=True)),
        "flip_probability_against_first": against_first,
        "top5_distance": distances,
        "images": len(shares),
    }
