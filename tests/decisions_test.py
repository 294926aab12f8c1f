import logging
from types import SimpleNamespace

import numpy as np
import pytest

from nsk.decisions import (
    best_generation,
    require_better_than_chance,
    students_without_gain,
    warn_of_worse_student,
)
from nsk.errors import GenerationFailedError, UserError
from nsk.evaluation.prediction_files import make_stored_predictions, write_predictions

NUM_IMAGES = 400


def write_dev(folder, truth, log_probabilities):
    """Writes the predictions of dev images."""
    folder.mkdir()
    ids = [f"dev/{number}" for number in range(len(truth))]
    write_predictions(
        folder / "dev.parquet",
        make_stored_predictions(ids, log_probabilities.astype(np.float32)),
        np.asarray(truth, np.int32),
    )


def make_generation(folder, correct, truth=None, labels=None, confidence=0.91, **counts):
    """A generation that classifies the dev images of the bool array `correct` correctly.

    With `labels` it predicts these instead. `counts` are those of its model.
    """
    truth = np.arange(len(correct)) % 10 if truth is None else np.asarray(truth)
    labels = np.where(correct, truth, (truth + 1) % 10) if labels is None else labels
    log_probabilities = np.full((len(truth), 10), np.log((1 - confidence) / 9))
    log_probabilities[np.arange(len(truth)), labels] = np.log(confidence)
    write_dev(folder, truth, log_probabilities)
    model = SimpleNamespace(
        name="gen0/teacher-0123456789",
        counts={"class_names": [f"class {number}" for number in range(10)], **counts},
    )
    return SimpleNamespace(
        evaluation=SimpleNamespace(path=folder), model=model, is_student=False, selection=None
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
        warn_of_worse_student(chain)
    message = "Student 2 has an accuracy of 80.0 % on dev, its teacher 90.0 %"
    assert (message in caplog.text) == is_warned


def compared_counts(unlike):
    """Part of the counts of a comparison with dev."""
    counts = [0] * 8 + [30, 70]
    return {
        "unlike": unlike,
        "images": 100,
        "confidence": {"above_threshold": {"pool": 0.53, "dev": 0.99}, "dev_precision": 0.985},
        "classes": {
            "predicted": {"pool": counts, "dev": [10] * 10},
            "estimated_shares": [count / 100 for count in counts],
            "dev_shares": [0.1] * 10,
            "shift": 0.8,
        },
        "distance": {
            "quantiles": {name: [value] * 5 for name, value in (("pool", 0.3), ("dev", 0.1))},
            "beyond_limit": 87,
        },
        "unknown_share": 0.87,
        "unknown_share_above": 0.81,
    }


@pytest.mark.parametrize("unlike", [[], ["classes", "unknown"]])
def test_advice_after_a_worse_student_begins_with_its_pseudo_labels(tmp_path, caplog, unlike):
    chain = make_chain(tmp_path, range(10), range(300, 390))
    per_class = {"kept": [0] * 8 + [13, 40]}
    chain[1].selection = SimpleNamespace(counts={"images": 53, "per_class": per_class})
    chain[1].scores = SimpleNamespace(counts={"scored": 100})
    chain[1].comparison = SimpleNamespace(counts=compared_counts(unlike))
    warn_of_worse_student(chain)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(
        "Student 1 has an accuracy of 77.5 % on dev, its teacher 97.5 %. Its pseudo-labels are of "
        "53 of 100 unlabelled images; of 2 of 10 classes (75% class 9); of all unlabelled images "
        "53.0% reach the minimum confidence (dev: 99.0%, 98.5% of them labelled correctly), "
        "predicted class 9 70%, class 8 30%"
    )
    assert message.index("pseudo-labels are of") < message.index("raise its budget")
    assert ("--unknown_classes=filter leaves out the 87 images" in message) == bool(unlike)
    assert ("at least an estimated 87% are unlike dev in features (81%" in message) == bool(unlike)
    assert ("8 of 10 classes hardly occur" in message) == bool(unlike)
    caplog.clear()
    warn_of_worse_student(chain, is_filtered=True)
    assert "--unknown_classes" not in caplog.text
    chain[1].comparison = None
    warn_of_worse_student(chain)
    assert "(75% class 9). Its training may be the cause: raise" in caplog.text


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


# Other criteria.


def make_rare_chain(folder):
    """A teacher that finds a rare class, and a student that is more accurate but does not."""
    truth = np.repeat([0, 1], [380, 20])
    found, missed = np.ones(400, bool), np.ones(400, bool)
    found[:20] = False  # 94.7 % of the common class, all of the rare one.
    missed[380:396] = False  # 20 % of the rare class.
    return [
        make_generation(folder / "teacher", found, truth, confidence=0.95),
        make_generation(folder / "student", missed, truth, confidence=0.6),
    ]


def test_the_criterion_decides_which_generation_is_the_best(tmp_path, caplog):
    chain = make_rare_chain(tmp_path)
    assert best_generation(chain) == best_generation(chain, "accuracy") == 1
    assert students_without_gain(chain) == 0
    warn_of_worse_student(chain)
    assert "Student" not in caplog.text
    assert best_generation(chain, "balanced_accuracy") == 0
    assert students_without_gain(chain, "balanced_accuracy") == 1
    warn_of_worse_student(chain, "balanced_accuracy")
    assert "has a balanced accuracy of 60.0 % on dev, its teacher 97.4 %" in caplog.text
    # 5 % of the teacher's images have the probability 0.05 / 9, and 4 % of the student's 0.4 / 9.
    teacher = -(0.95 * np.log(0.95) + 0.05 * np.log(0.05 / 9))
    student = -(0.96 * np.log(0.6) + 0.04 * np.log(0.4 / 9))
    assert best_generation(chain, "nll") == 0 and students_without_gain(chain, "nll") == 1
    warn_of_worse_student(chain, "nll")
    assert f"has an NLL of {student:.3f} on dev, its teacher {teacher:.3f}" in caplog.text


@pytest.mark.parametrize("criterion", ["balanced_accuracy", "nll"])
def test_a_later_generation_within_one_standard_error_is_best_by_any_criterion(tmp_path, criterion):
    chain = make_chain(tmp_path, range(20), range(20, 44), range(400))
    assert best_generation(chain, criterion) == 1


# Whether a teacher can teach.


def refusal(teacher, p_value=0.01):
    with pytest.raises(GenerationFailedError) as raised:
        require_better_than_chance(teacher, p_value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_teacher_at_chance_level_is_rejected_with_its_numbers(tmp_path):
    teacher = make_generation(tmp_path / "teacher", np.arange(50) < 6, final_loss=2.25)
    message = refusal(teacher)
    assert "gen0/teacher-0123456789 classifies 6 of 50 dev images correctly" in message
    # Every class has 5 images and 5 predictions, but for one of each.
    assert "at random have 5.0 correct on average" in message
    assert "--chance_p_value=0.01" in message
    require_better_than_chance(teacher, 0.99)


def test_any_teacher_may_teach_if_the_test_is_waived(tmp_path):
    """Defective distillation: not even one that is always wrong is rejected."""
    truth = np.arange(50) % 10
    teacher = make_generation(tmp_path / "teacher", None, truth, (truth + 1) % 10, final_loss=3.0)
    require_better_than_chance(teacher, 1.0)


def test_a_teacher_that_always_predicts_the_most_common_class_is_rejected(tmp_path):
    truth = np.where(np.arange(100) < 80, 0, np.arange(100) % 10)
    # 80 images and 2 of the others are of class 0.
    teacher = make_generation(tmp_path / "teacher", None, truth, np.zeros(100, int), final_loss=0.9)
    message = refusal(teacher)
    assert "classifies 82 of 100 dev images correctly" in message and "probability 1 (" in message
    assert "'class 0' for every dev image" in message and "--class_weights=balanced" in message


def test_a_teacher_better_than_chance_is_accepted(tmp_path):
    require_better_than_chance(make_generation(tmp_path / "teacher", np.arange(50) < 25), 0.01)


def test_a_teacher_that_finds_some_images_of_a_rare_class_is_accepted(tmp_path):
    """Without false alarms: it need not be significantly more accurate than the common class."""
    truth = np.repeat([0, 1], [251, 13])
    labels = np.append(np.zeros(259, int), np.ones(5, int))
    require_better_than_chance(make_generation(tmp_path / "a", None, truth, labels), 1e-6)
    # Fewer correct ones than always predicting the common class has.
    labels[:6] = 1
    require_better_than_chance(make_generation(tmp_path / "b", None, truth, labels), 1e-3)


CAUSES = {
    "longer budget or another --learning_rate": {"final_loss": 2.2},
    "compare the labels of dev with those of the training images": {"final_loss": 0.003},
    "trained elsewhere": {},
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_message_names_what_is_known_of_the_cause(tmp_path, cause):
    random = np.random.default_rng(0)
    truth, labels = random.integers(0, 10, (2, 200))
    teacher = make_generation(tmp_path / "a", None, truth, labels, **CAUSES[cause])
    message = refusal(teacher)
    assert [text for text in CAUSES if text in message] == [cause]
    assert ("more labels" in message) == (cause.startswith("compare"))
    assert "--num_dev" not in message
    few = make_generation(tmp_path / "b", None, truth[:60], labels[:60], **CAUSES[cause])
    assert "60 dev images are few for this test: a larger --num_dev" in refusal(few)


def test_another_order_of_the_classes_is_named(tmp_path):
    truth = np.random.default_rng(0).integers(0, 3, 200)
    teacher = make_generation(tmp_path / "a", None, truth, (truth + 1) % 3, final_loss=0.003)
    message = refusal(teacher)
    assert "It predicts 'class 0' for 'class 2', 'class 1' for 'class 0', 'class 2' for" in message
    assert "another order" in message and "training loss" not in message


def test_a_student_at_chance_level_had_a_better_teacher(tmp_path):
    truth, labels = np.random.default_rng(0).integers(0, 10, (2, 200))
    student = make_generation(tmp_path / "a", None, truth, labels, final_loss=5.0)
    student.is_student = True
    message = refusal(student)
    assert "Its own teacher was better" in message and "training loss" not in message


def test_a_damaged_prediction_file_is_a_user_error(tmp_path):
    chain = make_chain(tmp_path, range(3))
    (tmp_path / "gen0" / "dev.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"dev\.parquet cannot be read"):
        best_generation(chain)
