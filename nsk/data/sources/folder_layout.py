"""What the folders below a folder of images mean: splits, classes, or neither."""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator

from nsk.data.class_names import normalize_name, repeated_values, sort_names
from nsk.data.image_folders import (
    FolderFiles,
    describe_unsupported,
    has_image_suffix,
    is_litter,
    list_files,
    sorted_entries,
)
from nsk.data.sources.source import SPLITS
from nsk.errors import UserError, list_names, printable

# Names of the folders of splits, in any case, followed by "set", "data" or "images" or not.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "labeled": ("labeled", "labelled"),
    "dev": ("dev", "val", "valid", "validation"),
    "test": ("test", "testing"),
    "unlabeled": ("unlabeled", "unlabelled", "unsup", "extra"),
}
# Those that may also be the name of a class, such as `valid` beside `invalid`.
POSSIBLE_CLASSES = {*SPLIT_NAMES["train"], *SPLIT_NAMES["dev"], "extra"}
# Names of folders that hold the images of a split, and are no classes.
CONTAINERS = {"images", "image", "imgs", "img", "pictures", "photos", "data", "all", "unknown"}
# Folders of cross-validation, in lower case.
FOLD_PATTERN = re.compile(r"(cv|fold|part|split|subset)[ _-]?[0-9]+")
TRAINING_SPLITS = ("train", "labeled")
MAX_DESCRIBED = 5  # Folders in a message.

_SPLITS_BY_NAME = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_SPLIT_PATTERN = re.compile(rf"({'|'.join(_SPLITS_BY_NAME)})(?:[ _-]?(?:set|data|images|imgs))?")


def split_of(folder: str) -> str | None:
    """The split that a folder's name stands for; None if it is no name of a split."""
    match = _SPLIT_PATTERN.fullmatch(os.path.basename(folder).lower())
    return match and _SPLITS_BY_NAME[match[1]]


@dataclasses.dataclass
class Layout:
    """What is where below a folder.

    Attributes:
        class_names: in Unicode's normal form C, sorted; None without classes.
        splits: dict from train, labeled, dev or test to a dict from the name of each of its
            classes to the files of it.
        unlabeled: files of the unlabelled images; None if there are none.
        flat: dict from dev or test to the files of a folder that has images, but no classes.
        rest: all other files.
        empty_classes: dict from the names of the classes that have no images in the first of
            `splits` to what they have instead, see `describe_unsupported`.
        note: how the folders are understood, a sentence.
    """

    class_names: list[str] | None = None
    splits: dict[str, dict[str, FolderFiles]] = dataclasses.field(default_factory=dict)
    unlabeled: FolderFiles | None = None
    flat: dict[str, FolderFiles] = dataclasses.field(default_factory=dict)
    rest: FolderFiles = dataclasses.field(default_factory=FolderFiles)
    empty_classes: dict[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""

    def parts(self) -> Iterator[FolderFiles]:
        """Yields all files, in disjoint parts."""
        for classes in self.splits.values():
            yield from classes.values()
        if self.unlabeled is not None:
            yield self.unlabeled
        yield from self.flat.values()
        yield self.rest

    def class_of_files(self) -> dict[str, str]:
        """The name of the class folder of each image that is in one."""
        return {
            path: name
            for classes in self.splits.values()
            for name, files in classes.items()
            for path in files.images
        }


def read_layout(root: str, needs_classes: bool = True) -> Layout:
    """Lists a folder and finds out what its subfolders are.

    See `nsk.data.sources.folder.FolderSource` for the layouts.

    Args:
        root: the folder.
        needs_classes: whether train or labeled, and one split at least, must have class folders.

    Raises:
        UserError: it has none of these layouts, or cannot be listed.
    """
    return _Reader(root, needs_classes).read()


class _Level:
    """The entries of a single folder.

    Attributes:
        path: the folder.
        files: its own files.
        folders: paths of its folders, including broken links.
    """

    def __init__(self, path: str):
        self.path = path
        self.files = FolderFiles()
        self.folders = []
        try:
            entries = sorted_entries(path)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path} is not a folder: run again when nothing changes it.") from None
        for entry in entries:
            if is_litter(entry.name):
                self.files.add_litter(entry.path)
            elif os.path.isdir(entry.path) or _is_broken_link(entry.path):
                self.folders.append(entry.path)
            else:
                self.files.add_file(entry.path)

    @property
    def has_images(self) -> bool:
        """Whether some of its own files are images."""
        return any(map(os.path.isfile, self.files.images))

    def subfolders(self) -> list[str]:
        """`folders`; UserError if one is a link that leads nowhere or to a folder above."""
        for path in self.folders:
            if _is_broken_link(path):
                raise UserError(f"{path} is a broken link: repair or remove it.")
            parent = os.path.realpath(self.path)
            if os.path.islink(path) and _is_within(parent, os.path.realpath(path)):
                raise UserError(f"{path} is a link to a folder that contains it: remove it.")
        return self.folders


