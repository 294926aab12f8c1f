import logging
from types import SimpleNamespace

import numpy as np
import pytest

from nsk.errors import UserError
from nsk.evaluation.prediction_files import make_stored_predictions, write_predictions

NUM_IMAGES = 400


def make_generation(folder, correct, truth=None, name="gen0/teacher-0123456789"):
    """A generation that is right about the dev images where `correct` (bool array) says so."""
    folder.mkdir()
    correct = np.asarray(correct)
    truth = np.arange(len(correct)) % 10 if truth is None else truth
    choices = np.where(correct, truth, (truth + 1) % 10)
    log_probabilities = np.full((len(correct), 10), np.log(0.01), np.float32)
    log_probabilities[np.arange(len(correct)), choices] = np.log(0.91)
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
    """Generations that are wrong about these images (iterables of indices)."""
    chain = []
    for index, images in enumerate(wrong):
        correct = np.ones(NUM_IMAGES, bool)
        correct[list(images)] = False
        chain.append(make_generation(folder / f"gen{index}", correct))
    return chain


@pytest.mark.parametrize(("wrong", "told"), [(40, False), (44, False), (80, True)])
def test_a_student_that_is_clearly_worse_than_its_teacher_is_told(tmp_path, caplog, wrong, told):
    chain = make_chain(tmp_path, range(90), range(40), range(300, 300 + wrong))
    with caplog.at_level(logging.WARNING):
        deciding.warn_of_a_loss(chain)
    assert ("Student 2 gets 80.0 % of dev right, its teacher 90.0 %" in caplog.text) == told


def test_a_better_generation_is_best(tmp_path):
    assert deciding.best_generation(make_chain(tmp_path, range(40), range(20), range(30))) == 1


def test_a_later_generation_wins_where_it_is_equal_or_within_the_noise(tmp_path):
    equal, noise = tmp_path / "equal", tmp_path / "noise"
    equal.mkdir()
    noise.mkdir()
    assert deciding.best_generation(make_chain(equal, range(20), range(20))) == 1
    # The two differ on 20 + 24 images: -4 images, and sqrt(44) = 6.6 of standard error.
    assert deciding.best_generation(make_chain(noise, range(20), range(20, 44))) == 1


def test_the_standard_error_is_the_paired_one(tmp_path):
    # As much worse, 4 images, but only 4 differ: sqrt(4) = 2 of standard error. That of the
    # accuracy alone would be sqrt(20) = 4.5 and would let the later one win.
    assert deciding.best_generation(make_chain(tmp_path, range(20), range(24))) == 0


def test_small_losses_do_not_add_up(tmp_path):
    # Each is 4 images worse than the one before, which is within the noise; the last is worse than
    # the first by 8 images, and its standard error is sqrt(20 + 28) = 6.9.
    chain = make_chain(tmp_path, range(20), range(20, 44), range(44, 72))
    assert deciding.best_generation(chain[1:]) == 1
    assert deciding.best_generation(chain) == 1


def test_the_only_generation_is_the_best(tmp_path):
    assert deciding.best_generation(make_chain(tmp_path, range(3))) == 0


def test_students_without_gain_counts_those_after_the_most_accurate(tmp_path):
    chain = make_chain(tmp_path, range(40), range(20), range(30), range(20), range(10))
    counts = [deciding.students_without_gain(chain[:length]) for length in range(1, 6)]
    # To be as good as the best one before is no gain.
    assert counts == [0, 0, 1, 2, 0]


def test_a_teacher_that_guesses_is_refused_with_its_numbers(tmp_path):
    correct = np.arange(50) < 6
    teacher = make_generation(tmp_path / "teacher", correct)
    with pytest.raises(UserError) as refused:
        deciding.refuse_chance(teacher, 0.01)
    message = str(refused.value)
    # P(X >= 6) for 50 images and a tenth each.
    assert "gen0/teacher-0123456789 gets 6 of 50 dev images right" in message
    assert "probability 0.38" in message and "--chance_p_value=0.01" in message
    assert "\n" not in message
    deciding.refuse_chance(teacher, 0.5)


def test_a_teacher_of_the_most_common_class_alone_is_refused(tmp_path):
    truth = np.where(np.arange(100) < 80, 0, np.arange(100) % 10)
    # 80 images are of class 0, and 2 of the others too.
    teacher = make_generation(tmp_path / "teacher", truth == 0, truth)
    with pytest.raises(UserError, match="gets 82 of 100 dev images right"):
        deciding.refuse_chance(teacher, 0.01)


def test_a_teacher_that_knows_something_may_teach(tmp_path):
    deciding.refuse_chance(make_generation(tmp_path / "teacher", np.arange(50) < 25), 0.01)


def test_a_damaged_prediction_file_is_a_user_error(tmp_path):
    chain = make_chain(tmp_path, range(3))
    (tmp_path / "gen0" / "dev.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"dev\.parquet cannot be read"):
        deciding.best_generation(chain)
