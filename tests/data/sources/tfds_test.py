import functools
import socket
import urllib.request
import warnings

import pytest
import tensorflow_datasets as tfds

from nsk.data import sources
from nsk.data.normalization import normalize_image
from nsk.data.sources import tfds as tfds_source
from nsk.errors import UserError

# TensorFlow Datasets 4.9 calls a method that protobuf 6 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated:DeprecationWarning")


def test_tfds(pictures, encoded_image):
    source = sources.open_source("tfds:pictures")
    assert source.splits == ("train", "unlabeled", "test")
    assert source.class_names == ["hare", "tortoise"]
    images = list(source.images("train"))
    # The bytes are those of the prepared data set, not re-encoded.
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
    """Makes the prepared data set have only these splits."""
    splits = tfds.builder("pictures").info.splits
    kept = tfds.core.splits.SplitDict([splits[name] for name in names])
    monkeypatch.setattr(tfds.core.DatasetInfo, "splits", property(lambda info: kept))


def test_an_unknown_tfds_name_is_refused_in_one_line():
    with pytest.raises(UserError, match="TFDS_DATA_DIR: check the name") as refusal:
        sources.open_source("tfds:zzqqxxyy")
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="did you mean mnist"):
        sources.open_source("tfds:mnistt")


def test_without_a_network_nothing_is_downloaded(monkeypatch, tmp_path):
    def fail(*arguments):
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(tfds, "builder", functools.partial(tfds.builder, data_dir=tmp_path / "new"))
    with pytest.raises(UserError, match=r"no network: the address of \S+ is not found\): check"):
        sources.open_source("tfds:mnist")
    assert not (tmp_path / "new").exists()


def test_a_failed_download_is_reported_in_one_line(monkeypatch):
    def fail(self, **options):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: False)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    monkeypatch.setattr(tfds_source, "_require_network", lambda: None)
    with pytest.raises(UserError, match=r"ConnectionError: no network.*TFDS_DATA_DIR"):
        sources.open_source("tfds:cifar10")


def cifar10_is_prepared():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tfds.builder("cifar10").is_prepared()


# Collected only if TFDS finds a prepared CIFAR-10.
if cifar10_is_prepared():

    def test_cifar10():
        source = sources.open_source("tfds:cifar10", "train[:300]")
        assert source.splits == ("train", "test")
        assert source.class_names[:3] == ["airplane", "automobile", "bird"]
        images = list(source.images("train"))
        assert len({image.id for image in images}) == 300
        assert all(len(normalize_image(image.encoded).digest) == 16 for image in images[:9])
