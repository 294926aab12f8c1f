"""Selection against a brute-force oracle, published totals and its promises."""

import dataclasses

import numpy as np
import pytest

from nsk.pseudo.select import (
    _hash,
    select,
    select_gap,
    select_none,
    select_paper,
    stable_key,
    stable_keys,
)


def random_case(rng):
    """A small case full of ties, empty classes and confidences at the threshold and at 1."""
    num_classes = int(rng.integers(1, 5))
    n = int(rng.integers(0, 16))
    keys = rng.integers(0, 2**64, n, np.uint64)
    labels = rng.integers(0, int(rng.integers(1, num_classes + 1)), n)
    confidences = rng.choice([0.0, 0.3, 0.7, 0.71, 1.0], n).astype(np.float32)
    return keys, labels, confidences, num_classes, float(rng.choice([0.0, 0.3, 0.7, 1.0]))


def ordered_members(keys, labels, confidences, c, min_confidence, seed):
    """Rows of class c, the most confident first, one at a time."""
    hashes = _hash(keys, seed)
    rows = [
        row
        for row in range(len(keys))
        if labels[row] == c and confidences[row] >= np.float32(min_confidence)
    ]
    return sorted(rows, key=lambda row: (-confidences[row], int(hashes[row]), int(keys[row])))


def deal(members, size):
    """Copies of each member when `size` are dealt out one by one, round and round."""
    copies = dict.fromkeys(members, 0)
    for turn in range(size if members else 0):
        copies[members[turn % len(members)]] += 1
    return copies


def oracle_paper(keys, labels, confidences, num_classes, min_confidence, k, seed):
    members = [
        ordered_members(keys, labels, confidences, c, min_confidence, seed)
        for c in range(num_classes)
    ]
    k = k or int(np.ceil(sum(map(len, members)) / num_classes))
    copies = np.zeros(len(keys), int)
    for rows in members:
        for row, count in deal(rows, k).items():
            copies[row] = count
    return copies


def oracle_gap(case, labeled_keys, labeled_labels, floor, margin, seed):
    keys, labels, confidences, num_classes, min_confidence = case
    ones = np.ones(len(labeled_keys), np.float32)
    classes = []
    for c in range(num_classes):
        members = [
            ("labeled", row)
            for row in ordered_members(labeled_keys, labeled_labels, ones, c, 0, seed)
        ] + [
            ("pseudo", row)
            for row in ordered_members(keys, labels, confidences, c, min_confidence, seed)
        ]
        images = list(members)
        while members and len(images) < floor:
            images.append(members[len(images) % len(members)])
        classes.append(images)
    smallest = min((len(images) for images in classes if images), default=0)
    copies = {"labeled": np.zeros(len(labeled_keys), int), "pseudo": np.zeros(len(keys), int)}
    for images in classes:
        while len(images) > smallest + margin:
            images.pop()
        for kind, row in images:
            copies[kind][row] += 1
    return copies["labeled"], copies["pseudo"]


def test_paper_policy_equals_the_oracle_on_random_cases():
    rng = np.random.default_rng(0)
    for seed in range(3000):
        case = random_case(rng)
        k = int(rng.choice([0, 1, 2, 5, 40]))
        result = select_paper(
            *case[:3],
            num_classes=case[3],
            min_confidence=case[4],
            images_per_class=k,
            seed=seed,
        )
        assert result.copies.dtype == np.int32 and result.labeled_copies is None
        np.testing.assert_array_equal(result.copies, oracle_paper(*case, k, seed))


def test_paper_statistics_on_random_cases():
    rng = np.random.default_rng(1)
    for _ in range(500):
        keys, labels, confidences, num_classes, min_confidence = random_case(rng)
        k = int(rng.choice([0, 1, 2, 5, 40]))
        result = select_paper(
            keys,
            labels,
            confidences,
            num_classes=num_classes,
            min_confidence=min_confidence,
            images_per_class=k,
            seed=7,
        )
        counts = result.statistics.candidates
        k = k or int(np.ceil(sum(counts) / num_classes))
        for c in range(num_classes):
            members = labels == c
            kept = members & (result.copies > 0)
            enough = confidences >= np.float32(min_confidence)
            assert counts[c] == np.sum(members & enough)
            assert result.statistics.kept[c] == np.sum(kept) == min(counts[c], k)
            assert result.statistics.copies[c] == (k if counts[c] else 0)
            lowest = confidences[kept].min() if kept.any() else None
            assert result.statistics.lowest_confidence[c] == lowest
            assert (c in result.statistics.starved) == (counts[c] == 0)


