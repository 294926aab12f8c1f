import pytest

from nsk.data import records, shards, sources
from nsk.data.sources.source import SourceImage
from nsk.errors import UserError


def listed(source, split="train"):
    return [(image.id, image.label) for image in source.images(split)]


def test_tfrecord_without_a_manifest(tmp_path, write_tfrecord):
    write_tfrecord(
        tmp_path / "a.tfrecord",
        [records.image_example("first", b"1", 0), records.image_example("second", b"2")],
    )
    write_tfrecord(tmp_path / "b.tfrecord", [records.image_example("third", b"3", 3)])
    source = sources.open_source(f"tfrecord:{tmp_path}/*.tfrecord")
    assert source.class_names == ["0", "1", "2", "3"]
    assert source.splits == ("train",)
    assert list(source.images("train")) == [
        SourceImage("first", b"1", 0),
        SourceImage("second", b"2", None),
        SourceImage("third", b"3", 3),
    ]


def test_tfrecord_without_labels(tmp_path, write_tfrecord):
    write_tfrecord(tmp_path / "a.tfrecord", [records.image_example("first", b"1")])
    assert sources.open_source(f"tfrecord:{tmp_path}/a*").class_names is None


def test_tfrecord_with_a_manifest(tmp_path):
    with shards.ShardWriter(tmp_path, "images", ["x", "y"], 1) as writer:
        writer.write(records.image_example("first", b"1", 0))
        writer.write(records.image_example("second", b"2", 1))
    source = sources.open_source(f"tfrecord:{tmp_path}/*.tfrecord")
    assert source.class_names == ["x", "y"]
    assert listed(source) == [("first", 0), ("second", 1)]
    (tmp_path / "00001.tfrecord").write_bytes(b"")
    with pytest.raises(UserError, match=r"00001\.tfrecord has 0 records"):
        listed(source)


def test_tfrecords_that_are_refused(tmp_path, write_tfrecord):
    def opened(examples):
        write_tfrecord(tmp_path / "a.tfrecord", examples)
        return sources.open_source(f"tfrecord:{tmp_path}/a.tfrecord")

    with pytest.raises(UserError, match="matches no file"):
        sources.open_source(f"tfrecord:{tmp_path}/nothing*")
    with pytest.raises(UserError, match=r"a\.tfrecord has a record that is not a tf.train.Example"):
        listed(opened([b"\xff\xffnot an example"]))
    with pytest.raises(UserError, match=r"a\.tfrecord has a record that is not a tf.train.Example"):
        listed(opened([b""]))
    with pytest.raises(UserError, match="labels from -2 to 1"):
        opened([records.image_example(f"{x}", b"", x) for x in (-2, 1)]).class_names  # noqa: B018
