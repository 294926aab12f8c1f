import pytest
import tensorflow as tf
from PIL import Image

from nsk.config.data import DataConfig
from nsk.data import record_files, records, shards, sources
from nsk.data.pools import open_pools
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
    with pytest.raises(UserError, match=r"a\.tfrecord has a record without an image.*has no keys"):
        listed(opened([b""]))
    with pytest.raises(UserError, match="labels from -2 to 1"):
        opened([records.image_example(f"{x}", b"", x) for x in (-2, 1)]).class_names  # noqa: B018


def example(**features):
    """A serialized record of bytes and integers by key, with _ instead of /."""
    values = {
        key.replace("_", "/"): tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        if isinstance(value, int)
        else tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for key, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString()


def test_images_are_no_records(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png is an image, not a TFRecord file: give fold"):
        sources.open_source(f"tfrecord:{tmp_path}/*.png")


def test_other_keys(tmp_path, write_tfrecord):
    write_tfrecord(
        tmp_path / "a.tfrecord",
        [example(data_jpeg=b"1", cls=1, name=b"first"), example(data_jpeg=b"2", cls=0)],
    )
    config = DataConfig(
        dataset=f"tfrecord:{tmp_path}/a*", image_key="data/jpeg", label_key="cls", id_key="name"
    )
    source = sources.open_sources(config)["dataset"]
    assert list(source.images("train")) == [
        SourceImage("first", b"1", 1),
        SourceImage("a.tfrecord/000001", b"2", 0),
    ]
    assert source.class_names == ["0", "1"]


def test_keys_that_do_not_fit_are_answered_with_those_that_were_found(tmp_path, write_tfrecord):
    write_tfrecord(tmp_path / "a.tfrecord", [example(data_jpeg=b"1", cls=1, name=b"first")])
    pattern = f"tfrecord:{tmp_path}/a*"
    found = r"the keys cls \(int64\), data/jpeg \(bytes\), name \(bytes\)"
    with pytest.raises(UserError, match=rf"an image in 'image/encoded': it has {found}.*image_key"):
        listed(sources.open_source(pattern))
    config = DataConfig(dataset=pattern, image_key="data/jpeg")
    message = rf"no labels: its records have no 'image/class/label' but {found}: give --label_key"
    with pytest.raises(UserError, match=message):
        open_pools(config)
    config = DataConfig(dataset=pattern, image_key="data/jpeg", label_key="name")
    message = rf"has name of the type bytes_list: expected an int64_list.*{found}"
    with pytest.raises(UserError, match=message):
        open_pools(config)


def test_the_number_of_records_is_known_from_manifest_lengths_or_labels(tmp_path, monkeypatch):
    examples = [records.image_example(str(number), b"1", number % 2) for number in range(3)]
    for name, compression in (("plain", ""), ("packed", "GZIP")):
        with tf.io.TFRecordWriter(str(tmp_path / name), compression) as writer:
            for record in examples:
                writer.write(record)
    plain, packed = (sources.open_source(f"tfrecord:{tmp_path}/{name}") for name in ("plain", "p*"))
    assert plain.count("train") == 3
    assert packed.count("train") is None
    assert packed.class_names == ["0", "1"] and packed.count("train") == 6
    with shards.ShardWriter(tmp_path / "set", "images", ["x", "y"], 2) as writer:
        for record in examples:
            writer.write(record)
    monkeypatch.setattr(record_files, "_lengths", None)  # The manifest knows.
    assert sources.open_source(f"tfrecord:{tmp_path}/set/*.tfrecord").count("train") == 3


@pytest.mark.parametrize("compression", ["GZIP", "ZLIB"])
def test_compressed_files(tmp_path, compression):
    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for number in range(3):
            writer.write(records.image_example(f"{number}", bytes(99), number))
    source = sources.open_source(f"tfrecord:{path}")
    assert listed(source) == [("0", 0), ("1", 1), ("2", 2)]
