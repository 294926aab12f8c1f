"""The order of a class's images, and where it is cut: exact, in any order, in bounded memory.

A class's images are ordered by (confidence descending, hash of (image key, seed) ascending, id
ascending). The hash makes a fair and repeatable choice among ties, which are common: many
confidences are 1.0 in float32.

To keep the first r images of every class nothing is sorted as a whole. An image's place in this
order is a 64-bit code, and a few scans over all images, in whatever parts and order, find the image
at which each class is cut:

1. `Histogram` counts each class's images by the first bits of their codes.
2. `narrow` finds the interval of codes that holds the cut. Where the intervals hold too many images
   the next bits are counted, of these images alone.
3. `Members` collects the few images that are left, and `find_cuts` sorts them.

Histograms and members of different parts are merged by adding them, so that parts may be files,
threads or machines, and memory does not grow with the number of images.
"""

import dataclasses
import hashlib

import numpy as np

CODE_BITS = 64
# Entries of a histogram over all classes together: 8 MiB, which the processor's caches hold.
HISTOGRAM_ENTRIES = 2**20
MAX_DIGIT_BITS = 16
# Images that are sorted in the end, 28 bytes each.
MAX_MEMBERS = 2**19
# Rows that are worked on at a time, so that what is between two steps stays in the processor.
CHUNK = 2**14
ONE = np.uint32(0x3F800000)  # The bits of 1.0 in float32.


