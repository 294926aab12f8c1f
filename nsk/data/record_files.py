"""Reads and writes single TFRecord files, with checks that TensorFlow's reader lacks."""

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import tensorflow as tf

from nsk.errors import UserError

LENGTH = struct.Struct("<Q")  # The first field of a record in a file.
CHECKSUM_BYTES = 4 + 4  # Of the length, and of the content.
ANY_HEADER = zlib.MAX_WBITS | 32  # zlib then accepts the headers of GZIP and ZLIB.
GZIP_MAGIC = b"\x1f\x8b"
DETECTION_BYTES = 2**16


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
    path: Path,
    expected: int | None = None,
    max_bytes: int | None = None,
    compression: str = "",
) -> Iterator[bytes]:
    """Yields the serialized records of a file.

    Args:
        path: of the TFRecord file.
        expected: how many records it must have; None: any number.
        max_bytes: of a record; None: any that fits into the file.
        compression: "", "GZIP" or "ZLIB", see `compression_of`.

    Raises:
        UserError: the file is missing or corrupt, or its records are fewer, more or larger than
            expected.
    """
    _check_lengths(path, max_bytes, compression)
    count = 0
    try:
        records = tf.data.TFRecordDataset(os.fsencode(path), compression)
        for record in records.as_numpy_iterator():
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


def count_records(path: Path) -> int | None:
    """Number of records of a file, without reading them; None if it is compressed or unreadable."""
    if compression_of(path):
        return None
    try:
        with open(path, "rb", buffering=0) as file:
            return sum(1 for _ in _lengths(file))
    except OSError:
        return None


def compression_of(path: Path) -> str:
    """How a TFRecord file is compressed, by its content: "GZIP", "ZLIB" or "", not at all."""
    try:
        with open(path, "rb") as file:
            start = file.read(DETECTION_BYTES)
        content = zlib.decompressobj(ANY_HEADER).decompress(start, DETECTION_BYTES)
    except (OSError, zlib.error):
        return ""
    # The first eight bytes of a file that is not compressed are a length, which may look like a
    # header; but what follows it then is not compressed data.
    if len(content) < LENGTH.size:
        return ""
    return "GZIP" if start.startswith(GZIP_MAGIC) else "ZLIB"


def _check_lengths(path: Path, max_bytes: int | None, compression: str) -> None:
    """UserError if a record claims more bytes than are allowed or than the file has.

    TensorFlow would allocate whatever a record claims, and crash if it cannot.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            limit = size if max_bytes is None else min(size, max_bytes)
            if compression:  # A file of zeros is a thousandth of its content.
                limit = 2**31 if max_bytes is None else max_bytes
                lengths = _compressed_lengths(file)
            else:
                lengths = _lengths(file)
            for count, length in enumerate(lengths):
                if length > limit:
                    raise UserError(
                        f"{path} has a record of {length:,} bytes after {count} others, expected "
                        f"at most {limit:,}: rebuild it."
                    )
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): rebuild it.") from error
    except zlib.error as error:
        raise UserError(f"{path} cannot be decompressed ({error}): rebuild it.") from None


def _lengths(file):
    """Yields the lengths that the records of a file claim."""
    offset = 0
    while len(header := os.pread(file.fileno(), LENGTH.size, offset)) == LENGTH.size:
        (length,) = LENGTH.unpack(header)
        yield length
        offset += LENGTH.size + length + CHECKSUM_BYTES


def _compressed_lengths(file):
    """Yields the lengths that the records of a compressed file claim."""
    decompressor, content, to_skip = zlib.decompressobj(ANY_HEADER), b"", 0
    while not decompressor.eof:
        chunk = decompressor.unconsumed_tail or file.read(DETECTION_BYTES)
        if not chunk:
            return  # It was cut: TensorFlow's reader says so.
        content += decompressor.decompress(chunk, DETECTION_BYTES)
        while to_skip < len(content):
            content, to_skip = content[to_skip:], 0
            if len(content) < LENGTH.size:
                break
            (length,) = LENGTH.unpack(content[: LENGTH.size])
            yield length
            to_skip = LENGTH.size + length + CHECKSUM_BYTES
        else:
            content, to_skip = b"", to_skip - len(content)


def read_counted(path: tf.Tensor, expected: tf.Tensor) -> tf.data.Dataset:
    """The records of a file as a counted dataset; for `flat_map` and `interleave`.

    Args:
        path: scalar string tensor.
        expected: scalar int64 tensor; iterating over fewer or more records than this fails.
    """
    return tf.data.TFRecordDataset(path).apply(tf.data.experimental.assert_cardinality(expected))
