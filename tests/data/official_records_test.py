"""Records of the official Noisy Student code: labels from 1 on, and external scores."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

from nsk.config.config import Config
from nsk.config.data import DataConfig
from nsk.data import ingest, shards, sources
from nsk.data.sources.source import SourceImage
from nsk.errors import UserError
from nsk.evaluation.prediction_files import read_predictions, read_table
from nsk.stages import external_scores
from nsk.stages.score_files import score_paths


def png(row):
    buffer = io.BytesIO()
    Image.fromarray(np.round(load_digits().images[row] * (255 / 16)).astype(np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def feature(value):
    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    if isinstance(value, int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    return tf.train.Feature(float_list=tf.train.FloatList(value=np.atleast_1d(value).tolist()))


def write(path, examples):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            features = {name: feature(value) for name, value in example.items()}
            writer.write(
                tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
            )
    return f"tfrecord:{path}"


def probabilities(row):
    """A teacher's probabilities: high for the true class, the others different for each image."""
    drawn = np.random.default_rng(row).dirichlet(np.full(10, 0.5)) * 0.3
    drawn[load_digits().target[row]] += 0.7
    return drawn.astype(np.float32)


@pytest.fixture
def labeled(tmp_path):
    """100 digits with labels from 1 on."""
    target = load_digits().target
    return write(
        tmp_path / "train-0",
        [
            {"image/encoded": png(row), "image/class/label": int(target[row]) + 1}
            for row in range(100)
        ],
    )


def pseudo_labeled(tmp_path, rows=range(100, 130)):
    """Every second record has all probabilities, the others the largest one and its class."""
    examples = []
    for row in rows:
        all_probabilities = probabilities(row)
        example = {
            "image/encoded": png(row),
            "label": int(all_probabilities.argmax()),
            "prob": float(all_probabilities.max()),
        }
        if row % 2:
            example["probabilities"] = all_probabilities
        examples.append(example)
    return write(tmp_path / "pseudo-0", examples)


def test_the_first_label_may_be_1(labeled):
    source = sources.open_source(labeled, first_label=1)
    assert source.class_names == [str(label) for label in range(10)]
    images = list(source.images("train"))
    assert [image.label for image in images] == load_digits().target[:100].tolist()
    assert images[7].id == "train-0/000007"
    with pytest.raises(UserError, match="labels from 1 to 10: expected 2 to 10; --first_label"):
        sources.open_source(labeled, first_label=2).class_names  # noqa: B018


def run(folder, labeled, unlabeled):
    config = DataConfig(
        dataset=labeled,
        unlabeled_dataset=unlabeled,
        first_label=1,
        num_labeled=20,
        num_dev=20,
        images_per_shard=12,
    )
    ingest.ingest(config, 0, folder)
    return shards.ShardSet.load(folder / "unlabeled")


@pytest.mark.parametrize("top_k", [0, 3])
def test_the_probabilities_of_an_external_teacher_become_scores(tmp_path, labeled, top_k):
    unlabeled = run(tmp_path / "data", labeled, pseudo_labeled(tmp_path))
    assert unlabeled.counts == (12, 12, 6)
    (tmp_path / "scores").mkdir()
    counts = external_scores.import_external_scores(unlabeled, tmp_path / "scores", top_k=top_k)
    assert counts == {"scored": 30, "temperature": None}
    seen = set()
    for path in score_paths(unlabeled, tmp_path / "scores"):
        scores = read_predictions(path)
        assert scores.top_k == top_k
        received = np.exp(scores.all_log_probabilities(10))
        for row, id in enumerate(scores.ids):
            number = 100 + int(id.rpartition("/")[2])
            seen.add(number)
            expected = probabilities(number)
            first = expected.argmax()
            if number % 2 == 0:  # Only the largest is known: the others share the rest.
                expected = np.full(10, (1 - expected[first]) / 9)
                expected[first] = probabilities(number)[first]
            elif top_k:
                least = np.argsort(-expected)[top_k:]
                expected[least] = expected[least].mean()
            np.testing.assert_allclose(received[row], expected, rtol=5e-3, atol=1e-6)
            assert scores.labels[row] == first == load_digits().target[number]
            np.testing.assert_allclose(scores.confidences[row], expected[first], rtol=1e-3)
    assert seen == set(range(100, 130))
    assert len(read_table(tmp_path / "scores/dev.parquet")) == 0


