"""Shard sets: TFRecord files in a folder, and a manifest that says how many records each must have.

TFRecord alone cannot tell a complete file from one that was cut on a record boundary, and the
reader stops at the first corrupt record. So every read is counted against the manifest, which is
written last.
"""

import contextlib
import dataclasses
import errno
import json
import os
import struct
from pathlib import Path

import tensorflow as tf

from nsk.config.sections import DataConfig
from nsk.errors import UserError
from nsk.store.files import written_whole

MANIFEST = "manifest.json"
SHARD_BYTES = DataConfig.shard_mebibytes * 2**20
MANIFEST_BYTES = 2**28  # That of millions of shards.
LENGTH = struct.Struct("<Q")  # What a TFRecord begins with.
CHECKSUM_BYTES = 4 + 4  # Of the length, and of the content.


def write_manifest(folder, kind, class_names, files, top_k=0):
    """Writes the manifest that completes a shard set.

    Args:
        folder: path of the shard set.
        kind: "images" or "pseudo".
        class_names: list of strings.
        files: list of `{"name": file name, "records": count, "copies": rows in an epoch, "images":
            records without those that stand in an earlier shard, too}`, in reading order.
        top_k: how many classes' log-probabilities the records of kind "pseudo" hold; 0: all.
    """
    manifest = {"kind": kind, "class_names": list(class_names), "top_k": top_k, "files": files}
    with written_whole(Path(folder) / MANIFEST) as unfinished:
        unfinished.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


class ShardWriter:
    """Streams records into shards of limited size; a context manager.

    Leaving the context writes the manifest, unless an error left it.

    Args:
        folder: path of the shard set, made if needed.
        kind: "images" or "pseudo".
        class_names: list of strings.
        images_per_shard: int, most records in a shard.
        shard_bytes: int, a shard that has reached this size is full.
    """

    def __init__(self, folder, kind, class_names, images_per_shard, shard_bytes=SHARD_BYTES):
        self.folder = Path(folder)
        self.kind = kind
        self.class_names = class_names
        self.images_per_shard, self.shard_bytes = images_per_shard, shard_bytes
        self._files = []
        self._writer = None
        self._bytes = 0

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, serialized, copies=1):
        """Appends one record, a serialized `tf.train.Example` that counts `copies` times."""
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

    def _close(self):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __exit__(self, kind_of_error, error, traceback):
        self._close()
        if kind_of_error is None:
            write_manifest(self.folder, self.kind, self.class_names, self._files)


class RecordWriter:
    """`tf.io.TFRecordWriter` whose errors are OSErrors, as those of all other files."""

    def __init__(self, path):
        self._path = os.fsencode(path)  # A name need not be UTF-8.
        with self._naming():
            self._writer = tf.io.TFRecordWriter(self._path)

    def write(self, serialized):
        with self._naming():
            self._writer.write(serialized)

    def close(self):
        with self._naming():
            self._writer.close()

    def __enter__(self):
        return self

    def __exit__(self, kind_of_error, error, traceback):
        self.close()

    @contextlib.contextmanager
    def _naming(self):
        try:
            yield
        except tf.errors.OpError as error:
            is_full = isinstance(error, tf.errors.ResourceExhaustedError)
            number = errno.ENOSPC if is_full else errno.EIO
            raise OSError(number, os.strerror(number), os.fsdecode(self._path)) from error


def read_records(path, expected=None, most_bytes=None):
    """Yields the serialized records of one shard as bytes.

    Args:
        path: path of the TFRecord file.
        expected: int, how many records it must have; None: any number.
        most_bytes: int, the largest record; None: any that fits into the file.

    Raises:
        UserError: the file is missing, corrupt, or has fewer, more or larger records than expected.
    """
    _check_lengths(path, most_bytes)
    count = 0
    try:
        for record in tf.data.TFRecordDataset(os.fsencode(path)).as_numpy_iterator():
            count += 1
            if expected is None or count <= expected:
                yield record
    except tf.errors.OpError as error:
        raise UserError(
            f"{path} cannot be read after {count} records ({type(error).__name__}): make it again."
        ) from error
    if expected is not None and count != expected:
        raise UserError(
            f"{path} has {count} records, its manifest says {expected}: make the shard set again."
        )


