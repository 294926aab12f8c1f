"""Folders with a folder of images for each class: what they hold, and which classes they are."""

import collections
import dataclasses
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from nsk.errors import UserError, list_names, printable

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif"),
    *(".webp", ".tif", ".tiff", ".avif", ".ppm"),
}


# Files of operating systems and archivers; hidden ones are litter, too.
LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}


class ImageFile(NamedTuple):
    """An image below the folder of its class.

    Attributes:
        id: path below the set's folder without the suffix, "CLASS/NAME".
        label: index of its class.
        path: the file.
    """

    id: str
    label: int
    path: Path


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """What a folder of class folders holds.

    Attributes:
        names: of the classes that have images, integers in numerical order, else alphabetically;
            see `printable`.
        files: the images, class by class, in the order of their paths.
        skipped: number of files that are not read: litter, and what is not an image.
    """

    names: list[str]
    files: list[ImageFile]
    skipped: int


def list_class_folders(folder: str | Path) -> ClassFolders:
    """Lists the images in a folder of class folders, at any depth below them.

    Classes may be links to folders. Links to folders at lower levels are not followed.

    Raises:
        UserError: there are no such images; two of them have the same id; two names of classes are
            the same number; or a class is a link to a folder that contains it.
    """
    folder = Path(folder)
    files, skipped = {}, 0
    for entry in _sorted_entries(folder):
        if entry.is_dir() and not is_litter(entry.name):
            if entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve()):
                raise UserError(
                    f"{entry.path} is a link to a folder that contains it: remove the link."
                )
            images, others = _images_below(Path(entry.path))
            skipped += others
            if images:
                files[entry.name] = images
        else:
            skipped += _count_files(entry)
    if not files:
        raise UserError(
            f"{folder} has no folders of images: expected a folder for each class. It holds "
            f"{describe_content(folder)}."
        )
    names = sort_names(files, folder)
    listed = [
        ImageFile(printable(path.relative_to(folder).with_suffix("").as_posix()), label, path)
        for label, name in enumerate(names)
        for path in files[name]
    ]
    repeated = _repeated(file.id for file in listed)
    if repeated:
        raise UserError(
            f"{folder}: several files are named {list_names(repeated)}, with different suffixes: "
            "keep one of each."
        )
    return ClassFolders([printable(name) for name in names], listed, skipped)


def sort_names(names: Iterable[str], folder: str | Path = "") -> list[str]:
    """Sorts names of classes: by number if all are integers, so that 10 comes after 9.

    Raises:
        UserError: two names are the same number, such as 1 and 01.
    """
    names = sorted(names)
    if not are_numbers(names):
        return names
    repeated = [str(number) for number in _repeated(map(int, names))]
    if repeated:
        raise UserError(
            f"{folder}: several class folders have the number {list_names(repeated)}, such as 1 "
            "and 01: keep one of each."
        )
    return sorted(names, key=int)


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all names are non-negative integers."""
    return all(name.isascii() and name.isdigit() for name in names)


def match_classes(
    names: Sequence[str], model_class_names: Sequence[str], num_classes: int, folder: str | Path
) -> np.ndarray:
    """Finds the model's class of each class folder.

    Names are compared in Unicode's normal form C, in which different encodings of the same text are
    equal. The model's names are unknown if there are none, or if they are "0", "1" and so on. If no
    folder has one of the model's names,

    - folders that are integers, such as ImageNet-V2's, are indices, unless the model's names are
      other integers;
    - as many folders as the model has classes are these in alphabetical order, if its names are
      unknown; a warning says so.

    Args:
        names: of the class folders.
        model_class_names: names of the model's classes; empty if they are unknown.
        num_classes: number of the model's classes.
        folder: where the class folders are, for messages.

    Returns:
        int64 array (class folders,), indices of the model's classes, all different.

    Raises:
        UserError: a class is not one of the model's, two folders have the same name, or two of the
            model's classes do.
    """
    names, known = _normalized(names), _normalized(model_class_names)
    repeated = _repeated(names)
    if repeated:
        raise UserError(
            f"{folder}: several folders have the same name in different encodings: "
            f"{list_names(repeated)}: merge them."
        )
    ambiguous = [name for name in _repeated(known) if name in names]
    if ambiguous:
        raise UserError(
            f"{folder}: several of the model's classes have the name {list_names(ambiguous)}: "
            f"expected different names. Rename all folders to the numbers of classes, 0 to "
            f"{num_classes - 1}."
        )
    indices = {name: index for index, name in enumerate(known)}
    if not any(name in indices for name in names):
        indices = _indices_without_names(names, known, num_classes, folder)
    unknown = [name for name in names if not 0 <= indices.get(name, -1) < num_classes]
    if unknown:
        expected = list_names(list(model_class_names)) or f"0 to {num_classes - 1}"
        raise UserError(
            f"{folder}: {len(unknown)} of {len(names)} classes are not the model's: "
            f"{list_names(unknown)}. Expected names of its classes ({expected}) or their numbers: "
            "rename or remove these folders."
        )
    return np.array([indices[name] for name in names], np.int64)


def _indices_without_names(names, known, num_classes, folder):
    """Indices of the model's classes by folder, if no folder has the name of a class."""
    is_unnamed = known == [str(index) for index in range(len(known))]
    if are_numbers(names):
        is_index = is_unnamed or not any(are_numbers([name]) for name in known)
        return {name: int(name) for name in names} if is_index else {}
    if is_unnamed and len(names) == num_classes:
        logging.warning(
            "%s: the names of the model's classes are unknown, so these folders are taken as its "
            "classes in alphabetical order: %s.",
            folder,
            list_names(sorted(names)),
        )
        return {name: index for index, name in enumerate(sorted(names))}
    return {}


def _normalized(names):
    return [unicodedata.normalize("NFC", name) for name in names]


def _repeated(names):
    return [name for name, count in collections.Counter(names).items() if count > 1]


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or one of an operating system or archiver."""
    return name.startswith(".") or name in LITTER


def find_folder(folder: Path, name: str) -> Path | None:
    """The folder of a corruption or perturbation in a published set.

    Args:
        folder: of the set.
        name: of the folder, which is in `folder` or in a folder of a group, such as `noise/`.

    Returns:
        Its path; None if there is none.

    Raises:
        UserError: there are several.
    """
    if (folder / name).is_dir():
        return folder / name
    found = [path for path in sorted(folder.glob(f"*/{name}")) if path.is_dir()]
    found = [path for path in found if not is_litter(path.parent.name)]
    if len(found) > 1:
        raise UserError(
            f"{folder} has several folders {name}, in {list_names([p.parent.name for p in found])}:"
            " keep one of them."
        )
    return found[0] if found else None


def describe_content(folder: str | Path) -> str:
    """What a folder holds, for error messages."""
    names = [entry.name for entry in _sorted_entries(Path(folder)) if not is_litter(entry.name)]
    return list_names(names) if names else "nothing"


def _sorted_entries(folder):
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed ({error.strerror}): give the path of a folder of images."
        ) from None


def _images_below(folder):
    """The paths of the images below a folder, in order, and the number of other files."""
    paths, others = [], 0
    for entry in _sorted_entries(folder):
        if is_litter(entry.name):
            others += _count_files(entry)
        elif entry.is_dir(follow_symlinks=False):
            found, skipped = _images_below(Path(entry.path))
            paths += found
            others += skipped
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            paths.append(Path(entry.path))
        else:
            others += 1
    return paths, others


def _count_files(entry):
    """1 for a file; the number of files below a folder."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))