def test_gap_policy_equals_the_oracle_on_random_cases():
    rng = np.random.default_rng(2)
    cut = repeated = 0
    for seed in range(3000):
        case = random_case(rng)
        m = int(rng.integers(0, 6))
        labeled_keys = rng.integers(0, 2**64, m, np.uint64)
        labeled_labels = rng.integers(0, case[3], m)
        floor, margin = int(rng.integers(0, 12)), int(rng.integers(0, 4))
        result = select_gap(
            *case[:3],
            labeled_keys=labeled_keys,
            labeled_labels=labeled_labels,
            num_classes=case[3],
            min_confidence=case[4],
            floor=floor,
            margin=margin,
            seed=seed,
        )
        labeled, pseudo = oracle_gap(case, labeled_keys, labeled_labels, floor, margin, seed)
        np.testing.assert_array_equal(result.labeled_copies, labeled)
        np.testing.assert_array_equal(result.copies, pseudo)
        expected = [labeled[labeled_labels == c].sum() for c in range(case[3])]
        assert list(result.statistics.labeled_copies) == expected
        repeated += labeled.max(initial=0) > 1
        cut += sum(pseudo) < sum(result.statistics.candidates)
    assert min(cut, repeated) > 200  # The cases reach both branches.


@pytest.mark.parametrize(
    "counts, total",
    [
        ((4236, 4673, 4301, 4248, 4430, 3621, 4313, 4226, 4691, 4508), 43_626),
        ((4433, 4773, 4282, 4248, 4577, 3514, 4367, 4320, 4827, 4672), 44_499),
        ((1818, 867, 983, 997, 750, 704, 613, 611, 1858, 822), 40_000),
    ],
)
def test_gap_policy_reaches_the_published_totals(counts, total):
    """Per-class counts include the labelled images: 5,000 of them, 500 of each class here."""
    labels = np.repeat(np.arange(10), np.array(counts) - 500)
    labeled_labels = np.repeat(np.arange(10), 500)
    rng = np.random.default_rng(0)
    result = select_gap(
        np.arange(len(labels), dtype=np.uint64),
        labels,
        rng.uniform(0.8, 1, len(labels)).astype(np.float32),
        labeled_keys=np.arange(5000, dtype=np.uint64) + np.uint64(10**6),
        labeled_labels=labeled_labels,
        num_classes=10,
        min_confidence=0.8,
        floor=4000,
        margin=1000,
        seed=0,
    )
    assert result.copies.sum() + result.labeled_copies.sum() == total
    # The published split calls repeated labelled images pseudo-labelled: total = 5,000 + the rest.
    repeats = np.array(result.statistics.labeled_copies) - 500
    assert result.copies.sum() + repeats.sum() == total - 5000
    assert result.labeled_copies.min() >= 1
    assert all((repeats > 0) == (np.array(counts) < 4000))


def test_gap_policy_cuts_the_least_confident_and_labelled_images_last():
    confidences = np.array([0.9, 1.0, 0.95, 0.9], np.float32)
    result = select_gap(
        np.arange(4, dtype=np.uint64),
        [0, 0, 0, 1],
        confidences,
        labeled_keys=np.array([10, 11], np.uint64),
        labeled_labels=[0, 0],
        num_classes=2,
        min_confidence=0.8,
        floor=1,
        margin=2,
        seed=0,
    )
    assert result.copies.tolist() == [0, 1, 0, 1]
    assert result.labeled_copies.tolist() == [1, 1]


def test_gap_policy_leaves_an_empty_class_out_of_the_smallest():
    result = select(
        "gap",
        np.arange(6, dtype=np.uint64),
        [0] * 6,
        np.full(6, 0.9),
        num_classes=3,
        min_confidence=0.5,
        gap_floor=2,
        gap_margin=1,
    )
    assert result.copies.tolist() == [1] * 6
    assert result.statistics.starved == (1, 2)


@pytest.mark.parametrize("policy", ["paper", "gap", "none"])
def test_result_does_not_depend_on_the_order_of_rows(policy):
    rng = np.random.default_rng(3)
    n, m = 500, 40
    keys = stable_keys([f"image-{i}" for i in range(n)])
    labels, labeled_labels = rng.integers(0, 7, n), rng.integers(0, 7, m)
    confidences = rng.choice([0.5, 0.9, 1.0], n).astype(np.float32)
    labeled_keys = stable_keys([f"labeled-{i}" for i in range(m)])

    def run(rows, labeled_rows):
        return select(
            policy,
            keys[rows],
            labels[rows],
            confidences[rows],
            num_classes=7,
            min_confidence=0.6,
            images_per_class=25,
            gap_floor=45,
            gap_margin=4,
            labeled_keys=labeled_keys[labeled_rows],
            labeled_labels=labeled_labels[labeled_rows],
            seed=5,
        )

    straight = run(np.arange(n), np.arange(m))
    rows, labeled_rows = rng.permutation(n), rng.permutation(m)
    shuffled = run(rows, labeled_rows)
    np.testing.assert_array_equal(shuffled.copies, straight.copies[rows])
    assert shuffled.statistics == straight.statistics
    if policy == "gap":
        np.testing.assert_array_equal(
            shuffled.labeled_copies, straight.labeled_copies[labeled_rows]
        )


