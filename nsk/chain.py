"""Decisions over generations, from the dev split alone: test predictions are never read here."""

import numpy as np
from absl import logging

from nsk.errors import CannotTeachError
from nsk.evaluation import metrics
from nsk.evaluation.prediction_files import read_table

CLEARLY = 3  # Standard errors.


def best_generation(chain):
    """Index of the latest generation that is no worse than the most accurate one.

    Worse means by more than one standard error, that of the paired difference on the same dev
    images: two models of one chain agree on most of them, so it is much smaller than that of either
    accuracy. Each generation is compared with the most accurate one, and not with the one before
    it, so that many small losses do not add up.

    Args:
        chain: list of `Generation`s, the teacher first.
    """
    correct = [_correct_on_dev(generation) for generation in chain]
    top = int(np.argmax([one.mean() for one in correct]))
    best = top
    for later in range(top + 1, len(correct)):
        worse_by = correct[top].mean() - correct[later].mean()
        if worse_by <= metrics.paired_standard_error(correct[top], correct[later]):
            best = later
    return best


def students_without_gain(chain):
    """How many students have passed since the most accurate generation on dev."""
    accuracies = [_correct_on_dev(generation).mean() for generation in chain]
    first_best = int(np.argmax(accuracies))  # The first of equals: to be equal is no gain.
    return len(accuracies) - 1 - first_best


def warn_of_a_loss(chain):
    """A warning where the last student is clearly worse on dev than its teacher."""
    teacher, student = (_correct_on_dev(generation) for generation in chain[-2:])
    loss = teacher.mean() - student.mean()
    if loss > CLEARLY * metrics.paired_standard_error(teacher, student):
        logging.warning(
            "Student %d gets %.1f %% of dev right, its teacher %.1f %%: raise its budget, lower "
            "--labeled_batch_size or its noise, or, where it does not yet, let it begin with the "
            "teacher's weights (--init_from=scratch,teacher).",
            len(chain) - 1,
            100 * student.mean(),
            100 * teacher.mean(),
        )


def refuse_chance(teacher, p_value):
    """CannotTeachError where guessing the most common class would do as well as the teacher on dev.

    Pseudo-labels of such a teacher are noise, and every student after it would learn noise.
    """
    truth, choice = _dev_predictions(teacher)
    num_correct = int((truth == choice).sum())
    chance = metrics.chance_p_value(num_correct, truth, int(max(truth.max(), choice.max())) + 1)
    if chance > p_value:
        raise CannotTeachError(
            f"{teacher.model.name} gets {num_correct} of {len(truth)} dev images right, which "
            f"guessing one class would do with probability {chance:.2g} (allowed: "
            f"--chance_p_value={p_value}): it cannot teach. Give it more labels or a longer "
            "budget, or a larger --num_dev if that number is small."
        )


def _dev_predictions(generation):
    table = read_table(generation.evaluation.path / "dev.parquet", ["truth", "label"])
    return table["truth"].to_numpy(), table["label"].to_numpy()


def _correct_on_dev(generation):
    truth, choice = _dev_predictions(generation)
    return truth == choice


warn_of_lower_accuracy, require_better_than_chance = warn_of_a_loss, refuse_chance
from nsk.generation import Generation  # noqa
