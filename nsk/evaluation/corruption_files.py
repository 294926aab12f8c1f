"""Corrupted images in the published layouts: CIFAR-10-C's .npy files, ImageNet-C's JPEG files.

- `NAME.npy`, uint8 (5 * n, height, width, 3): the n images at severity 1, then at 2 and so on; and
  `labels.npy`, of n or 5 * n integers.
- `NAME/SEVERITY/CLASS/*.JPEG`, or the same below folders of groups, such as `noise/`.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import concurrent.futures
import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nsk.data.image_folders import is_litter
from nsk.errors import UserError, list_names
from nsk.evaluation.class_folders import (
    ClassFolders,
    describe_content,
    find_folder,
    list_class_folders,
)
from nsk.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from nsk.evaluation.image_files import (
    Batch,
    Decode,
    array_batches,
    decode_files,
    make_batch,
    open_images,
    read_labels,
)
from nsk.store.files import UNFINISHED, atomic_write, num_cores, sync_folder

LABELS = "labels.npy"
JPEG_OPTIONS = {"quality": 85, "optimize": True}  # As the published files were written.


@dataclasses.dataclass(frozen=True)
class CorruptionFiles:
    """A published set of corrupted images.

    Attributes:
        folder: its folder.
        names: the corruptions, in the published order.
        ids: of the images, the same for all corruptions and severities: row numbers such as
            "00001", or "CLASS/NAME".
        labels: int64 (n,); with class folders, the indices of their names.
        class_folders: names of the class folders; None for arrays.
    """

    folder: Path
    names: tuple[str, ...]
    ids: list[str]
    labels: np.ndarray
    class_folders: list[str] | None

    @property
    def num_images(self) -> int:
        """Number of images of a corruption at one severity."""
        return len(self.ids)

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(height, width) of the images in arrays; None with class folders."""
        return None if self.class_folders else self._open_array(self.names[0]).shape[1:3]

    def check(self, name: str) -> None:
        """Checks the files of a corruption without reading the images.

        Raises:
            UserError: there is no such corruption, or its images are not those of the first one.
        """
        if name not in self.names:
            raise UserError(
                f"{self.folder} has no corruption {name}: choose of {list_names(self.names)}."
            )
        if self.class_folders is None:
            self._open_array(name)
            return
        for severity in SEVERITIES:
            self._list_files(name, severity)

    def batches(
        self,
        name: str,
        severity: int,
        batch_size: int,
        decode: Decode | None = None,
        classes: np.ndarray | None = None,
        rows: Sequence[int] | None = None,
    ) -> Iterator[Batch]:
        """Reads the images of a corruption.

        Args:
            name: one of `names`.
            severity: 1 to 5.
            batch_size: largest number of images in a batch.
            decode: function of an encoded image that returns uint8 (side, side, 3) and raises a
                ValueError if it cannot; needed for class folders. Arrays are kept as they are
                without it, and otherwise decoded as PNG files.
            classes: int (class folders,), the label of each; None: their indices.
            rows: the images to read, in ascending order; None: all.

        Yields:
            dicts `id` bytes (batch,), `label` int64 (batch,) and `image` uint8 (batch, height,
            width, 3).

        Raises:
            UserError: see `check`; or an image is unreadable.
        """
        rows = np.arange(self.num_images) if rows is None else np.asarray(rows)
        labels = self.labels if classes is None else np.asarray(classes)[self.labels]
        if self.class_folders is None:
            first = (severity - 1) * self.num_images
            images = self._open_array(name)[first : first + self.num_images]
            ids = [self.ids[row] for row in rows]
            images = images if len(rows) == self.num_images else images[rows]
            yield from array_batches(ids, labels[rows], images, batch_size, decode)
            return
        if decode is None:
            raise ValueError("decode=None: expected a function, since the images are encoded.")
        files = self._list_files(name, severity).files
        files = [files[row] for row in rows]
        for batch in decode_files(files, decode, batch_size):
            for file, image in batch:
                if isinstance(image, str):
                    raise UserError(
                        f"{file.path} is not a readable image ({image}): download it again."
                    )
            images = np.stack([image for _, image in batch])
            ids, indices = [file.id for file, _ in batch], [file.label for file, _ in batch]
            yield make_batch(
                ids, indices if classes is None else np.asarray(classes)[indices], images
            )

    def _open_array(self, name):
        array = open_images(self.folder / f"{name}.npy")
        _count_images(self.folder / f"{name}.npy", array)
        if len(array) != len(SEVERITIES) * self.num_images:
            raise UserError(
                f"{self.folder / name}.npy has {len(array)} images, but {self.names[0]}.npy has "
                f"{len(SEVERITIES) * self.num_images}: expected the same images in all files."
            )
        return array

    def _list_files(self, name, severity):
        folder = find_folder(self.folder, name) / str(severity)
        found = list_class_folders(folder)
        ids = [file.id for file in found.files]
        if ids != self.ids:
            other, own = set(ids) - set(self.ids), set(self.ids) - set(ids)
            raise UserError(
                f"{folder} has other images than {self.names[0]}/1: {len(other)} more and "
                f"{len(own)} fewer, such as {min(other or own)}: expected the same in all folders."
            )
        return found