def test_ties_are_broken_by_the_seed():
    keys = stable_keys([f"{i}" for i in range(1000)])
    labels, confidences = np.zeros(1000, int), np.ones(1000, np.float32)

    def kept(seed):
        result = select_paper(
            keys,
            labels,
            confidences,
            num_classes=1,
            min_confidence=0.3,
            images_per_class=500,
            seed=seed,
        )
        return result.copies

    np.testing.assert_array_equal(kept(0), kept(0))
    # A fair choice of half of them agrees with another on about half; 400..600 is 6 deviations.
    assert 400 < np.sum(kept(0) == kept(1)) < 600
    assert 150 < kept(0)[:500].sum() < 350


def test_hash_is_splitmix64_without_collisions():
    # The first output of the published generator from state 0: its finaliser of the increment.
    increment = np.uint64([0x9E3779B97F4A7C15])
    assert _hash(increment ^ stable_key("0"), 0)[0] == np.uint64(0xE220A8397B1DCDAF)
    keys = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(_hash(keys, 3))) == len(keys)


def test_confidence_equal_to_the_threshold_is_kept():
    # float32(0.7) is below 0.7 in float64.
    result = select_none([1, 2], [0, 0], np.float32([0.7, 0.69]), num_classes=1, min_confidence=0.7)
    assert result.copies.tolist() == [1, 0]


def test_mean_number_of_candidates_counts_empty_classes_and_rounds_up():
    result = select(
        "paper",
        np.arange(5, dtype=np.uint64),
        [0, 0, 0, 0, 2],
        np.full(5, 0.9),
        num_classes=4,
        min_confidence=0.3,
    )
    assert result.statistics.copies == (2, 0, 2, 0)  # ceil(5 / 4)
    assert result.statistics.kept == (2, 0, 1, 0)
    assert result.statistics.starved == (1, 3)
    assert result.statistics.lowest_confidence == (np.float32(0.9), None, np.float32(0.9), None)


def test_nothing_confident_selects_nothing():
    for policy in ("paper", "none"):
        result = select(policy, [1], [0], [0.1], num_classes=2, min_confidence=0.3)
        assert result.copies.tolist() == [0]
        assert result.statistics.starved == (0, 1)


def test_statistics_are_plain_numbers():
    result = select("paper", [1], [0], [0.5], num_classes=2, min_confidence=0.3)
    flat = [x for value in dataclasses.asdict(result.statistics).values() for x in value or ()]
    assert {type(x) for x in flat} <= {int, float, type(None)}


@pytest.mark.parametrize(
    "labels, confidences, message",
    [
        ([0, 1], [0.5, np.nan], "confidence nan in row 1"),
        ([0, 1], [1.5, 0.5], "confidence 1.5 in row 0"),
        ([0, 1], [-0.1, 0.5], "confidence -0.1"),
        ([0, 2], [0.5, 0.5], "labels from 0 to 2: expected 0 to 1"),
        ([-1, 0], [0.5, 0.5], "labels from -1"),
        ([0.0, 1.0], [0.5, 0.5], "expected integers"),
        ([0], [0.5, 0.5], "same shape"),
    ],
)
@pytest.mark.parametrize("policy", ["paper", "gap", "none"])
def test_wrong_arrays_are_refused(policy, labels, confidences, message):
    with pytest.raises(ValueError, match=message):
        select(policy, [1, 2], labels, confidences, num_classes=2, min_confidence=0.3)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="images_per_class=-1"):
        select("paper", [], [], [], num_classes=2, min_confidence=0, images_per_class=-1)
    with pytest.raises(ValueError, match="margin=-1"):
        select("gap", [], [], [], num_classes=2, min_confidence=0, gap_margin=-1)
    with pytest.raises(ValueError, match="policy='papre'"):
        select("papre", [], [], [], num_classes=2, min_confidence=0)


def test_stable_keys_are_fixed_forever():
    # Run folders on disk hold choices that were made with these values.
    assert stable_key("abc") == stable_key(b"abc") == np.uint64(0x5995D533D814BBD8)
    keys = stable_keys(["abc", "xyz"])
    assert keys.dtype == np.uint64 and keys[0] == stable_key("abc") and keys[0] != keys[1]
    assert stable_keys([]).shape == (0,)
