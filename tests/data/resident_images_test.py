"""Shard sets in memory."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from nsk.data import records, shards
from nsk.data.decoding import decode_image
from nsk.data.resident_images import bytes_in_memory, load_images
from nsk.errors import UserError

NAMES = [str(digit) for digit in range(10)]


def test_images_are_loaded_in_file_order(labeled, digit_images):
    images = load_images(labeled, 8)
    assert len(images) == 600
    assert images.ids == [f"digit/{number}" for number in range(600)]
    assert images.images.dtype == tf.uint8
    np.testing.assert_array_equal(images.images, digit_images)
    assert images.labels.dtype == np.int32
    np.testing.assert_array_equal(images.labels, load_digits().target[:600])
    assert images.log_probabilities is None
    np.testing.assert_array_equal(images.copies, np.ones(600))


def test_images_are_resized_or_remain_encoded(labeled, digit_files):
    images = load_images(labeled, 16)
    assert images.images.shape == (600, 16, 16, 3)
    expected = decode_image(tf.constant(digit_files[250]), 16)
    np.testing.assert_array_equal(images.images[250], expected)
    encoded = load_images(labeled, None)
    assert encoded.images.dtype == tf.string
    assert encoded.images[250].numpy() == digit_files[250]


def test_bytes_in_memory_are_those_of_pixels_or_files(labeled):
    assert bytes_in_memory(labeled, 9) == 600 * 9 * 9 * 3
    files = sum(path.stat().st_size for path in labeled.paths)
    assert bytes_in_memory(labeled, None) == files


def test_images_without_labels_have_the_label_minus_one(digit_files, tmp_path):
    with shards.ShardWriter(tmp_path, "images", NAMES, 5) as writer:
        writer.write(records.image_example("one", digit_files[0]))
    assert load_images(shards.ShardSet.load(tmp_path), 8).labels.tolist() == [-1]


def test_pseudo_labels_are_loaded_with_copies_and_log_probabilities(
    digit_images, digit_files, tmp_path
):
    random = np.random.default_rng(0)
    log_probabilities = np.log(random.dirichlet(np.full(10, 0.1), 30)).astype(np.float16)
    copies = random.integers(1, 5, 30)
    labels = log_probabilities.argmax(axis=1)
    with shards.ShardWriter(tmp_path, "pseudo", NAMES, 20) as writer:
        for number, encoded in enumerate(digit_files[:30]):
            confidence = np.exp(np.float32(log_probabilities[number].max()))
            writer.write(
                records.pseudo_example(
                    f"digit/{number}",
                    encoded,
                    labels[number],
                    confidence,
                    log_probabilities[number],
                    copies[number],
                )
            )
    images = load_images(shards.ShardSet.load(tmp_path), 8)
    np.testing.assert_array_equal(images.images, digit_images[:30])
    np.testing.assert_array_equal(images.labels, labels)
    assert images.log_probabilities.dtype == np.float32
    np.testing.assert_array_equal(images.log_probabilities, log_probabilities.astype(np.float32))
    np.testing.assert_array_equal(images.copies, copies)


def cut_bytes(path):
    path.write_bytes(path.read_bytes()[:-20])


def cut_last_record(path):
    kept = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())[:-1]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in kept:
            writer.write(record)


@pytest.mark.parametrize("damage", [cut_bytes, cut_last_record])
def test_a_truncated_shard_is_named(labeled, damage):
    damage(labeled.paths[1])
    with pytest.raises(UserError, match=r"00001\.tfrecord"):
        load_images(labeled, 8)


def test_an_empty_shard_set_is_refused(tmp_path):
    with shards.ShardWriter(tmp_path / "none", "images", NAMES, 5):
        pass
    with pytest.raises(UserError, match="none holds no images"):
        load_images(shards.ShardSet.load(tmp_path / "none"), 8)