def _is_broken_link(path):
    return os.path.islink(path) and not os.path.exists(path) and not has_image_suffix(path)


def _is_within(path, folder):
    return os.path.commonpath([path, folder]) == folder


class _Reader:
    """Lists folders, each once, and collects the layout."""

    def __init__(self, root: str, needs_classes: bool):
        self._root, self._needs_classes = root, needs_classes
        self._levels, self._listed = {}, {}
        self.layout, self._question = Layout(), ""

    def read(self) -> Layout:
        top = self._descend(self._level(self._root))
        if top.has_images and not self._has_training_split(top):
            self.layout.unlabeled = self._files(top.path)
            return self._finish(top)
        folders = self._find_splits(top)
        self.layout.rest.update(top.files)
        if not folders:
            self._check_classes_without_splits(top)
            self._check_folds(top)
            self._set_classes("train", top, top.path)
        for split in SPLITS:  # train or labeled comes first and defines the classes.
            if split in folders:
                self._read_split(split, folders[split])
        has_images = self.layout.splits or self.layout.unlabeled is not None
        if not has_images and self._needs_classes:
            raise UserError(
                f"{top.path} has only {self._describe(folders.values())}: expected class folders "
                "for images to learn from or to test on, or their labels with --labels."
            )
        return self._finish(top)

    def _finish(self, top: _Level) -> Layout:
        layout = self.layout
        parts = [
            f"{split} ({_count(sum(len(files.images) for files in classes.values()), 'image')} of "
            f"{_count(sum(bool(files.images) for files in classes.values()), 'class')})"
            for split, classes in layout.splits.items()
        ]
        if layout.unlabeled is not None:
            parts.append(f"unlabeled ({_count(len(layout.unlabeled.images), 'image')})")
        note = f"Folder {printable(self._root)}: {', '.join(parts)}"
        if layout.flat:
            flat = [
                f"{split} ({_count(len(files.images), 'image')})"
                for split, files in layout.flat.items()
            ]
            note += f"; without class folders, so not used: {', '.join(flat)}"
        if top.path != self._root:
            note += f"; in {printable(os.path.relpath(top.path, self._root))}"
        layout.note = f"{note}.{self._question}"
        return layout

    def _level(self, path: str) -> _Level:
        """The entries of a folder."""
        if path not in self._levels:
            self._levels[path] = _Level(path)
        return self._levels[path]

    def _files(self, path: str) -> FolderFiles:
        """All files below a folder."""
        if path not in self._listed:
            self._listed[path] = list_files(path)
        return self._listed[path]

    def _filled(self, paths: Iterable[str]) -> list[str]:
        """The folders that hold images at any depth."""
        return [path for path in paths if self._files(path).images]

    def _descend(self, level: _Level) -> _Level:
        """Enters folders that are the only one in their folder, as in `archive/dataset/train`."""
        while not level.has_images and len(level.subfolders()) == 1:
            child = self._level(level.subfolders()[0])
            is_class = child.has_images or not child.subfolders()
            if is_class or split_of(child.path) or self._is_class_name(child.path):
                break
            self.layout.rest.update(level.files)
            level = child
        return level

    def _enter_containers(self, level: _Level) -> _Level:
        """Enters the one folder of images in that of a split: `train/train` or `test/images`."""
        while not level.has_images:
            filled = self._filled(level.subfolders())
            if len(filled) != 1 or self._is_class_name(filled[0]):
                break
            name = os.path.basename(filled[0])
            if name.lower() not in CONTAINERS and not split_of(name):
                break
            self.layout.rest.update(level.files)
            for path in level.subfolders():
                if path not in filled:
                    self.layout.rest.update(self._files(path))
            level = self._level(filled[0])
        return level

    def _is_class_name(self, path: str) -> bool:
        return _class_name(path) in (self.layout.class_names or ())

    def _has_training_split(self, top: _Level) -> bool:
        """Whether all images but those of the folder itself are in splits, one with classes."""
        if not any(map(split_of, top.folders)):
            return False
        folders = self._filled(top.subfolders())
        return all(map(split_of, folders)) and any(
            split_of(path) in TRAINING_SPLITS
            and len(self._filled(self._level(path).subfolders())) > 1
            for path in folders
        )

    def _find_splits(self, top: _Level) -> dict[str, str]:
        """Finds the folder of each split; {} if the folders are classes."""
        named = [path for path in top.subfolders() if split_of(path)]
        others = self._filled(path for path in top.subfolders() if path not in named)
        if not named or (others and all(map(self._may_be_class, named))):
            return {}
        if others:
            raise UserError(
                f"{top.path} has folders of splits beside others: {self._describe(named)} beside "
                f"{self._describe(others)}: move the folders of classes into one named train, or "
                "rename those that are no splits."
            )
        folders = {}
        for path in named:
            other = folders.setdefault(split_of(path), path)
            if other != path:
                raise UserError(
                    f"{top.path} has two folders for {split_of(path)}: "
                    f"{self._describe([other, path])}: keep one of them."
                )
        if set(TRAINING_SPLITS) <= folders.keys():
            raise UserError(
                f"{top.path} has both train and labeled: {self._describe(named)}: keep one of the "
                "two folders, and name that of unlabelled images unlabeled."
            )
        for path in top.subfolders():
            if path not in named:
                self.layout.rest.update(self._files(path))
        return folders

    def _may_be_class(self, path: str) -> bool:
        """Whether a folder with the name of a split may be a class that has this name."""
        if os.path.basename(path).lower() not in POSSIBLE_CLASSES:
            return False
        level = self._level(path)
        return level.has_images and not self._filled(level.subfolders())

    def _check_classes_without_splits(self, top: _Level) -> None:
        """UserError if classes have folders of splits in them."""
        classes = [path for path in top.subfolders() if _has_splits(path)]
        if classes:
            raise UserError(
                f"{top.path} has splits inside of classes, {self._describe(classes)}: expected "
                f"classes inside of splits, such as train/{os.path.basename(classes[0])}."
            )

    def _check_folds(self, top: _Level) -> None:
        """UserError if classes are inside of folds; a note if they may be inside of others."""
        filled, names = self._filled(top.subfolders()), None
        for folder in filled:  # Nearly always the first one has images of its own.
            level = self._level(folder)
            real = [path for path in level.folders if not os.path.islink(path)]
            found = {os.path.basename(path) for path in self._filled(real)}
            if level.has_images or found != (names or found):
                return
            names = found
        if len(filled) < 2 or len(names) < 2:
            return
        if not all(FOLD_PATTERN.fullmatch(os.path.basename(folder).lower()) for folder in filled):
            self._question = f" All have the same folders ({list_names(sorted(names))}): are "
            self._question += "these the classes?"
            return
        raise UserError(
            f"{top.path} has folds, {self._describe(filled)}, each with the folders "
            f"{list_names(sorted(names))}: expected classes. Merge the folds, or give the "
            "classes with --labels and the folds as its split or group."
        )

    def _read_split(self, split: str, path: str) -> None:
        """Reads the folder of a split."""
        if split == "unlabeled":
            self.layout.unlabeled = self._files(path)
            if not self.layout.unlabeled.images:
                unsupported = self._describe_unsupported(self._level(path))
                raise UserError(
                    f"{path} holds no image: expected images at any depth{unsupported}."
                )
            return
        level = self._enter_containers(self._descend(self._level(path)))
        if level.has_images and not self._filled(level.subfolders()):
            self._set_flat(split, level)
        else:
            self.layout.rest.update(level.files)
            self._set_classes(split, level, path)

    def _set_flat(self, split: str, level: _Level) -> None:
        """Sets aside the images of a split that has no classes."""
        path, images = printable(level.path), level.files.images
        if split in TRAINING_SPLITS and self._needs_classes:
            raise UserError(
                f"{path} holds {_count(len(images), 'image')}, but no class folders: give a folder "
                "for each class, or the labels with --labels. Without labels they can only be the "
                "--unlabeled_dataset."
            )
        self.layout.flat[split] = level.files
        for folder in level.subfolders():
            self.layout.rest.update(self._files(folder))

    def _set_classes(self, split: str, level: _Level, path: str) -> None:
        """Takes the class folders of a split; the first split defines the classes."""
        layout = self.layout
        files = self._files_by_class(level)
        filled = {name for name in files if files[name].images}
        if not filled:
            unsupported = self._describe_unsupported(level)
            raise UserError(
                f"{path} holds no image: expected images, in a folder for each class if they have "
                f"labels{unsupported}."
            )
        if layout.class_names is None:
            layout.class_names = sort_names(files, path)
            layout.empty_classes = {
                name: describe_unsupported(files[name].unsupported.values())
                for name in layout.class_names
                if name not in filled
            }
        known = set(layout.class_names)
        if filled - known:
            self._refuse_classes(path, sorted(filled - known))
        for name in files.keys() - known:  # Folders without images.
            layout.rest.update(files[name])
        layout.splits[split] = {name: files.get(name, FolderFiles()) for name in layout.class_names}

    def _describe_unsupported(self, level: _Level) -> str:
        """The images in a folder that are not decoded, as the end of a sentence."""
        formats = [*level.files.unsupported.values()]
        for path in level.folders:
            formats += self._files(path).unsupported.values()
        described = describe_unsupported(formats)
        return f"; {described}" if described else ""

    def _files_by_class(self, level: _Level) -> dict[str, FolderFiles]:
        """Names of classes, and their files."""
        names = [_class_name(path) for path in level.subfolders()]
        repeated = repeated_values(names)
        if repeated:
            raise UserError(
                f"{level.path}: several folders have the same name in different encodings: "
                f"{list_names(repeated)}: merge them."
            )
        return {_class_name(path): self._files(path) for path in level.subfolders()}

    def _refuse_classes(self, path: str, unknown: list[str]) -> None:
        beside = self._level(os.path.dirname(path)).subfolders()
        raise UserError(
            f"{path} has classes that {next(iter(self.layout.splits))} does not have: "
            f"{list_names(unknown)}. Rename or remove them. There are "
            f"{self._describe(filter(split_of, beside))}."
        )

    def _describe(self, folders: Iterable[str]) -> str:
        """The tree that was understood: each folder with its classes and images."""
        folders, described = list(folders), []
        for path in folders[:MAX_DESCRIBED]:
            level = self._level(path)
            filled = self._filled(level.subfolders())
            images = len(level.files.images) + sum(len(self._files(sub).images) for sub in filled)
            counts = [_count(len(filled), "class")] if filled else []
            counts.append(_count(images, "image"))
            described.append(f"{os.path.basename(path)} ({', '.join(counts)})")
        more = len(folders) - len(described)
        return ", ".join(map(printable, described)) + (f" and {more} more" if more else "")


def _class_name(path):
    return normalize_name(os.path.basename(path))


def _has_splits(path):
    """Whether a class has folders named after a split for training and another one."""
    try:
        splits = {split_of(name) for name in os.listdir(path)} - {None}
    except OSError:
        return False
    return len(splits) > 1 and bool(splits.intersection(TRAINING_SPLITS))


def _count(number, noun):
    plural = {"class": "classes", "image": "images"}[noun]
    return f"{number:,} {noun if number == 1 else plural}"
