"""The chain of generations, and the decisions over it, from the dev split alone.

Test predictions are never read here.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from nsk.errors import GenerationFailedError
from nsk.evaluation import metrics
from nsk.evaluation.prediction_files import read_table
from nsk.store.folders import StageFolder

# A student this many standard errors below its teacher on dev triggers a warning.
SIGNIFICANT_STANDARD_ERRORS = 3


@dataclasses.dataclass(frozen=True)
class Generation:
    """The stages of one generation.

    Attributes:
        trained: the trained (or adopted) model.
        model: the model in use: `trained`, or that fine-tuned at the test resolution.
        evaluation: its predictions and metrics on dev and test.
        scores, selection, pseudo_labels: what a student was trained on, made by the generation
            before it; None for a teacher.
    """

    trained: StageFolder
    model: StageFolder
    evaluation: StageFolder
    scores: StageFolder | None = None
    selection: StageFolder | None = None
    pseudo_labels: StageFolder | None = None


def best_generation(chain: Sequence[Generation]) -> int:
    """Index of the latest generation that is not worse than the most accurate one on dev.

    Worse means by more than one standard error of the paired difference on the same dev images. Two
    models of a chain agree on most images, so it is much smaller than the standard error of either
    accuracy. Each generation is compared with the most accurate one, not with the one before it, so
    that small losses do not add up.

    Args:
        chain: the generations, the teacher first.
    """
    correct = [_correct_on_dev(generation) for generation in chain]
    most_accurate = int(np.argmax([is_correct.mean() for is_correct in correct]))
    best = most_accurate
    for later in range(most_accurate + 1, len(correct)):
        loss = correct[most_accurate].mean() - correct[later].mean()
        if loss <= metrics.paired_standard_error(correct[most_accurate], correct[later]):
            best = later
    return best


def students_without_gain(chain: Sequence[Generation]) -> int:
    """Number of students after the most accurate generation on dev; ties go to the earlier one."""
    accuracies = [_correct_on_dev(generation).mean() for generation in chain]
    return len(accuracies) - 1 - int(np.argmax(accuracies))


def warn_of_lower_accuracy(chain: Sequence[Generation]) -> None:
    """Logs a warning if the last student is significantly worse on dev than its teacher."""
    teacher, student = (_correct_on_dev(generation) for generation in chain[-2:])
    loss = teacher.mean() - student.mean()
    standard_error = metrics.paired_standard_error(teacher, student)
    if loss > SIGNIFICANT_STANDARD_ERRORS * standard_error:
        logging.warning(
            "Student %d has an accuracy of %.1f %% on dev, its teacher %.1f %%: raise its budget, "
            "lower --labeled_batch_size or its noise, or initialise it from its teacher "
            "(--init_from=scratch,teacher).",
            len(chain) - 1,
            100 * student.mean(),
            100 * teacher.mean(),
        )


def require_better_than_chance(teacher: Generation, p_value: float) -> None:
    """Checks that the teacher is better on dev than a majority-class classifier.

    Pseudo-labels of a teacher at chance level are noise.

    Args:
        teacher: the generation that is to label images.
        p_value: highest p-value allowed, of a one-sided binomial test.

    Raises:
        GenerationFailedError: the teacher is not significantly better.
    """
    truth, labels = _dev_predictions(teacher)
    num_correct = int((truth == labels).sum())
    num_classes = int(max(truth.max(), labels.max())) + 1
    chance = metrics.chance_p_value(num_correct, truth, num_classes)
    if chance > p_value:
        raise GenerationFailedError(
            f"{teacher.model.name} classifies {num_correct} of {len(truth)} dev images correctly, "
            f"which always predicting one class reaches with probability {chance:.2g} (allowed: "
            f"--chance_p_value={p_value}): it cannot teach. Give it more labels or a longer "
            "budget, or a larger --num_dev if that number is small."
        )


def _dev_predictions(generation):
    table = read_table(generation.evaluation.path / "dev.parquet", ["truth", "label"])
    return table["truth"].to_numpy(), table["label"].to_numpy()


def _correct_on_dev(generation):
    """Whether the generation classifies each dev image correctly: bool array (n,)."""
    truth, labels = _dev_predictions(generation)
    return truth == labels