@dataclasses.dataclass(frozen=True)
class Rows:
    """Scored images.

    Attributes:
        keys: uint64 array of shape (n,), see `stable_key`.
        labels: int array of shape (n,), the pseudo-labels (argmax), 0..num_classes-1.
        confidences: float32 array of shape (n,), in [0, 1].
        ids: function without arguments that returns the ids, a sequence of n strings. It is called
            only where the keys of two images are equal.
    """

    keys: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    ids: object = None

    def __len__(self):
        return len(self.keys)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Which images are candidates, and their order within a class.

    Attributes:
        thresholds: float32 array of shape (num_classes,): an image needs the confidence of its
            class or more.
        seed: int, of the order among equal confidences.
    """

    thresholds: np.ndarray
    seed: int

    @property
    def num_classes(self):
        return len(self.thresholds)

    def candidates(self, rows):
        """The candidates among some rows, a chunk at a time.

        Yields:
            (places in rows: int64 (k,), labels int64 (k,), confidences float32 (k,), hashes uint64
            (k,), codes uint64 (k,)).

        Raises:
            ValueError: shapes differ, or a label or confidence is out of range.
        """
        keys, labels, confidences = check(rows, self.num_classes)
        least = self.thresholds.min(initial=np.float32(1))
        same_for_all = least == self.thresholds.max(initial=np.float32(0))
        for start in range(0, len(keys), CHUNK):
            part = slice(start, start + CHUNK)
            enough = confidences[part] >= (least if same_for_all else self.thresholds[labels[part]])
            places = np.flatnonzero(enough)
            whole = len(places) == len(enough)
            key, label, confidence = (
                of_all[part] if whole else of_all[part][places]
                for of_all in (keys, labels, confidences)
            )
            hashes = hash_keys(key, self.seed)
            yield (
                places + start,
                label.astype(np.int64),
                confidence,
                hashes,
                codes(confidence, hashes),
            )


def codes(confidences, hashes):
    """Places in the order of a class, as numbers: the smaller the earlier.

    The distance c of a confidence's bits from those of 1.0 is written as its length and what
    follows its leading one, as in Elias' gamma code, and the hash fills up what is left. So the
    first bits of a code tell more of the hash the closer a confidence is to 1.0: those of a
    saturated teacher, whose confidences are 1.0 by the million, are as well spread as any other's.

    Args:
        confidences: float32 array of shape (n,), in [0, 1].
        hashes: uint64 array of shape (n,).

    Returns:
        uint64 array of shape (n,). Different confidences have different codes; images of equal
        confidence may have the same code, and their order is then that of the whole hashes.
    """
    distances = ONE - np.abs(confidences).view(np.uint32)  # abs: -0.0 has other bits than 0.0.
    # 2 c + 1 has a leading one, even for c = 0. A float64 has its place as its exponent, and what
    # follows in 52 bits, exactly.
    wide = (distances.astype(np.float64) * 2 + 1).view(np.uint64)
    wide -= np.uint64(1022 << 52)  # The exponent is 1 for c = 0 and 31 at most: 5 bits.
    length = wide >> np.uint64(52)
    return (wide << np.uint64(7)) | (hashes >> (length + np.uint64(4)))


@dataclasses.dataclass
class Histogram:
    """How many candidates each class has, by the next bits of their codes.

    Attributes:
        counts: int64 array of shape (num_classes, bins), of the candidates inside the intervals.
        lowest: float32 array of shape (num_classes,), the least confidence among them; infinite
            where there is none.
    """

    counts: np.ndarray
    lowest: np.ndarray

    def __add__(self, other):
        return Histogram(self.counts + other.counts, np.minimum(self.lowest, other.lowest))

    @property
    def num_candidates(self):
        """int64 array of shape (num_classes,)."""
        return self.counts.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Intervals:
    """For each class the codes that share their first bits and hold the cut.

    Attributes:
        start: uint64 array of shape (num_classes,), the smallest code.
        bits: int, how many of a code's last bits differ within an interval.
        is_open: bool array of shape (num_classes,): whether the class is cut at all.
        before: int64 array of shape (num_classes,), candidates in front of the interval.
        members: int64 array of shape (num_classes,), candidates in it; None where not yet counted.
    """

    start: np.ndarray
    bits: int
    is_open: np.ndarray
    before: np.ndarray
    members: np.ndarray | None

    @classmethod
    def whole(cls, num_classes):
        """All codes of all classes."""
        nothing = np.zeros(num_classes, np.int64)
        every = np.ones(num_classes, bool)
        return cls(nothing.astype(np.uint64), CODE_BITS, every, nothing, None)

    @property
    def digit_bits(self):
        """How many bits a histogram tells apart."""
        entries = HISTOGRAM_ENTRIES // max(1, len(self.start))
        return min(max(entries.bit_length() - 1, 1), MAX_DIGIT_BITS, self.bits)

    @property
    def is_whole(self):
        return self.bits == CODE_BITS

    def contain(self, labels, of_codes):
        """bool array: which of some images lie in the interval of their class."""
        if self.is_whole:
            return self.is_open[labels]
        bits = np.uint64(self.bits)
        return self.is_open[labels] & ((of_codes >> bits) == (self.start[labels] >> bits))


def histogram(rows, ranking, intervals):
    """`Histogram` of some `Rows`."""
    digit_bits = intervals.digit_bits
    bins = 2**digit_bits
    counts = np.zeros(ranking.num_classes * bins, np.int64)
    lowest = np.full(ranking.num_classes, np.inf, np.float32)
    shift, mask = np.uint64(intervals.bits - digit_bits), np.uint64(bins - 1)
    for _, labels, confidences, _, of_codes in ranking.candidates(rows):
        if not intervals.is_whole:
            inside = intervals.contain(labels, of_codes)
            labels, confidences, of_codes = labels[inside], confidences[inside], of_codes[inside]
        digits = ((of_codes >> shift) & mask).astype(np.int64)
        np.add.at(counts, labels * bins + digits, 1)
        np.minimum.at(lowest, labels, confidences)
    return Histogram(counts.reshape(ranking.num_classes, bins), lowest)


def narrow(intervals, counted, ranks):
    """The intervals that hold each class's candidate number `rank` in its order.

    Args:
        intervals: `Intervals`.
        counted: the `Histogram` of all rows in them.
        ranks: int64 array of shape (num_classes,): so many candidates stand before the cut. 0 and
            the number of candidates or more mean that there is none.

    Returns:
        `Intervals` of fewer bits.
    """
    counts = counted.counts
    num_classes, bins = counts.shape
    bits = intervals.bits - (bins - 1).bit_length()
    in_interval = counts.sum(axis=1)
    wanted = ranks - intervals.before
    is_open = intervals.is_open & (wanted > 0)
    if intervals.is_whole:
        is_open &= wanted < in_interval
    up_to = np.cumsum(counts, axis=1)
    # The first bin up to which there are as many as wanted: it holds the last of them.
    digit = np.minimum((up_to < wanted[:, np.newaxis]).sum(axis=1), bins - 1)
    classes = np.arange(num_classes)
    members = np.where(is_open, counts[classes, digit], 0)
    return Intervals(
        start=intervals.start | (digit.astype(np.uint64) << np.uint64(bits)),
        bits=bits,
        is_open=is_open,
        before=intervals.before + np.where(is_open, up_to[classes, digit] - members, 0),
        members=members,
    )


@dataclasses.dataclass(frozen=True)
class Members:
    """The candidates inside the intervals.

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
        return Members.joined([self, other])

    @classmethod
    def none(cls):
        nothing = np.empty(0, np.uint64)
        return cls(nothing.astype(np.int64), nothing, nothing, nothing.astype(np.float32))

    @classmethod
    def joined(cls, parts):
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def members(rows, ranking, intervals):
    """`Members` of some `Rows`."""
    found = [Members.none()]
    for _, labels, confidences, hashes, of_codes in ranking.candidates(rows):
        inside = intervals.contain(labels, of_codes)
        found.append(Members(labels[inside], of_codes[inside], hashes[inside], confidences[inside]))
    return Members.joined(found)


