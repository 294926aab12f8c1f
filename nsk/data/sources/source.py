"""What every source of images provides, and what several sources share."""

import dataclasses
import os
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np

from nsk.data.content import ContentDigests
from nsk.data.records import MIN_PROBABILITY

SPLITS = ("train", "labeled", "unlabeled", "dev", "test")


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image as its source holds it.

    Attributes:
        id: unique within a split and the same in every run.
        encoded: an image file.
        label: class index; None if unknown.
        external_teacher: scores of an external teacher: probabilities of all classes
            (num_classes,), or (its most probable class, the probability of it); None for none.
        unreadable: why the bytes cannot be read; "" if they were.
        group: name of the group of images that it belongs to, such as a patient; "" for none.
    """

    id: str
    encoded: bytes
    label: int | None
    external_teacher: np.ndarray | tuple[int, float] | None = None
    unreadable: str = ""
    group: str = ""

    def external_teacher_log_probabilities(self, num_classes: int) -> bytes:
        """`external_teacher` as bytes for `records.image_example`; b"" for none.

        If only the most probable class is known, the others share the remaining probability.

        Raises:
            ValueError: the scores are not probabilities of `num_classes` classes.
        """
        if self.external_teacher is None:
            return b""
        if isinstance(self.external_teacher, tuple):
            label, probability = self.external_teacher
            if not 0 <= label < num_classes:
                raise ValueError(f"its teacher's label {label} is not in 0 to {num_classes - 1}")
            if not 0 <= probability <= 1:
                raise ValueError(f"its teacher's prob {probability:.4g} is not in 0 to 1")
            remaining = (1 - probability) / max(1, num_classes - 1)
            probabilities = np.full(num_classes, remaining)
            probabilities[label : label + 1] = probability
        else:
            probabilities = np.asarray(self.external_teacher, np.float64)
        is_valid = (probabilities >= 0).all() and abs(probabilities.sum() - 1) < 0.01
        if probabilities.shape != (num_classes,) or not is_valid:
            raise ValueError(
                f"its teacher's probabilities are {len(probabilities)} values with sum "
                f"{probabilities.sum():.4g} and minimum {probabilities.min():.4g}, not "
                f"probabilities of {num_classes} classes"
            )
        minimum = MIN_PROBABILITY / num_classes
        return np.log(np.maximum(probabilities, minimum)).astype("<f4").tobytes()


@dataclasses.dataclass(frozen=True)
class SkippedFiles:
    """Files among a source's own that are not read.

    Attributes:
        others: dict from the suffix of files that are not images to their number.
        without_class: dict from a split that is not used, since it has no labels, to the number of
            its images.
        without_label: dict from dev or test to the number of its images that a table of labels has
            no label of, which are not used.
        outside: number of images beside the folders of classes.
        unsupported: dict from the name of a format that is not decoded, such as HEIC, to the number
            of its images.
        litter: dict from the name of hidden files or folders, and those of operating systems, to
            the number of files.
    """

    others: dict[str, int] = dataclasses.field(default_factory=dict)
    without_class: dict[str, int] = dataclasses.field(default_factory=dict)
    without_label: dict[str, int] = dataclasses.field(default_factory=dict)
    outside: int = 0
    unsupported: dict[str, int] = dataclasses.field(default_factory=dict)
    litter: dict[str, int] = dataclasses.field(default_factory=dict)


def count_outside(paths: Iterable[str], folders: Collection[str]) -> int:
    """The number of paths that are in none of the folders, which have no links."""
    starts = tuple(os.path.join(folder, "") for folder in folders if folder)
    if not starts:
        return sum(1 for _ in paths)
    return sum(not os.path.realpath(path).startswith(starts) for path in paths)


class Source(Protocol):
    """A source of images.

    Attributes:
        class_names: list of strings; None if the source has no labels.
        splits: those of `SPLITS` that the source has. `train` is a pool that is still to be
            divided; the others are used as they are.
        ids_reveal_labels: whether an id may reveal the label, as a path below a class folder does.
        label_hint: what the user can do if the source has no labels.
        empty_classes: dict from the names of the classes without any image to train on to what
            their folders hold instead, in words; "": nothing of note.
        notes: lines of text on how the source was understood.
        has_groups: whether some of its images belong to groups.
    """

    class_names: list[str] | None
    splits: tuple[str, ...]
    ids_reveal_labels: bool
    label_hint: str = "give images with labels"
    empty_classes: Mapping[str, str] = types.MappingProxyType({})
    notes: tuple[str, ...] = ()
    has_groups: bool = False

    def images(self, split: str) -> Iterator[SourceImage]:
        """Iterates over the images of a split, from the start in every call."""

    def count(self, split: str) -> int | None:
        """Number of images of a split; None if it is not known before they are read."""
        return None

    def content(self, digests: ContentDigests) -> dict:
        """A JSON-like dict that changes when the images do; files are described by `digests`."""

    def skipped_files(self, elsewhere: Collection[str] = ()) -> SkippedFiles:
        """The files among the source's own that are not read; none by default.

        Args:
            elsewhere: folders, without links, of other sources, which read the images in them.
        """
        return SkippedFiles()
