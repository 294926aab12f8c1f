"""A folder of image files as a source of images."""

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from nsk.config.data import DataConfig
from nsk.data.content import ContentDigests
from nsk.data.image_folders import FolderFiles, count_suffixes
from nsk.data.sources.folder_layout import read_layout
from nsk.data.sources.source import SPLITS, SkippedFiles, Source, SourceImage, count_outside
from nsk.errors import UserError, printable


class FolderSource(Source):
    """Image files below a folder; ids are their paths relative to it.

    Either every subfolder is a class, or the subfolders are splits: train or labeled, dev and test
    with a subfolder for each class, and unlabeled with images at any depth. If the folder itself
    contains images, all images below it are unlabelled.

    - Splits may have their usual names in any case, see `folder_layout.SPLIT_NAMES`. Dev and test
      may lack classes that train has.
    - Images of a class may be in subfolders of it.
    - A folder that holds nothing but another folder stands for that one.
    - A dev or test folder with images, but without class folders is not used, since its images
      have no labels.
    - Names of classes are compared in Unicode's normal form C; numbers are in numerical order.
    - Files of operating systems and hidden ones are skipped, see `image_folders.is_litter`.

    Splits and classes may be links to folders. Links to folders at lower levels are not followed
    and count as unreadable images, as do pipes, devices and broken links.

    The folder is listed once, by the constructor.

    Args:
        root: the folder.
        max_image_bytes: larger files are read up to one byte more, which marks them as too large.

    Raises:
        UserError: there is no such folder, or its layout is none of the above.
    """

    ids_reveal_labels = True
    label_hint = (
        "give images in class folders, with none beside them, or for --dataset a table of --labels"
    )

    def __init__(self, root: Path, max_image_bytes: int = DataConfig.max_image_bytes):
        self.root, self._max_image_bytes = Path(root), max_image_bytes
        if not os.path.isdir(root):
            raise UserError(f"{root} is not a folder: give folder:PATH of one that holds images.")
        self._layout = layout = read_layout(os.fspath(self.root))
        self.notes = (layout.note,)
        has_split = {**layout.splits, "unlabeled": layout.unlabeled is not None}
        self.splits = tuple(split for split in SPLITS if has_split.get(split))
        self.class_names = layout.class_names and list(map(printable, layout.class_names))
        self.empty_classes = {
            printable(name): instead for name, instead in layout.empty_classes.items()
        }

    def _files(self, split: str) -> Iterator[tuple[str, int | None]]:
        """Yields (path, label) in the order of the paths."""
        if split == "unlabeled":
            for path in self._layout.unlabeled.images:
                yield path, None
            return
        for label, files in enumerate(self._layout.splits[split].values()):
            for path in files.images:
                yield path, label

    def content(self, digests: ContentDigests) -> dict:
        """Digest of the names and content of the images, and of the names of other files."""
        read = {path for split in self.splits for path, _ in self._files(split)}
        others = [path for path in self._all_files() if path not in read]
        return digests.describe(
            {self._name(path): Path(path) for path in read},
            map(self._name, others),
            self._max_image_bytes,
        )

    def count(self, split: str) -> int:
        """Number of image files of a split."""
        return sum(1 for _ in self._files(split))

    def _name(self, path: str) -> str:
        return Path(path).relative_to(self.root).as_posix()

    def skipped_files(self, elsewhere: Collection[str] = ()) -> SkippedFiles:
        """Files that are not images, images that belong to no class, and litter."""
        listed = FolderFiles()
        for files in self._layout.parts():
            listed.update(files)
        others = [path for path in listed.others if path not in listed.unsupported]
        return SkippedFiles(
            others=count_suffixes(others),
            unsupported=dict(Counter(listed.unsupported.values()).most_common()),
            without_class={
                split: count_outside(files.images, elsewhere)
                for split, files in self._layout.flat.items()
            },
            outside=count_outside(self._layout.rest.images, elsewhere),
            litter=dict(listed.litter.most_common()),
        )

    def _all_files(self) -> list[str]:
        """The paths of all files but litter, including those that are not images or in no class."""
        return [path for files in self._layout.parts() for path in (*files.images, *files.others)]

    def images(self, split: str) -> Iterator[SourceImage]:
        """Images of a split in the order of their paths, which are their ids."""
        for path, label in self._files(split):
            encoded, unreadable = read_image(path, self._max_image_bytes)
            yield SourceImage(printable(self._name(path)), encoded, label, unreadable=unreadable)


def read_image(path: str, max_bytes: int) -> tuple[bytes, str]:
    """Reads a file.

    Args:
        path: of the file.
        max_bytes: one byte more than this is read of a larger one.

    Returns:
        The bytes, and why they cannot be read, "" if they were.
    """
    try:
        return _read(Path(path), max_bytes + 1), ""
    except ValueError as error:
        return b"", str(error)


def _read(path: Path, max_bytes: int) -> bytes:
    """The first bytes of a file; ValueError if it is not a file or cannot be read."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ValueError("a link to a folder")
        if not stat.S_ISREG(mode):  # Opening a pipe would block until somebody writes into it.
            raise ValueError("a pipe, device or socket, not a file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return file.read(min(size, max_bytes))
    except OSError as error:
        raise ValueError(f"the file cannot be opened: {error.strerror}") from None
