"""Folders with a folder of images for each class: what they hold, and which classes they are."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from nsk.data.class_names import are_numbers, normalize_name, repeated_values, sort_names
from nsk.data.image_folders import (
    FolderFiles,
    has_image_suffix,
    is_litter,
    list_files,
    sorted_entries,
)
from nsk.errors import UserError, list_names, printable


class ImageFile(NamedTuple):
    """An image below the folder of its class.

    Attributes:
        id: path below the set's folder without an image's suffix, "CLASS/NAME".
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
    files, skipped = {}, FolderFiles()
    for entry in _sorted_entries(folder):
        if is_litter(entry.name):
            skipped.add_litter(entry.path)
        elif entry.is_dir():
            if entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve()):
                raise UserError(
                    f"{entry.path} is a link to a folder that contains it: remove the link."
                )
            found = _list_images(entry.path)
            if found.images:
                files[entry.name] = found.images
            skipped.others += found.others
            skipped.litter += found.litter
        else:
            skipped.others.append(entry.path)
    if not files:
        raise UserError(
            f"{folder} has no folders of images: expected a folder for each class. It holds "
            f"{describe_content(folder)}."
        )
    names = sort_names(files, folder)
    listed = [
        ImageFile(_image_id(path.relative_to(folder)), label, path)
        for label, name in enumerate(names)
        for path in map(Path, files[name])
    ]
    repeated = repeated_values(file.id for file in listed)
    if repeated:
        raise UserError(
            f"{folder}: several files are named {list_names(repeated)}, with different suffixes: "
            "keep one of each."
        )
    return ClassFolders(
        [printable(name) for name in names],
        listed,
        len(skipped.others) + sum(skipped.litter.values()),
    )


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
    names, known = (
        [normalize_name(name) for name in given] for given in (names, model_class_names)
    )
    repeated = repeated_values(names)
    if repeated:
        raise UserError(
            f"{folder}: several folders have the same name in different encodings: "
            f"{list_names(repeated)}: merge them."
        )
    ambiguous = [name for name in repeated_values(known) if name in names]
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
        return sorted_entries(folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed ({error.strerror}): give the path of a folder of images."
        ) from None


def _image_id(path):
    """The path without the suffix of an image, as text."""
    return printable((path.with_suffix("") if has_image_suffix(path) else path).as_posix())


def _list_images(folder):
    """The files below a folder; of links to folders only those that are named like an image."""
    found = list_files(folder)
    for path in found.not_followed:
        if not has_image_suffix(path):
            found.images.remove(path)
            found.others.append(path)
    return found
