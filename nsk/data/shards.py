"""Shard sets: TFRecord files in a folder, and a manifest of how many records each must have.

A TFRecord file that was cut on a record boundary looks complete, and TensorFlow's reader stops at
the first corrupt record. So every read is counted against the manifest, which is written last.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import tensorflow as tf

from nsk.config.data import DataConfig
from nsk.data.record_files import RecordWriter, read_counted, read_records
from nsk.errors import UserError
from nsk.store.files import atomic_write

MANIFEST = "manifest.json"
SHARD_BYTES = DataConfig.shard_mebibytes * 2**20
MAX_MANIFEST_BYTES = 2**28  # That of millions of shards.


def write_manifest(
    folder: str | Path, kind: str, class_names: Sequence[str], files: list[dict], top_k: int = 0
) -> None:
    """Writes the manifest that completes a shard set.

    Args:
        folder: path of the shard set.
        kind: "images"; "pseudo": with pseudo-labels; or "scored": labelled images with a teacher's
            predictions, see `nsk.data.records`.
        class_names: list of strings.
        files: list of `{"name": file name, "records": count, "copies": rows in an epoch, "images":
            records except those of images that are also in an earlier shard}`, in reading order.
        top_k: number of classes with a stored log-probability in a record, if there are any; 0:
            all.
    """
    manifest = {"kind": kind, "class_names": list(class_names), "top_k": top_k, "files": files}
    with atomic_write(Path(folder) / MANIFEST) as unfinished:
        unfinished.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


class ShardWriter:
    """Writes a stream of records into shards of limited size; a context manager.

    The manifest is written on leaving the context, unless there was an error.

    Args:
        folder: path of the shard set, created if needed.
        kind: "images" or "pseudo".
        class_names: list of strings.
        images_per_shard: largest number of records in a shard.
        shard_bytes: a shard that has reached this size is full.
    """

    def __init__(
        self,
        folder: str | Path,
        kind: str,
        class_names: Sequence[str],
        images_per_shard: int,
        shard_bytes: int = SHARD_BYTES,
    ):
        self.folder = Path(folder)
        self.kind = kind
        self.class_names = class_names
        self.images_per_shard, self.shard_bytes = images_per_shard, shard_bytes
        self._files = []
        self._writer = None
        self._bytes = 0

    def __enter__(self) -> "ShardWriter":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, serialized: bytes, copies: int = 1) -> None:
        """Appends one record, a serialized `tf.train.Example`, with its copies in an epoch."""
        if self._writer is None:
            name = f"{len(self._files):05d}.tfrecord"
            self._writer = RecordWriter(self.folder / name)
            self._files.append({"name": name, "records": 0, "copies": 0, "images": 0})
            self._bytes = 0
        self._writer.write(serialized)
        self._bytes += len(serialized)
        self._files[-1]["records"] += 1
        self._files[-1]["copies"] += int(copies)
        self._files[-1]["images"] += 1
        is_full = self._files[-1]["records"] == self.images_per_shard
        if is_full or self._bytes >= self.shard_bytes:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
        if error_type is None:
            write_manifest(self.folder, self.kind, self.class_names, self._files)


@dataclasses.dataclass(frozen=True)
class ShardSet:
    """A complete shard set.

    Attributes:
        folder: its path.
        kind: "images", "pseudo" or "scored", see `write_manifest`.
        class_names: tuple of strings.
        names: file names, in reading order.
        counts: records in each file.
        copies: rows of each file in an epoch: its records, counted with their copies.
        num_images: distinct images in all files together.
        top_k: number of classes with a stored log-probability in a record, if there are any; 0:
            all.
    """

    folder: Path
    kind: str
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    counts: tuple[int, ...]
    copies: tuple[int, ...]
    num_images: int
    top_k: int = 0

    @classmethod
    def load(cls, folder: str | Path) -> "ShardSet":
        """Opens the shard set in `folder`.

        Raises:
            UserError: the manifest or a shard is missing, or the manifest is not valid.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(
                f"{path} is missing, so {folder} is not a complete shard set: rebuild it."
            )
        try:
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                raise ValueError(f"it has more than {MAX_MANIFEST_BYTES:,} bytes")
            manifest = json.loads(path.read_text(encoding="utf-8"))
            files = manifest["files"]
            shard_set = cls(
                folder,
                manifest["kind"],
                tuple(map(_checked_text, manifest["class_names"])),
                tuple(_checked_name(file["name"]) for file in files),
                tuple(_checked_count(file["records"]) for file in files),
                tuple(_checked_count(file["copies"]) for file in files),
                sum(_checked_count(file["images"]) for file in files),
                _checked_count(manifest["top_k"]),
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path} is not the manifest of a shard set ({type(error).__name__}: {error})."
            ) from error
        for shard in shard_set.paths:
            if not os.path.isfile(shard):
                raise UserError(f"{shard} is missing but {path} names it: rebuild the shard set.")
        return shard_set

    @property
    def paths(self) -> tuple[Path, ...]:
        """Paths of the shards, in order."""
        return tuple(self.folder / name for name in self.names)

    @property
    def num_records(self) -> int:
        """Records in all shards."""
        return sum(self.counts)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def records(self, index: int) -> Iterator[bytes]:
        """Yields the serialized records of shard `index`; see `record_files.read_records`."""
        return read_records(self.paths[index], self.counts[index])

    def read(self, shards: int | Sequence[int] | None = None) -> tf.data.Dataset:
        """The serialized records as a dataset, shard by shard in file order.

        Iterating over a missing, corrupt or miscounted shard fails with a TensorFlow error, which
        does not name the file: iterate within `naming_broken_shards`.

        Args:
            shards: the shards to read: an index, a sequence of indices, or None for all.

        Returns:
            `tf.data.Dataset` of scalar string tensors.
        """
        if shards is None:
            shards = range(len(self.names))
        elif isinstance(shards, int):
            shards = [shards]
        paths = tf.constant([os.fsencode(self.paths[index]) for index in shards], tf.string)
        counts = tf.constant([self.counts[index] for index in shards], tf.int64)
        files = tf.data.Dataset.from_tensor_slices((paths, counts))
        return files.flat_map(read_counted)

    @contextlib.contextmanager
    def naming_broken_shards(self) -> Iterator[None]:
        """Turns an error of iterating over `read` into a UserError that names the broken shard."""
        try:
            yield
        except (
            tf.errors.DataLossError,
            tf.errors.FailedPreconditionError,
            tf.errors.NotFoundError,
        ):
            self.verify()
            raise

    def verify(self) -> None:
        """Reads every record; raises UserError naming the first shard that is broken."""
        for index in range(len(self.names)):
            for _ in self.records(index):
                pass


def _checked_text(value: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _checked_name(value: str) -> str:
    if _checked_text(value) in ("", ".", "..") or Path(value).name != value:
        raise ValueError(f"{value[:99]!r} is not the name of a file beside it")
    return value


def _checked_count(value: int) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is not a count")
    return value
