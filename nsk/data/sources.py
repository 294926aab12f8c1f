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
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from PIL import Image

from nsk.config import DataConfig
from nsk.data import shards
from nsk.data.records import SourceImage
from nsk.data.tfds_source import TfdsSource
from nsk.errors import UserError

SPLITS = ("train", "labeled", "unlabeled", "dev", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


def open_source(
    name,
    train_split="train",
    test_split="test",
    max_image_bytes=DataConfig.max_image_bytes,
    first_label=0,
):
    """Opens a source by its name on the command line.

    Args:
        name: digits, tfds:NAME[/config], folder:PATH or tfrecord:PATTERN.
        train_split: the TFDS split to train on; the default one may be missing.
        test_split: the TFDS split to test on; the default one may be missing.
        max_image_bytes: of a file that is larger, one byte more is read and no further.
        first_label: the label of the first class in TFRecord files.

    Raises:
        UserError: the source is missing or not laid out as it should be.
    """
    kind, _, place = name.partition(":")
    if name == "digits":
        return DigitsSource()
    if kind == "tfds":
        return TfdsSource(place, train_split, test_split)
    if kind == "folder":
        return FolderSource(Path(os.path.expanduser(place)), max_image_bytes)
    if kind == "tfrecord":
        return TfrecordSource(place, first_label)
    raise ValueError(f"Not the name of a source: {name!r}.")


def open_sources(config):
    """Opens the sources that a `DataConfig` names.

    Returns:
        dict from dataset and, where given, test_dataset and unlabeled_dataset to the source.

    Raises:
        UserError: as `open_source`.
    """
    # The flags of splits are about --dataset: another source has splits of its own.
    common = {"max_image_bytes": config.max_image_bytes, "first_label": config.first_label}
    opened = {
        "dataset": open_source(config.dataset, config.train_split, config.test_split, **common)
    }
    for flag in ("test_dataset", "unlabeled_dataset"):
        if getattr(config, flag):
            opened[flag] = open_source(getattr(config, flag), **common)
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
        path = names[name]
        status = os.stat(path, follow_symlinks=path.exists())
        digest.update(name + f"\0{status.st_size} {status.st_mtime_ns}\n".encode())
    return {"files": len(names), "sha256": digest.hexdigest()}


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
    """

    ids_tell_labels = True

    def __init__(self, root, max_image_bytes=DataConfig.max_image_bytes):
        self.root, self._max_image_bytes = root, max_image_bytes
        if not root.is_dir():
            raise UserError(f"{root} is not a folder: give folder:PATH of one that holds images.")
        subfolders = {path.name: path for path in _visible(root) if path.is_dir()}
        found = tuple(split for split in SPLITS if split in subfolders)
        if any(map(_is_image, _visible(root))):
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
            folders = [path for path in _visible(self._folders[split]) if path.is_dir()]
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
        return names

    def _files(self, split):
        """Yields (path, label) in the order of the paths."""
        folder = self._folders[split]
        if split == "unlabeled":
            for path in _image_files(folder):
                yield path, None
            return
        for label, name in enumerate(self.class_names):
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
        folders += [path for folder in folders for path in _visible(folder)]
        # A walk does not enter the links that it meets, but splits and classes may be links.
        tops = [self.root, *(path for path in folders if path.is_symlink() and path.is_dir())]
        return {path for top in tops for path in _visible_files(top)}

    def images(self, split):
        for path, label in self._files(split):
            try:
                with path.open("rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    encoded = file.read(min(size, self._max_image_bytes + 1))
            except OSError as error:
                raise UserError(
                    f"{path} cannot be read ({error.strerror}): mend or remove it."
                ) from error
            # File names need not be UTF-8, but ids are.
            id = path.relative_to(self.root).as_posix().encode("utf-8", "backslashreplace").decode()
            yield SourceImage(id, encoded, label)


def _visible(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_image(path):
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _image_files(folder):
    """Yields the image files below a folder, at any depth; none where there is no such folder."""
    return filter(_is_image, _visible_files(folder))


def _visible_files(folder):
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


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
    """

    splits = ("train",)
    ids_tell_labels = True  # They may be the paths that a folder source gave.

    def __init__(self, pattern, first_label=0):
        self.pattern = pattern
        self._first_label = first_label
        self._paths = [Path(path) for path in sorted(glob.glob(os.path.expanduser(pattern)))]
        if not self._paths:
            raise UserError(
                f"tfrecord:{pattern} matches no file: give a pattern such as '/data/*.tfrecord'."
            )
        self._expected = {}
        self._manifest_names = None
        for folder in sorted({path.parent for path in self._paths}):
            self._read_manifest(folder)

    def _read_manifest(self, folder):
        if not (folder / shards.MANIFEST).is_file():
            return
        shard_set = shards.ShardSet.load(folder)
        self._expected |= dict(zip(shard_set.paths, shard_set.counts, strict=True))
        names = list(shard_set.class_names)
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
        names = self._manifest_names or [str(label) for label in range(max(labels) + 1)]
        if min(labels) < 0 or max(labels) >= len(names):
            raise UserError(
                f"tfrecord:{self.pattern} has labels from {min(labels) + self._first_label} to "
                f"{max(labels) + self._first_label}: expected {self._first_label} to "
                f"{len(names) - 1 + self._first_label}; --first_label says with which they begin."
            )
        return names

    def content(self):
        manifests = {path.parent / shards.MANIFEST for path in self._paths}
        return _describe_files([*self._paths, *(path for path in manifests if path.is_file())])

    def other_files(self):
        return 0

    def images(self, split):
        for path in self._paths:
            records = shards.read_records(path, self._expected.get(path))
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
                label = features["image/class/label"].int64_list.value
                label = int(label[0]) - self._first_label if label else None
                yield SourceImage(id, encoded, label, _taught(features))


def _taught(features):
    """`SourceImage.taught` of an official pseudo-label record's features."""
    probabilities = features["probabilities"].float_list.value
    if probabilities:
        return np.array(probabilities, np.float32)
    label, probability = features["label"].int64_list.value, features["prob"].float_list.value
    return (label[0], probability[0]) if label and probability else None
