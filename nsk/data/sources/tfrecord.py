"""TFRecord files, of this project or others, as a source of images."""

import collections
import functools
import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError

from nsk.config.data import DataConfig
from nsk.data import record_files, shards
from nsk.data.content import ContentDigests
from nsk.data.image_folders import is_image_file
from nsk.data.sources.source import Source, SourceImage
from nsk.errors import UserError, list_names, printable
from nsk.progress import Progress

# Limits on what records of others may claim, as it costs memory before any image is decoded.
MAX_CLASSES = 2**20
MAX_ID_LENGTH = 2**12
MAX_OTHER_BYTES = 2**20  # Of a record besides its image: id, label and probabilities.


class RecordKeys(NamedTuple):
    """Keys of the features in a `tf.train.Example` of others."""

    image: str = DataConfig.image_key
    label: str = DataConfig.label_key
    id: str = DataConfig.id_key


DEFAULT_KEYS = RecordKeys()


class TfrecordSource(Source):
    """TFRecord files of this project's image records (see `nsk.data.records`), or of others'.

    The class names are read from a manifest.json beside the files; without it they are "0" to the
    largest label. A record without an `id` is named after its file and position.

    Records of the official Noisy Student code can be read, too: labelled ones, with labels in
    `image/class/label` from `first_label` 1 on, and pseudo-labelled ones, with the teacher's
    `probabilities`, or else `label` and `prob`, which become `SourceImage.external_teacher`.

    Args:
        pattern: a glob pattern of the files, which may be compressed by GZIP or ZLIB.
        first_label: the label of the first class in `image/class/label`.
        keys: of the image, the label and the id in a record.
        max_image_bytes: a record that is much larger is refused before it is read.

    Raises:
        UserError: there is no such file, or the manifests disagree.
    """

    splits = ("train",)
    ids_reveal_labels = True  # They may be paths below class folders.

    def __init__(
        self,
        pattern: str,
        first_label: int = 0,
        max_image_bytes: int = DataConfig.max_image_bytes,
        keys: RecordKeys = DEFAULT_KEYS,
    ):
        self.pattern, self._keys = pattern, keys
        self._first_label = first_label
        self._max_record_bytes = max_image_bytes + MAX_OTHER_BYTES
        self._paths = [Path(path) for path in sorted(glob.glob(os.path.expanduser(pattern)))]
        if not self._paths:
            raise UserError(
                f"tfrecord:{pattern} matches no file: give a pattern such as '/data/*.tfrecord'."
            )
        for path in self._paths:
            if not os.path.isfile(path):  # Opening a pipe would block until somebody writes to it.
                raise UserError(f"{path} is not a file: give a pattern that matches only files.")
        if is_image_file(self._paths[0]):
            raise UserError(
                f"{self._paths[0]} is an image, not a TFRecord file: give folder:PATH of the "
                "folder of images."
            )
        self._expected_counts = {}
        self._num_records = None
        self._keys_without_label = ""
        self._manifest_names = None
        for folder in sorted({path.parent for path in self._paths}):
            self._read_manifest(folder)

    def _read_manifest(self, folder: Path) -> None:
        if not (folder / shards.MANIFEST).is_file():
            return
        shard_set = shards.ShardSet.load(folder)
        self._expected_counts |= dict(zip(shard_set.paths, shard_set.counts, strict=True))
        names = [printable(name) for name in shard_set.class_names]
        if self._manifest_names not in (None, names):
            raise UserError(
                f"The manifests beside tfrecord:{self.pattern} disagree on the classes: give files "
                "with the same classes."
            )
        self._manifest_names = names

    @property
    def notes(self) -> tuple[str, ...]:
        """The number of files."""
        return (f"TFRecord files {self.pattern}: {len(self._paths):,}.",)

    @functools.cached_property
    def class_names(self) -> list[str] | None:
        """Names from the manifest, or else "0" to the largest label; None without labels."""
        # One pass over the records in any case: labels are also checked against a manifest's names.
        labels = self._count_labels()
        labels.pop(None, None)
        if not labels:
            return None
        names = self._manifest_names or range(min(max(labels) + 1, MAX_CLASSES))
        if min(labels) < 0 or max(labels) >= len(names):
            raise UserError(
                f"tfrecord:{self.pattern} has labels from {min(labels) + self._first_label} to "
                f"{max(labels) + self._first_label}: expected {self._first_label} to "
                f"{len(names) - 1 + self._first_label}; --first_label is the label of the first "
                "class."
            )
        if self._manifest_names is None and min(labels) > 0:
            logging.warning(
                "tfrecord:%s has no image with a label below %d: give --first_label=%d if that is "
                "the label of the first class.",
                self.pattern,
                min(labels) + self._first_label,
                min(labels) + self._first_label,
            )
        return [str(name) for name in names]

    def _count_labels(self) -> collections.Counter:
        """Number of records of each label, None among them."""
        title = f"labels of tfrecord:{self.pattern}"
        labels, done = collections.Counter(), 0
        progress = Progress(title, self.count("train"), "records", early=True)
        for image in self.images("train"):
            labels[image.label] += 1
            done += 1
            progress.update(done)
        if progress.is_shown:
            progress.close(done)
        self._num_records = done
        return labels

    def count(self, split: str) -> int | None:
        """Number of records; None if files are compressed and were not read yet."""
        if self._num_records is None:
            counts = [
                self._expected_counts.get(path) or record_files.count_records(path)
                for path in self._paths
            ]
            return None if None in counts else sum(counts)
        return self._num_records

    @property
    def label_hint(self) -> str:
        """What to do if there are no labels."""
        if not self._keys_without_label:
            return "give labelled records"
        return (
            f"its records have no {self._keys.label!r} but {self._keys_without_label}: give "
            "--label_key, or labelled records"
        )

    def content(self, digests: ContentDigests) -> dict:
        """Digest of the names, below the folder of all, and the content of files and manifests."""
        manifests = {path.parent / shards.MANIFEST for path in self._paths}
        paths = [*self._paths, *(path for path in manifests if path.is_file())]
        root = os.path.commonpath([path.parent for path in paths])
        return digests.describe({os.path.relpath(path, root): path for path in paths})

    def images(self, split: str) -> Iterator[SourceImage]:
        """Images of all files, in the order of the sorted paths."""
        for path in self._paths:
            records = record_files.read_records(
                path,
                self._expected_counts.get(path),
                self._max_record_bytes,
                record_files.compression_of(path),
            )
            for number, record in enumerate(records):
                yield self._parse(record, path, number)

    def _parse(self, record: bytes, path: Path, number: int) -> SourceImage:
        keys = self._keys
        try:
            features = tf.train.Example.FromString(record).features.feature
            id = features[keys.id].bytes_list.value if keys.id in features else ()
            id = id[0].decode() if id else f"{path.name}/{number:06d}"
        except (DecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} has a record that is not a tf.train.Example with an id in UTF-8 "
                f"({type(error).__name__}): expected records as this project or the official code "
                "writes them."
            ) from error
        if len(id) > MAX_ID_LENGTH:
            raise UserError(
                f"{path} has an id of {len(id):,} characters, expected at most {MAX_ID_LENGTH:,}: "
                "give records with shorter ids."
            )
        if keys.image not in features or not features[keys.image].bytes_list.value:
            raise UserError(
                f"{path} has a record without an image in {keys.image!r}: it has "
                f"{_describe_keys(features)}. Give --image_key, and --label_key and --id_key if "
                "they differ, too."
            )
        encoded = features[keys.image].bytes_list.value[0]
        return SourceImage(
            printable(id), encoded, self._label(features, path), _external_teacher(features)
        )

    def _label(self, features: Mapping[str, tf.train.Feature], path: Path) -> int | None:
        key = self._keys.label
        if key not in features:
            self._keys_without_label = self._keys_without_label or _describe_keys(features)
            return None
        kind = features[key].WhichOneof("kind")
        if kind not in (None, "int64_list"):
            raise UserError(
                f"{path} has {key} of the type {kind}: expected an int64_list of one "
                f"integer; the record has {_describe_keys(features)}. Give --label_key."
            )
        label = features[key].int64_list.value
        return int(label[0]) - self._first_label if label else None


def _describe_keys(features: Mapping[str, tf.train.Feature]) -> str:
    """Keys of a record and the types of their values, in words."""
    kinds = {key: features[key].WhichOneof("kind") or "empty" for key in sorted(features)}
    named = [f"{printable(key)} ({kind.removesuffix('_list')})" for key, kind in kinds.items()]
    return f"the keys {list_names(named)}" if named else "no keys"


def _external_teacher(
    features: Mapping[str, tf.train.Feature],
) -> np.ndarray | tuple[int, float] | None:
    """`SourceImage.external_teacher` of an official pseudo-label record's features."""
    if "probabilities" in features and features["probabilities"].float_list.value:
        return np.array(features["probabilities"].float_list.value, np.float32)
    if "label" not in features or "prob" not in features:
        return None
    label, probability = features["label"].int64_list.value, features["prob"].float_list.value
    return (label[0], probability[0]) if label and probability else None
