"""Shard sets: complete, in order, and damage is always noticed."""

import json

import pytest
import tensorflow as tf

from nsk.data import shards
from nsk.errors import UserError

NAMES = ["cat", "dog"]


def write(folder, count=7, images_per_shard=3):
    with shards.ShardWriter(folder, "images", NAMES, images_per_shard) as writer:
        for number in range(count):
            writer.write(b"record %d" % number)
    return shards.ShardSet.load(folder)


def cut_last_record(path):
    """Cuts on a record boundary, which a TFRecord reader does not notice."""
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records[:-1]:
            writer.write(record)


def append_record(path):
    extra = path.with_suffix(".extra")
    with tf.io.TFRecordWriter(str(extra)) as writer:
        writer.write(b"additional")
    path.write_bytes(path.read_bytes() + extra.read_bytes())


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(bytes(content))


def cut_bytes(path):
    path.write_bytes(path.read_bytes()[:-3])


def empty(path):
    path.write_bytes(b"")


DAMAGES = [cut_last_record, append_record, flip_byte, cut_bytes, empty]


def test_shards_are_read_in_the_requested_order(tmp_path):
    shard_set = write(tmp_path / "set")
    everything = [b"record %d" % number for number in range(7)]
    for shards_, expected in (
        (1, everything[3:6]),
        ([1], everything[3:6]),
        ([2, 0], everything[6:] + everything[:3]),
        (range(1, 3), everything[3:]),
        ([], []),
    ):
        assert list(shard_set.read(shards_).as_numpy_iterator()) == expected


def test_a_manifest_has_the_number_of_images_and_stored_classes(tmp_path):
    shard_set = write(tmp_path / "set")
    assert (shard_set.num_images, shard_set.top_k) == (7, 0)
    files = [
        {"name": name, "records": 3, "copies": 5, "images": images}
        for name, images in zip(shard_set.names, (3, 1, 0), strict=True)
    ]
    shards.write_manifest(tmp_path / "set", "pseudo", NAMES, files, top_k=9)
    shard_set = shards.ShardSet.load(tmp_path / "set")
    assert (shard_set.num_images, shard_set.num_records, shard_set.top_k) == (4, 9, 9)
    assert [path.name for path in (tmp_path / "set").glob("manifest*")] == ["manifest.json"]


def test_a_written_set_is_read_back_in_order(tmp_path):
    shard_set = write(tmp_path / "set")
    assert shard_set.kind == "images"
    assert shard_set.class_names == ("cat", "dog")
    assert shard_set.num_classes == 2
    assert shard_set.counts == (3, 3, 1)
    assert shard_set.num_records == 7
    assert [path.name for path in shard_set.paths] == list(shard_set.names)
    everything = [b"record %d" % number for number in range(7)]
    assert list(shard_set.read().as_numpy_iterator()) == everything
    assert list(shard_set.read(1).as_numpy_iterator()) == everything[3:6]
    assert list(shard_set.read([2, 0]).as_numpy_iterator()) == everything[6:] + everything[:3]
    assert list(shard_set.records(2)) == everything[6:]
    shard_set.verify()


def test_a_shard_is_full_when_it_reaches_its_size(tmp_path):
    with shards.ShardWriter(tmp_path, "images", NAMES, 4, shard_bytes=100) as writer:
        for size in (50, 49, 1, 200, 99, 99, 10, 10, 10, 10, 10):
            writer.write(bytes(size))
    assert shards.ShardSet.load(tmp_path).counts == (3, 1, 2, 4, 1)


def test_no_empty_shard_follows_a_full_last_shard(tmp_path):
    assert write(tmp_path, 6, 3).counts == (3, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000.tfrecord",
        "00001.tfrecord",
        "manifest.json",
    ]


def test_a_shard_set_may_be_empty(tmp_path):
    shard_set = write(tmp_path, 0)
    assert shard_set.num_records == 0
    assert list(shard_set.read().as_numpy_iterator()) == []


def test_no_manifest_after_an_error(tmp_path):
    with (
        pytest.raises(RuntimeError),
        shards.ShardWriter(tmp_path / "set", "images", NAMES, 3) as writer,
    ):
        writer.write(b"record")
        raise RuntimeError
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        shards.ShardSet.load(tmp_path / "set")


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "00001.tfrecord").unlink()
    with pytest.raises(UserError, match=r"00001\.tfrecord is missing"):
        shards.ShardSet.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", json.dumps({"kind": "images", "files": [1]})]
)
def test_a_broken_manifest_is_named(tmp_path, text):
    write(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json is not the manifest"):
        shards.ShardSet.load(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named(tmp_path, damage):
    shard_set = write(tmp_path)
    damage(shard_set.paths[1])
    with pytest.raises(UserError, match=r"00001\.tfrecord"):
        list(shard_set.records(1))
    with pytest.raises(UserError, match=r"00001\.tfrecord"):
        shard_set.verify()
    with (
        pytest.raises(UserError, match=r"00001\.tfrecord"),
        shard_set.naming_broken_shards(),
    ):
        list(shard_set.read().as_numpy_iterator())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_always_raises_an_error(tmp_path, damage):
    shard_set = write(tmp_path)
    damage(shard_set.paths[1])
    with pytest.raises(tf.errors.OpError):
        list(shard_set.read().as_numpy_iterator())
    assert list(shard_set.read(0).as_numpy_iterator()) == [b"record 0", b"record 1", b"record 2"]


def test_records_beyond_the_expected_number_are_not_yielded(tmp_path):
    shard_set = write(tmp_path)
    append_record(shard_set.paths[2])
    yielded = []
    with pytest.raises(UserError, match="has 2 records, its manifest says 1"):
        yielded.extend(shard_set.records(2))
    reader = shard_set.records(2)
    assert next(reader) == b"record 6"
