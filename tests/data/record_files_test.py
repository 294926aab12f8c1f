"""Single TFRecord files; `shards_test.py` tests damaged ones, `hostile_test.py` malicious ones."""

import errno
import zlib

import numpy as np
import pytest
import tensorflow as tf

from nsk.data import record_files
from nsk.errors import UserError


def test_records_are_read_back_in_order_with_or_without_their_number(tmp_path):
    path = tmp_path / "a.tfrecord"
    with record_files.RecordWriter(path) as writer:
        for record in (b"first", b"second"):
            writer.write(record)
    assert list(record_files.read_records(path)) == [b"first", b"second"]
    assert list(record_files.read_records(path, expected=2)) == [b"first", b"second"]
    with pytest.raises(UserError, match="has 2 records, its manifest says 3"):
        list(record_files.read_records(path, expected=3))
    with pytest.raises(UserError, match="has a record of 6 bytes after 1 others, expected at most"):
        list(record_files.read_records(path, max_bytes=5))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing_here"):
        list(record_files.read_records(tmp_path / "nothing_here"))


def test_errors_of_writing_are_os_errors(tmp_path):
    with pytest.raises(OSError, match="no_folder") as raised:
        record_files.RecordWriter(tmp_path / "no_folder" / "a.tfrecord")
    assert raised.value.errno == errno.EIO


def write_compressed(path, compression, sizes):
    """Records of random bytes, which hardly shrink."""
    random = np.random.default_rng(0)
    written = [random.bytes(size) for size in sizes]
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in written:
            writer.write(record)
    return written


@pytest.mark.parametrize("compression", ["", "GZIP", "ZLIB"])
def test_compression_is_told_by_content(tmp_path, compression):
    path = tmp_path / "a.tfrecord"
    # Records of many sizes, also larger than a chunk of what is decompressed at a time.
    written = write_compressed(path, compression, [0, 1, 200_000, 65_520, 65_536, 7, 300_000])
    assert record_files.compression_of(path) == compression
    assert list(record_files.read_records(path, compression=compression)) == written
    with pytest.raises(UserError, match="record of 300,000 bytes after 6 others, expected at most"):
        list(record_files.read_records(path, None, 250_000, compression))


@pytest.mark.parametrize("length", [0x9C78, 0x0178, 0x088B1F])
def test_a_length_that_looks_like_a_header_is_not_compression(tmp_path, length):
    path = tmp_path / "a.tfrecord"
    write_compressed(path, "", [length])
    assert path.read_bytes()[:2] in (b"\x78\x9c", b"\x78\x01", b"\x1f\x8b")
    assert record_files.compression_of(path) == ""


def test_a_record_that_claims_too_much_in_a_compressed_file_is_refused(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(zlib.compress((2**40).to_bytes(8, "little") + bytes(100)))
    with pytest.raises(UserError, match="has a record of 1,099,511,627,776 bytes after 0 others"):
        list(record_files.read_records(path, compression=record_files.compression_of(path)))


def test_a_damaged_compressed_file_is_named(tmp_path):
    path = tmp_path / "a.tfrecord"
    write_compressed(path, "ZLIB", [100_000, 100_000])
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:150_000])
    with pytest.raises(UserError, match=r"a\.tfrecord cannot be read after 1 records"):
        list(record_files.read_records(path, compression="ZLIB"))
    content[130_000:130_100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tfrecord cannot be"):
        list(record_files.read_records(path, compression="ZLIB"))
