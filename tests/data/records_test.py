"""The schema of records: what is serialized is parsed."""

import hashlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf

from nsk.data import records
from nsk.evaluation.prediction_files import make_stored_predictions


def test_image_records_round_trip_and_a_missing_label_is_minus_one():
    batch = [records.image_example("a/é.png", b"first", 3), records.image_example("b", b"second")]
    parsed = records.parse_images(tf.constant(batch))
    assert [id.decode() for id in parsed["id"].numpy()] == ["a/é.png", "b"]
    assert parsed["encoded"].numpy().tolist() == [b"first", b"second"]
    assert parsed["label"].numpy().tolist() == [3, -1]
    features = tf.train.Example.FromString(batch[1]).features.feature
    assert sorted(features) == ["id", "image/encoded"]


def test_pseudo_records_round_trip_through_float16():
    log_probabilities = np.log(np.array([[0.7, 0.2, 0.1], [1e-6, 0.5, 0.5]], np.float32))
    batch = [
        records.pseudo_example(
            f"{row}", b"image", row, 0.25 + row / 2, log_probabilities[row], row + 4
        )
        for row in range(2)
    ]
    # In a dataset, as in training.
    dataset = tf.data.Dataset.from_tensors(batch).map(
        lambda serialized: records.parse_pseudo(serialized, 3)
    )
    parsed = next(dataset.as_numpy_iterator())
    assert parsed["label"].tolist() == [0, 1]
    assert parsed["confidence"].tolist() == [0.25, 0.75]
    assert parsed["copies"].tolist() == [4, 5]
    assert parsed["log_probabilities"].dtype == np.float32
    np.testing.assert_array_equal(
        parsed["log_probabilities"], log_probabilities.astype(np.float16).astype(np.float32)
    )
    features = tf.train.Example.FromString(batch[0]).features.feature
    assert len(features["pseudo/log_probabilities"].bytes_list.value[0]) == 2 * 3


def make_scores(top_k, num_images=6, num_classes=12):
    """`Scores`, some of them with a confidence of 1 or nearly 1."""
    logits = np.random.default_rng(0).normal(0, 3, (num_images, num_classes))
    logits[0, 4] = 300.0  # The remaining probability is 0.
    logits[1, 7] = 12.0
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = [f"image/{row}" for row in range(num_images)]
    return make_stored_predictions(ids, log_probabilities.astype(np.float32), top_k)


def pseudo_example(scores, row):
    return records.pseudo_example(
        scores.ids[row],
        b"image",
        scores.labels[row],
        scores.confidences[row],
        scores.log_probabilities[row],
        row + 1,
        None if scores.classes is None else scores.classes[row],
        None if scores.remaining is None else scores.remaining[row],
    )


@pytest.mark.parametrize("top_k", [0, 1, 3, 11])
def test_records_of_the_top_k_log_probabilities_are_parsed_as_the_dense_ones_of_their_scores(top_k):
    scores = make_scores(top_k)
    batch = [pseudo_example(scores, row) for row in range(len(scores))]
    dataset = tf.data.Dataset.from_tensors(batch)
    expected = scores.all_log_probabilities(12)
    parsed = dataset.map(lambda serialized: records.parse_pseudo(serialized, 12, top_k))
    parsed = next(parsed.as_numpy_iterator())
    assert parsed["log_probabilities"].dtype == np.float32
    np.testing.assert_allclose(parsed["log_probabilities"], expected, rtol=1e-6)
    assert parsed["label"].tolist() == scores.labels.tolist()
    assert parsed["copies"].tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(parsed["confidence"], scores.confidences)

    mixed = [
        record
        for row, pseudo in enumerate(batch)
        for record in (pseudo, records.image_example(f"labelled/{row}", b"other", row))
    ]
    dataset = tf.data.Dataset.from_tensors(mixed)
    parsed = dataset.map(lambda serialized: records.parse_examples(serialized, 12, top_k))
    parsed = next(parsed.as_numpy_iterator())
    assert parsed["is_pseudo"].tolist() == [True, False] * 6
    np.testing.assert_allclose(parsed["log_probabilities"][::2], expected, rtol=1e-6)
    assert parsed["log_probabilities"].shape == (12, 12)
    assert parsed["label"][::2].tolist() == scores.labels.tolist()
    assert parsed["label"][1::2].tolist() == list(range(6))
    assert parsed["encoded"].tolist() == [b"image", b"other"] * 6


