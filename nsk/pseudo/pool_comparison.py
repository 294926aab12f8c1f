"""Is a pool of unlabelled images like dev? Counts, estimates and tests; pure NumPy and SciPy.

The pool is read in parts, which add up, and memory does not grow with it. Values are compared by
histograms over the leading bits of a float32, which are precise to 0.8 %.
"""

import dataclasses
from typing import Any

import numpy as np
from scipy import stats

from nsk.evaluation.class_shares import estimate_class_shares

# Sign, exponent and seven bits of the mantissa of a non-negative float32.
DROPPED_BITS = 16
NUM_BINS = 2**15
# Share of the dev images that are nearer than the limit for unknown classes.
KEPT_DEV = 0.95
# A difference is reported as one if it is this unlikely by chance, and at least this large. There
# are three tests: together they report a difference that is chance in 1 % of all comparisons.
P_VALUE = 0.01 / 3
MIN_MISSING_SHARE = 0.1
MIN_CLASS_SHIFT = 0.1
MIN_UNKNOWN_SHARE = 0.05
# The estimate of the share of unknown classes uses limits that at least so many dev images exceed.
MIN_DEV_BEYOND = 0.05
# Beyond this number of classes their shares are not estimated: the table of confusions is large,
# and dev has few images of each.
MAX_CLASSES = 2000
# Images least like dev that are listed.
MAX_SUSPICIOUS = 1000
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Predictions of n images, as arrays of shape (n,).

    Attributes:
        labels: int, the predicted classes.
        confidences: float32 in [0, 1], their probabilities.
        distances: float32 of at least 0, to the nearest dev images in features; None: unknown.
    """

    labels: np.ndarray
    confidences: np.ndarray
    distances: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Counts:
    """What is counted of some images; `+` joins those of different images.

    Attributes:
        predicted: (num_classes,) images of each predicted class.
        above: (num_classes,) those of them with at least the confidence of the class's threshold.
        beyond, beyond_above: (num_classes,) images beyond the limit of the distance, of each
            predicted class: all, and those above the threshold.
        doubts: (NUM_BINS,) histogram of 1 - confidence.
        distances, distances_above: (NUM_BINS,) histograms of the distances of all images, and of
            those above the threshold.
    """

    predicted: np.ndarray
    above: np.ndarray
    beyond: np.ndarray
    beyond_above: np.ndarray
    doubts: np.ndarray
    distances: np.ndarray
    distances_above: np.ndarray

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, name) + getattr(other, name) for name in _names(Counts)))


@dataclasses.dataclass(frozen=True)
class Pool(Counts):
    """Counts of some images, and those of them that are least like dev, as arrays of shape (m,).

    `+` joins those of different images.

    Attributes:
        ids: str, by distance, the farthest first, or by confidence, the lowest first, if distances
            are unknown, and then by id; at most `MAX_SUSPICIOUS`.
        labels, confidences: as in `Rows`.
        distances_of: their distances as in `Rows`; NaN if they are unknown.
    """

    ids: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    distances_of: np.ndarray

    @classmethod
    def of(cls, counts: Counts, ids: np.ndarray, rows: Rows) -> "Pool":
        """The pool of images, with their ids of shape (n,)."""
        distances = rows.distances
        if distances is None:
            distances = np.full(len(ids), np.nan, np.float32)
        return cls._with_least_alike(counts, ids, rows.labels, rows.confidences, distances)

    def __add__(self, other: "Pool") -> "Pool":
        joined = [
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("ids", "labels", "confidences", "distances_of")
        ]
        return self._with_least_alike(super().__add__(other), *joined)

    @classmethod
    def _with_least_alike(cls, counts, ids, labels, confidences, distances):
        nearness = np.where(np.isnan(distances), confidences, -distances)
        first = np.lexsort((ids, nearness))[:MAX_SUSPICIOUS]
        return cls(
            **{name: getattr(counts, name) for name in _names(Counts)},
            ids=ids[first],
            labels=labels[first],
            confidences=confidences[first],
            distances_of=distances[first],
        )


def _names(dataclass):
    return [field.name for field in dataclasses.fields(dataclass)]


def count(
    rows: Rows, thresholds: np.ndarray, limit: float, weights: np.ndarray | None = None
) -> Counts:
    """Counts images.

    Args:
        rows: their predictions.
        thresholds: float32 array (num_classes,), the minimum confidence of each predicted class.
        limit: distance beyond which an image is judged to be of an unknown class.
        weights: float array (n,), what each image counts; None: 1.
    """
    weights = np.ones(len(rows.labels)) if weights is None else weights
    above = rows.confidences >= thresholds[rows.labels]
    distances = np.zeros_like(rows.confidences) if rows.distances is None else rows.distances
    beyond = distances > np.float32(limit)

    def by_class(chosen):
        return np.bincount(rows.labels, weights * chosen, len(thresholds))

    return Counts(
        predicted=by_class(1),
        above=by_class(above),
        beyond=by_class(beyond),
        beyond_above=by_class(beyond & above),
        doubts=histogram(1 - rows.confidences, weights),
        distances=histogram(distances, weights),
        distances_above=histogram(distances, weights * above),
    )


def histogram(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Total weight of the values in each bin: float64 (NUM_BINS,), ascending; values below 0 are 0.

    Args:
        values: float array (n,).
        weights: float array (n,).
    """
    bits = np.maximum(values, 0).astype(np.float32).view(np.uint32) >> DROPPED_BITS
    return np.bincount(bits, weights, NUM_BINS)


