"""Radix selection: the exact k-th image of every class, of more images than memory holds.

To keep the first k images of every class, nothing is sorted as a whole. The order of a class is the
order of 64-bit codes (`nsk/pseudo/ranking.py`), and the code of the k-th image is found digit by
digit, most significant first, as in quickselect with a radix sort's buckets:

1. A pass over all images counts the images of each class by the leading bits of their codes: one
   histogram a class. The bin that holds the k-th image is the interval of codes to search next.
2. While the intervals of all classes hold more than `MAX_MEMBERS` images, another pass counts the
   images in each interval by the next bits of their codes.
3. A last pass collects the images in the intervals; sorting these few gives the k-th.
4. If images with equal codes and hashes lie on both sides of the cut, one more pass reads the ids
   of those images, which decide.

Passes: usually 2, at most 1 + 64 / (bits of a digit) and one for ids; a digit has 6 bits with
10,000 classes and 16 bits with 16 or fewer. Cost: one addition to a histogram for each image and
pass. Memory: `HISTOGRAM_ENTRIES` counters (8 MiB) and `MAX_MEMBERS` collected images (14 MiB),
whatever the number of images. The results of a pass over parts of the images (files, threads or
machines) are merged with +, in any order.

Reference:
    MSD radix selection: [Alabi et al., 2012](https://doi.org/10.1145/2133803.2345676)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nsk.pseudo.ranking import Candidates, Ranking, ScoredImages

CODE_BITS = 64
# Entries of a histogram over all classes together: 8 MiB, which the processor's caches hold.
HISTOGRAM_ENTRIES = 2**20
MAX_DIGIT_BITS = 16
# Images that the last pass collects and sorts, 28 bytes each.
MAX_MEMBERS = 2**19

# Applies a function of `ScoredImages` to all parts of the images and returns the sum (+) of its
# results. The function may run anywhere, in any order.
Scan = Callable[[Callable[[ScoredImages], Any]], Any]


@dataclasses.dataclass
class Histogram:
    """Candidates of each class, by the next bits of their codes.

    Attributes:
        counts: int64 array of shape (num_classes, bins).
        lowest: float32 array of shape (num_classes,), the lowest confidence counted; infinite for a
            class without candidates.
    """

    counts: np.ndarray
    lowest: np.ndarray

    def __add__(self, other):
        return Histogram(self.counts + other.counts, np.minimum(self.lowest, other.lowest))

    @property
    def num_candidates(self) -> np.ndarray:
        """int64 array of shape (num_classes,)."""
        return self.counts.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Cuts:
    """The position in each class's order up to which images are selected.

    Attributes:
        ranks: int64 array of shape (num_classes,), number of candidates before the cut.
        codes, hashes: uint64 arrays of shape (num_classes,), of the last candidate before the cut;
            the largest integers if no candidate is after it.
        confidences: float32 array of shape (num_classes,), of the last candidate before the cut;
            infinite if no candidate is after it.
        tied_ids: dict from a class to the ids selected among the images with the code and the hash
            of its last one; only classes that have such images on both sides of the cut.
    """

    ranks: np.ndarray
    codes: np.ndarray
    hashes: np.ndarray
    confidences: np.ndarray
    tied_ids: Mapping[int, frozenset[str]]

    def select(self, images: ScoredImages, candidates: Candidates) -> np.ndarray:
        """Returns which candidates are before the cut of their class.

        Args:
            images: the images that the candidates are taken from.
            candidates: k of them, as `Ranking.candidates` yields them.

        Returns:
            bool array of shape (k,).
        """
        rows, labels, _, hashes, codes = candidates
        class_codes = self.codes[labels]
        is_before = codes < class_codes
        equal = np.flatnonzero(codes == class_codes)
        if len(equal):
            is_before[equal] = hashes[equal] <= self.hashes[labels[equal]]
        is_before &= self.ranks[labels] > 0
        for label, selected_ids in self.tied_ids.items():
            tied = np.flatnonzero(self._is_last(candidates, label))
            if len(tied):
                ids = images.read_ids()
                is_before[tied] = [ids[row] in selected_ids for row in rows[tied]]
        return is_before

    def _is_last(self, candidates, label):
        """Which candidates have the code and hash of a class's last one: bool array (k,)."""
        is_last = (candidates.labels == label) & (candidates.codes == self.codes[label])
        return is_last & (candidates.hashes == self.hashes[label])


def count_candidates(scan: Scan, ranking: Ranking) -> Histogram:
    """Counts the candidates of every class: the first pass of the selection."""
    return scan(functools.partial(_count, ranking, _Intervals.all_codes(ranking.num_classes)))


