"""Which pseudo-labelled images a student sees, and how often: filter and balance.

Decisions on arrays alone, without files or TensorFlow. Row i of every array is image i; the result
gives each row its number of copies, 0 where the image is left out. It is a function of the *set* of
rows: their order, and so the number of shards and workers that scored them, does not matter.

A class's images are ordered by (confidence descending, hash of (image key, seed) ascending). The
hash makes a fair and repeatable choice among ties, which are common: many confidences are 1.0 in
float32.
"""

import dataclasses
import hashlib

import numpy as np

POLICIES = ("paper", "gap", "none")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a selection did to each class; every tuple has an entry for each class.

    Attributes:
        candidates: ints, images labelled with the class whose confidence reaches the threshold.
        kept: ints, different images among them that the student will see.
        copies: ints, how often it sees them, repetitions included.
        lowest_confidence: floats, the least confidence that was kept; None where nothing was.
        labeled_copies: ints, how often it sees the class's labelled images; None but for the gap
            policy.
        starved: class indices without a candidate.
    """

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
        copies: int32 array of shape (n,), aligned with the scored images.
        labeled_copies: int32 array of shape (m,), aligned with the labelled images; None where the
            policy leaves them alone.
        statistics: `Statistics`.
    """

    copies: np.ndarray
    labeled_copies: np.ndarray | None
    statistics: Statistics


def select(
    policy,
    keys,
    labels,
    confidences,
    *,
    num_classes,
    min_confidence,
    images_per_class=0,
    gap_floor=4000,
    gap_margin=1000,
    labeled_keys=(),
    labeled_labels=(),
    seed=0,
):
    """Selects by the policy of a name: "paper", "gap" or "none"; see the function of each.

    Raises:
        ValueError: an unknown policy, or arrays that the policy's function refuses.
    """
    common = {"num_classes": num_classes, "min_confidence": min_confidence}
    if policy == "paper":
        return select_paper(
            keys, labels, confidences, images_per_class=images_per_class, seed=seed, **common
        )
    if policy == "gap":
        return select_gap(
            keys,
            labels,
            confidences,
            labeled_keys=labeled_keys,
            labeled_labels=labeled_labels,
            floor=gap_floor,
            margin=gap_margin,
            seed=seed,
            **common,
        )
    if policy == "none":
        return select_none(keys, labels, confidences, **common)
    raise ValueError(f"policy={policy!r}: expected one of {', '.join(POLICIES)}.")


