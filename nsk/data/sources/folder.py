"""A folder of image files as a source of images."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from nsk.config.data import DataConfig
from nsk.data.content import ContentDigests
from nsk.data.sources.source import SPLITS, SourceImage
from nsk.errors import UserError, printable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


class FolderSource:
    """Image files below a folder; ids are their paths relative to it.

    Either every subfolder is a class, or the subfolders are splits: train or labeled, dev and test
    with a subfolder for each class, and unlabeled with images at any depth. If the folder itself
    contains images, all images below it are unlabelled.

    Splits and classes may be links to folders. Links to folders at lower levels are not followed
    and count as unreadable images, as do pipes, devices and broken links.

    Args:
        root: the folder.
        max_image_bytes: larger files are read up to one byte more, which marks them as too large.

    Raises:
        UserError: there is no such folder, or its layout is none of the above.
    """

    ids_reveal_labels = True
    label_hint = "give images in class folders, with none beside them"

    def __init__(self, root: Path, max_image_bytes: int = DataConfig.max_image_bytes):
        self.root, self._max_image_bytes = root, max_image_bytes
        if not os.path.isdir(root):
            raise UserError(f"{root} is not a folder: give folder:PATH of one that holds images.")
        self._folders = self._find_splits()
        self.splits = tuple(split for split in SPLITS if split in self._folders)
        self.class_names = self._find_classes()
        for split in self.splits:
            if next(self._files(split), None) is None:
                raise UserError(
                    f"{self._folders[split]} holds no image: expected {', '.join(IMAGE_SUFFIXES)} "
                    + ("files." if split == "unlabeled" else "files in one folder for each class.")
                )

    def _find_splits(self) -> dict[str, Path]:
        """Finds the folder of each split."""
        root = self.root
        if any(_is_image_name(path) and os.path.isfile(path) for path in _visible(root)):
            return {"unlabeled": root}
        subfolders = {path.name: path for path in _subfolders(root)}
        found = tuple(split for split in SPLITS if split in subfolders)
        if not found:
            return {"train": root}
        unknown = sorted(set(subfolders) - set(found))
        if unknown:
            raise UserError(
                f"{root} has the splits {', '.join(found)} beside {', '.join(unknown[:5])}: "
                f"expected either class folders, or only folders named {', '.join(SPLITS)}."
            )
        if "train" in found and "labeled" in found:
            raise UserError(f"{root} has both train and labeled: keep one of the two folders.")
        return {split: subfolders[split] for split in found}

    def _find_classes(self) -> list[str] | None:
        names = None
        for split in self.splits:  # train or labeled comes first and defines the classes.
            if split == "unlabeled":
                continue
            folders = _subfolders(self._folders[split])
            for folder in folders:
                if next(_image_files(folder), None) is None:
                    raise UserError(f"{folder} is a class without images: fill it or remove it.")
            split_names = [folder.name for folder in folders]
            names = split_names if names is None else names
            unknown = sorted(set(split_names) - set(names))
            if unknown:
                raise UserError(
                    f"{self._folders[split]} has classes that {self._folders[self.splits[0]]} does "
                    f"not have: {', '.join(unknown[:5])}. Rename or remove them."
                )
        self._class_folders = names
        return None if names is None else [printable(name) for name in names]

    def _files(self, split: str) -> Iterator[tuple[Path, int | None]]:
        """Yields (path, label) in the order of the paths."""
        folder = self._folders[split]
        if split == "unlabeled":
            for path in _image_files(folder):
                yield path, None
            return
        for label, name in enumerate(self._class_folders):
            for path in _image_files(folder / name):
                yield path, label

    def content(self, digests: ContentDigests) -> dict:
        """Digest of the names and content of the images, and of the names of other files."""
        read = {path for split in self.splits for path, _ in self._files(split)}
        others = self._all_files() - read
        return digests.describe(
            {self._name(path): path for path in read},
            [self._name(path) for path in others],
            self._max_image_bytes,
        )

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def other_files(self) -> int:
        """Number of visible files that are not images or belong to no class."""
        read = sum(1 for split in self.splits for _ in self._files(split))
        return len(self._all_files()) - read

    def _all_files(self) -> set[Path]:
        """The paths of all visible files, including those that are not images or in no class."""
        folders = list(self._folders.values())
        for split in set(self.splits) - {"unlabeled"}:
            folders += [self._folders[split] / name for name in self._class_folders]
        # `_walk` does not follow links, but splits and classes may be links.
        links = {path for path in folders if path.is_symlink() and os.path.isdir(path)}
        return {path for top in (self.root, *links) for path, _ in _walk(top)} - links

    def images(self, split: str) -> Iterator[SourceImage]:
        """Images of a split in the order of their paths, which are their ids."""
        for path, label in self._files(split):
            id = printable(path.relative_to(self.root).as_posix())
            try:
                encoded, unreadable = _read(path, self._max_image_bytes + 1), ""
            except ValueError as error:
                encoded, unreadable = b"", str(error)
            yield SourceImage(id, encoded, label, unreadable=unreadable)


def _read(path: Path, max_bytes: int) -> bytes:
    """The first bytes of a file; ValueError if it is not a file or cannot be read."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ValueError("a folder that is a link, or cannot be listed")
        if not stat.S_ISREG(mode):  # Opening a pipe would block until somebody writes into it.
            raise ValueError("a pipe, device or socket, not a file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return file.read(min(size, max_bytes))
    except OSError as error:
        raise ValueError(f"the file cannot be opened: {error.strerror}") from None


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed ({error.strerror}): change its permissions or remove it."
        ) from None


def _subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, including links to folders."""
    found = []
    for path in _visible(folder):
        if os.path.isdir(path):
            if path.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
                raise UserError(f"{path} is a link to a folder that contains it: remove it.")
            found.append(path)
        elif path.is_symlink() and not os.path.exists(path) and not _is_image_name(path):
            raise UserError(f"{path} is a broken link: repair or remove it.")
    return found


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _image_files(folder: Path) -> Iterator[Path]:
    """Yields files with an image's suffix below a folder, and folders that cannot be entered."""
    return (path for path, is_closed in _walk(folder) if is_closed or _is_image_name(path))


def _walk(top: Path) -> Iterator[tuple[Path, bool]]:
    """Yields (path, False) for the visible files below a folder, folder by folder.

    Links to folders, which may be circular, and folders that cannot be listed are yielded as
    (path, True).
    """
    pending = [os.fspath(top)]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                visible = (entry for entry in entries if not entry.name.startswith("."))
                visible = sorted(visible, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):  # A split need not have every class.
            continue
        except OSError:
            yield Path(folder), True
            continue
        for entry in visible:
            if not entry.is_dir(follow_symlinks=False):
                yield Path(entry.path), entry.is_symlink() and os.path.isdir(entry.path)
        subfolders = [entry.path for entry in visible if entry.is_dir(follow_symlinks=False)]
        pending += reversed(subfolders)
