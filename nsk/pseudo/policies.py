"""Which pseudo-labelled images a student sees, and how often: filter and balance.

Pure functions of (key, label, confidence), without files or TensorFlow. The result is a function of
the *set* of images: it depends neither on their order nor on the parts (shards) in which they are
read, and memory does not grow with their number.

From the number of candidates of each class, a policy decides the number of rows that the class has
in an epoch. These rows are assigned to the images of the class round-robin, in the order of
`nsk/pseudo/ranking.py` (most confident first): every image gets the same number of copies, and the
first ones, up to a cut, get one more.
"""

import dataclasses

import numpy as np

from nsk.hashing import hash_keys
from nsk.pseudo.radix_selection import Cuts, Scan, count_candidates, radix_select
from nsk.pseudo.ranking import Ranking, ScoredImages

POLICIES = ("paper", "labeled_shares", "gap", "none")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """The effect of a selection on each class; every tuple has an entry for each.

    Attributes:
        thresholds: floats, the minimum confidence of an image.
        candidates: ints, images labelled with the class that reach it.
        kept: ints, different images among them that are selected.
        copies: ints, their copies in an epoch.
        lowest_confidence: floats, the lowest confidence selected; None if nothing is.
        labeled_copies: ints, copies of the class's labelled images in an epoch; None if the policy
            does not change them.
    """

    thresholds: tuple[float, ...]
    candidates: tuple[int, ...]
    kept: tuple[int, ...]
    copies: tuple[int, ...]
    lowest_confidence: tuple[float | None, ...]
    labeled_copies: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Selection:
    """How often a student sees each image in an epoch.

    Attributes:
        ranking: the `Ranking`.
        base_copies: int64 array of shape (num_classes,), copies of each candidate of the class.
        cuts: the `Cuts`; a candidate before the cut of its class has one more copy.
        statistics: `Statistics`.
        labeled_rows: int64 array of shape (num_classes,), rows of the class's labelled images in an
            epoch; None if the policy does not change them.
    """

    ranking: Ranking
    base_copies: np.ndarray
    cuts: Cuts
    statistics: Statistics
    labeled_rows: np.ndarray | None

    def copies(self, images: ScoredImages) -> np.ndarray:
        """Returns the copies of some images: int32 array of shape (n,); 0: not selected."""
        copies = np.zeros(len(images), np.int32)
        for candidates in self.ranking.candidates(images):
            is_before_cut = self.cuts.select(images, candidates)
            copies[candidates.rows] = self.base_copies[candidates.labels] + is_before_cut
        return copies

    def labeled_copies(self, keys: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Assigns `labeled_rows` to the labelled images round-robin, in the order of their hashes.

        Args:
            keys: uint64 array of shape (m,), keys of all labelled images.
            labels: int array of shape (m,), their labels.

        Returns:
            int32 array of shape (m,).
        """
        order = np.lexsort((hash_keys(keys, self.ranking.seed), labels))
        ordered_labels = labels[order]
        counts = np.bincount(labels, minlength=self.ranking.num_classes)
        rank = np.arange(len(keys)) - (np.cumsum(counts) - counts)[ordered_labels]
        rows, count = self.labeled_rows[ordered_labels], counts[ordered_labels]
        copies = np.empty(len(keys), np.int32)
        copies[order] = rows // count + (rank < rows % count)
        return copies


def apply_policy(
    scan: Scan,
    policy: str,
    *,
    thresholds: np.ndarray,
    seed: int,
    labeled_counts: np.ndarray | None = None,
    **settings: int,
) -> Selection:
    """Selects among scored images that are read in parts, in a few passes.

    Args:
        scan: see `radix_selection.Scan`.
        policy: "paper", "labeled_shares", "gap" or "none": a class has `paper_rows`,
            `labeled_shares_rows`, `gap_rows` or one row for each candidate in an epoch.
        thresholds: float32 array of shape (num_classes,), the minimum confidence of a candidate, in
            [0, 1]; above 1: the class has no candidates.
        seed: int, of the order among equal confidences.
        labeled_counts: int array of shape (num_classes,), labelled images of each class; needed by
            "labeled_shares" and "gap".
        **settings: keyword arguments of `paper_rows`, `labeled_shares_rows` or `gap_rows`.

    Raises:
        ValueError: the policy is unknown, or images or settings are out of range.
    """
    # Compared in float32: as float64, 0.7 is above float32(0.7) and would exclude a confidence
    # equal to it.
    ranking = Ranking(np.asarray(thresholds, np.float32), seed)
    histogram = count_candidates(scan, ranking)
    candidates = histogram.num_candidates
    if policy == "paper":
        base_copies, ranks = _assign_round_robin(paper_rows(candidates, **settings), candidates)
        labeled_rows = None
    elif policy == "labeled_shares":
        rows = labeled_shares_rows(candidates, labeled_counts, **settings)
        base_copies, ranks = _assign_round_robin(rows, candidates)
        labeled_rows = None
    elif policy == "gap":
        # Labelled images come before the candidates, and share the rows with them.
        rows = gap_rows(candidates, labeled_counts, **settings)
        base_copies, ranks = _assign_round_robin(rows, candidates + labeled_counts)
        labeled_rows = base_copies * labeled_counts + np.minimum(ranks, labeled_counts)
        ranks = np.maximum(ranks - labeled_counts, 0)
    elif policy == "none":
        base_copies, ranks = np.ones_like(candidates), np.zeros_like(candidates)
        labeled_rows = None
    else:
        raise ValueError(f"policy={policy!r}: expected one of {', '.join(POLICIES)}.")
    cuts = radix_select(scan, ranking, histogram, ranks)
    kept = np.where(base_copies > 0, candidates, ranks)
    lowest = np.where(base_copies > 0, histogram.lowest, cuts.confidences)
    statistics = Statistics(
        thresholds=tuple(ranking.thresholds.tolist()),
        candidates=tuple(candidates.tolist()),
        kept=tuple(kept.tolist()),
        copies=tuple((base_copies * candidates + ranks).tolist()),
        lowest_confidence=tuple(
            float(value) if count else None for value, count in zip(lowest, kept, strict=True)
        ),
        labeled_copies=None if labeled_rows is None else tuple(labeled_rows.tolist()),
    )
    return Selection(ranking, base_copies, cuts, statistics, labeled_rows)


def paper_rows(candidates: np.ndarray, *, images_per_class: int) -> np.ndarray:
    """The same number of rows for every class that has candidates.

    Args:
        candidates: int64 array of shape (num_classes,), candidates of each class.
        images_per_class: int, K; 0: the mean number of candidates over the classes that have any,
            rounded up.

    Returns:
        int64 array of shape (num_classes,), rows of each class in an epoch.

    Raises:
        ValueError: K is negative.

    Reference:
        [Xie et al., 2020](https://arxiv.org/abs/1911.04252), section 3.1, with K = 130,000. The
        official code thins large classes at random and rounds fractional copies at random.
    """
    has_candidates = candidates > 0
    return np.where(has_candidates, _mean_rows(candidates, images_per_class), 0)


def labeled_shares_rows(
    candidates: np.ndarray, labeled_counts: np.ndarray, *, images_per_class: int
) -> np.ndarray:
    """Rows in the proportions of the labelled images, over the classes that have candidates.

    Args:
        candidates: int64 array of shape (num_classes,), candidates of each class.
        labeled_counts: int64 array of shape (num_classes,), labelled images of each class.
        images_per_class: int, K, the mean number of rows of the classes that have candidates and
            labelled images; 0: the mean number of candidates, as for `paper_rows`.

    Returns:
        int64 array of shape (num_classes,), rows of each class in an epoch. Their sum is K x the
        number of these classes; what rounding down leaves goes to the largest remainders, of equal
        ones to the first classes.

    Raises:
        ValueError: K is negative.
    """
    weights = np.where(candidates > 0, labeled_counts, 0).astype(np.int64)
    rows = _mean_rows(candidates, images_per_class) * np.count_nonzero(weights)
    quotas, remainders = np.divmod(weights * rows, max(1, weights.sum()))
    quotas[np.argsort(-remainders, kind="stable")[: rows - quotas.sum()]] += 1
    return quotas


def _mean_rows(candidates, images_per_class):
    """K; by default the mean number of candidates over the classes with any, rounded up."""
    _check_not_negative(images_per_class=images_per_class)
    num_filled = max(1, np.count_nonzero(candidates))
    return images_per_class or -(-int(candidates.sum()) // num_filled)


def gap_rows(
    candidates: np.ndarray, labeled_counts: np.ndarray, *, floor: int, margin: int
) -> np.ndarray:
    """A minimum for every class and a maximum gap between classes, labelled images included.

    Classes below `floor` are repeated up to it. Then every class is cut to the size of the smallest
    class + `margin`: the least confident images first, labelled ones last. Classes without any
    image stay empty and do not count as the smallest.

    Args:
        candidates: int64 array of shape (num_classes,), candidates of each class.
        labeled_counts: int64 array of shape (num_classes,), labelled images of each class.
        floor: int, minimum rows of a class.
        margin: int, maximum rows by which a class may exceed the smallest.

    Returns:
        int64 array of shape (num_classes,), rows of each class in an epoch, candidates and labelled
        images together.

    Raises:
        ValueError: a number is negative.
    """
    _check_not_negative(floor=floor, margin=margin)
    counts = candidates + labeled_counts
    has_images = counts > 0
    rows = np.where(has_images, np.maximum(counts, floor), 0)
    smallest = rows[has_images].min() if has_images.any() else 0
    return np.minimum(rows, smallest + margin)


def _assign_round_robin(rows, counts):
    """(copies of every image, number of images with one more) of each class: int64 arrays."""
    divisor = np.maximum(counts, 1)
    return rows // divisor, rows % divisor


def _check_not_negative(**numbers):
    for name, number in numbers.items():
        if number < 0:
            raise ValueError(f"{name}={number}: expected 0 or more.")
