"""Several teachers of one student."""

import numpy as np
import pytest

from nsk import self_training
from nsk.data.resident_images import load_images
from nsk.evaluation.calibration import fit_temperature
from nsk.evaluation.prediction_files import read_predictions
from nsk.models.model_files import load_model
from nsk.stages.runner import MODEL_FILE, shard_set
from nsk.stages.score_files import DEV_FILE, score_paths
from nsk.stages.training import trainable_parameters


@pytest.fixture(scope="module")
def chains(make_runner, tmp_path_factory):
    """A chain whose teacher is the mean of two networks, and then one of a single teacher."""
    workdir = tmp_path_factory.mktemp("run")
    values = {
        "models": ["convnet5"] * 2,
        "train_steps": ["8", "1"],
        "learning_rate": ["0.1", "0"],
        "init_from": ["scratch", "teacher"],
        "chance_p_value": 1.0,
        "min_confidence": ["0"],
    }
    images, several = self_training.train_chain(make_runner(workdir, num_teachers=2, **values))
    _, single = self_training.start_chain(make_runner(workdir, **values))
    return images, several, single


def mean_log_probabilities(generation, images):
    """The logarithms of the members' mean probabilities, in double precision."""
    pixels = images.images.numpy().astype(np.float32)
    members = [load_model(member.model.path / MODEL_FILE) for member in generation.members]
    logits = np.float64([member(pixels).numpy() for member in members])
    odds = np.exp(logits - logits.max(axis=2, keepdims=True))
    return np.log(np.mean(odds / odds.sum(axis=2, keepdims=True), axis=0))


def test_the_ensemble_teaches_and_is_evaluated_with_the_mean_of_its_members(chains):
    images, (teacher, student), _ = chains
    names = [stage.path.name.rpartition("-")[0] for stage in (teacher.trained, teacher.model)]
    assert names == ["teacher", "ensemble"]
    unlabeled, dev = (shard_set(images, split) for split in ("unlabeled", "dev"))
    (path,) = score_paths(unlabeled, student.scores.path)
    expected = mean_log_probabilities(teacher, load_images(unlabeled, 8))
    received = read_predictions(path).log_probabilities
    np.testing.assert_allclose(received, expected, rtol=2e-3, atol=1e-3)

    loaded = load_images(dev, 8)
    expected = mean_log_probabilities(teacher, loaded)
    for folder in (teacher.evaluation.path, student.scores.path):
        received = read_predictions(folder / DEV_FILE).log_probabilities
        np.testing.assert_allclose(received, expected, rtol=2e-3, atol=1e-3)
    temperature = fit_temperature(expected.astype(np.float32), loaded.labels)
    assert student.scores.counts["temperature"] == pytest.approx(temperature, rel=1e-3)
    assert read_predictions(path).feature_distances is not None
    parameters = trainable_parameters(load_model(teacher.trained.path / MODEL_FILE))
    assert teacher.model.counts["parameters"] == 2 * parameters


def test_members_differ_and_the_first_is_the_teacher_without_others(chains):
    _, (teacher, _), (single,) = chains
    first, second = teacher.members
    assert single.trained.reused and single.trained.path == first.trained.path
    assert single.model.reused and single.model.path == first.model.path
    assert second.trained.path.name.startswith("teacher2-")
    weights = [
        load_model(member.model.path / MODEL_FILE).get_weights() for member in (first, second)
    ]
    assert np.any(weights[0][0] != weights[1][0])


def test_a_student_is_initialised_from_the_first_member(chains):
    _, (teacher, student), _ = chains
    first = load_model(teacher.members[0].model.path / MODEL_FILE).trainable_weights
    for weight, expected in zip(
        load_model(student.model.path / MODEL_FILE).trainable_weights, first, strict=True
    ):
        np.testing.assert_array_equal(weight, expected)
