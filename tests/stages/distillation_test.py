"""Labelled images with a teacher's predictions, and students that are distilled from it."""

import json

import keras
import numpy as np
import pytest

from nsk import self_training
from nsk.data import pipeline
from nsk.data.resident_images import load_images
from nsk.data.shards import ShardSet, ShardWriter
from nsk.evaluation.predictor import Predictions
from nsk.stages import distillation, training
from nsk.stages.distillation import SHARDS_FOLDER, write_scored_shards
from nsk.stages.runner import MODEL_FILE, shard_set
from nsk.stages.scoring import ScoringOptions
from nsk.store.manifest import MANIFEST


@pytest.fixture
def labeled(shard_sets, tmp_path):
    """The 60 labelled digits in shards of 25, 25 and 10."""
    source = shard_sets["labeled"]
    with ShardWriter(tmp_path / "labeled", "images", source.class_names, 25) as writer:
        for record in source.read().as_numpy_iterator():
            writer.write(record)
    return ShardSet.load(tmp_path / "labeled")


def predict_images(images):
    """Log-probabilities that are a function of each image."""
    pixels = np.asarray(images, np.float64).reshape(len(images), -1)
    logits = pixels @ np.random.default_rng(0).normal(0, 0.01, (pixels.shape[1], 10))
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def load_predict():
    def predict(shard_set, shards):
        for batch in pipeline.clean_batches(shard_set, 8, 7, shards):
            ids = [image_id.decode() for image_id in batch["id"].numpy()]
            yield Predictions(ids, batch["label"].numpy(), predict_images(batch["image"]))

    return predict


def write(labeled, folder, load=load_predict, **options):
    folder.mkdir(exist_ok=True)
    return write_scored_shards(labeled, load, folder, ScoringOptions(**options))


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / SHARDS_FOLDER).iterdir()}


@pytest.mark.parametrize("top_k", [0, 3])
def test_every_image_keeps_its_label_and_gets_the_predictions_of_the_same_image(
    labeled, tmp_path, top_k
):
    assert write(labeled, tmp_path / "made", top_k=top_k) == {"images": 60}
    scored = ShardSet.load(tmp_path / "made" / SHARDS_FOLDER)
    assert (scored.kind, scored.top_k, scored.counts) == ("scored", top_k, (25, 25, 10))
    written, source = load_images(scored, 8), load_images(labeled, 8)
    assert written.ids == source.ids
    np.testing.assert_array_equal(written.images, source.images)
    np.testing.assert_array_equal(written.labels, source.labels)
    expected = predict_images(source.images)
    if top_k:
        largest = np.argsort(-expected, axis=1)[:, :3]
        received = np.take_along_axis(written.log_probabilities, largest, axis=1)
        expected = np.take_along_axis(expected, largest, axis=1)
        np.testing.assert_allclose(np.exp(written.log_probabilities).sum(axis=1), 1, rtol=2e-3)
    else:
        received = written.log_probabilities
    np.testing.assert_allclose(received, expected, rtol=1e-3, atol=1e-6)


def test_a_stopped_writing_resumes_and_workers_share_the_shards(labeled, tmp_path):
    write(labeled, tmp_path / "made")
    complete, predicted = contents(tmp_path / "made"), []

    def counted_load():
        def predict(shard_set, shards):
            predicted.extend(shards)
            return load_predict()(shard_set, shards)

        return predict

    (tmp_path / "made" / SHARDS_FOLDER / "00001.tfrecord").unlink()
    (tmp_path / "made" / SHARDS_FOLDER / "manifest.json").unlink()
    write(labeled, tmp_path / "made", counted_load)
    assert predicted == [1] and contents(tmp_path / "made") == complete
    assert write(labeled, tmp_path / "shared", worker=1, num_workers=2) is None
    assert write(labeled, tmp_path / "shared", worker=0, num_workers=2) == {"images": 60}
    assert contents(tmp_path / "shared") == complete


def test_predictions_of_other_images_are_an_error(labeled, tmp_path):
    def load():
        def predict(shard_set, shards):
            for batch in load_predict()(shard_set, shards):
                yield Predictions(batch.ids[::-1], batch.labels, batch.log_probabilities)

        return predict

    with pytest.raises(ValueError, match=r"00000\.tfrecord row 0 is 0, its prediction is of"):
        write(labeled, tmp_path / "made", load)


def test_without_distillation_the_labelled_images_are_not_scored(make_runner, tmp_path):
    assert distillation.score_labeled(make_runner(tmp_path), 1, None, None) is None


def roles(stage):
    return set(json.loads((stage.path / MANIFEST).read_text())["inputs"])


def test_a_student_is_distilled_from_labelled_images_alone(make_runner, tmp_path):
    """Without unlabelled images; the stored predictions are the teacher's."""
    runner = make_runner(
        tmp_path,
        num_labeled=0,
        labeled_fraction=1.0,
        ratio=["0"],
        distillation_alpha=["0.9"],
        chance_p_value=1.0,
        policy="gap",
    )
    images, (teacher, student) = self_training.train_chain(runner)
    assert images.counts["images"]["unlabeled"] == 0
    assert student.scores is None and student.is_student
    assert roles(student.trained) == {"images", "labeled"}
    scored = load_images(shard_set(student.scored_labeled, SHARDS_FOLDER), 8)
    source = load_images(shard_set(images, "labeled"), 8)
    assert scored.ids == source.ids
    model = keras.models.load_model(teacher.model.path / MODEL_FILE, compile=False)
    logits = model.predict(source.images.numpy().astype(np.float32), verbose=0)
    expected = keras.ops.log_softmax(logits)
    np.testing.assert_allclose(scored.log_probabilities, expected, rtol=2e-3, atol=2e-3)


def test_distillation_changes_students_alone(make_runner, tmp_path, monkeypatch):
    """Students are not trained here: their inputs are recorded."""
    inputs, train = [], training.run_training

    def run_training(runner, settings, images, stages, *arguments):
        if settings.is_student:
            inputs.append(set(stages))
            return teachers[0]
        teachers.append(train(runner, settings, images, stages, *arguments))
        return teachers[-1]

    teachers, students = [], []
    monkeypatch.setattr(training, "run_training", run_training)
    for alpha in ("0", "0.5"):
        values = {"chance_p_value": 1.0, "min_confidence": ["0"], "distillation_alpha": [alpha]}
        students.append(self_training.train_chain(make_runner(tmp_path, **values))[1][1])
    assert inputs == [{"pseudo_labels"}, {"pseudo_labels", "labeled"}]
    plain, distilled = students
    assert plain.scored_labeled is None
    for name in ("scores", "selection", "pseudo_labels"):
        assert getattr(distilled, name).path == getattr(plain, name).path
        assert getattr(distilled, name).reused


def test_a_fingerprint_has_the_settings_that_have_an_effect(make_settings):
    def fingerprint(**changes):
        return make_settings(**changes).for_fingerprint()

    plain, distilled = fingerprint(), fingerprint(distillation_alpha=[0.5])
    assert fingerprint(distillation_temperature=[9.0]) == plain
    assert distilled == fingerprint(distillation_alpha=[0.5], pseudo_label="hard", temperature=3.0)
    changed = {name for name in plain | distilled if plain.get(name) != distilled.get(name)}
    targets = {"pseudo_label", "temperature"}
    assert changed == targets | {"distillation_alpha", "distillation_temperature"}
    assert fingerprint(generation=0, distillation_alpha=[0.5]) == fingerprint(generation=0)
