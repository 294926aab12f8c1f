"""Where images come from: each source names its classes and yields encoded images.

A source has

- `class_names`: a list of strings, or None where it has no labels;
- `splits`: those of train, labeled, unlabeled, dev and test that it has. `train` is a pool that is
  still to be divided; the others are taken as they are;
- `images(split)`: an iterator over `SourceImage`s, as often as it is asked for;
- `content()`: a JSON-like dict that changes when its images do, found without reading them;
- `ids_tell_labels`: whether an image's id may give its label away, as a path below a class does;
- `other_files()`: how many files lie among its own that are not read.

Ids are unique within a split and stay the same from run to run.
"""

import collections
import functools
import glob
import hashlib
import importlib.metadata
import io
import os
import stat
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError
from PIL import Image

from nsk.config.sections import DataConfig
from nsk.data import shards
from nsk.data.records import SourceImage
from nsk.data.tfds_source import TfdsSource
from nsk.errors import UserError

SPLITS = ("train", "labeled", "unlabeled", "dev", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
# What records of others may claim costs memory before a single image is looked at.
MOST_CLASSES = 2**20
MOST_ID_LENGTH = 2**12
BESIDE_IMAGE_BYTES = 2**20  # Of a record: its id, label and probabilities.


def open_source(
    name,
    train_split="train",
    test_split="test",
    max_image_bytes=DataConfig.max_image_bytes,
    first_label=0,
    unlabeled_split="",
):
    """Opens a source by its name on the command line.

    Args:
        name: digits, tfds:NAME[/config], folder:PATH or tfrecord:PATTERN.
        train_split: the TFDS split to train on; the default one may be missing.
        test_split: the TFDS split to test on; the default one may be missing.
        max_image_bytes: of a file that is larger, one byte more is read and no further.
        first_label: the label of the first class in TFRecord files.
        unlabeled_split: the TFDS split of unlabelled images; empty: what is called unlabeled.

    Raises:
        UserError: the source is missing or not laid out as it should be.
    """
    kind, _, place = name.partition(":")
    if name == "digits":
        return DigitsSource()
    if kind == "tfds":
        return TfdsSource(place, train_split, test_split, unlabeled_split)
    if kind == "folder":
        return FolderSource(Path(os.path.expanduser(place)), max_image_bytes)
    if kind == "tfrecord":
        return TfrecordSource(place, first_label, max_image_bytes)
    raise ValueError(f"Not the name of a source: {name!r}.")


def open_sources(config):
    """Opens the sources that a `DataConfig` names.

    Returns:
        dict from dataset and, where given, test_dataset and unlabeled_dataset to the source.

    Raises:
        UserError: as `open_source`.
    """
    # Two flags of splits are about --dataset: another source has splits of its own.
    common = {"max_image_bytes": config.max_image_bytes, "first_label": config.first_label}
    opened = {
        "dataset": open_source(config.dataset, config.train_split, config.test_split, **common)
    }
    splits = {"test_dataset": {}, "unlabeled_dataset": {"unlabeled_split": config.unlabeled_split}}
    for flag, of_flag in splits.items():
        if getattr(config, flag):
            opened[flag] = open_source(getattr(config, flag), **common, **of_flag)
    return opened


def content(config):
    """What the sources hold, to notice that images were added, removed or replaced.

    Args:
        config: a `DataConfig`.

    Returns:
        JSON-like dict from dataset, test_dataset and unlabeled_dataset, those that are used, to
        `content()` of the source. No image is read: files are told apart by size and time.

    Raises:
        UserError: as `open_source`.
    """
    return {flag: source.content() for flag, source in open_sources(config).items()}


def _describe_files(paths, root=""):
    """Number of files, and SHA-256 of their names below `root`, sizes and times of change."""
    digest = hashlib.sha256()
    names = {os.fsencode(os.path.relpath(path, root) if root else path): path for path in paths}
    for name in sorted(names):
        try:
            status = os.stat(names[name])
            digest.update(name + f"\0{status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError as error:  # As of a link that leads nowhere.
            digest.update(name + f"\0{error.errno}\n".encode())
    return {"files": len(names), "sha256": digest.hexdigest()}


def _printable(name):
    """A name in one line of text: what cannot be printed, or is no UTF-8 on disk, is escaped."""
    if name.isprintable():
        return name
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in name
    )


class DigitsSource:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn brings along."""

    splits = ("train",)
    ids_tell_labels = False

    def __init__(self):
        self.class_names = [str(digit) for digit in range(10)]

    def content(self):
        return {"sklearn": importlib.metadata.version("scikit-learn")}

    def other_files(self):
        return 0

    def images(self, split):
        from sklearn import datasets

        digits = datasets.load_digits()
        # Levels 0..16 become 0..255.
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
        for number, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            yield SourceImage(f"digits/{number:04d}", buffer.getvalue(), int(label))


class FolderSource:
    """Image files below a folder; ids are their paths relative to it.

    Either every subfolder is a class, or the subfolders are splits: train or labeled, dev and test
    with a subfolder for each class, and unlabeled with images at any depth. A folder that holds
    images directly is a set of unlabelled ones.

    Splits and classes may be links to folders; links to folders further below are not followed, and
    count as unreadable images, as do pipes, devices and links that lead nowhere.
    """

    ids_tell_labels = True

    def __init__(self, root, max_image_bytes=DataConfig.max_image_bytes):
        self.root, self._max_image_bytes = root, max_image_bytes
        if not os.path.isdir(root):
            raise UserError(f"{root} is not a folder: give folder:PATH of one that holds images.")
        has_images = any(_is_image_name(path) and os.path.isfile(path) for path in _visible(root))
        subfolders = {} if has_images else {path.name: path for path in _subfolders(root)}
        found = tuple(split for split in SPLITS if split in subfolders)
        if has_images:
            self._folders = {"unlabeled": root}
        elif found and len(found) == len(subfolders):
            self._folders = {split: subfolders[split] for split in found}
        elif found:
            others = sorted(set(subfolders) - set(found))
            raise UserError(
                f"{root} has the splits {', '.join(found)} beside {', '.join(others[:5])}: "
                f"expected either class folders, or only folders named {', '.join(SPLITS)}."
            )
        else:
            self._folders = {"train": root}
        if "train" in self._folders and "labeled" in self._folders:
            raise UserError(f"{root} has both train and labeled: keep one of the two folders.")
        self.splits = tuple(split for split in SPLITS if split in self._folders)
        self.class_names = self._find_classes()
        for split in self.splits:
            if next(self._files(split), None) is None:
                raise UserError(
                    f"{self._folders[split]} holds no image: expected {', '.join(IMAGE_SUFFIXES)} "
                    + ("files." if split == "unlabeled" else "files in one folder for each class.")
                )

    def _find_classes(self):
        names = None
        for split in self.splits:  # train or labeled comes first and names the classes.
            if split == "unlabeled":
                continue
            folders = _subfolders(self._folders[split])
            for folder in folders:
                if next(_image_files(folder), None) is None:
                    raise UserError(f"{folder} is a class without images: fill it or remove it.")
            here = [folder.name for folder in folders]
            names = here if names is None else names
            unknown = sorted(set(here) - set(names))
            if unknown:
                raise UserError(
                    f"{self._folders[split]} has classes that {self._folders[self.splits[0]]} has "
                    f"not: {', '.join(unknown[:5])}. Rename or remove them."
                )
        self._class_folders = names
        return None if names is None else [_printable(name) for name in names]

    def _files(self, split):
        """Yields (path, label) in the order of the paths."""
        folder = self._folders[split]
        if split == "unlabeled":
            for path in _image_files(folder):
                yield path, None
            return
        for label, name in enumerate(self._class_folders):
            for path in _image_files(folder / name):
                yield path, label

    def content(self):
        return _describe_files(self._all_files(), self.root)

    def other_files(self):
        read = sum(1 for split in self.splits for _ in self._files(split))
        return len(self._all_files()) - read

    def _all_files(self):
        """The paths of all visible files, those included that are no images or in no class."""
        folders = list(self._folders.values())
        for split in set(self.splits) - {"unlabeled"}:
            folders += [self._folders[split] / name for name in self._class_folders]
        # A walk does not enter the links that it meets, but splits and classes may be links.
        links = {path for path in folders if path.is_symlink() and os.path.isdir(path)}
        return {path for top in (self.root, *links) for path, _ in _walk(top)} - links

    def images(self, split):
        for path, label in self._files(split):
            id = _printable(path.relative_to(self.root).as_posix())
            try:
                encoded, unreadable = _read(path, self._max_image_bytes + 1), ""
            except ValueError as error:
                encoded, unreadable = b"", str(error)
            yield SourceImage(id, encoded, label, unreadable=unreadable)


def _read(path, most_bytes):
    """The first bytes of a file; ValueError where there is no file or it cannot be read."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ValueError("a folder that is a link, or cannot be listed")
        if not stat.S_ISREG(mode):  # Opening a pipe would wait for somebody to write into it.
            raise ValueError("a pipe, device or socket, and no file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return file.read(min(size, most_bytes))
    except OSError as error:
        raise ValueError(f"the file cannot be opened: {error.strerror}") from None


def _visible(folder):
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}): mend it.") from None