def radix_select(scan: Scan, ranking: Ranking, histogram: Histogram, ranks: np.ndarray) -> Cuts:
    """Finds the cut after the first k candidates of every class, exactly.

    The module's docstring describes the algorithm.

    Args:
        scan: see `Scan`.
        ranking: which images are candidates, and their order.
        histogram: the result of `count_candidates`.
        ranks: int64 array of shape (num_classes,), k of each class. A class with k = 0, or with at
            most k candidates, has no candidate on one side of its cut and is not searched.

    Returns:
        `Cuts`.

    Raises:
        ValueError: an id is duplicated among images that only their ids can order.
    """
    intervals = _narrow(_Intervals.all_codes(ranking.num_classes), histogram, ranks)
    while intervals.num_members.sum() > MAX_MEMBERS and intervals.bits:
        histogram = scan(functools.partial(_count, ranking, intervals))
        intervals = _narrow(intervals, histogram, ranks)
    members = _Members.empty()
    if intervals.is_searched.any():
        members = scan(functools.partial(_collect_members, ranking, intervals))
    cuts, num_tied = _cut_members(members, intervals, ranks)
    if not num_tied:
        return cuts
    tied = scan(functools.partial(_collect_tied, ranking, cuts, tuple(num_tied)))
    return dataclasses.replace(cuts, tied_ids=tied.first(num_tied))


@dataclasses.dataclass(frozen=True)
class _Intervals:
    """For each class the codes with the leading bits of its k-th candidate.

    Attributes:
        start: uint64 array of shape (num_classes,), the smallest code.
        bits: int, number of trailing bits that differ within an interval.
        is_searched: bool array of shape (num_classes,): whether candidates lie on both sides of the
            cut.
        num_before: int64 array of shape (num_classes,), candidates before the interval.
        num_members: int64 array of shape (num_classes,), candidates in it; None: not yet counted.
    """

    start: np.ndarray
    bits: int
    is_searched: np.ndarray
    num_before: np.ndarray
    num_members: np.ndarray | None

    @classmethod
    def all_codes(cls, num_classes):
        zeros = np.zeros(num_classes, np.int64)
        return cls(zeros.astype(np.uint64), CODE_BITS, np.ones(num_classes, bool), zeros, None)

    @property
    def digit_bits(self):
        """Number of bits that the next histogram resolves."""
        entries = HISTOGRAM_ENTRIES // max(1, len(self.start))
        return min(max(entries.bit_length() - 1, 1), MAX_DIGIT_BITS, self.bits)

    @property
    def hold_all_codes(self):
        return self.bits == CODE_BITS

    def contain(self, candidates):
        """Which candidates lie in the interval of their class: bool array (k,)."""
        labels = candidates.labels
        if self.hold_all_codes:
            return self.is_searched[labels]
        bits = np.uint64(self.bits)
        has_prefix = (candidates.codes >> bits) == (self.start[labels] >> bits)
        return self.is_searched[labels] & has_prefix


def _count(ranking, intervals, images):
    """Histogram of the candidates in the intervals, by the next digit of their codes."""
    digit_bits = intervals.digit_bits
    bins = 2**digit_bits
    counts = np.zeros(ranking.num_classes * bins, np.int64)
    lowest = np.full(ranking.num_classes, np.inf, np.float32)
    shift, mask = np.uint64(intervals.bits - digit_bits), np.uint64(bins - 1)
    for candidates in ranking.candidates(images):
        labels, confidences, codes = candidates.labels, candidates.confidences, candidates.codes
        if not intervals.hold_all_codes:
            inside = intervals.contain(candidates)
            labels, confidences, codes = labels[inside], confidences[inside], codes[inside]
        digits = ((codes >> shift) & mask).astype(np.int64)
        np.add.at(counts, labels * bins + digits, 1)
        np.minimum.at(lowest, labels, confidences)
    return Histogram(counts.reshape(ranking.num_classes, bins), lowest)