def quantile(counts: np.ndarray, share: float) -> float:
    """The value of a `histogram` that this share of its weight does not exceed; empty: 0."""
    position = np.searchsorted(np.cumsum(counts), share * counts.sum() * (1 - 1e-9))
    bits = np.uint32([min(position, NUM_BINS - 1) << DROPPED_BITS])
    return float(bits.view(np.float32)[0])


def distance_limit(distances: np.ndarray) -> float:
    """The distance that `KEPT_DEV` of the dev images do not exceed."""
    return float(np.quantile(distances.astype(np.float32), KEPT_DEV, method="higher"))


def compare(dev: Rows, truth: np.ndarray, pool: Counts, thresholds: np.ndarray) -> dict[str, Any]:
    """Compares the pool with dev.

    Dev images count as often as the estimated shares of their true classes in the pool ask for, so
    that a pool with other shares of the same classes differs in its classes alone.

    Args:
        dev: predictions of dev, at least one image.
        truth: int array (n,), their true classes.
        pool: the `count` of the pool with `distance_limit`, at least one image.
        thresholds: float32 array (num_classes,), the minimum confidence of each predicted class.

    Returns:
        dict of JSON values, see docs/pseudo_labels.md; `unlike` names the differences that are too
        large to be chance: "confidence", "classes", "unknown".
    """
    limit = np.inf if dev.distances is None else distance_limit(dev.distances)
    num_classes, num_images = len(thresholds), float(pool.predicted.sum())
    plain = count(dev, thresholds, limit)
    shares = _class_shares(pool.predicted, dev.labels, truth, num_classes)
    dev_shares = np.bincount(truth, minlength=num_classes) / len(truth)
    weights = np.divide(shares, dev_shares, out=np.zeros(num_classes), where=dev_shares > 0)[truth]
    if not weights.any():
        weights = np.ones(len(truth))
    expected = count(dev, thresholds, limit, weights * len(weights) / weights.sum())
    # As many independent images have a mean as uncertain as the weighted mean.
    num_dev = weights.sum() ** 2 / np.sum(weights**2)
    found = {
        "images": int(num_images),
        "dev_images": len(truth),
        "confidence": _compare_confidences(plain, expected, pool, num_dev),
        "classes": _compare_classes(plain, pool, shares, dev_shares),
        "distance": None,
        "unknown_share": None,
    }
    above = dev.confidences >= thresholds[dev.labels]
    found["confidence"]["dev_precision"] = (
        float(np.mean((dev.labels == truth)[above])) if above.any() else None
    )
    if dev.distances is not None:
        found["distance"] = _compare_distances(plain, expected, pool, num_dev) | {"limit": limit}
        found["unknown_share"] = unknown_share(pool.distances, expected.distances)
        found["unknown_share_above"] = unknown_share(pool.distances_above, expected.distances_above)
    return found | {"unlike": _differences(found)}


def _class_shares(predicted, dev_labels, truth, num_classes):
    if num_classes > MAX_CLASSES:
        return predicted / predicted.sum()
    confusion = np.zeros((num_classes, num_classes))
    np.add.at(confusion, (truth, dev_labels), 1)
    return estimate_class_shares(predicted, confusion)