def open_corruption_files(folder: str | Path, num_classes: int | None = None) -> CorruptionFiles:
    """Finds the corruptions in a folder, and the labels of their images.

    Args:
        folder: in one of the two layouts.
        num_classes: number of classes of the model; None: any.

    Raises:
        UserError: it is not such a folder; a file has another shape or type; or labels are missing,
            differ between severities or are out of range.
    """
    folder = Path(folder)
    content = describe_content(folder)
    names = tuple(name for name in CORRUPTIONS if (folder / f"{name}.npy").exists())
    if names:
        path = folder / f"{names[0]}.npy"
        labels = _read_labels(folder / LABELS, _count_images(path, open_images(path)), num_classes)
        ids = [f"{row:05d}" for row in range(len(labels))]
        return CorruptionFiles(folder, names, ids, labels, None)
    names = tuple(name for name in CORRUPTIONS if find_folder(folder, name) is not None)
    if not names:
        raise UserError(
            f"{folder} has no corruptions: expected files such as fog.npy and {LABELS}, or folders "
            f"such as fog/1/CLASS. It holds {content}."
        )
    for name in names:
        _check_severities(find_folder(folder, name))
    first = _list_reference(folder, names[0])
    if num_classes is not None and len(first.names) > num_classes:
        raise UserError(
            f"{folder} has {len(first.names)} class folders: expected at most {num_classes}, the "
            "number of classes of the model."
        )
    labels = np.array([file.label for file in first.files], np.int64)
    return CorruptionFiles(folder, names, [file.id for file in first.files], labels, first.names)


def _list_reference(folder: Path, name: str) -> ClassFolders:
    return list_class_folders(find_folder(folder, name) / "1")


def _count_images(path, array):
    """Number of images at each severity."""
    if len(array) % len(SEVERITIES):
        raise UserError(
            f"{path} has {len(array)} images: expected a multiple of {len(SEVERITIES)}, the images "
            "at severity 1 to 5."
        )
    return len(array) // len(SEVERITIES)


def _read_labels(path, num_images, num_classes):
    """Labels of the images, int64 (num_images,)."""
    labels = read_labels(path, num_classes)
    if len(labels) == num_images:
        return labels
    if len(labels) != len(SEVERITIES) * num_images:
        raise UserError(
            f"{path} has {len(labels)} labels: expected {num_images}, one for each image, or "
            f"{len(SEVERITIES) * num_images}."
        )
    blocks = labels.reshape(len(SEVERITIES), num_images)
    if (blocks != blocks[0]).any():
        severity = int((blocks != blocks[0]).any(axis=1).argmax()) + 1
        raise UserError(
            f"{path}: the labels of severity {severity} are not those of severity 1: expected the "
            "same images in the same order."
        )
    return blocks[0]


