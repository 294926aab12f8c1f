"""Other test sets of the same classes: ImageNet-A, -R, -V2 and -Sketch, CIFAR-10.1, a user's own.

Two layouts are read:

- a folder of class folders. Its classes may be a part of the model's: ImageNet-A and ImageNet-R
  have 200 of the 1,000, which are not the same ones. ImageNet-V2's folders are numbers, "0" to
  "999".
- two arrays, images uint8 (images, height, width, 3) and labels: CIFAR-10.1's
  `cifar10.1_v6_data.npy` and `cifar10.1_v6_labels.npy`, or `images.npy` and `labels.npy`.

Reference:
    [Hendrycks et al., 2021](https://arxiv.org/abs/1907.07174) (A),
    [Hendrycks et al., 2021](https://arxiv.org/abs/2006.16241) (R),
    [Recht et al., 2019](https://arxiv.org/abs/1902.10811) (V2, CIFAR-10.1),
    [Wang et al., 2019](https://arxiv.org/abs/1905.13549) (Sketch)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.special

from nsk.errors import UserError, list_names
from nsk.evaluation.class_folders import (
    describe_content,
    list_class_folders,
    match_classes,
)
from nsk.evaluation.image_files import (
    Batch,
    Decode,
    array_batches,
    decode_files,
    make_batch,
    open_images,
    read_labels,
)

# Ends of the names of files with images, and of those with their labels.
PAIRS = (("_data.npy", "_labels.npy"), ("images.npy", "labels.npy"))


class NaturalSet:
    """A test set.

    Attributes:
        path: where it is.
        class_names: names of the class folders, integers in numerical order; None for arrays,
            whose labels are the indices of the model's classes.
        labels: int64 (n,), indices of `class_names`, or of the model's classes.
        skipped: number of files that are not read: those of operating systems, hidden ones, and
            what is not an image.
        unreadable: (id, reason) of the images that could not be decoded, after `batches` has been
            iterated.
    """

    def __init__(self, path: Path, class_names: list[str] | None, labels: np.ndarray):
        self.path, self.class_names, self.labels = path, class_names, labels
        self.skipped = 0
        self.unreadable: list[tuple[str, str]] = []

    @property
    def num_images(self) -> int:
        """Number of images, readable or not."""
        return len(self.labels)

    @property
    def ids(self) -> list[str]:
        """Ids of the images: "CLASS/NAME" or row numbers."""
        raise NotImplementedError

    def batches(self, batch_size: int, decode: Decode) -> Iterator[Batch]:
        """Reads the images; those that cannot be decoded are left out and noted in `unreadable`.

        Args:
            batch_size: largest number of images in a batch.
            decode: function of an encoded image that returns uint8 (side, side, 3) and raises a
                ValueError if it cannot. Arrays are decoded as PNG files.

        Yields:
            dicts `id` bytes (batch,), `label` int64 (batch,), see `labels`, and `image` uint8
            (batch, side, side, 3).
        """
        raise NotImplementedError


class _FolderSet(NaturalSet):
    def __init__(self, path: Path):
        found = list_class_folders(path)
        labels = np.array([file.label for file in found.files], np.int64)
        super().__init__(path, found.names, labels)
        self._files, self.skipped = found.files, found.skipped

    @property
    def ids(self) -> list[str]:
        return [file.id for file in self._files]

    def batches(self, batch_size: int, decode: Decode) -> Iterator[Batch]:
        self.unreadable = []
        for batch in decode_files(self._files, decode, batch_size):
            readable = [row for row in batch if not isinstance(row[1], str)]
            self.unreadable += [(file.id, image) for file, image in batch if isinstance(image, str)]
            if readable:
                files, images = zip(*readable, strict=True)
                ids, labels = [file.id for file in files], [file.label for file in files]
                yield make_batch(ids, labels, np.stack(images))


class _ArraySet(NaturalSet):
    def __init__(self, path: Path, labels_path: Path):
        self._images = open_images(path)
        super().__init__(path, None, read_labels(labels_path))
        if len(self._images) != self.num_images:
            raise UserError(
                f"{path} has {len(self._images)} images, but {labels_path.name} has "
                f"{self.num_images} labels: expected one for each image."
            )

    @property
    def ids(self) -> list[str]:
        return [f"{row:05d}" for row in range(self.num_images)]

    def batches(self, batch_size: int, decode: Decode) -> Iterator[Batch]:
        return array_batches(self.ids, self.labels, self._images, batch_size, decode)


def open_natural_set(path: str | Path) -> NaturalSet:
    """Opens a test set without reading its images.

    Args:
        path: a folder of class folders, a folder with one pair of arrays, or the array of images.

    Raises:
        UserError: there is none, or there are several pairs of arrays.
    """
    path = Path(path)
    if path.is_file():
        return _ArraySet(path, _labels_path(path))
    if not path.is_dir():
        raise UserError(
            f"{path} does not exist: give a folder of class folders, or of two .npy files."
        )
    data_files = [file for file in sorted(path.glob("*.npy")) if _matching_pair(file) is not None]
    if len(data_files) > 1:
        raise UserError(
            f"{path} has several sets: {list_names([file.name for file in data_files])}: give the "
            "path of one of these files."
        )
    if data_files:
        return _ArraySet(data_files[0], _labels_path(data_files[0]))
    if any(path.glob("*.npy")):
        raise UserError(
            f"{path} holds {describe_content(path)}: expected NAME_data.npy and NAME_labels.npy, "
            "or images.npy and labels.npy."
        )
    return _FolderSet(path)


def _matching_pair(path):
    """The pair of `PAIRS` whose images a file holds, by its name; None if it holds none."""
    (first, second) = PAIRS
    if path.name.endswith(first[0]):
        return first
    return second if path.name == second[0] else None


def _labels_path(path):
    """Where the labels of an array of images are."""
    pair = _matching_pair(path)
    if pair is None:
        raise UserError(f"{path} is not named NAME_data.npy or images.npy: rename it, or its set.")
    return path.with_name(path.name.removesuffix(pair[0]) + pair[1])


def map_classes(
    natural_set: NaturalSet, model_class_names: Sequence[str], num_classes: int
) -> np.ndarray:
    """Finds the model's class of each class of a set.

    For names of class folders see `match_classes`.

    Args:
        natural_set: the set.
        model_class_names: names of the model's classes; empty if they are unknown.
        num_classes: number of the model's classes.

    Returns:
        int64 array (set classes,), what a label of the set becomes. For arrays (num_classes,), each
        label itself.

    Raises:
        UserError: a class is not one of the model's.
    """
    if natural_set.class_names is None:
        largest = int(natural_set.labels.max())
        if largest >= num_classes:
            raise UserError(
                f"{natural_set.path} has the label {largest}: expected 0 to {num_classes - 1}, the "
                "classes of the model. Choose a set with the model's classes."
            )
        return np.arange(num_classes)
    return match_classes(natural_set.class_names, model_class_names, num_classes, natural_set.path)


def restrict(log_probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Probabilities given that the class is one of some classes.

    Args:
        log_probabilities: float (n, num_classes), natural logarithms.
        classes: int (k,), the classes.

    Returns:
        float array (n, k), natural logarithms of probabilities that add up to 1.
    """
    chosen = log_probabilities[:, classes]
    return chosen - scipy.special.logsumexp(chosen, axis=1, keepdims=True)