def _compare_confidences(dev, expected, pool, num_dev):
    shares = {
        name: float(counts.above.sum() / counts.predicted.sum())
        for name, counts in (("pool", pool), ("dev", dev), ("expected", expected))
    }
    return {
        "above_threshold": shares,
        "quantiles": {
            name: [1 - quantile(counts.doubts, 1 - share) for share in QUANTILES]
            for name, counts in (("pool", pool), ("dev", dev))
        },
        "p_value": exceeds_p_value(pool.doubts, expected.doubts, num_dev),
    }


def _compare_classes(dev, pool, shares, dev_shares):
    seen = (pool.predicted > 0) | (dev.predicted > 0)
    table = np.stack([pool.predicted[seen], dev.predicted[seen]])
    return {
        "predicted": {
            "pool": pool.predicted.astype(int).tolist(),
            "dev": dev.predicted.astype(int).tolist(),
        },
        "estimated_shares": shares.round(4).tolist(),
        "dev_shares": dev_shares.round(4).tolist(),
        "shift": float(np.abs(shares - dev_shares).sum() / 2),
        "p_value": float(stats.chi2_contingency(table).pvalue) if seen.sum() > 1 else 1.0,
    }


def _compare_distances(dev, expected, pool, num_dev):
    return {
        "quantiles": {
            name: [quantile(counts.distances, share) for share in QUANTILES]
            for name, counts in (("pool", pool), ("dev", dev))
        },
        "beyond_limit": int(pool.beyond.sum()),
        "beyond_limit_above_threshold": int(pool.beyond_above.sum()),
        "p_value": exceeds_p_value(pool.distances, expected.distances, num_dev),
    }


def exceeds_p_value(pool: np.ndarray, dev: np.ndarray, num_dev: float) -> float:
    """One-sided two-sample Kolmogorov-Smirnov test: are values of the pool larger than dev's?

    Args:
        pool: `histogram` of the pool.
        dev: histogram of dev.
        num_dev: number of dev images; of weighted ones the effective number.

    Returns:
        The asymptotic p-value exp(-2 D^2 n m / (n + m)), which is conservative for binned values.
    """
    difference = _exceeding(pool) - _exceeding(dev)
    num_pool = pool.sum()
    size = num_dev * num_pool / (num_dev + num_pool)
    return float(np.exp(-2 * max(0.0, difference.max()) ** 2 * size))


def _exceeding(counts):
    """Share of the weight beyond each bin."""
    return 1 - np.cumsum(counts) / max(counts.sum(), 1e-12)


def unknown_share(pool: np.ndarray, dev: np.ndarray) -> float:
    """Estimates the share of a pool that is not like dev, from histograms of the distances.

    If the rest of the pool is like dev, at least (P - D) / (1 - D) of the pool is not, with the
    shares P of the pool and D of dev beyond any limit. The largest of these is returned; limits
    that few dev images exceed, or most, are left out, since they make it too uncertain.

    Reference: Blanchard, Lee, Scott: Semi-supervised novelty detection (2010).

    Args:
        pool: `histogram` of the pool; empty: 0 is returned.
        dev: histogram of dev.

    Returns:
        float in [0, 1].
    """
    if not pool.sum() or not dev.sum():
        return 0.0
    beyond_pool, beyond_dev = _exceeding(pool), _exceeding(dev)
    # The bins between two dev images have equal shares of dev; the nearest limit has most images.
    allowed = (beyond_dev <= 0.5) & (beyond_dev >= min(MIN_DEV_BEYOND, beyond_dev.max()))
    if not allowed.any():
        allowed[np.flatnonzero(beyond_dev <= 0.5)[0]] = True
    excess = (beyond_pool - beyond_dev)[allowed] / (1 - beyond_dev[allowed])
    return float(np.clip(excess.max(), 0, 1))


def _differences(found):
    """Names of the differences that are large and not by chance."""
    confidence, classes, distance = found["confidence"], found["classes"], found["distance"]
    shares = confidence["above_threshold"]
    unlike = []
    missing = shares["expected"] - shares["pool"]
    if confidence["p_value"] < P_VALUE and missing >= MIN_MISSING_SHARE:
        unlike.append("confidence")
    if classes["p_value"] < P_VALUE and classes["shift"] >= MIN_CLASS_SHIFT:
        unlike.append("classes")
    if distance and distance["p_value"] < P_VALUE and found["unknown_share"] >= MIN_UNKNOWN_SHARE:
        unlike.append("unknown")
    return unlike
