"""Whether two classifiers mean the same by the numbers of their classes."""

import dataclasses

import numpy as np
import scipy.optimize
import scipy.stats

P_VALUE = 1e-4  # Of a difference that is not by chance.


@dataclasses.dataclass(frozen=True)
class ClassAgreement:
    """How the predictions of two classifiers of the same images agree.

    Attributes:
        agreement: share of images with the same class, in [0, 1].
        chance: the share that is expected if the predictions were independent.
        is_by_chance: whether the agreement is no more than by chance.
        moved: (class of the first, class of the second) of the classes that have other numbers in
            the second; empty: the order is the same, or not known.
    """

    agreement: float
    chance: float
    is_by_chance: bool
    moved: tuple[tuple[int, int], ...]


def compare_classes(first: np.ndarray, second: np.ndarray, num_classes: int) -> ClassAgreement:
    """Compares two classifiers by their predictions of the same images.

    The assignment of classes with the largest agreement is found on one half of the images. It
    counts only if it also agrees better than the given order on the other half, by a sign test of
    the images that agree under one of the two: so that weak classifiers, which confuse classes, do
    not look as if they had other ones.

    Args:
        first: int array (n,), predicted classes in [0, num_classes).
        second: the same of the other classifier.
        num_classes: number of classes of both.

    Raises:
        ValueError: the arrays are empty or differ in shape.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"first {first.shape}, second {second.shape}: expected two arrays (n,).")
    shares = [np.bincount(values, minlength=num_classes) / len(first) for values in (first, second)]
    chance, agreement = float(shares[0] @ shares[1]), float(np.mean(first == second))
    p_value = scipy.stats.binom.sf(np.sum(first == second) - 1, len(first), chance)
    order = np.random.default_rng(0).permutation(len(first))
    half, rest = order[: len(order) // 2], order[len(order) // 2 :]
    assigned = _best_assignment(first[half], second[half], num_classes)
    same, moved = first[rest] == second[rest], assigned[first[rest]] == second[rest]
    gained, lost = int(np.sum(moved & ~same)), int(np.sum(same & ~moved))
    is_better = gained > lost and scipy.stats.binomtest(gained, gained + lost).pvalue < P_VALUE
    pairs = [(old, new) for old, new in enumerate(assigned.tolist()) if old != new]
    # Classes that were predicted for few images are assigned by chance.
    supported = [
        (old, new)
        for old, new in pairs
        if np.sum((first == old) & (second == new)) > np.sum((first == old) & (second == old))
    ]
    return ClassAgreement(
        agreement, chance, bool(p_value > P_VALUE), tuple(supported) if is_better else ()
    )


def _best_assignment(first, second, num_classes):
    """The class of the second for each class of the first: int array (num_classes,)."""
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (first, second), 1.0)
    counts += 0.5 * np.eye(num_classes)  # Without evidence, a class keeps its number.
    return scipy.optimize.linear_sum_assignment(counts, maximize=True)[1]
