"""Reads and writes single TFRecord files, with checks that TensorFlow's reader lacks."""

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import tensorflow as tf

from nsk.errors import UserError

LENGTH = struct.Struct("<Q")  # The first field of a record in a file.
CHECKSUM_BYTES = 4 + 4  # Of the length, and of the content.


class RecordWriter:
    """`tf.io.TFRecordWriter` with OSErrors, like those of all other files; a context manager."""

    def __init__(self, path: str | Path):
        self._path = os.fsencode(path)  # A name need not be UTF-8.
        with self._as_os_errors():
            self._writer = tf.io.TFRecordWriter(self._path)

    def write(self, serialized: bytes) -> None:
        """Appends a record."""
        with self._as_os_errors():
            self._writer.write(serialized)

    def close(self) -> None:
        """Flushes and closes the file."""
        with self._as_os_errors():
            self._writer.close()

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _as_os_errors(self) -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            is_full = isinstance(error, tf.errors.ResourceExhaustedError)
            number = errno.ENOSPC if is_full else errno.EIO
            raise OSError(number, os.strerror(number), os.fsdecode(self._path)) from error


def read_records(
    path: Path, expected: int | None = None, max_bytes: int | None = None
) -> Iterator[bytes]:
    """Yields the serialized records of a file.

    Args:
        path: of the TFRecord file.
        expected: how many records it must have; None: any number.
        max_bytes: of a record; None: any that fits into the file.

    Raises:
        UserError: the file is missing or corrupt, or its records are fewer, more or larger than
            expected.
    """
    _check_lengths(path, max_bytes)
    count = 0
    try:
        for record in tf.data.TFRecordDataset(os.fsencode(path)).as_numpy_iterator():
            count += 1
            if expected is None or count <= expected:
                yield record
    except tf.errors.OpError as error:
        raise UserError(
            f"{path} cannot be read after {count} records ({type(error).__name__}): rebuild it."
        ) from error
    if expected is not None and count != expected:
        raise UserError(
            f"{path} has {count} records, its manifest says {expected}: rebuild the shard set."
        )


def _check_lengths(path: Path, max_bytes: int | None) -> None:
    """UserError if a record claims more bytes than are allowed or than the file has.

    TensorFlow would allocate whatever a record claims, and crash if it cannot.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            limit = size if max_bytes is None else min(size, max_bytes)
            offset = count = 0
            while len(header := os.pread(file.fileno(), LENGTH.size, offset)) == LENGTH.size:
                (length,) = LENGTH.unpack(header)
                if length > limit:
                    raise UserError(
                        f"{path} has a record of {length:,} bytes after {count} others, expected "
                        f"at most {limit:,}: rebuild it."
                    )
                offset += LENGTH.size + length + CHECKSUM_BYTES
                count += 1
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): rebuild it.") from error


def read_counted(path: tf.Tensor, expected: tf.Tensor) -> tf.data.Dataset:
    """The records of a file as a counted dataset; for `flat_map` and `interleave`.

    Args:
        path: scalar string tensor.
        expected: scalar int64 tensor; iterating over fewer or more records than this fails.
    """
    return tf.data.TFRecordDataset(path).apply(tf.data.experimental.assert_cardinality(expected))