@dataclasses.dataclass(frozen=True)
class Cuts:
    """Where each class's order is cut.

    Attributes:
        ranks: int64 array of shape (num_classes,), how many candidates stand before the cut.
        codes, hashes: uint64 arrays of shape (num_classes,), of the last one before it; the largest
            numbers where no candidate stands behind the cut.
        confidences: float32 array of shape (num_classes,), of the last one before it; infinite
            where no candidate stands behind the cut.
        tied_ids: dict from a class to the ids before the cut among the images that have the code
            and the hash of its last one, where others with the same stand behind it.
    """

    ranks: np.ndarray
    codes: np.ndarray
    hashes: np.ndarray
    confidences: np.ndarray
    tied_ids: dict

    def before(self, rows, places, labels, hashes, of_codes):
        """bool array (k,): which candidates, as `Ranking.candidates` yields them, stand before."""
        of_class = self.codes[labels]
        before = of_codes < of_class
        equal = np.flatnonzero(of_codes == of_class)
        if len(equal):
            before[equal] = hashes[equal] <= self.hashes[labels[equal]]
        before &= self.ranks[labels] > 0
        for label, ids in self.tied_ids.items():
            at_cut = (labels == label) & (of_codes == self.codes[label])
            tied = np.flatnonzero(at_cut & (hashes == self.hashes[label]))
            if len(tied):
                of_rows = rows.ids()
                before[tied] = [of_rows[place] in ids for place in places[tied]]
        return before


