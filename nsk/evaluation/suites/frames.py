"""The frames of perturbed images, of the suite `perturbations`: made here, or read from files."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from nsk.evaluation import perturbations as library
from nsk.evaluation.corruptions import choose_constants
from nsk.evaluation.image_files import Batch, make_batch
from nsk.evaluation.perturbation_files import open_perturbation_files
from nsk.evaluation.suites.conditions import (
    MAX_BYTES_IN_WORK,
    ChosenImages,
    choose_rows,
    transform_batches,
)
from nsk.evaluation.suites.suite import SplitImages
from nsk.store.files import num_cores

MAX_BYTES_OF_FRAMES, MAX_FRAMES = 2**28, 41  # Of the frames of a batch.


class Subset(NamedTuple):
    """A random subset of the images.

    Attributes:
        number: of images; 0: all.
        seed: of the choice.
    """

    number: int
    seed: int


class Frames(Protocol):
    """Perturbation sets.

    Attributes:
        names: of the sets, in the published order.
        description: what the frames are, JSON values: `constants`, `source` and so on.
    """

    names: list[str]
    description: dict[str, Any]

    def batches(self, name: str) -> Iterator[Batch]:
        """Yields the frames of a set in batches.

        Args:
            name: of the set.

        Yields:
            dicts `id` bytes (batch,), `label` int64 (batch,), -1: unknown, and `image` uint8
            (batch, frames, side, side, 3).
        """


class GeneratedFrames:
    """Frames of the test images, see `Frames`.

    With ImageNet's constants, images are resized as those of ImageNet-P, and frames are cropped
    from them, see `perturbations.uncropped_side`. Otherwise frames are the whole images.

    Args:
        images: the test images, with `encoded` for ImageNet's constants.
        chosen: names of sets, or "all".
        constants: see `perturbations.perturb`.
        side: of the frames, pixels.
        subset: of the images, and the seed of the perturbations.
        decode: function of an encoded image and a side in pixels that returns uint8 (height, width,
            3) whose shorter side it is; for ImageNet's constants.
    """

    def __init__(
        self,
        images: SplitImages,
        chosen: Sequence[str],
        constants: str,
        side: int,
        subset: Subset,
        decode: Callable[[bytes, int], np.ndarray],
    ):
        self.names = [name for name in library.PERTURBATIONS if {name, "all"} & set(chosen)]
        self._constants = choose_constants((side, side), constants)
        self._side, self._seed = side, subset.seed
        self.description = {"constants": self._constants, "source": "generated"}
        self._uncropped_side = library.uncropped_side(side, self._constants)
        self._decode = functools.partial(decode, shorter_side=self._uncropped_side)
        if self._uncropped_side is not None:
            self.description["uncropped_side"] = self._uncropped_side
            images = SplitImages(images.split, images.encoded)
        self._images = ChosenImages(images, *subset)

    def batches(self, name: str) -> Iterator[Batch]:
        """See `Frames`."""
        return transform_batches(self._small_batches(), functools.partial(self._perturb, name))

    def _small_batches(self):
        """Batches so small that all of their frames fit in memory."""
        size = images_in_batch(MAX_FRAMES, self._side)
        for batch in self._images:
            for start in range(0, len(batch["id"]), size):
                yield {name: values[start : start + size] for name, values in batch.items()}

    def _perturb(self, name, images, ids):
        """All frames of images, uint8 (n, frames, side, side, 3)."""
        if self._uncropped_side is not None:
            images = [self._decode(encoded) for encoded in images]
        num_frames = library.PERTURBATIONS[name].num_frames(self._constants)
        frames = np.empty((len(images), num_frames, self._side, self._side, 3), np.uint8)
        shapes = [image.shape for image in images]
        for shape in set(shapes):  # Images of one shape are perturbed together.
            rows = [row for row, other in enumerate(shapes) if other == shape]
            sequence = library.perturb(
                np.stack([images[row] for row in rows]),
                name,
                [ids[row] for row in rows],
                seed=self._seed,
                constants=self._constants,
                crop_side=None if self._uncropped_side is None else self._side,
            )
            for position, frame in enumerate(sequence):
                frames[rows, position] = frame
        return frames


class PublishedFrames:
    """Frames of a published set, see `Frames`; the labels of its images are not known.

    Args:
        folder: of the set, see `perturbation_files`.
        chosen: names of perturbations, which it must have; or "all": those that it has.
        constants: whose numbers of frames are expected; "auto": by the side of the frames.
        side: of the model's images, pixels.
        subset: of the images.
        resize: function of a frame, uint8 (height, width, 3), that returns uint8 (side, side, 3);
            for frames of another size.

    Raises:
        UserError: the set cannot be read, or does not have these perturbations, frames or images.
    """

    def __init__(
        self,
        folder: Path,
        chosen: Sequence[str],
        constants: str,
        side: int,
        subset: Subset,
        resize: Callable[[np.ndarray], np.ndarray],
    ):
        self._files = files = open_perturbation_files(folder, chosen)
        self.names, self._side, self._resize = files.names, side, resize
        first = files.sequences[self.names[0]][0]
        self._constants = choose_constants(first.shape[1:3], constants)
        files.check(self._constants)
        every_row = np.arange(len(files.ids))
        self._rows = choose_rows(files.ids, *subset, folder) if subset.number else every_row
        wanted = library.PERTURBATIONS if "all" in chosen else self.names
        self.description = {
            "constants": self._constants,
            "source": folder.resolve().name,
            "missing": [name for name in wanted if name not in self.names],
        }

    def batches(self, name: str) -> Iterator[Batch]:
        """See `Frames`."""
        num_frames = library.PERTURBATIONS[name].num_frames(self._constants)
        size = images_in_batch(num_frames, self._side)
        parts = (self._rows[start : start + size] for start in range(0, len(self._rows), size))
        rows = (
            make_batch([self._files.ids[row] for row in part], [-1] * len(part), part)
            for part in parts
        )
        return transform_batches(rows, functools.partial(self._read, name))

    def _read(self, name, rows, ids):
        """The frames of images, uint8 (n, frames, side, side, 3)."""
        num_frames = library.PERTURBATIONS[name].num_frames(self._constants)
        images = np.empty((len(ids), num_frames, self._side, self._side, 3), np.uint8)
        for image, row in zip(images, rows, strict=True):
            frames = self._files.read(name, row, self._constants)
            fits = frames.shape == image.shape
            image[:] = frames if fits else [self._resize(frame) for frame in frames]
        return images


def images_in_batch(num_frames: int, side: int) -> int:
    """Number of images whose frames fit in memory while every core makes those of a batch."""
    limit = min(MAX_BYTES_OF_FRAMES, MAX_BYTES_IN_WORK // num_cores())
    return max(1, limit // (num_frames * side * side * 3))