def _check_lengths(path, most_bytes):
    """UserError where a record claims more bytes than are allowed, or than its whole file has.

    TensorFlow would take memory for all that a record claims, and crash where there is none.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            most = size if most_bytes is None else min(size, most_bytes)
            place = count = 0
            while len(header := os.pread(file.fileno(), LENGTH.size, place)) == LENGTH.size:
                (length,) = LENGTH.unpack(header)
                if length > most:
                    raise UserError(
                        f"{path} has a record of {length:,} bytes after {count} others, expected "
                        f"{most:,} at most: make it again."
                    )
                place += LENGTH.size + length + CHECKSUM_BYTES
                count += 1
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it again.") from error


@dataclasses.dataclass(frozen=True)
class ShardSet:
    """A complete shard set.

    Attributes:
        folder: its path.
        kind: "images" or "pseudo".
        class_names: tuple of strings.
        names: tuple of file names, in reading order.
        counts: tuple of ints, records in each file.
        copies: tuple of ints, rows of each file in an epoch: its records, each as often as it
            counts.
        num_images: different images in all files together.
        top_k: how many classes' log-probabilities a record of kind "pseudo" holds; 0: all.
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
    def load(cls, folder):
        """Opens the shard set in `folder`.

        Raises:
            UserError: the manifest or a shard is missing, or the manifest cannot be understood.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(
                f"{path} is missing, so {folder} is not a complete shard set: make it again."
            )
        try:
            if path.stat().st_size > MANIFEST_BYTES:
                raise ValueError(f"it has more than {MANIFEST_BYTES:,} bytes")
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
                raise UserError(
                    f"{shard} is missing but {path} names it: make the shard set again."
                )
        return shard_set

    @property
    def paths(self):
        return tuple(self.folder / name for name in self.names)

    @property
    def num_records(self):
        return sum(self.counts)

    @property
    def num_classes(self):
        return len(self.class_names)

    def records(self, index):
        """Yields the serialized records of shard `index` as bytes; see `read_records`."""
        return read_records(self.paths[index], self.counts[index])

    def read(self, shards=None):
        """The serialized records as a `tf.data.Dataset`, shard after shard in file order.

        A missing, corrupt or miscounted shard fails the iteration with an error of TensorFlow's,
        which does not name the file: iterate within `naming_broken_shards`.

        Args:
            shards: the shards to read: an index, a sequence of indices, or None for all.

        Returns:
            A dataset of scalar string tensors.
        """
        if shards is None:
            shards = range(len(self.names))
        elif isinstance(shards, int):
            shards = [shards]
        paths = tf.constant([os.fsencode(self.paths[index]) for index in shards], tf.string)
        counts = tf.constant([self.counts[index] for index in shards], tf.int64)
        files = tf.data.Dataset.from_tensor_slices((paths, counts))
        return files.flat_map(read_shard)

    @contextlib.contextmanager
    def naming_broken_shards(self):
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

    def verify(self):
        """Reads every record; raises UserError naming the first shard that is broken."""
        for index in range(len(self.names)):
            for _ in self.records(index):
                pass


def _checked_text(value):
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _checked_name(value):
    if _checked_text(value) in ("", ".", "..") or Path(value).name != value:
        raise ValueError(f"{value[:99]!r} is not the name of a file beside it")
    return value


def _checked_count(value):
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no count")
    return value


def read_shard(path, expected):
    """The records of one shard as a counted `tf.data.Dataset`; for `flat_map` and `interleave`.

    Args:
        path: scalar string tensor.
        expected: scalar int64 tensor; iterating fails on fewer or more records than this.
    """
    return tf.data.TFRecordDataset(path).apply(tf.data.experimental.assert_cardinality(expected))