def find_cuts(found, intervals, ranks):
    """Where each class is cut, from the members of its interval.

    Args:
        found: the `Members` of all rows.
        intervals: `Intervals`.
        ranks: as for `narrow`.

    Returns:
        (`Cuts` with no `tied_ids`, {class: how many images with the code and hash of its last one
        stand before the cut, where not all do}).
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
    order = np.lexsort((found.hashes, found.codes, found.labels))
    first = np.searchsorted(found.labels[order], np.arange(num_classes))
    classes = np.flatnonzero(intervals.is_open)
    last = order[first[classes] + (ranks - intervals.before)[classes] - 1]
    cuts.codes[classes] = found.codes[last]
    cuts.hashes[classes] = found.hashes[last]
    cuts.confidences[classes] = found.confidences[last]
    ties = {}
    same = found.hashes == cuts.hashes[found.labels]
    same &= found.codes == cuts.codes[found.labels]
    # An image that is alone with its code and hash is the last one itself.
    alike = np.bincount(found.labels[same], minlength=num_classes)
    for label in np.flatnonzero(alike > 1).tolist():
        of_class = order[first[label] :][: intervals.members[label]]
        place = int(ranks[label] - intervals.before[label])
        before = int(same[of_class[:place]].sum())
        if before < alike[label]:
            ties[label] = before
    return cuts, ties


@dataclasses.dataclass(frozen=True)
class TiedIds:
    """Images at the cut of some classes.

    Attributes:
        labels: int64 array of shape (n,).
        ids: string array of shape (n,).
    """

    labels: np.ndarray
    ids: np.ndarray

    def __add__(self, other):
        return TiedIds(
            np.concatenate([self.labels, other.labels]), np.concatenate([self.ids, other.ids])
        )

    @classmethod
    def of(cls, rows, ranking, cuts, labels):
        """Those of some `Rows`, of the classes `labels`."""
        found = []
        for places, of_labels, _, hashes, of_codes in ranking.candidates(rows):
            for label in labels:
                at_cut = (of_labels == label) & (of_codes == cuts.codes[label])
                at_cut &= hashes == cuts.hashes[label]
                found += [(label, rows.ids()[place]) for place in places[at_cut]]
        of_found, ids = zip(*found, strict=True) if found else ((), ())
        return cls(np.array(of_found, np.int64), np.array(ids, np.str_))

    def first(self, counts):
        """{class: the first ids, so many as {class: int} says}.

        Raises:
            ValueError: an id stands twice.
        """
        kept = {}
        for label, count in counts.items():
            ids = sorted(self.ids[self.labels == label].tolist())
            if len(set(ids)) < len(ids):
                raise ValueError(f"an id stands twice among {ids[:5]}: expected unique ids.")
            kept[label] = frozenset(ids[:count])
        return kept


def stable_key(image_id):
    """A 64-bit hash of an image's id that is the same in every process and on every machine.

    Args:
        image_id: string or bytes; a string counts as its UTF-8 bytes.

    Returns:
        np.uint64.
    """
    encoded = image_id.encode() if isinstance(image_id, str) else image_id
    return np.uint64(int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little"))


def stable_keys(image_ids):
    """`stable_key` of each of a sequence of ids: uint64 array of shape (n,)."""
    return np.fromiter(map(stable_key, image_ids), np.uint64, count=len(image_ids))


def hash_keys(keys, seed):
    """The splitmix64 finaliser over keys and a seed: uint64 array of shape (n,).

    For any one seed it maps different keys to different values, so that a tie is left only between
    images whose ids have the same key.
    """
    z = keys ^ stable_key(str(int(seed)))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def check(rows, num_classes):
    """The rows' keys, labels and confidences as arrays of one shape (n,), or ValueError."""
    keys = np.asarray(rows.keys, np.uint64)
    labels = np.asarray(rows.labels)
    confidences = np.asarray(rows.confidences, np.float32)
    if not keys.shape == labels.shape == confidences.shape or keys.ndim != 1:
        raise ValueError(
            f"keys {keys.shape}, labels {labels.shape} and confidences {confidences.shape}: "
            "expected three arrays of the same shape (n,)."
        )
    if not len(keys):
        return keys, labels.astype(np.int64), confidences
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels of type {labels.dtype}: expected integers.")
    if not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()}: expected 0 to {num_classes - 1}."
        )
    if not (confidences.min() >= 0 and confidences.max() <= 1):  # NaN is the min of its array.
        wrong = ~((confidences >= 0) & (confidences <= 1))
        raise ValueError(
            f"confidence {confidences[wrong][0]} in row {np.flatnonzero(wrong)[0]}: expected a "
            "number from 0 to 1."
        )
    return keys, labels, confidences
