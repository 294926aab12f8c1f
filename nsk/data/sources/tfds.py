"""A data set of TensorFlow Datasets as a source of images."""

from __future__ import annotations

import difflib
import socket
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import tensorflow as tf

from nsk.data.content import ContentDigests
from nsk.data.sources.source import Source, SourceImage
from nsk.errors import UserError, list_names

if TYPE_CHECKING:  # Imported in functions, since it is an optional dependency.
    import tensorflow_datasets as tfds

DOWNLOAD_HOST = "storage.googleapis.com"  # Of TFDS's own copies.


class TfdsSource(Source):
    """A data set of TensorFlow Datasets, with the encoded bytes of its images.

    It is read from TFDS's own folder (TFDS_DATA_DIR), and downloaded if it is not prepared there. A
    TFDS split called unlabeled or unlabelled becomes the split `unlabeled`, unless another one is
    given.

    Args:
        name: NAME or NAME/config in TFDS.
        train_split, test_split, unlabeled_split: see `nsk.data.sources.open_source`.

    Raises:
        UserError: the data set cannot be prepared, or lacks the split or an image feature.
    """

    ids_reveal_labels = False
    label_hint = "give a data set with labels"

    def __init__(self, name: str, train_split: str, test_split: str, unlabeled_split: str = ""):
        self.name = name
        self._builder = _prepared_builder(name)
        self._names = {"train": train_split, "test": test_split}
        present = set(self._builder.info.splits)
        for unlabeled in sorted(present & {"unlabeled", "unlabelled"}):
            self._names["unlabeled"] = unlabeled
        if unlabeled_split:
            self._names["unlabeled"] = unlabeled_split
            self._check_split("unlabeled")
        for split in ("train", "test"):
            # Many data sets lack one of the two; that a default is missing is not a user's error.
            if self._names[split] == split and split not in present:
                del self._names[split]
            else:
                self._check_split(split)
        if not self._names:
            raise UserError(
                f"tfds:{name} has neither a train nor a test split: its splits are "
                f"{list_names(list(self._builder.info.splits))}; as --dataset, give --train_split."
            )
        order = ("train", "unlabeled", "test")
        self.splits = tuple(split for split in order if split in self._names)
        self._image, self._label = _find_features(name, self._builder.info)
        feature = self._builder.info.features[self._label] if self._label else None
        self.class_names = list(feature.names) if feature is not None else None

    @property
    def notes(self) -> tuple[str, ...]:
        """The name, version and splits of the data set."""
        splits = ", ".join(f"{split} ({self.count(split):,} images)" for split in self.splits)
        return (f"TensorFlow data set {self.name} {self._builder.version}: {splits}.",)

    def _check_split(self, flag: str) -> None:
        split = self._names[flag]
        try:
            self._builder.info.splits[split]
        except (KeyError, ValueError) as error:
            raise UserError(
                f"--{flag}_split={split!r} is not a split of tfds:{self.name}: expected one of "
                f"{list_names(list(self._builder.info.splits))}."
            ) from error

    def content(self, digests: ContentDigests) -> dict:
        """Name and version of the data set, and the number of examples in each split."""
        return {
            "tfds": self.name,
            "version": str(self._builder.version),
            "examples": {split: self.count(split) for split in self._names},
        }

    def count(self, split: str) -> int:
        """Number of examples of a split."""
        return int(self._builder.info.splits[self._names[split]].num_examples)

    def images(self, split: str) -> Iterator[SourceImage]:
        """Images of a split, still encoded; their ids are those of TensorFlow Datasets."""
        import tensorflow_datasets as tfds

        wanted = {self._image: True} | ({self._label: True} if self._label else {})
        dataset = self._builder.as_dataset(
            split=self._names[split],
            decoders=tfds.decode.PartialDecoding(
                wanted, decoders={self._image: tfds.decode.SkipDecoding()}
            ),
            read_config=tfds.ReadConfig(add_tfds_id=True),
        )
        try:
            # In batches, since iterating over single examples is several times slower.
            for batch in dataset.batch(256).prefetch(2).as_numpy_iterator():
                labels = (
                    batch[self._label].tolist() if self._label else [-1] * len(batch["tfds_id"])
                )
                rows = zip(batch["tfds_id"], batch[self._image], labels, strict=True)
                for id, encoded, label in rows:
                    # In TFDS -1 is an unknown label.
                    yield SourceImage(id.decode(), encoded, label if label >= 0 else None)
        except tf.errors.OpError as error:
            raise UserError(
                f"The prepared copy of tfds:{self.name} in {self._builder.data_dir} cannot be read "
                f"({type(error).__name__}): prepare it again."
            ) from error


def _prepared_builder(name: str) -> tfds.core.DatasetBuilder:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"--dataset=tfds:{name} needs TensorFlow Datasets: pip install tensorflow-datasets."
        ) from error
    try:
        builder = tfds.builder(name)
        if not builder.is_prepared():
            _require_network()
            builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        similar = difflib.get_close_matches(name.partition("/")[0], tfds.list_builders())
        raise UserError(
            f"tfds:{name} is not a data set of TensorFlow Datasets, nor one in TFDS_DATA_DIR: "
            + (f"did you mean {' or '.join(similar)}?" if similar else "check the name.")
        ) from error
    # TFDS raises nearly anything: no network, a missing manual download.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"tfds:{name} is not prepared and cannot be downloaded ({reason}): check the "
            "name and the network, or set TFDS_DATA_DIR to a folder that holds a prepared copy."
        ) from error
    return builder


def _require_network() -> None:
    """OSError if no address can be looked up: TFDS would try to download for minutes.

    Behind a proxy, which looks up addresses itself, nothing is checked.
    """
    if urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(DOWNLOAD_HOST, "https")
    except OSError as error:
        raise OSError(f"no network: the address of {DOWNLOAD_HOST} is not found") from error


def _find_features(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str | None]:
    """Names of the image feature and, if there is one, of the label."""
    import tensorflow_datasets as tfds

    def choose(kind, preferred):
        found = [key for key, feature in info.features.items() if isinstance(feature, kind)]
        supervised = [key for key in (info.supervised_keys or ()) if key in found]
        named = [key for key in found if key == preferred]
        return next(iter(supervised + named + found), None)

    image = choose(tfds.features.Image, "image")
    if image is None:
        raise UserError(
            f"tfds:{name} has no image feature, only {list_names(list(info.features))}: choose "
            "another data set."
        )
    return image, choose(tfds.features.ClassLabel, "label")