def select_paper(keys, labels, confidences, *, num_classes, min_confidence, images_per_class, seed):
    """The K most confident images of each class, repeated up to exactly K where there are fewer.

    A class of n < K images gives each K // n copies and one more to its first K % n. A class
    without candidates stays empty and is named in `statistics.starved`.

    Args:
        keys: uint64 array of shape (n,), see `stable_key`.
        labels: int array of shape (n,), the pseudo-labels (argmax), 0..num_classes-1.
        confidences: float32 array of shape (n,), in [0, 1].
        num_classes: int.
        min_confidence: float in [0, 1]; an image needs this confidence or more.
        images_per_class: int, K; 0: the mean number of candidates over all classes, rounded up.
        seed: int, of the order among equal confidences.

    Returns:
        `Selection` without `labeled_copies`.

    Raises:
        ValueError: shapes differ, a label or confidence is out of range, or K is negative.

    Reference:
        [Xie et al., 2020](https://arxiv.org/abs/1911.04252), section 3.1, where K is 130,000. Its
        code thins full classes at random and rounds fractional copies at random.
    """
    keys, labels, confidences = _check(keys, labels, confidences, num_classes)
    _check_not_negative(images_per_class=images_per_class)
    candidates = _candidates(confidences, min_confidence)
    counts = np.bincount(labels[candidates], minlength=num_classes)
    target = images_per_class or -(-len(candidates) // num_classes)
    copies = np.zeros(len(keys), np.int32)
    copies[candidates] = _spread(
        labels[candidates],
        (_hash(keys[candidates], seed), -confidences[candidates]),
        np.where(counts > 0, target, 0),
    )
    return Selection(
        copies, None, _statistics(candidates, copies, labels, confidences, num_classes)
    )


def select_gap(
    keys,
    labels,
    confidences,
    *,
    labeled_keys,
    labeled_labels,
    num_classes,
    min_confidence,
    floor,
    margin,
    seed,
):
    """A floor under every class and a largest gap between classes, labelled images included.

    Labelled images join their class in front of the candidates. A class below `floor` is repeated
    up to it, cyclically in this order. Then every class is cut to the smallest class + `margin`
    from the end of this order: the least confident first, labelled images last. A class without any
    image stays empty and does not count as the smallest.

    Args:
        keys, labels, confidences, num_classes, min_confidence, seed: as for `select_paper`.
        labeled_keys: uint64 array of shape (m,), keys of the labelled images.
        labeled_labels: int array of shape (m,), their labels.
        floor: int, least images of a class.
        margin: int, most images by which a class may exceed the smallest.

    Returns:
        `Selection` with `labeled_copies`.

    Raises:
        ValueError: shapes differ, a label or confidence is out of range, or a number is negative.
    """
    keys, labels, confidences = _check(keys, labels, confidences, num_classes)
    labeled_keys, labeled_labels, _ = _check(
        labeled_keys, labeled_labels, np.ones(len(labeled_keys), np.float32), num_classes
    )
    _check_not_negative(floor=floor, margin=margin)
    candidates = _candidates(confidences, min_confidence)
    num_labeled = len(labeled_keys)
    joined_labels = np.concatenate([labeled_labels, labels[candidates]])
    # A labelled image stands before a candidate whose confidence is exactly 1.
    joined_confidences = np.concatenate(
        [np.full(num_labeled, 2, np.float32), confidences[candidates]]
    )
    joined_hashes = _hash(np.concatenate([labeled_keys, keys[candidates]]), seed)

    counts = np.bincount(joined_labels, minlength=num_classes)
    present = counts > 0
    sizes = np.where(present, np.maximum(counts, floor), 0)
    smallest = sizes[present].min() if present.any() else 0
    sizes = np.minimum(sizes, smallest + margin)

    joined_copies = _spread(joined_labels, (joined_hashes, -joined_confidences), sizes)
    labeled_copies = joined_copies[:num_labeled]
    copies = np.zeros(len(keys), np.int32)
    copies[candidates] = joined_copies[num_labeled:]
    statistics = _statistics(candidates, copies, labels, confidences, num_classes)
    labeled_sums = np.bincount(labeled_labels, weights=labeled_copies, minlength=num_classes)
    statistics = dataclasses.replace(
        statistics, labeled_copies=tuple(labeled_sums.astype(np.int64).tolist())
    )
    return Selection(copies, labeled_copies, statistics)


def select_none(keys, labels, confidences, *, num_classes, min_confidence):
    """The filter alone: every image of enough confidence once.

    Arguments, result and errors are those of `select_paper`.
    """
    keys, labels, confidences = _check(keys, labels, confidences, num_classes)
    candidates = _candidates(confidences, min_confidence)
    copies = np.zeros(len(keys), np.int32)
    copies[candidates] = 1
    return Selection(
        copies, None, _statistics(candidates, copies, labels, confidences, num_classes)
    )


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


def _candidates(confidences, min_confidence):
    """Rows of enough confidence.

    Compared in float32: as float64, 0.7 is above float32(0.7) and would refuse a confidence equal
    to it.
    """
    return np.flatnonzero(confidences >= np.float32(min_confidence))


def _spread(labels, order, sizes):
    """Gives each class exactly its size, dealt out cyclically in the order of its images.

    Args:
        labels: int array of shape (n,).
        order: arrays of shape (n,) that order a class's images, the most important last
            (`np.lexsort`).
        sizes: int array of shape (num_classes,), the copies that each class gets in all.

    Returns:
        int32 array of shape (n,), copies of each image.
    """
    permutation = np.lexsort((*order, labels))
    sorted_labels = labels[permutation]
    counts = np.bincount(labels, minlength=len(sizes))
    first = np.cumsum(counts) - counts
    rank = np.arange(len(labels)) - first[sorted_labels]
    count, size = counts[sorted_labels], sizes[sorted_labels]
    copies = np.empty(len(labels), np.int32)
    # One formula repeats and cuts: with size <= count the quotient is 0 but for size == count.
    copies[permutation] = size // count + (rank < size % count)
    return copies


def _hash(keys, seed):
    """The splitmix64 finaliser over keys and a seed: uint64 array of shape (n,).

    For any one seed it maps different keys to different values, so no tie is left between images.
    """
    mixed_seed = stable_key(str(int(seed)))
    z = keys ^ mixed_seed
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _statistics(candidates, copies, labels, confidences, num_classes):
    counts = np.bincount(labels[candidates], minlength=num_classes)
    kept = np.flatnonzero(copies)
    lowest = np.full(num_classes, np.inf, np.float32)
    np.minimum.at(lowest, labels[kept], confidences[kept])
    sums = np.bincount(labels, weights=copies, minlength=num_classes).astype(np.int64)
    return Statistics(
        candidates=tuple(counts.tolist()),
        kept=tuple(np.bincount(labels[kept], minlength=num_classes).tolist()),
        copies=tuple(sums.tolist()),
        lowest_confidence=tuple(None if np.isinf(value) else float(value) for value in lowest),
        labeled_copies=None,
        starved=tuple(np.flatnonzero(counts == 0).tolist()),
    )


def _check(keys, labels, confidences, num_classes):
    """The three as uint64, int64 and float32 arrays of one shape (n,), or ValueError."""
    keys = np.asarray(keys, np.uint64)
    labels = np.asarray(labels)
    confidences = np.asarray(confidences, np.float32)
    if not keys.shape == labels.shape == confidences.shape or keys.ndim != 1:
        raise ValueError(
            f"keys {keys.shape}, labels {labels.shape} and confidences {confidences.shape}: "
            "expected three arrays of the same shape (n,)."
        )
    if len(labels) and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels of type {labels.dtype}: expected integers.")
    labels = labels.astype(np.int64)
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()}: expected 0 to {num_classes - 1}."
        )
    wrong = ~((confidences >= 0) & (confidences <= 1))  # True for NaN too.
    if wrong.any():
        raise ValueError(
            f"confidence {confidences[wrong][0]} in row {np.flatnonzero(wrong)[0]}: expected a "
            "number from 0 to 1."
        )
    return keys, labels, confidences


def _check_not_negative(**numbers):
    for name, number in numbers.items():
        if number < 0:
            raise ValueError(f"{name}={number}: expected 0 or more.")