def _narrow(intervals, histogram, ranks):
    """Returns the intervals of the bins that hold each class's candidate number k."""
    counts = histogram.counts
    num_classes, bins = counts.shape
    bits = intervals.bits - (bins - 1).bit_length()
    ranks_inside = ranks - intervals.num_before
    is_searched = intervals.is_searched & (ranks_inside > 0)
    if intervals.hold_all_codes:
        is_searched &= ranks_inside < counts.sum(axis=1)
    cumulative = np.cumsum(counts, axis=1)
    # The first bin at which the cumulative count reaches k.
    digit = (cumulative < ranks_inside[:, np.newaxis]).sum(axis=1)
    digit = np.minimum(digit, bins - 1)
    classes = np.arange(num_classes)
    num_members = np.where(is_searched, counts[classes, digit], 0)
    num_skipped = np.where(is_searched, cumulative[classes, digit] - num_members, 0)
    return _Intervals(
        start=intervals.start | (digit.astype(np.uint64) << np.uint64(bits)),
        bits=bits,
        is_searched=is_searched,
        num_before=intervals.num_before + num_skipped,
        num_members=num_members,
    )


@dataclasses.dataclass(frozen=True)
class _Members:
    """Candidates inside the intervals.

    Attributes:
        labels: int64 array of shape (n,).
        codes, hashes: uint64 arrays of shape (n,).
        confidences: float32 array of shape (n,).
    """

    labels: np.ndarray
    codes: np.ndarray
    hashes: np.ndarray
    confidences: np.ndarray

    def __add__(self, other):
        return _Members.concatenate([self, other])

    @classmethod
    def empty(cls):
        empty = np.empty(0, np.uint64)
        return cls(empty.astype(np.int64), empty, empty, empty.astype(np.float32))

    @classmethod
    def concatenate(cls, parts):
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _collect_members(ranking, intervals, images):
    """Members of the intervals among some images."""
    parts = [_Members.empty()]
    for candidates in ranking.candidates(images):
        inside = intervals.contain(candidates)
        _, labels, confidences, hashes, codes = (array[inside] for array in candidates)
        parts.append(_Members(labels, codes, hashes, confidences))
    return _Members.concatenate(parts)


def _cut_members(members, intervals, ranks):
    """Finds the cuts by sorting the members of the intervals.

    Returns:
        (`Cuts` without `tied_ids`, dict from each class with images of equal code and hash on both
        sides of its cut to the number of them before it).
    """
    largest = np.iinfo(np.uint64).max
    num_classes = len(ranks)
    cuts = Cuts(
        ranks=ranks,
        codes=np.full(num_classes, largest, np.uint64),
        hashes=np.full(num_classes, largest, np.uint64),
        confidences=np.full(num_classes, np.inf, np.float32),
        tied_ids={},
    )
    order = np.lexsort((members.hashes, members.codes, members.labels))
    first = np.searchsorted(members.labels[order], np.arange(num_classes))
    ranks_inside = ranks - intervals.num_before
    searched = np.flatnonzero(intervals.is_searched)
    last = order[first[searched] + ranks_inside[searched] - 1]
    cuts.codes[searched] = members.codes[last]
    cuts.hashes[searched] = members.hashes[last]
    cuts.confidences[searched] = members.confidences[last]
    num_tied = {}
    is_last = members.hashes == cuts.hashes[members.labels]
    is_last &= members.codes == cuts.codes[members.labels]
    # A class with one such member is cut right after it.
    num_last = np.bincount(members.labels[is_last], minlength=num_classes)
    for label in np.flatnonzero(num_last > 1).tolist():
        class_members = order[first[label] :][: intervals.num_members[label]]
        num_before = int(is_last[class_members[: ranks_inside[label]]].sum())
        if num_before < num_last[label]:
            num_tied[label] = num_before
    return cuts, num_tied


@dataclasses.dataclass(frozen=True)
class _TiedIds:
    """Ids of the images with the code and hash of the last one before a cut.

    Attributes:
        labels: int64 array of shape (n,).
        ids: string array of shape (n,).
    """

    labels: np.ndarray
    ids: np.ndarray

    def __add__(self, other):
        return _TiedIds(
            np.concatenate([self.labels, other.labels]), np.concatenate([self.ids, other.ids])
        )

    def first(self, counts):
        """{class: its first ids in ascending order}, as many of each class as `counts` says."""
        first_ids = {}
        for label, count in counts.items():
            ids = sorted(self.ids[self.labels == label].tolist())
            if len(set(ids)) < len(ids):
                raise ValueError(f"an id is duplicated among {ids[:5]}: expected unique ids.")
            first_ids[label] = frozenset(ids[:count])
        return first_ids


def _collect_tied(ranking, cuts, classes, images):
    """`_TiedIds` of some classes among some images."""
    labels, ids = [], []
    for candidates in ranking.candidates(images):
        for label in classes:
            rows = candidates.rows[cuts._is_last(candidates, label)]
            labels += [label] * len(rows)
            ids += [images.read_ids()[row] for row in rows]
    return _TiedIds(np.array(labels, np.int64), np.array(ids, np.str_))
