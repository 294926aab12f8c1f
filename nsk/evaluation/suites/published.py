"""Published sets of corrupted images, instead of those that the suite makes."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from nsk.errors import UserError, list_names
from nsk.evaluation.class_folders import match_classes
from nsk.evaluation.corruption_files import CorruptionFiles, open_corruption_files
from nsk.evaluation.corruptions import CORRUPTIONS
from nsk.evaluation.image_files import Batch, Decode
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
                f"{list_names(files.names)} with --corruptions."
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