def test_images_without_scores_of_an_external_teacher_are_refused(tmp_path, labeled):
    without_scores = write(
        tmp_path / "without_scores", [{"image/encoded": png(row)} for row in (100, 101)]
    )
    unlabeled = run(tmp_path / "data", labeled, without_scores)
    (tmp_path / "scores").mkdir()
    with pytest.raises(UserError, match="has 0 log-probabilities: expected the probabilities"):
        external_scores.import_external_scores(unlabeled, tmp_path / "scores")


def test_confidences_keep_their_precision(tmp_path, labeled):
    """In float16 the logarithm of 0.3 would become that of 0.29996, below --min_confidence=0.3."""
    example = {"image/encoded": png(100), "label": 4, "prob": 0.3}
    unlabeled = run(tmp_path / "data", labeled, write(tmp_path / "pseudo", [example]))
    (tmp_path / "scores").mkdir()
    external_scores.import_external_scores(unlabeled, tmp_path / "scores")
    (path,) = score_paths(unlabeled, tmp_path / "scores")
    np.testing.assert_allclose(read_predictions(path).confidences, 0.3, rtol=3e-7)


def test_a_label_out_of_range_is_refused(tmp_path, labeled):
    example = {"image/encoded": png(100), "label": 10, "prob": 0.9}
    with pytest.raises(UserError, match="its teacher's label 10 is not in 0 to 9"):
        run(tmp_path / "data", labeled, write(tmp_path / "wrong", [example]))


@pytest.mark.parametrize("values", [np.full(9, 1 / 9), np.full(10, 0.2), np.eye(10)[0] * 2 - 0.1])
def test_values_that_are_not_a_distribution_over_the_classes_are_refused(tmp_path, labeled, values):
    example = {"image/encoded": png(100), "probabilities": values.astype(np.float32)}
    with pytest.raises(UserError, match=r"wrong/000000: .* not probabilities of 10"):
        run(tmp_path / "data", labeled, write(tmp_path / "wrong", [example]))


def test_incompatible_settings_are_refused():
    given = {"first_scores": "records", "train_images": [100]}
    with pytest.raises(UserError, match="give tfrecord:PATTERN of records with pseudo-labels"):
        Config.from_values(given)
    with pytest.raises(UserError, match="--calibrate, which needs the teacher's"):
        Config.from_values({**given, "unlabeled_dataset": "tfrecord:a", "calibrate": True})


def test_a_missing_first_label_triggers_a_warning(labeled, caplog):
    assert len(sources.open_source(labeled).class_names) == 11
    assert "no image with a label below 1: give --first_label=1" in caplog.text
    caplog.clear()
    assert len(sources.open_source(labeled, first_label=1).class_names) == 10
    assert not caplog.text


@pytest.mark.parametrize("label", [b"cat", 1.0])
def test_a_label_that_is_not_an_integer_is_refused(tmp_path, label):
    pattern = write(tmp_path / "odd", [{"image/encoded": png(0), "image/class/label": label}])
    with pytest.raises(UserError, match=r"image/class/label of the type .*expected an int64_list"):
        list(sources.open_source(pattern).images("train"))


@pytest.mark.parametrize("probability", [1.7, -0.5, float("nan")])
def test_a_probability_outside_of_0_to_1_is_refused(probability):
    image = SourceImage("a", b"", None, (0, probability))
    with pytest.raises(ValueError, match=f"prob {probability:.4g} is not in 0 to 1"):
        image.external_teacher_log_probabilities(10)
