"""Whether predictions agree with the true classes more often than by chance; NumPy and SciPy.

`truth` and `predicted` are int arrays of shape (n,), classes from 0. Every function raises
ValueError for empty arrays, other shapes or types, and negative classes.
"""

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

NUM_PERMUTATIONS = 9999
# Smallest p-value that permutations can show.
RESOLUTION = 1 / (NUM_PERMUTATIONS + 1)
# Permutations are drawn in chunks of about this many numbers.
CHUNK_SIZE = 2**20
# Larger tables of true and predicted classes would not fit into memory.
MAX_RENAMED_CLASSES = 2000
# P-value at which another naming of the classes counts as found.
RENAMING_P_VALUE = 0.001


def agreement_p_value(truth: ArrayLike, predicted: ArrayLike, seed: int = 0) -> float:
    """P-value of the number of correct predictions if predictions were independent of the truth.

    Null hypothesis: every assignment of the given predictions to the given images is equally
    likely, so that classes and predictions keep their frequencies. Alternative (one-sided): more
    predictions are correct. So a classifier is compared with one that guesses with its own
    frequencies, not with the share of the most common class: few predictions of a rare class, most
    of them correct, are evidence, though always predicting the other class may be as accurate. A
    classifier that always predicts the same class has the p-value 1, and one that confuses classes
    systematically has a high one.

    With two classes this is Fisher's exact test. With more classes it is a permutation test of the
    number of correct predictions (that of Cohen's kappa, which depends on nothing else at fixed
    frequencies). If Chatterjee's bound of that probability is below the resolution of the
    permutations, 1 / 10,000, the bound is returned instead, which is never too small.

    Args:
        truth: true classes.
        predicted: predicted classes.
        seed: of the permutations.

    Returns:
        float in (0, 1].

    References:
        Fisher, 1935, The logic of inductive inference;
        [Cohen, 1960](https://doi.org/10.1177/001316446002000104);
        [Chatterjee, 2007](https://doi.org/10.1007/s00440-006-0029-y), proposition 1.1.
    """
    truth, predicted, num_classes = _as_consecutive(truth, predicted)
    if num_classes == 2:
        table = np.bincount(2 * truth + predicted, minlength=4).reshape(2, 2)
        return min(1.0, float(scipy.stats.fisher_exact(table, alternative="greater").pvalue))
    bound = _bound(truth, predicted)
    if bound < RESOLUTION:
        return bound
    random, num_correct, reached = np.random.default_rng(seed), np.sum(truth == predicted), 0
    rows = max(1, CHUNK_SIZE // len(truth))
    for start in range(0, NUM_PERMUTATIONS, rows):
        shape = (min(rows, NUM_PERMUTATIONS - start), len(truth))
        permuted = random.permuted(np.broadcast_to(predicted, shape), axis=1)
        reached += int(np.sum(np.sum(permuted == truth, axis=1) >= num_correct))
    return (reached + 1) / (NUM_PERMUTATIONS + 1)


def _bound(truth, predicted):
    """Chatterjee's bound of the probability of at least this many correct predictions.

    With X correct predictions, P(|X - E X| >= t) <= 2 exp(-t^2 / (4 E X + 2 t)).
    """
    expected = expected_correct(truth, predicted)
    excess = np.sum(truth == predicted) - expected
    if excess <= 0:
        return 1.0
    # Not 0: it is a probability above 0, however small.
    bound = 2 * np.exp(-(excess**2) / (4 * expected + 2 * excess))
    return float(min(1.0, max(bound, np.finfo(np.float64).tiny)))


def expected_correct(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Mean number of correct predictions if they were independent of the truth.

    Args:
        truth: true classes.
        predicted: predicted classes.

    Returns:
        float in [0, n]: sum over classes of (images x predictions) / n.
    """
    truth, predicted, num_classes = _as_consecutive(truth, predicted)
    frequencies = np.bincount(truth, minlength=num_classes)
    guesses = np.bincount(predicted, minlength=num_classes)
    return float(np.sum(frequencies * guesses) / len(truth))


def find_renaming(truth: ArrayLike, predicted: ArrayLike) -> dict[int, int]:
    """Names of classes under which predictions agree with the truth.

    The one-to-one renaming that makes most predictions of half of the images correct counts only if
    it makes more predictions of the other half correct than the given names do, by a sign test: a
    renaming can be fitted to random predictions, or to a weak classifier that confuses classes, but
    is of no use then on other images.

    Args:
        truth: true classes.
        predicted: predicted classes.

    Returns:
        dict from predicted classes to the true ones that they seem to be, without those of the same
        name; {} if there is no significant renaming, or there are more than 2,000 classes.
    """
    truth, predicted = _checked(truth, predicted)
    classes = np.union1d(truth, predicted)
    if len(truth) < 4 or not 2 <= len(classes) <= MAX_RENAMED_CLASSES:
        return {}
    rows, columns = np.searchsorted(classes, truth), np.searchsorted(classes, predicted)
    order = np.random.default_rng(0).permutation(len(rows))
    by_class = order[np.argsort(rows[order], kind="stable")]  # Half of the images of every class.
    fitted, tested = by_class[::2], by_class[1::2]
    table = np.zeros((len(classes), len(classes)))
    np.add.at(table, (columns[fitted], rows[fitted]), 1)
    # Without evidence, a class keeps its name.
    _, renamed = linear_sum_assignment(table + 0.5 * np.eye(len(classes)), maximize=True)
    is_correct = columns[tested] == rows[tested]
    is_renamed_correct = renamed[columns[tested]] == rows[tested]
    gained = int(np.sum(is_renamed_correct & ~is_correct))
    lost = int(np.sum(is_correct & ~is_renamed_correct))
    if gained <= lost or scipy.stats.binomtest(gained, gained + lost).pvalue > RENAMING_P_VALUE:
        return {}
    return {
        int(classes[old]): int(classes[new])
        for old, new in enumerate(renamed)
        if table[old, new] > table[old, old]
    }


def _as_consecutive(truth, predicted):
    """Both with the classes that occur in either numbered from 0, and the number of classes."""
    truth, predicted = _checked(truth, predicted)
    classes = np.union1d(truth, predicted)
    numbers = (np.searchsorted(classes, array).astype(np.int32) for array in (truth, predicted))
    return *numbers, len(classes)


def _checked(truth, predicted):
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    for name, array in (("truth", truth), ("predicted", predicted)):
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"{name} of shape {array.shape} and type {array.dtype}: expected integers of shape "
                "(n,)."
            )
    if len(truth) != len(predicted) or not len(truth):
        raise ValueError(
            f"{len(truth)} true and {len(predicted)} predicted classes: expected the same number, "
            "at least one."
        )
    lowest = min(truth.min(), predicted.min())
    if lowest < 0:
        raise ValueError(f"class {lowest}: expected 0 or more.")
    return truth, predicted