def _check_severities(folder):
    """UserError if the folder of a corruption has not all severities."""
    found = [severity for severity in SEVERITIES if (folder / str(severity)).is_dir()]
    if len(found) != len(SEVERITIES):
        raise UserError(
            f"{folder} has the severities {', '.join(map(str, found)) or 'none'}: expected folders "
            "1 to 5."
        )


def write_npy_files(
    folder: str | Path,
    name: str,
    batches_by_severity: Iterable[Iterable[np.ndarray]],
    num_images: int,
    shape: tuple[int, int],
) -> None:
    """Writes a corruption as CIFAR-10-C does; a file that is there already is kept.

    Args:
        folder: where NAME.npy is written; it appears when it is complete.
        name: of the corruption.
        batches_by_severity: for severity 1 to 5 the batches of corrupted images in order, each
            uint8 (batch, height, width, 3).
        num_images: number of images.
        shape: (height, width).

    Raises:
        ValueError: there are other numbers of images or severities.
    """
    path = Path(folder) / f"{name}.npy"
    if path.exists():
        return
    rows = len(SEVERITIES) * num_images
    with atomic_write(path) as unfinished:
        array = np.lib.format.open_memmap(
            unfinished, mode="w+", dtype=np.uint8, shape=(rows, *shape, 3)
        )
        row = 0
        for block, batches in enumerate(batches_by_severity):
            for images in batches:
                if images.dtype != np.uint8 or row + len(images) > (block + 1) * num_images:
                    raise ValueError(f"{images.dtype} images: expected {num_images} of uint8.")
                array[row : row + len(images)] = images
                row += len(images)
            if row != (block + 1) * num_images:
                raise ValueError(f"{row} images: expected {(block + 1) * num_images}.")
        if row != rows:
            raise ValueError(f"{row} images: expected {rows}, {len(SEVERITIES)} severities.")
        array.flush()


def write_labels(folder: str | Path, labels: np.ndarray) -> None:
    """Writes labels.npy as CIFAR-10-C has it: those of all images, int64, for each severity.

    Args:
        folder: of the set.
        labels: int (n,).
    """
    with atomic_write(Path(folder) / LABELS) as unfinished, open(unfinished, "wb") as file:
        np.save(file, np.tile(np.asarray(labels, np.int64), len(SEVERITIES)))


def write_image_folders(
    folder: str | Path,
    name: str,
    severity: int,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    class_names: Sequence[str],
) -> None:
    """Writes a corruption at one severity as ImageNet-C does; a folder that is there is kept.

    The image in row 7 is NAME/SEVERITY/CLASS/00007.JPEG.

    Args:
        folder: where NAME/SEVERITY is written; it appears when it is complete.
        name: of the corruption.
        severity: 1 to 5.
        batches: (labels, int (batch,); images, uint8 (batch, height, width, 3)) in order.
        class_names: names of the folders.

    Raises:
        UserError: a class has a name that a folder cannot have.
    """
    _check_folder_names(class_names)
    path = Path(folder) / name / str(severity)
    if path.exists():
        return
    unfinished = path.with_name(f"{severity}{UNFINISHED}")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    row = 0
    with concurrent.futures.ThreadPoolExecutor(num_cores()) as executor:
        for labels, images in batches:
            paths = []
            for label in labels:
                class_folder = unfinished / class_names[label]
                class_folder.mkdir(parents=True, exist_ok=True)
                paths.append(class_folder / f"{row:05d}.JPEG")
                row += 1
            list(executor.map(_write_jpeg, paths, images))
    os.sync()
    os.replace(unfinished, path)
    sync_folder(path.parent)


def _write_jpeg(path, image):
    Image.fromarray(image).save(path, "JPEG", **JPEG_OPTIONS)


def _check_folder_names(names):
    wrong = [
        name
        for name in names
        if not name or is_litter(name) or "/" in name or not name.isprintable()
    ]
    if wrong:
        raise UserError(
            f"Classes named {list_names(wrong)} cannot be folders: give --layout=npy instead."
        )
