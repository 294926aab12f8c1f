"""Which pseudo-labelled images a student sees, and how often: filter and balance.

Pure functions of (key, label, confidence), without files or TensorFlow. The result is a function of
the *set* of images: neither their order nor the parts that they come in, shards say, matter, and
memory does not grow with their number.

A policy decides from the number of candidates of each class alone how many rows of an epoch the
class gets. They are dealt out to its images one by one, round and round, in their order (confidence
descending, then by a hash; `nsk/pseudo/ranking.py`): so each image gets the same number of copies,
and those before a cut one more.
"""

import dataclasses

import numpy as np

from nsk.pseudo import radix_selection as ranking
from nsk.pseudo.radix_selection import Ranking

POLICIES = ("paper", "gap", "none")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a selection did to each class; every tuple has an entry for each class.

    Attributes:
        thresholds: floats, the confidence that an image needs.
        candidates: ints, images labelled with the class that have it.
        kept: ints, different images among them that the student will see.
        copies: ints, how often it sees them, repetitions included.
        lowest_confidence: floats, the least confidence that was kept; None where nothing was.
        labeled_copies: ints, how often it sees the class's labelled images; None where the policy
            leaves them alone.
        starved: class indices without a candidate.
    """

    thresholds: tuple
    candidates: tuple
    kept: tuple
    copies: tuple
    lowest_confidence: tuple
    labeled_copies: tuple | None
    starved: tuple


@dataclasses.dataclass(frozen=True)
class Selection:
    """How often a student sees each image.

    Attributes:
        ranking: the `Ranking`.
        base: int64 array of shape (num_classes,), copies of each candidate of the class.
        cuts: the `Cuts`; a candidate before it has one more.
        statistics: `Statistics`.
        labeled_sizes: int64 array of shape (num_classes,), rows that the class's labelled images
            have in an epoch; None where the policy leaves them alone.
    """

    ranking: Ranking
    base: np.ndarray
    cuts: ranking.Cuts
    statistics: Statistics
    labeled_sizes: np.ndarray | None

    def copies(self, rows):
        """int32 array of shape (n,) for some `Rows`; 0 where an image is left out."""
        copies = np.zeros(len(rows), np.int32)
        for places, labels, _, hashes, codes in self.ranking.candidates(rows):
            one_more = self.cuts.before(rows, places, labels, hashes, codes)
            copies[places] = self.base[labels] + one_more
        return copies

    def labeled_copies(self, keys, labels):
        """How often the labelled images are shown, dealt out in the order of their hashes.

        Args:
            keys: uint64 array of shape (m,), keys of all labelled images.
            labels: int array of shape (m,), their labels.

        Returns:
            int32 array of shape (m,).
        """
        order = np.lexsort((ranking.hash_keys(keys, self.ranking.seed), labels))
        of_class = labels[order]
        counts = np.bincount(labels, minlength=self.ranking.num_classes)
        rank = np.arange(len(keys)) - (np.cumsum(counts) - counts)[of_class]
        size, count = self.labeled_sizes[of_class], counts[of_class]
        copies = np.empty(len(keys), np.int32)
        copies[order] = size // count + (rank < size % count)
        return copies


def select(scan, policy, *, thresholds, seed, labeled_counts=None, **settings):
    """Selects among images that are read in parts, a few times over.

    Args:
        scan: function of a function f of `Rows` that returns the sum (+) of f over all parts of the
            scored images; f is a pure function that may run anywhere and in any order.
        policy: "paper", "gap" or "none": the rows of an epoch that each class gets are those of
            `paper_sizes`, `gap_sizes` or one for each candidate.
        thresholds: float32 array of shape (num_classes,), the confidence that an image of a class
            needs, in [0, 1]; above 1: none will do.
        seed: int, of the order among equal confidences.
        labeled_counts: int array of shape (num_classes,), labelled images of each class.
        **settings: the policy's own.

    Returns:
        `Selection`.

    Raises:
        ValueError: an unknown policy, or rows or settings that are out of range.
    """
    # Compared in float32: as float64, 0.7 is above float32(0.7) and would refuse a confidence equal
    # to it.
    ordered = Ranking(np.asarray(thresholds, np.float32), seed)
    intervals = ranking.Intervals.whole(ordered.num_classes)
    counted = scan(lambda rows: ranking.histogram(rows, ordered, intervals))
    candidates = counted.num_candidates
    if policy == "paper":
        base, ranks = _deal(paper_sizes(candidates, **settings), candidates)
        labeled_sizes = None
    elif policy == "gap":
        # Labelled images stand in front of the candidates, and are dealt to together with them.
        sizes = gap_sizes(candidates, labeled_counts, **settings)
        base, ranks = _deal(sizes, candidates + labeled_counts)
        labeled_sizes = base * labeled_counts + np.minimum(ranks, labeled_counts)
        ranks = np.maximum(ranks - labeled_counts, 0)
    elif policy == "none":
        base, ranks, labeled_sizes = np.ones_like(candidates), np.zeros_like(candidates), None
    else:
        raise ValueError(f"policy={policy!r}: expected one of {', '.join(POLICIES)}.")
    cuts = _find_cuts(scan, ordered, intervals, counted, ranks)
    kept = np.where(base > 0, candidates, ranks)
    lowest = np.where(base > 0, counted.lowest, cuts.confidences)
    statistics = Statistics(
        thresholds=tuple(ordered.thresholds.tolist()),
        candidates=tuple(candidates.tolist()),
        kept=tuple(kept.tolist()),
        copies=tuple((base * candidates + ranks).tolist()),
        lowest_confidence=tuple(
            float(value) if count else None for value, count in zip(lowest, kept, strict=True)
        ),
        labeled_copies=None if labeled_sizes is None else tuple(labeled_sizes.tolist()),
        starved=tuple(np.flatnonzero(candidates == 0).tolist()),
    )
    return Selection(ordered, base, cuts, statistics, labeled_sizes)


def paper_sizes(candidates, *, images_per_class):
    """As many rows of an epoch for every class that has candidates.

    Args:
        candidates: int64 array of shape (num_classes,).
        images_per_class: int, K; 0: the mean number of candidates over all classes, rounded up.

    Returns:
        int64 array of shape (num_classes,).

    Raises:
        ValueError: K is negative.

    Reference:
        [Xie et al., 2020](https://arxiv.org/abs/1911.04252), section 3.1, where K is 130,000. Its
        code thins full classes at random and rounds fractional copies at random.
    """
    _check_not_negative(images_per_class=images_per_class)
    size = images_per_class or -(-int(candidates.sum()) // len(candidates))
    return np.where(candidates > 0, size, 0)


def gap_sizes(candidates, labeled_counts, *, floor, margin):
    """A floor under every class and a largest gap between classes, labelled images included.

    A class below `floor` is repeated up to it. Then every class is cut to the smallest class +
    `margin`: the least confident first, labelled images last. A class without any image stays empty
    and does not count as the smallest.

    Args:
        candidates, labeled_counts: int64 arrays of shape (num_classes,).
        floor: int, least rows of a class.
        margin: int, most rows by which a class may exceed the smallest.

    Returns:
        int64 array of shape (num_classes,), rows of candidates and labelled images together.

    Raises:
        ValueError: a number is negative.
    """
    _check_not_negative(floor=floor, margin=margin)
    counts = candidates + labeled_counts
    present = counts > 0
    sizes = np.where(present, np.maximum(counts, floor), 0)
    smallest = sizes[present].min() if present.any() else 0
    return np.minimum(sizes, smallest + margin)


def _deal(sizes, counts):
    """(copies of every image, how many images get one more) of each class: int64 arrays."""
    some = np.maximum(counts, 1)
    return sizes // some, sizes % some


def _find_cuts(scan, ordered, intervals, counted, ranks):
    """`ranking.Cuts` behind candidate number `ranks` of each class."""
    intervals = ranking.narrow(intervals, counted, ranks)
    while intervals.members.sum() > ranking.MAX_MEMBERS and intervals.bits:
        counted = scan(lambda rows: ranking.histogram(rows, ordered, intervals))  # noqa: B023
        intervals = ranking.narrow(intervals, counted, ranks)
    members = ranking.Members.none()
    if intervals.is_open.any():
        members = scan(lambda rows: ranking.members(rows, ordered, intervals))
    cuts, ties = ranking.find_cuts(members, intervals, ranks)
    if not ties:
        return cuts
    found = scan(lambda rows: ranking.TiedIds.of(rows, ordered, cuts, tuple(ties)))
    return dataclasses.replace(cuts, tied_ids=found.first(ties))


def _check_not_negative(**numbers):
    for name, number in numbers.items():
        if number < 0:
            raise ValueError(f"{name}={number}: expected 0 or more.")
