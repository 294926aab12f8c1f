"""Published sets of corrupted or perturbed images, instead of those that the suites make."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nsk.errors import UserError
from nsk.evaluation.class_folders import match_classes
from nsk.evaluation.corruption_files import CorruptionFiles, open_corruption_files
from nsk.evaluation.corruptions import CORRUPTIONS
from nsk.evaluation.image_files import Batch, Decode, make_batch
from nsk.evaluation.perturbation_files import open_npy
from nsk.evaluation.perturbations import PERTURBATIONS
from nsk.evaluation.suites.conditions import choose_rows


class PublishedCorruptions:
    """The images of a published set with the model's labels.

    Attributes:
        names: the corruptions, in the published order.
        labels: int64 (n,), the model's classes of all images.

    Args:
        folder: of the set.
        chosen: names of corruptions, which the set must have; or "benchmark" or "all", of which
            those are taken that it has.
        wanted: the names that this stands for, in the published order.
        class_names: names of the model's classes; empty: unknown.
        number: size of a random subset; 0: all images.
        seed: of the subset.

    Raises:
        UserError: the set cannot be read, or does not have these corruptions, classes or images.
    """

    def __init__(
        self,
        folder: Path,
        chosen: Sequence[str],
        wanted: Sequence[str],
        class_names: Sequence[str],
        number: int,
        seed: int,
    ):
        self._files = files = open_corruption_files(folder, len(class_names) or None)
        explicit = [name for name in chosen if name in CORRUPTIONS]
        self.names = [name for name in wanted if name in files.names or name in explicit]
        if not self.names:
            raise UserError(
                f"{folder} has none of the corruptions {', '.join(wanted)}: choose of "
                f"{', '.join(files.names)} with --corruptions."
            )
        for name in self.names:
            files.check(name)
        self._classes = _classes_of(files, class_names)
        self.labels = files.labels if self._classes is None else self._classes[files.labels]
        self._rows = choose_rows(files.ids, number, seed, folder) if number else None

    def batches(
        self, name: str, severity: int, batch_size: int, side: int, decode: Decode | None
    ) -> Iterable[Batch]:
        """The images of a condition, as squares of `side` pixels, see `CorruptionFiles.batches`."""
        if self._files.class_folders is None and self._files.image_shape == (side, side):
            decode = None
        elif decode is None:
            raise UserError(
                f"{self._files.folder} has images of {self._files.image_shape} pixels: expected "
                f"those of the model, ({side}, {side}). Evaluate a model of that size."
            )
        return self._files.batches(name, severity, batch_size, decode, self._classes, self._rows)

    def compare_labels(self, labels: np.ndarray) -> str:
        """Why clean images with these labels, int (m,), are other ones than the set's, or "".

        Their order is not known, so only the number of images of each class is compared.
        """
        if len(labels) != len(self.labels):
            return f"{len(labels)} test images, but {len(self.labels)} in {self._files.folder.name}"
        if (np.sort(labels) != np.sort(self.labels)).any():
            return f"other numbers of test images in each class than {self._files.folder.name}"
        return ""


def _classes_of(files: CorruptionFiles, class_names: Sequence[str]) -> np.ndarray | None:
    if files.class_folders is None:
        return None
    return match_classes(files.class_folders, class_names, len(class_names), files.folder)


def open_perturbations(
    folder: Path, chosen: Sequence[str], constants: str, side: int
) -> dict[str, np.ndarray]:
    """Opens NAME.npy of perturbation sets.

    Args:
        folder: in the layout of CIFAR-10-P.
        chosen: names of sets, which the folder must have; or "all": those that it has.
        constants: "cifar", "tiny" or "imagenet", on which the number of frames depends.
        side: of the model's images, pixels.

    Returns:
        dict from names, in the published order, to uint8 (images, frames, side, side, 3), which are
        memory-mapped.

    Raises:
        UserError: there are none, or they have other numbers of images, frames or pixels.
    """
    names = [
        name
        for name in PERTURBATIONS
        if name in chosen or ("all" in chosen and (folder / f"{name}.npy").exists())
    ]
    if not names:
        raise UserError(
            f"{folder} has no perturbations: expected files such as {next(iter(PERTURBATIONS))}"
            ".npy."
        )
    arrays = {name: open_npy(folder / f"{name}.npy") for name in names}
    num_images = len(arrays[names[0]])
    for name, array in arrays.items():
        expected = (num_images, PERTURBATIONS[name].num_frames(constants), side, side, 3)
        if array.shape != expected:
            raise UserError(
                f"{folder / name}.npy has the shape {array.shape}: expected {expected}, of the "
                f"images in {names[0]}.npy, the frames of --corruption_constants={constants} and "
                "the pixels of the model."
            )
    return arrays


def frame_batches(
    array: np.ndarray, batch_size: int, number: int, seed: int, folder: Path
) -> Iterator[Batch]:
    """Reads frames of a set, or of a random subset of its images.

    Args:
        array: uint8 (n, frames, height, width, 3).
        batch_size: largest number of images in a batch.
        number: size of the subset; 0: all images.
        seed: of the subset.
        folder: of the set, for messages.

    Yields:
        dicts `id` bytes (batch,), row numbers, `label` int64 (batch,), all -1: unknown, and `image`
        uint8 (batch, frames, height, width, 3).

    Raises:
        UserError: the subset is larger than the set.
    """
    ids = [f"{row:05d}" for row in range(len(array))]
    rows = choose_rows(ids, number, seed, folder) if number else np.arange(len(array))
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        yield make_batch([ids[row] for row in part], [-1] * len(part), array[part])