def _subfolders(folder):
    """The visible folders in a folder, links to folders among them."""
    found = []
    for path in _visible(folder):
        if os.path.isdir(path):
            if path.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
                raise UserError(f"{path} is a link to a folder that it is itself in: remove it.")
            found.append(path)
        elif path.is_symlink() and not os.path.exists(path) and not _is_image_name(path):
            raise UserError(f"{path} is a link that leads nowhere: mend or remove it.")
    return found


def _is_image_name(path):
    return path.suffix.lower() in IMAGE_SUFFIXES


def _image_files(folder):
    """Yields what is called an image below a folder, and folders that could not be entered."""
    return (path for path, barred in _walk(folder) if barred or _is_image_name(path))


def _walk(top):
    """Yields (path, False) of the visible files below a folder, folder after folder.

    Folders that are links, which may lead in circles, and those that cannot be listed come as
    (path, True).
    """
    waiting = [os.fspath(top)]
    while waiting:
        folder = waiting.pop()
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
        inside = [entry.path for entry in visible if entry.is_dir(follow_symlinks=False)]
        waiting += reversed(inside)


class TfrecordSource:
    """TFRecord files of this project's image records (see `nsk.data.records`), or of others'.

    The class names come from a manifest.json beside the files; without one they are "0" to the
    largest label. A record without an `id` is called after its file and place.

    Records of the official Noisy Student code are read, too: labelled ones, whose
    `image/class/label` begins with `first_label` 1, and pseudo-labelled ones, whose teacher's
    `probabilities`, or else `label` and `prob`, come along as `SourceImage.taught`.

    Args:
        pattern: a glob pattern of the files.
        first_label: int, the label of the first class in `image/class/label`.
        max_image_bytes: int; a record with much more is refused before it is read.
    """

    splits = ("train",)
    ids_tell_labels = True  # They may be the paths that a folder source gave.

    def __init__(self, pattern, first_label=0, max_image_bytes=DataConfig.max_image_bytes):
        self.pattern = pattern
        self._first_label = first_label
        self._most_bytes = max_image_bytes + BESIDE_IMAGE_BYTES
        self._paths = [Path(path) for path in sorted(glob.glob(os.path.expanduser(pattern)))]
        if not self._paths:
            raise UserError(
                f"tfrecord:{pattern} matches no file: give a pattern such as '/data/*.tfrecord'."
            )
        for path in self._paths:
            if not os.path.isfile(path):  # Opening a pipe would wait for somebody to write into it.
                raise UserError(f"{path} is no file: give a pattern that matches files alone.")
        self._expected = {}
        self._manifest_names = None
        for folder in sorted({path.parent for path in self._paths}):
            self._read_manifest(folder)

    def _read_manifest(self, folder):
        if not (folder / shards.MANIFEST).is_file():
            return
        shard_set = shards.ShardSet.load(folder)
        self._expected |= dict(zip(shard_set.paths, shard_set.counts, strict=True))
        names = [_printable(name) for name in shard_set.class_names]
        if self._manifest_names not in (None, names):
            raise UserError(
                f"The manifests beside tfrecord:{self.pattern} disagree on the classes: give one."
            )
        self._manifest_names = names

    @functools.cached_property
    def class_names(self):
        # One pass over the records either way: labels are also checked against a manifest's names.
        labels = collections.Counter(image.label for image in self.images("train"))
        labels.pop(None, None)
        if not labels:
            return None
        names = self._manifest_names or range(min(max(labels) + 1, MOST_CLASSES))
        if min(labels) < 0 or max(labels) >= len(names):
            raise UserError(
                f"tfrecord:{self.pattern} has labels from {min(labels) + self._first_label} to "
                f"{max(labels) + self._first_label}: expected {self._first_label} to "
                f"{len(names) - 1 + self._first_label}; --first_label says with which they begin."
            )
        if self._manifest_names is None and min(labels) > 0:
            logging.warning(
                "tfrecord:%s has no image of the labels below %d: give --first_label=%d where "
                "labels begin with it.",
                self.pattern,
                min(labels) + self._first_label,
                min(labels) + self._first_label,
            )
        return [str(name) for name in names]

    def content(self):
        manifests = {path.parent / shards.MANIFEST for path in self._paths}
        return _describe_files([*self._paths, *(path for path in manifests if path.is_file())])

    def other_files(self):
        return 0

    def images(self, split):
        for path in self._paths:
            records = shards.read_records(path, self._expected.get(path), self._most_bytes)
            for number, record in enumerate(records):
                try:
                    features = tf.train.Example.FromString(record).features.feature
                    id = features["id"].bytes_list.value
                    id = id[0].decode() if id else f"{path.name}/{number:06d}"
                    encoded = features["image/encoded"].bytes_list.value[0]
                except (DecodeError, IndexError, UnicodeDecodeError) as error:
                    raise UserError(
                        f"{path} has a record that is no tf.train.Example with image/encoded: "
                        "expected records as this project or the official code writes them."
                    ) from error
                if len(id) > MOST_ID_LENGTH:
                    raise UserError(
                        f"{path} has an id of {len(id):,} characters, expected {MOST_ID_LENGTH:,} "
                        "at most: give records with shorter ones."
                    )
                kind = features["image/class/label"].WhichOneof("kind")
                if kind not in (None, "int64_list"):
                    raise UserError(
                        f"{path} has an image/class/label of the type {kind}: expected an "
                        "int64_list of one integer."
                    )
                label = features["image/class/label"].int64_list.value
                label = int(label[0]) - self._first_label if label else None
                yield SourceImage(_printable(id), encoded, label, _taught(features))


def _taught(features):
    """`SourceImage.taught` of an official pseudo-label record's features."""
    probabilities = features["probabilities"].float_list.value
    if probabilities:
        return np.array(probabilities, np.float32)
    label, probability = features["label"].int64_list.value, features["prob"].float_list.value
    return (label[0], probability[0]) if label and probability else None
