"""Comparison of a pool with dev, against SciPy and pools whose differences are known."""

import numpy as np
import pytest
from scipy import stats

from nsk.pseudo import pool_comparison
from nsk.pseudo.pool_comparison import (
    Rows,
    compare,
    count,
    distance_limit,
    exceeds_p_value,
    histogram,
    quantile,
    unknown_share,
)

NUM_CLASSES = 5
THRESHOLDS = np.full(NUM_CLASSES, 0.5, np.float32)
UNIFORM = np.full(NUM_CLASSES, 1 / NUM_CLASSES)


def draw(random, size, shares=UNIFORM, shift=0.0, unknown=0.0):
    """(`Rows`, true classes): class c has confidences and distances of its own.

    `shift` lowers all confidences; a share `unknown` of the images is far from all others.
    """
    truth = random.choice(NUM_CLASSES, size, p=shares)
    wrong = random.random(size) < 0.1
    labels = np.where(wrong, random.integers(0, NUM_CLASSES, size), truth)
    confidences = np.clip(random.beta(8 - truth, 2, size) - shift, 0, 1)
    distances = random.gamma(2 + truth, 0.02, size)
    is_unknown = random.random(size) < unknown
    distances = np.where(is_unknown, random.gamma(20, 0.02, size), distances)
    return Rows(labels, confidences.astype(np.float32), distances.astype(np.float32)), truth


def compare_rows(dev, truth, pool):
    counts = count(pool, THRESHOLDS, distance_limit(dev.distances))
    return compare(dev, truth, counts, THRESHOLDS)


@pytest.mark.parametrize(("size", "seeds"), [(200, range(200)), (2000, range(50))])
def test_a_pool_like_dev_is_rarely_reported(size, seeds):
    reported = 0
    for seed in seeds:
        random = np.random.default_rng(seed)
        dev, truth = draw(random, size)
        reported += bool(compare_rows(dev, truth, draw(random, 5000)[0])["unlike"])
    assert reported <= 0.01 * len(seeds)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("change", "unlike"),
    [
        ({"unknown": 0.4}, ["unknown"]),
        ({"shift": 0.3}, ["confidence"]),
        ({"shares": [0.02, 0.02, 0.02, 0.02, 0.92]}, ["classes"]),
    ],
)
def test_each_difference_is_told_from_the_others(change, unlike, seed):
    """One class alone has fewer confident images than all classes, and larger distances."""
    random = np.random.default_rng(seed)
    dev, truth = draw(random, 500)
    found = compare_rows(dev, truth, draw(random, 5000, **change)[0])
    assert found["unlike"] == unlike
    if "unknown" in change:
        assert found["unknown_share"] == pytest.approx(0.4, abs=0.06)
    if "shares" in change:
        estimated = found["classes"]["estimated_shares"]
        np.testing.assert_allclose(estimated, change["shares"], atol=0.06)


def test_the_figures_are_those_of_the_rows():
    random = np.random.default_rng(0)
    dev, truth = draw(random, 300)
    pool, _ = draw(random, 1000, unknown=0.2)
    found = compare_rows(dev, truth, pool)
    shares = found["confidence"]["above_threshold"]
    assert shares["pool"] == pytest.approx(np.mean(pool.confidences >= 0.5))
    assert shares["dev"] == pytest.approx(np.mean(dev.confidences >= 0.5))
    kept = dev.confidences >= 0.5
    assert found["confidence"]["dev_precision"] == np.mean((dev.labels == truth)[kept])
    limit = found["distance"]["limit"]
    assert np.mean(dev.distances <= limit) == pytest.approx(0.95, abs=0.005)
    assert found["distance"]["beyond_limit"] == np.sum(pool.distances > np.float32(limit))
    medians = [values[2] for values in found["distance"]["quantiles"].values()]
    np.testing.assert_allclose(
        medians, [np.median(pool.distances), np.median(dev.distances)], rtol=0.03
    )
    assert found["classes"]["predicted"]["pool"] == np.bincount(pool.labels).tolist()


def test_counts_of_parts_add_up():
    rows, _ = draw(np.random.default_rng(1), 100)
    parts = [Rows(*(array[part] for array in (rows.labels, rows.confidences, rows.distances)))
             for part in (slice(30), slice(30, 100))]  # fmt: skip
    first, second = (count(part, THRESHOLDS, 0.1) for part in parts)
    whole, total = count(rows, THRESHOLDS, 0.1), first + second
    for name in vars(whole):
        np.testing.assert_array_equal(getattr(total, name), getattr(whole, name))


def test_without_distances_nothing_is_said_about_unknown_classes():
    random = np.random.default_rng(2)
    rows, truth = draw(random, 100)
    rows = Rows(rows.labels, rows.confidences, None)
    found = compare(rows, truth, count(rows, THRESHOLDS, np.inf), THRESHOLDS)
    assert found["distance"] is None and found["unknown_share"] is None and not found["unlike"]


def test_one_class_of_many_that_dev_lacks_is_compared():
    rows, truth = draw(np.random.default_rng(3), 100, [0.25, 0.25, 0.25, 0.25, 0])
    pool, _ = draw(np.random.default_rng(4), 100, [0, 0, 0, 0, 1])
    assert "classes" in compare_rows(rows, truth, pool)["unlike"]


@pytest.mark.parametrize("seed", range(3))
def test_the_p_value_is_that_of_scipy(seed):
    random = np.random.default_rng(seed)
    pool, dev = random.gamma(2.2, 1, 900), random.gamma(2, 1, 400)
    received = exceeds_p_value(*(histogram(a, np.ones(len(a))) for a in (pool, dev)), len(dev))
    expected = stats.ks_2samp(pool, dev, alternative="less", method="asymp").pvalue
    assert received == pytest.approx(expected, rel=0.5)  # Binned values are a little closer.
    assert received >= expected * 0.99


def test_quantiles_are_precise_to_the_width_of_a_bin():
    values = np.random.default_rng(5).exponential(0.01, 1001)
    for share in (0.05, 0.5, 0.95):
        received = quantile(histogram(values, np.ones(1001)), share)
        assert received <= np.quantile(values, share) <= received * 1.01
    assert quantile(np.zeros(pool_comparison.NUM_BINS), 0.5) == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_the_unknown_share_is_found(share):
    random = np.random.default_rng(6)
    dev, known = random.gamma(2, 1, 2000), random.gamma(2, 1, round(20000 * (1 - share)))
    pool = np.concatenate([known, random.gamma(2, 1, round(20000 * share)) + 10])
    received = unknown_share(*(histogram(a, np.ones(len(a))) for a in (pool, dev)))
    assert received == pytest.approx(share, abs=0.05)
    assert unknown_share(np.zeros(pool_comparison.NUM_BINS), histogram(dev, np.ones(2000))) == 0
