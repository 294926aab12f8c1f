"""The chain of generations, and the decisions over it, from the dev split alone.

Test predictions are never read here.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from absl import logging

from nsk.errors import GenerationFailedError, list_names
from nsk.evaluation import criteria
from nsk.evaluation.agreement import agreement_p_value, expected_correct, find_renaming
from nsk.evaluation.prediction_files import read_predictions, read_table
from nsk.pseudo import pool_report
from nsk.store.folders import StageFolder

DEV_FILE = "dev.parquet"
# A student this many standard errors below its teacher on dev triggers a warning.
SIGNIFICANT_STANDARD_ERRORS = 3
# A training loss below this share of that of guessing shows that the training images are fitted.
FITTED_LOSS = 0.5
# With fewer dev images, even a fair teacher may seem to guess.
FEW_DEV_IMAGES = 100


@dataclasses.dataclass(frozen=True)
class Network:
    """The stages of one network.

    Attributes:
        trained: the trained (or adopted) model.
        model: the model in use: `trained`, or that fine-tuned at the test resolution.
    """

    trained: StageFolder
    model: StageFolder


@dataclasses.dataclass(frozen=True)
class Generation:
    """The stages of one generation.

    Attributes:
        trained: the trained (or adopted) model; of an ensemble, that of its first member.
        model: the model in use: `trained`, or that fine-tuned at the test resolution, or the
            ensemble.
        evaluation: its predictions and metrics on dev and test.
        scores, selection, pseudo_labels: what a student was trained on, made by the generation
            before it; None for a teacher.
        comparison: how the unlabelled images compare with dev in these scores; None: unknown.
        scored_labeled: the labelled images with the predictions of the generation before it; None
            without distillation.
        pretrained: the student before it is trained on labelled images; None: it is trained on
            both sets at the same time.
        members: the networks of an ensemble; (): it is a single network.
    """

    trained: StageFolder
    model: StageFolder
    evaluation: StageFolder
    scores: StageFolder | None = None
    selection: StageFolder | None = None
    pseudo_labels: StageFolder | None = None
    comparison: StageFolder | None = None
    scored_labeled: StageFolder | None = None
    pretrained: StageFolder | None = None
    members: tuple[Network, ...] = ()

    @property
    def networks(self) -> tuple[Network, ...]:
        """Its network, or those of an ensemble."""
        return self.members or (Network(self.trained, self.model),)

    @property
    def is_student(self) -> bool:
        """Whether a generation before it was its teacher."""
        return self.scores is not None or self.scored_labeled is not None


def best_generation(chain: Sequence[Generation], decide_by: str = "accuracy") -> int:
    """Index of the latest generation that is not worse than the one with the best score on dev.

    Worse means by more than one standard error of the paired difference on the same dev images. Two
    models of a chain agree on most images, so it is much smaller than the standard error of either
    score. Each generation is compared with the best one, not with the one before it, so that small
    losses do not add up.

    Args:
        chain: the generations, the teacher first.
        decide_by: one of `criteria.CRITERIA`.
    """
    scores = [_DevScores.of(generation, decide_by) for generation in chain]
    highest = int(np.argmax([scored.mean for scored in scores]))
    best = highest
    for later in range(highest + 1, len(scores)):
        loss = scores[highest].mean - scores[later].mean
        if loss <= scores[highest].standard_error(scores[later]):
            best = later
    return best


def students_without_gain(chain: Sequence[Generation], decide_by: str = "accuracy") -> int:
    """Number of students after the best generation on dev; ties go to the earlier one.

    Arguments as for `best_generation`.
    """
    means = [_DevScores.of(generation, decide_by).mean for generation in chain]
    return len(means) - 1 - int(np.argmax(means))


def warn_of_worse_student(
    chain: Sequence[Generation], decide_by: str = "accuracy", is_filtered: bool = False
) -> None:
    """Logs a warning if the last student is significantly worse on dev than its teacher.

    Args:
        chain: the generations, the teacher first.
        decide_by: one of `criteria.CRITERIA`.
        is_filtered: whether images far from dev were not selected for it.
    """
    teacher, student = (_DevScores.of(generation, decide_by) for generation in chain[-2:])
    loss = teacher.mean - student.mean
    if loss > SIGNIFICANT_STANDARD_ERRORS * teacher.standard_error(student):
        logging.warning(
            "Student %d has %s of %s on dev, its teacher %s. %s",
            len(chain) - 1,
            criteria.CRITERIA[decide_by],
            criteria.format_score(decide_by, student.mean),
            criteria.format_score(decide_by, teacher.mean),
            _advice_after_worse_student(chain[-1], is_filtered),
        )


def _advice_after_worse_student(student, is_filtered):
    """What the pseudo-labels of a student were, and what to do, as sentences."""
    training = (
        "Its training may be the cause: raise its budget, lower --labeled_batch_size or its noise, "
        "or initialise it from its teacher (--init_from=scratch,teacher)."
    )
    if student.selection is None:
        return training
    names = student.model.counts["class_names"]
    compared = None if student.comparison is None else student.comparison.counts
    images = pool_report.describe_selection(
        student.selection.counts, student.scores.counts["scored"], names, compared
    )
    causes = pool_report.suggest(compared, names, is_filtered) if compared else ""
    return " ".join(filter(None, [images, causes, training]))


def require_better_than_chance(teacher: Generation, p_value: float) -> None:
    """Checks that the teacher's predictions on dev agree with the truth more than by chance.

    Null hypothesis: its predictions are independent of the true classes, see `agreement_p_value`.
    Pseudo-labels of such a teacher are noise. It need not be more accurate than always predicting
    the most common class: a teacher that finds some images of a rare class can teach.

    Args:
        teacher: the generation that is to label images.
        p_value: highest p-value allowed.

    Raises:
        GenerationFailedError: the agreement is not significant; the message names what is known of
            the cause.
    """
    truth, labels = _dev_predictions(teacher)
    chance = agreement_p_value(truth, labels)
    if chance > p_value:
        raise GenerationFailedError(
            f"{teacher.model.name} classifies {np.sum(truth == labels)} of {len(truth)} dev images "
            f"correctly; predictions of the same frequencies at random have "
            f"{expected_correct(truth, labels):.1f} correct on average, and as many with "
            f"probability {chance:.2g} (allowed: --chance_p_value={p_value}): it cannot teach. "
            + " ".join(_causes(teacher, truth, labels))
        )


def _causes(teacher, truth, labels):
    """Yields sentences about why a teacher is at chance level on dev, and what to do."""
    names = teacher.model.counts["class_names"]
    loss, guessing = teacher.model.counts.get("final_loss"), math.log(len(names))
    renamed = find_renaming(truth, labels)
    if renamed:
        pairs = [f"{names[old]!r} for {names[new]!r}" for old, new in renamed.items()]
        yield (
            f"It predicts {list_names(pairs)}: the classes of dev seem to be in another order than "
            "those that it was trained on; correct the labels or the order of the classes."
        )
    elif teacher.is_student:
        yield (
            "Its own teacher was better than chance: raise its budget, lower its noise, or "
            "initialise it from its teacher (--init_from=scratch,teacher)."
        )
    elif loss is None:
        yield (
            "It was trained elsewhere: check that its classes are in the order of the run's, and "
            "that it expects pixels from 0 to 255."
        )
    elif loss < FITTED_LOSS * guessing:
        yield (
            f"Its training loss is {loss:.2g} (guessing: {guessing:.2g}), so it fits the training "
            "images and a longer budget does not help: compare the labels of dev with those of "
            "the training images (another order of the classes, shuffled labels), and their "
            "pixels (another source or normalisation). If they agree, it is over-fitted (more "
            "labels, noise on the images or pretrained weights help), or BatchNorm's averages lag "
            "behind in a short training (lower --batch_norm_momentum)."
        )
    else:
        yield (
            f"Its training loss is {loss:.2g} (guessing: {guessing:.2g}), so it has hardly learned "
            "the training images: give it a longer budget or another --learning_rate."
        )
    if len(np.unique(labels)) == 1:
        yield (
            f"It predicts {names[labels[0]]!r} for every dev image: if few images are of other "
            "classes, --class_weights=balanced raises their weight."
        )
    if len(truth) < FEW_DEV_IMAGES:
        yield f"{len(truth)} dev images are few for this test: a larger --num_dev is more certain."


@dataclasses.dataclass(frozen=True)
class _DevScores:
    """What a criterion says about a generation's predictions of dev.

    Attributes:
        criterion: one of `criteria.CRITERIA`.
        scores: array (n,), see `criteria.score`.
        truth: int array (n,), the true classes.
    """

    criterion: str
    scores: np.ndarray
    truth: np.ndarray

    @classmethod
    def of(cls, generation: Generation, criterion: str) -> "_DevScores":
        truth, labels = _dev_predictions(generation)
        if criterion != "nll":
            return cls(criterion, truth == labels, truth)
        stored = read_predictions(generation.evaluation.path / DEV_FILE).log_probabilities
        scores = stored[np.arange(len(truth)), truth].astype(np.float64)
        return cls(criterion, scores, truth)

    @property
    def mean(self) -> float:
        """The score, larger is better."""
        return criteria.score(self.criterion, self.scores, self.truth)

    def standard_error(self, other: "_DevScores") -> float:
        """Standard error of the difference to another generation's score."""
        return criteria.standard_error(self.criterion, self.scores, other.scores, self.truth)


def _dev_predictions(generation):
    """(true classes, predicted classes) of the dev images: int arrays (n,)."""
    table = read_table(generation.evaluation.path / DEV_FILE, ["truth", "label"])
    return table["truth"].to_numpy(), table["label"].to_numpy()