@pytest.mark.parametrize("top_k", [0, 3])
def test_labelled_images_keep_their_label_and_a_teachers_predictions(top_k):
    scores = make_scores(top_k)
    batch = [
        records.scored_example(scores.ids[row], b"image", row, **scores.stored_row(row))
        for row in range(len(scores))
    ]
    parsed = records.parse_scored(tf.constant(batch), 12, top_k)
    assert parsed["id"].numpy().tolist() == [image_id.encode() for image_id in scores.ids]
    together = records.parse_examples(tf.constant(batch), 12, top_k)
    assert not together["is_pseudo"].numpy().any()
    for received in (parsed, together):
        assert received["label"].numpy().tolist() == list(range(len(scores)))
        assert received["encoded"].numpy().tolist() == [b"image"] * len(scores)
        np.testing.assert_allclose(
            received["log_probabilities"], scores.all_log_probabilities(12), rtol=1e-6
        )
    assert not records.parse_copies(tf.constant(batch))["is_pseudo"].numpy().any()


@pytest.mark.parametrize("kind", ["labelled", "pseudo"])
def test_batches_of_a_single_kind_of_record_are_parsed(kind):
    scores = make_scores(3)
    batch = [
        pseudo_example(scores, row) if kind == "pseudo" else records.image_example("a", b"", row)
        for row in range(4)
    ]
    parsed = records.parse_examples(tf.constant(batch), 12, 3)
    assert parsed["is_pseudo"].numpy().tolist() == [kind == "pseudo"] * 4
    assert parsed["log_probabilities"].shape == (4, 12)


def test_records_store_the_classes_of_their_log_probabilities():
    features = tf.train.Example.FromString(pseudo_example(make_scores(3), 2)).features.feature
    assert len(features["pseudo/log_probabilities"].bytes_list.value[0]) == 2 * 3
    assert len(features["pseudo/classes"].bytes_list.value[0]) == 4 * 3
    assert len(features["pseudo/remaining_probability"].float_list.value) == 1
    features = tf.train.Example.FromString(pseudo_example(make_scores(0), 2)).features.feature
    assert "pseudo/classes" not in features and "pseudo/remaining_probability" not in features


@pytest.mark.parametrize(("stored", "top_k"), [(3, 4), (4, 3), (0, 3)])
def test_records_of_another_top_k_fail(stored, top_k):
    scores = make_scores(stored)
    batch = tf.constant([pseudo_example(scores, row) for row in range(3)])
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        records.parse_pseudo(batch, 12, top_k)


def test_the_same_image_is_serialized_to_the_same_bytes_in_every_process():
    """Shards rewritten by another process are the same, whatever the order of its hashes."""
    program = """
        import hashlib
        from nsk.data import records
        row = records.pseudo_example("a/1", b"image", 3, 0.5, [-1.0] * 5, 2, [1, 2, 3, 4, 5], 0.25)
        for record in (row, records.image_example("a/1", b"image", 3)):
            print(hashlib.sha256(record).hexdigest())
    """
    printed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=True, text=True
    ).stdout
    row = records.pseudo_example("a/1", b"image", 3, 0.5, [-1.0] * 5, 2, [1, 2, 3, 4, 5], 0.25)
    ours = (row, records.image_example("a/1", b"image", 3))
    assert printed == "".join(f"{hashlib.sha256(record).hexdigest()}\n" for record in ours)


def test_pseudo_records_of_another_number_of_classes_fail():
    batch = [records.pseudo_example("a", b"", 0, 1.0, np.zeros(4, np.float16), 1)] * 3
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        records.parse_pseudo(tf.constant(batch), 6)


def test_scores_of_an_external_teacher_round_trip():
    scores = np.log(np.array([0.7, 0.2, 0.1])).astype("<f4")
    record = records.image_example("a", b"image", log_probabilities=scores.tobytes())
    features = tf.train.Example.FromString(record).features.feature
    assert sorted(features) == ["external_teacher/log_probabilities", "id", "image/encoded"]
    ids, parsed = records.parse_external_log_probabilities([record, record], 3)
    assert ids == ["a", "a"]
    np.testing.assert_array_equal(parsed, [scores, scores])
    with pytest.raises(ValueError, match="a has 3 log-probabilities"):
        records.parse_external_log_probabilities([record], 4)
    without = records.image_example("b", b"image")
    with pytest.raises(ValueError, match="b has 0 log-probabilities"):
        records.parse_external_log_probabilities([without], 3)
