"""Single TFRecord files; `shards_test.py` tests damaged ones, `hostile_test.py` malicious ones."""

import errno

import pytest

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
