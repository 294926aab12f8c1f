"""What concerns several kinds of sources: settings, content and paths."""

import pytest
import sklearn

from nsk.config.data import DataConfig
from nsk.data import records, sources
from nsk.data.content import ContentDigests
from nsk.errors import UserError

# TensorFlow Datasets 4.9 calls a method that protobuf 6 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated:DeprecationWarning")


def listed(source, split="train"):
    return [(image.id, image.label) for image in source.images(split)]


def test_the_split_flags_apply_only_to_the_dataset(pictures):
    config = DataConfig(
        dataset="tfds:pictures",
        train_split="train[:2]",
        test_split="unlabelled",
        test_dataset="tfds:pictures",
        unlabeled_dataset="tfds:pictures",
    )
    opened = sources.open_sources(config)
    assert list(opened) == ["dataset", "test_dataset", "unlabeled_dataset"]
    assert [len(list(source.images("train"))) for source in opened.values()] == [2, 3, 3]
    assert next(opened["dataset"].images("test")).label is None
    assert next(opened["test_dataset"].images("test")).label is not None


def test_the_split_of_unlabelled_images_is_chosen(pictures):
    config = DataConfig(
        dataset="tfds:pictures", unlabeled_dataset="tfds:pictures", unlabeled_split="test[:2]"
    )
    opened = sources.open_sources(config)
    assert [image.label for image in opened["dataset"].images("unlabeled")] == [None] * 3
    # A split with labels is allowed; ingest handles the labels.
    chosen = opened["unlabeled_dataset"]
    assert chosen.content(ContentDigests())["examples"]["unlabeled"] == 2
    assert all(image.label is not None for image in chosen.images("unlabeled"))
    with pytest.raises(UserError, match=r"--unlabeled_split='extr'.*train, test"):
        sources.open_source("tfds:pictures", unlabeled_split="extr")


def test_content_of_every_source(tmp_path, pictures, fill, write_tfrecord):
    write_tfrecord(tmp_path / "a.tfrecord", [records.image_example("first", b"1", 0)])
    fill(tmp_path / "images", "1.png")
    config = DataConfig(
        dataset="tfds:pictures",
        train_split="train[:2]",
        test_dataset=f"tfrecord:{tmp_path}/*.tfrecord",
        unlabeled_dataset=f"folder:{tmp_path}/images",
    )
    before = sources.content(config, ContentDigests())
    assert list(before) == ["dataset", "test_dataset", "unlabeled_dataset"]
    assert before["dataset"] == {
        "source": "tfds",
        "tfds": "pictures",
        "version": "1.0.0",
        "examples": {"train": 2, "test": 3, "unlabeled": 3},
    }
    assert before["test_dataset"]["files"] == 1
    write_tfrecord(tmp_path / "b.tfrecord", [records.image_example("second", b"2", 0)])
    after = sources.content(config, ContentDigests())
    assert after["test_dataset"]["files"] == 2
    assert after["test_dataset"]["sha256"] != before["test_dataset"]["sha256"]
    assert after["unlabeled_dataset"] == before["unlabeled_dataset"]
    assert sources.content(DataConfig(), ContentDigests()) == {
        "dataset": {"source": "digits", "sklearn": sklearn.__version__}
    }
    with pytest.raises(UserError, match="no_such is not a folder"):
        no_such = DataConfig(unlabeled_dataset=f"folder:{tmp_path}/no_such")
        sources.content(no_such, ContentDigests())


def test_every_source_knows_how_many_images_it_has(tmp_path, pictures, fill, write_tfrecord):
    fill(tmp_path / "photos", "train/a/1.png", "train/b/2.jpg", "val/a/3.png", "extra/4.png",
         "train/a/5.txt", "train/.hidden/6.png")  # fmt: skip
    table = tmp_path / "labels.csv"
    table.write_text("path,label,split\ntrain/a/1.png,x,\ntrain/b/2.jpg,y,\nval/a/3.png,x,\n")
    examples = [records.image_example(str(number), b"1", number % 2) for number in range(5)]
    write_tfrecord(tmp_path / "a.tfrecord", examples[:2])
    write_tfrecord(tmp_path / "b.tfrecord", examples[2:])
    photos = f"folder:{tmp_path}/photos"
    configs = [
        DataConfig(),
        DataConfig(dataset="tfds:pictures", train_split="train[:2]"),
        DataConfig(dataset=photos),
        DataConfig(dataset=photos, labels=str(table)),
        DataConfig(dataset=f"tfrecord:{tmp_path}/*.tfrecord"),
    ]
    for config in configs:
        source = sources.open_sources(config)["dataset"]
        assert source.splits
        for split in source.splits:
            assert source.count(split) == len(listed(source, split))


def test_the_home_folder(tmp_path, monkeypatch, fill, write_tfrecord):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "photos", "a/1.png", "b/2.png")
    assert listed(sources.open_source("folder:~/photos")) == [("a/1.png", 0), ("b/2.png", 1)]
    write_tfrecord(tmp_path / "a.tfrecord", [records.image_example("first", b"1", 0)])
    assert listed(sources.open_source("tfrecord:~/a.*")) == [("first", 0)]
