import logging
from types import SimpleNamespace

import numpy as np
import pytest

from nsk.decisions import (
    best_generation,
    require_better_than_chance,
    students_without_gain,
    warn_of_lower_accuracy,
)
from nsk.errors import UserError
from nsk.evaluation.prediction_files import make_stored_predictions, write_predictions

NUM_IMAGES = 400


def make_generation(folder, correct, truth=None, name="gen0/teacher-0123456789"):
    """A generation that classifies the dev images of the bool array `correct` correctly."""
    folder.mkdir()
    correct = np.asarray(correct)
    truth = np.arange(len(correct)) % 10 if truth is None else truth
    labels = np.where(correct, truth, (truth + 1) % 10)
    log_probabilities = np.full((len(correct), 10), np.log(0.01), np.float32)
    log_probabilities[np.arange(len(correct)), labels] = np.log(0.91)
    ids = [f"dev/{number}" for number in range(len(correct))]
    write_predictions(
        folder / "dev.parquet",
        make_stored_predictions(ids, log_probabilities),
        truth.astype(np.int32),
    )
    return SimpleNamespace(
        evaluation=SimpleNamespace(path=folder), model=SimpleNamespace(name=name)
    )


def make_chain(folder, *wrong):
    """Generations that misclassify these images (iterables of indices)."""
    chain = []
    for index, images in enumerate(wrong):
        correct = np.ones(NUM_IMAGES, bool)
        correct[list(images)] = False
        chain.append(make_generation(folder / f"gen{index}", correct))
    return chain


@pytest.mark.parametrize(("num_wrong", "is_warned"), [(40, False), (44, False), (80, True)])
def test_a_significantly_worse_student_triggers_a_warning(tmp_path, caplog, num_wrong, is_warned):
    chain = make_chain(tmp_path, range(90), range(40), range(300, 300 + num_wrong))
    with caplog.at_level(logging.WARNING):
        warn_of_lower_accuracy(chain)
    message = "Student 2 has an accuracy of 80.0 % on dev, its teacher 90.0 %"
    assert (message in caplog.text) == is_warned


def test_a_better_generation_is_best(tmp_path):
    assert best_generation(make_chain(tmp_path, range(40), range(20), range(30))) == 1


def test_a_later_generation_is_best_if_it_is_equal_or_within_one_standard_error(tmp_path):
    equal, noise = tmp_path / "equal", tmp_path / "noise"
    equal.mkdir()
    noise.mkdir()
    assert best_generation(make_chain(equal, range(20), range(20))) == 1
    # They differ on 20 + 24 images: a loss of 4 images, and a standard error of sqrt(44) = 6.6.
    assert best_generation(make_chain(noise, range(20), range(20, 44))) == 1


def test_the_standard_error_is_the_paired_one(tmp_path):
    # The same loss of 4 images, but only 4 differ: a standard error of sqrt(4) = 2. That of the
    # accuracy alone would be sqrt(20) = 4.5, and the later generation would be best.
    assert best_generation(make_chain(tmp_path, range(20), range(24))) == 0


def test_small_losses_do_not_add_up(tmp_path):
    # Each generation loses 4 images against the one before, within the standard error; the last
    # loses 8 against the first, with a standard error of sqrt(20 + 28) = 6.9.
    chain = make_chain(tmp_path, range(20), range(20, 44), range(44, 72))
    assert best_generation(chain[1:]) == 1
    assert best_generation(chain) == 1


def test_the_only_generation_is_the_best(tmp_path):
    assert best_generation(make_chain(tmp_path, range(3))) == 0


def test_students_without_gain_counts_those_after_the_most_accurate(tmp_path):
    chain = make_chain(tmp_path, range(40), range(20), range(30), range(20), range(10))
    counts = [students_without_gain(chain[:length]) for length in range(1, 6)]
    # Equal accuracy is not a gain.
    assert counts == [0, 0, 1, 2, 0]


def test_a_teacher_at_chance_level_is_rejected_with_its_numbers(tmp_path):
    correct = np.arange(50) < 6
    teacher = make_generation(tmp_path / "teacher", correct)
    with pytest.raises(UserError) as raised:
        require_better_than_chance(teacher, 0.01)
    message = str(raised.value)
    # P(X >= 6) with 50 images and a probability of a tenth.
    assert "gen0/teacher-0123456789 classifies 6 of 50 dev images correctly" in message
    assert "probability 0.38" in message and "--chance_p_value=0.01" in message
    assert "\n" not in message
    require_better_than_chance(teacher, 0.5)


def test_a_teacher_that_always_predicts_the_most_common_class_is_rejected(tmp_path):
    truth = np.where(np.arange(100) < 80, 0, np.arange(100) % 10)
    # 80 images and 2 of the others are of class 0.
    teacher = make_generation(tmp_path / "teacher", truth == 0, truth)
    with pytest.raises(UserError, match="classifies 82 of 100 dev images correctly"):
        require_better_than_chance(teacher, 0.01)


def test_a_teacher_better_than_chance_is_accepted(tmp_path):
    require_better_than_chance(make_generation(tmp_path / "teacher", np.arange(50) < 25), 0.01)


def test_a_damaged_prediction_file_is_a_user_error(tmp_path):
    chain = make_chain(tmp_path, range(3))
    (tmp_path / "gen0" / "dev.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"dev\.parquet cannot be read"):
        best_generation(chain)
