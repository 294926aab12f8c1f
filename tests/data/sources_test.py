import io
import warnings

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from nsk.config import DataConfig
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
    return sources.open_source(f"folder:{root}", DataConfig())


def listed(source, split="train"):
    return [(image.id, image.label) for image in source.images(split)]


def refused(pattern, root, *paths):
    with pytest.raises(UserError, match=pattern):
        fill(root, *paths)


def test_digits():
    source = sources.open_source("digits", DataConfig())
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
    source = sources.open_source(f"tfrecord:{tmp_path}/*.tfrecord", DataConfig())
    assert source.class_names == ["0", "1", "2", "3"]
    assert source.splits == ("train",)
    assert list(source.images("train")) == [
        sources.SourceImage("one", b"1", 0),
        sources.SourceImage("two", b"2", None),
        sources.SourceImage("three", b"3", 3),
    ]


def test_tfrecord_without_labels(tmp_path):
    write_tfrecord(tmp_path / "a.tfrecord", [records.image_example("one", b"1")])
    assert sources.open_source(f"tfrecord:{tmp_path}/a*", DataConfig()).class_names is None


def test_tfrecord_beside_a_manifest(tmp_path):
    with shards.ShardWriter(tmp_path, "images", ["x", "y"], 1) as writer:
        writer.write(records.image_example("one", b"1", 0))
        writer.write(records.image_example("two", b"2", 1))
    source = sources.open_source(f"tfrecord:{tmp_path}/*.tfrecord", DataConfig())
    assert source.class_names == ["x", "y"]
    assert listed(source) == [("one", 0), ("two", 1)]
    (tmp_path / "00001.tfrecord").write_bytes(b"")
    with pytest.raises(UserError, match=r"00001\.tfrecord has 0 records"):
        listed(source)


def test_tfrecords_that_are_refused(tmp_path):
    def opened(examples):
        write_tfrecord(tmp_path / "a.tfrecord", examples)
        return sources.open_source(f"tfrecord:{tmp_path}/a.tfrecord", DataConfig())

    with pytest.raises(UserError, match="matches no file"):
        sources.open_source(f"tfrecord:{tmp_path}/nothing*", DataConfig())
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
    source = sources.open_source("tfds:pictures", DataConfig())
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
    config = DataConfig(train_split="train[:2]", test_split="unlabelled")
    source = sources.open_source("tfds:pictures", config)
    assert len(list(source.images("train"))) == 2
    assert [image.label for image in source.images("test")] == [None] * 3
    with pytest.raises(UserError, match=r"--test_split='validation'.*train, test"):
        sources.open_source("tfds:pictures", DataConfig(test_split="validation"))
    with pytest.raises(UserError, match="--train_split='trian'"):
        sources.open_source("tfds:pictures", DataConfig(train_split="trian"))


def test_an_unknown_tfds_name_is_one_line():
    with pytest.raises(UserError, match="TFDS_DATA_DIR") as refusal:
        sources.open_source("tfds:no_such_data_set", DataConfig())
    assert "\n" not in str(refusal.value)


def test_a_failed_download_is_one_line(monkeypatch):
    def fail(self, **options):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: False)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UserError, match=r"ConnectionError: no network.*TFDS_DATA_DIR"):
        sources.open_source("tfds:cifar10", DataConfig())


def cifar10_is_prepared():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tfds.builder("cifar10").is_prepared()


# Collected only where TFDS finds a prepared CIFAR-10.
if cifar10_is_prepared():

    def test_cifar10():
        source = sources.open_source("tfds:cifar10", DataConfig(train_split="train[:300]"))
        assert source.splits == ("train", "test")
        assert source.class_names[:3] == ["airplane", "automobile", "bird"]
        images = list(source.images("train"))
        assert len({image.id for image in images}) == 300
        assert all(len(records.normalize_image(image.encoded).digest) == 16 for image in images[:9])
