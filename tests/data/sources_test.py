import io
import json
import os
import warnings

import numpy as np
import pytest
import sklearn
import tensorflow_datasets as tfds
from PIL import Image

from nsk.config.sections import DataConfig
from nsk.data import records, shards, sources
from nsk.errors import UserError

# TensorFlow Datasets 4.9 calls a method that protobuf 6 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated:DeprecationWarning")


def encoded_image(seed=0, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def fill(root, *paths):
    for seed, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        kind = "JPEG" if path.lower().endswith(("jpg", "jpeg")) else "PNG"
        (root / path).write_bytes(encoded_image(seed, kind))
    return sources.open_source(f"folder:{root}")


def listed(source, split="train"):
    return [(image.id, image.label) for image in source.images(split)]


def refused(pattern, root, *paths):
    with pytest.raises(UserError, match=pattern):
        fill(root, *paths)


def test_of_a_file_that_is_too_large_little_is_read(tmp_path):
    fill(tmp_path, "a/0.png", "b/1.png")
    with (tmp_path / "b/huge.png").open("wb") as file:
        file.truncate(2**36)  # Takes no space on the disk, and more memory than there is.
    source = sources.open_source(f"folder:{tmp_path}", max_image_bytes=1000)
    sizes = {image.id: len(image.encoded) for image in source.images("train")}
    assert sizes == {
        "a/0.png": len(encoded_image(0)),
        "b/1.png": len(encoded_image(1)),
        "b/huge.png": 1001,
    }


def test_digits():
    source = sources.open_source("digits")
    images = list(source.images("train"))
    assert source.splits == ("train",)
    assert source.class_names == [str(digit) for digit in range(10)]
    assert len(images) == len({image.id for image in images}) == 1797
    assert images == list(source.images("train"))
    assert {image.label for image in images} == set(range(10))
    first = np.asarray(Image.open(io.BytesIO(images[0].encoded)))
    assert first.shape == (8, 8)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image.encoded))) for image in images])
    assert (pixels.min(), pixels.max(), len(np.unique(pixels))) == (0, 255, 17)
    # The first digit is a 0, its first row has levels 0 0 5 13 9 1 0 0 of 16.
    assert images[0].label == 0
    assert first[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]


def test_folder_of_classes(tmp_path):
    source = fill(
        tmp_path,
        "dog/b.png",
        "dog/deep/er/a.JPG",
        "cat/z.Jpeg",
        "cat/notes.txt",
        "cat/.hidden.png",
        ".cache/x.png",
    )
    assert source.splits == ("train",)
    assert source.class_names == ["cat", "dog"]
    assert listed(source) == [("cat/z.Jpeg", 0), ("dog/b.png", 1), ("dog/deep/er/a.JPG", 1)]
    assert listed(source) == listed(source)
    assert next(source.images("train")).encoded == (tmp_path / "cat/z.Jpeg").read_bytes()


def test_folder_of_splits(tmp_path):
    source = fill(
        tmp_path,
        "labeled/b/1.png",
        "labeled/a/1.png",
        "unlabeled/1.png",
        "unlabeled/b/2.gif",
        "dev/b/1.png",
        "test/a/1.png",
    )
    assert source.splits == ("labeled", "unlabeled", "dev", "test")
    assert source.class_names == ["a", "b"]
    assert listed(source, "labeled") == [("labeled/a/1.png", 0), ("labeled/b/1.png", 1)]
    # What looks like a class among unlabelled images is no label.
    assert listed(source, "unlabeled") == [("unlabeled/1.png", None), ("unlabeled/b/2.gif", None)]
    assert listed(source, "dev") == [("dev/b/1.png", 1)]
    assert listed(source, "test") == [("test/a/1.png", 0)]


def test_folder_of_train_and_test(tmp_path):
    source = fill(tmp_path, "train/a/1.png", "train/b/1.bmp", "test/b/1.png")
    assert source.splits == ("train", "test")
    assert source.class_names == ["a", "b"]


def test_folder_of_images_alone_has_no_labels(tmp_path):
    source = fill(tmp_path, "1.png", "more/2.png")
    assert source.splits == ("unlabeled",)
    assert source.class_names is None
    assert listed(source, "unlabeled") == [("1.png", None), ("more/2.png", None)]


