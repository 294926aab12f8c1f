"""Classes of an external teacher: another order and other classes are found."""

import numpy as np
import pytest

from nsk.errors import UserError
from nsk.evaluation.prediction_files import make_stored_predictions, write_predictions
from nsk.evaluation.predictor import Predictions
from nsk.stages.external_scores import check_classes

NUM_CLASSES = 10


def predictions(labels, accuracy=1.0, seed=0):
    """Predictions that are right with a probability."""
    random = np.random.default_rng(seed)
    guesses = random.integers(0, NUM_CLASSES, len(labels))
    predicted = np.where(random.random(len(labels)) < accuracy, labels, guesses)
    log_probabilities = np.log(np.full((len(labels), NUM_CLASSES), 0.01))
    log_probabilities[np.arange(len(labels)), predicted] = np.log(0.91)
    ids = [str(row) for row in range(len(labels))]
    return Predictions(ids, labels, log_probabilities)


@pytest.fixture
def check(shard_sets, tmp_path):
    """Checks records with another order of classes, with a teacher of some accuracy on dev."""

    def run(order=None, accuracy=0.8, external_accuracy=0.9):
        truth = {
            "dev": np.tile(np.arange(NUM_CLASSES), 20),
            "unlabeled": np.tile(np.arange(NUM_CLASSES), 100),
        }
        shard_set = {"dev": shard_sets["dev"], "unlabeled": shard_sets["labeled"]}

        def predict(shards, numbers):
            split = next(name for name in truth if shard_set[name] is shards)
            labels = truth[split]
            yield predictions(labels[:70], accuracy)
            yield predictions(labels[70:], accuracy, seed=1)

        external = predictions(truth["unlabeled"], external_accuracy, seed=2).log_probabilities
        if order:
            external = external[:, np.argsort(order)]
        ids = [str(row) for row in range(len(external))]
        write_predictions(tmp_path / "0.parquet", make_stored_predictions(ids, external))
        check_classes(predict, shard_set["unlabeled"], shard_set["dev"], [tmp_path / "0.parquet"])

    return run


def test_classes_in_the_same_order(check, caplog):
    with caplog.at_level("INFO", logger="absl"):
        check()
    assert "agree for 69.4% of the images (10.0% by chance)" in caplog.text


def test_classes_in_another_order_are_refused(check):
    with pytest.raises(UserError, match=r"in another order.*they name 2 as 5, 5 as 2: give"):
        check([0, 1, 5, 3, 4, 2, 6, 7, 8, 9])
    with pytest.raises(
        UserError, match=r"0 as 1, 1 as 2.*9 as 0.* or --class_names in the order of"
    ):
        check([*range(1, 10), 0])


def test_other_classes_are_refused(check):
    with pytest.raises(UserError, match="as by chance, so the records' classes are not 0, 1, 2"):
        check(external_accuracy=0.0)


def test_a_teacher_at_chance_level_finds_nothing(check, caplog):
    check([*range(1, 10), 0], accuracy=0.0)
    assert "at chance level on dev, so it is not known" in caplog.text