def test_folders_that_are_refused(tmp_path):
    refused("no_such is not a folder", tmp_path / "no_such")
    (tmp_path / "empty").mkdir()
    refused("empty holds no image", tmp_path / "empty")
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    refused("cat is a class without images", tmp_path / "hollow", "dog/1.png", "cat/readme.txt")
    refused("labeled holds no image", tmp_path / "flat", "labeled/1.png", "unlabeled/2.png")
    refused("dev has classes that .*: dgo", tmp_path / "typo", "labeled/dog/1.png", "dev/dgo/1.png")
    refused("beside val: ", tmp_path / "val", "train/dog/1.png", "val/dog/1.png")
    refused("both train and labeled", tmp_path / "both", "train/a/1.png", "labeled/a/1.png")


def write_tfrecord(path, examples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with shards.ShardWriter(path.parent, "images", ["x", "y", "z"], 100) as writer:
        for example in examples:
            writer.write(example)
    (path.parent / "00000.tfrecord").rename(path)
    (path.parent / "manifest.json").unlink()


def test_tfrecord_without_a_manifest(tmp_path):
    write_tfrecord(
        tmp_path / "a.tfrecord",
        [records.image_example("one", b"1", 0), records.image_example("two", b"2")],
    )
    write_tfrecord(tmp_path / "b.tfrecord", [records.image_example("three", b"3", 3)])
    source = sources.open_source(f"tfrecord:{tmp_path}/*.tfrecord")
    assert source.class_names == ["0", "1", "2", "3"]
    assert source.splits == ("train",)
    assert list(source.images("train")) == [
        sources.SourceImage("one", b"1", 0),
        sources.SourceImage("two", b"2", None),
        sources.SourceImage("three", b"3", 3),
    ]


def test_tfrecord_without_labels(tmp_path):
    write_tfrecord(tmp_path / "a.tfrecord", [records.image_example("one", b"1")])
    assert sources.open_source(f"tfrecord:{tmp_path}/a*").class_names is None


def test_tfrecord_beside_a_manifest(tmp_path):
    with shards.ShardWriter(tmp_path, "images", ["x", "y"], 1) as writer:
        writer.write(records.image_example("one", b"1", 0))
        writer.write(records.image_example("two", b"2", 1))
    source = sources.open_source(f"tfrecord:{tmp_path}/*.tfrecord")
    assert source.class_names == ["x", "y"]
    assert listed(source) == [("one", 0), ("two", 1)]
    (tmp_path / "00001.tfrecord").write_bytes(b"")
    with pytest.raises(UserError, match=r"00001\.tfrecord has 0 records"):
        listed(source)


def test_tfrecords_that_are_refused(tmp_path):
    def opened(examples):
        write_tfrecord(tmp_path / "a.tfrecord", examples)
        return sources.open_source(f"tfrecord:{tmp_path}/a.tfrecord")

    with pytest.raises(UserError, match="matches no file"):
        sources.open_source(f"tfrecord:{tmp_path}/nothing*")
    with pytest.raises(UserError, match=r"a\.tfrecord has a record that is no"):
        listed(opened([b"\xff\xffnot an example"]))
    with pytest.raises(UserError, match=r"a\.tfrecord has a record that is no"):
        listed(opened([b""]))
    with pytest.raises(UserError, match="labels from -2 to 1"):
        opened([records.image_example(f"{x}", b"", x) for x in (-2, 1)]).class_names  # noqa: B018


class Pictures(tfds.core.GeneratorBasedBuilder):
    """A TFDS data set made on the spot: two labels, and some images without one."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: dict = {}  # noqa: RUF012  (TFDS would look for a file of checksums beside this one.)
    SPLITS = ("train", "test", "unlabelled")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "picture": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "coarse": tfds.features.ClassLabel(names=["thing"]),
                    "label": tfds.features.ClassLabel(names=["hare", "tortoise"]),
                }
            )
        )

    def _split_generators(self, manager):
        return {name: self._generate_examples(name) for name in self.SPLITS}

    def _generate_examples(self, split):
        for number in range(3):
            label = -1 if split == "unlabelled" else number % 2
            image = io.BytesIO(encoded_image(number, "JPEG"))
            yield f"{split}{number}", {"picture": image, "coarse": 0, "label": label}


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Pictures(data_dir=folder, file_format="tfrecord").download_and_prepare()
    return folder


@pytest.fixture
def pictures(tfds_folder, monkeypatch):
    builder = tfds.builder
    monkeypatch.setattr(tfds, "builder", lambda name: builder(name, data_dir=tfds_folder))


def test_tfds(pictures):
    source = sources.open_source("tfds:pictures")
    assert source.splits == ("train", "unlabeled", "test")
    assert source.class_names == ["hare", "tortoise"]
    images = list(source.images("train"))
    # The bytes are those that were prepared, not decoded and encoded again.
    assert {image.encoded for image in images} == {encoded_image(n, "JPEG") for n in range(3)}
    by_bytes = {image.encoded: image.label for image in images}
    assert [by_bytes[encoded_image(n, "JPEG")] for n in range(3)] == [0, 1, 0]
    assert images == list(source.images("train"))
    unlabeled = list(source.images("unlabeled"))
    assert [image.label for image in unlabeled] == [None] * 3
    ids = {image.id for split in source.splits for image in source.images(split)}
    assert len(ids) == 9


def test_tfds_splits_are_chosen(pictures):
    source = sources.open_source("tfds:pictures", "train[:2]", "unlabelled")
    assert len(list(source.images("train"))) == 2
    assert [image.label for image in source.images("test")] == [None] * 3
    with pytest.raises(UserError, match=r"--test_split='validation'.*train, test"):
        sources.open_source("tfds:pictures", test_split="validation")
    with pytest.raises(UserError, match="--train_split='trian'"):
        sources.open_source("tfds:pictures", train_split="trian")


@pytest.mark.parametrize(("present", "expected"), [(["test"], ("test",)), (["train"], ("train",))])
def test_tfds_without_one_of_the_default_splits(pictures, monkeypatch, present, expected):
    keep_splits(monkeypatch, *present)
    source = sources.open_source("tfds:pictures")
    assert source.splits == expected
    assert len(list(source.images(expected[0]))) == 3


def test_tfds_without_both_default_splits(pictures, monkeypatch):
    monkeypatch.setattr(tfds.core.DatasetInfo, "splits", {"odd": None})
    with pytest.raises(UserError, match="neither a train nor a test split: its splits are odd"):
        sources.open_source("tfds:pictures")


def keep_splits(monkeypatch, *names):
    """Lets the prepared data set seem to have splits of these names alone."""
    splits = tfds.builder("pictures").info.splits
    kept = tfds.core.splits.SplitDict([splits[name] for name in names])
    monkeypatch.setattr(tfds.core.DatasetInfo, "splits", property(lambda info: kept))


def test_the_split_flags_are_about_the_dataset_alone(pictures):
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
    # A split with labels may serve; what becomes of them is the ingest's business.
    chosen = opened["unlabeled_dataset"]
    assert chosen.content()["examples"]["unlabeled"] == 2
    assert all(image.label is not None for image in chosen.images("unlabeled"))
    with pytest.raises(UserError, match=r"--unlabeled_split='extr'.*train, test"):
        sources.open_source("tfds:pictures", unlabeled_split="extr")


def test_an_unknown_tfds_name_is_one_line():
    with pytest.raises(UserError, match="TFDS_DATA_DIR") as refusal:
        sources.open_source("tfds:no_such_data_set")
    assert "\n" not in str(refusal.value)


def test_a_failed_download_is_one_line(monkeypatch):
    def fail(self, **options):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: False)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UserError, match=r"ConnectionError: no network.*TFDS_DATA_DIR"):
        sources.open_source("tfds:cifar10")


def test_content_of_a_folder_changes_with_its_files(tmp_path):
    fill(tmp_path / "images", "a/1.png", "b/2.png")
    config = DataConfig(dataset=f"folder:{tmp_path}/images")
    seen = [sources.content(config)]
    assert seen[0]["dataset"]["files"] == 2
    assert json.loads(json.dumps(seen[0])) == seen[0] == sources.content(config)

    def changed():
        seen.append(sources.content(config))
        assert seen[-1] not in seen[:-1]

    fill(tmp_path / "images", "b/deep/3.png")  # Written anew: 3.png has the first one's pixels.
    changed()
    one = tmp_path / "images/a/1.png"
    os.utime(one, ns=(1, 1))
    changed()
    one.write_bytes(one.read_bytes() + b"x")
    os.utime(one, ns=(1, 1))
    changed()
    one.rename(one.with_name("4.png"))
    changed()
    # A class that is a link is looked into as well.
    one = tmp_path / "elsewhere" / "5.png"
    fill(tmp_path / "elsewhere", "5.png")
    (tmp_path / "images/c").symlink_to(tmp_path / "elsewhere")
    changed()
    fill(tmp_path / "elsewhere", "6.png")
    changed()
    assert seen[-1]["dataset"]["files"] == 5


def test_content_does_not_depend_on_where_the_folder_is(tmp_path):
    fill(tmp_path / "one", "a/1.png", "b/2.png")
    before = sources.open_source(f"folder:{tmp_path}/one").content()
    (tmp_path / "one").rename(tmp_path / "two")
    assert sources.open_source(f"folder:{tmp_path}/two").content() == before


def test_content_of_every_source(tmp_path, pictures):
    write_tfrecord(tmp_path / "a.tfrecord", [records.image_example("one", b"1", 0)])
    fill(tmp_path / "images", "1.png")
    config = DataConfig(
        dataset="tfds:pictures",
        train_split="train[:2]",
        test_dataset=f"tfrecord:{tmp_path}/*.tfrecord",
        unlabeled_dataset=f"folder:{tmp_path}/images",
    )
    before = sources.content(config)
    assert list(before) == ["dataset", "test_dataset", "unlabeled_dataset"]
    assert before["dataset"] == {
        "tfds": "pictures",
        "version": "1.0.0",
        "examples": {"train": 2, "test": 3, "unlabeled": 3},
    }
    assert before["test_dataset"]["files"] == 1
    write_tfrecord(tmp_path / "b.tfrecord", [records.image_example("two", b"2", 0)])
    after = sources.content(config)
    assert after["test_dataset"]["files"] == 2
    assert after["test_dataset"]["sha256"] != before["test_dataset"]["sha256"]
    assert after["unlabeled_dataset"] == before["unlabeled_dataset"]
    assert sources.content(DataConfig()) == {"dataset": {"sklearn": sklearn.__version__}}
    with pytest.raises(UserError, match="no_such is not a folder"):
        sources.content(DataConfig(unlabeled_dataset=f"folder:{tmp_path}/no_such"))


def test_files_that_are_not_read_are_counted(tmp_path):
    source = fill(tmp_path, "train/a/1.png", "train/b/2.png", "train/stray.png", "test/a/x.webp",
                  "test/a/3.png", "README.txt", ".hidden")  # fmt: skip
    assert source.other_files() == 3
    assert fill(tmp_path / "flat", "1.png", "2.tiff").other_files() == 1


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "photos", "a/1.png", "b/2.png")
    assert listed(sources.open_source("folder:~/photos")) == [("a/1.png", 0), ("b/2.png", 1)]
    write_tfrecord(tmp_path / "a.tfrecord", [records.image_example("one", b"1", 0)])
    assert listed(sources.open_source("tfrecord:~/a.*")) == [("one", 0)]


def cifar10_is_prepared():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tfds.builder("cifar10").is_prepared()


# Collected only where TFDS finds a prepared CIFAR-10.
if cifar10_is_prepared():

    def test_cifar10():
        source = sources.open_source("tfds:cifar10", "train[:300]")
        assert source.splits == ("train", "test")
        assert source.class_names[:3] == ["airplane", "automobile", "bird"]
        images = list(source.images("train"))
        assert len({image.id for image in images}) == 300
        assert all(len(records.normalize_image(image.encoded).digest) == 16 for image in images[:9])
