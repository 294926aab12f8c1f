"""Selection against a brute-force oracle, published totals and its documented properties."""

import dataclasses
import fractions
import functools
import math
import operator

import numpy as np
import pytest

from nsk.hashing import hash_keys, stable_key, stable_keys
from nsk.pseudo import radix_selection, ranking
from nsk.pseudo.policies import apply_policy, gap_rows, labeled_shares_rows, paper_rows
from nsk.pseudo.ranking import ScoredImages

TINY = np.float32(1e-45)  # The smallest number above 0.
CONFIDENCES = np.array(
    [0.0, -0.0, TINY, 1e-38, 0.3, 0.7, 0.71, np.nextafter(np.float32(1), 0), 1.0], np.float32
)


@dataclasses.dataclass
class Case:
    """Scored images, and the minimum confidence of each class."""

    keys: np.ndarray
    ids: list
    labels: np.ndarray
    confidences: np.ndarray
    thresholds: np.ndarray

    @property
    def num_classes(self):
        return len(self.thresholds)

    def images(self, rows):
        """`ScoredImages` of some rows."""
        return ScoredImages(
            self.keys[rows],
            self.labels[rows],
            self.confidences[rows],
            lambda: [self.ids[row] for row in rows],
        )


def make_case(labels, confidences, num_classes, threshold, keys=None):
    """A case with the same threshold for all classes."""
    keys = stable_keys([f"{row}" for row in range(len(labels))]) if keys is None else keys
    return Case(
        np.asarray(keys, np.uint64),
        [f"{row}" for row in range(len(labels))],
        np.asarray(labels, np.int64),
        np.asarray(confidences, np.float32),
        np.full(num_classes, threshold, np.float32),
    )


def keys_of(hashes, seed):
    """The inverse of `hash_keys`: the keys with these hashes."""
    z = hashes.copy()
    for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        z = z ^ (z >> np.uint64(shift)) ^ (z >> np.uint64(2 * shift))
        z = z * np.uint64(pow(factor, -1, 2**64))
    return z ^ stable_key(str(seed))


def random_case(rng, seed=0):
    """A small case full of ties, empty classes and confidences at the threshold and at 1.

    In some cases images have equal keys, and only their ids differ; in others only the last bits of
    their hashes differ, so that their codes are equal.
    """
    num_classes = int(rng.integers(1, 5))
    n = int(rng.integers(0, 24))
    keys = rng.integers(0, 2**64, n, np.uint64)
    if n and rng.random() < 0.3:
        keys = rng.choice(keys[:3], n)
    elif rng.random() < 0.3:
        keys = keys_of(np.uint64(rng.integers(2**60)) + rng.permutation(n).astype(np.uint64), seed)
    labels = rng.integers(0, int(rng.integers(1, num_classes + 1)), n)
    confidences = rng.choice(CONFIDENCES[int(rng.integers(0, len(CONFIDENCES))) :], n)
    levels = np.array([0.0, TINY, 0.3, 0.7, 0.71, 1.0, 1.5], np.float32)
    thresholds = np.full(num_classes, rng.choice([0.0, 0.3, 0.7, 1.0]), np.float32)
    if rng.random() < 0.5:
        thresholds = rng.choice(levels, num_classes)
    ids = [f"{number}" for number in rng.permutation(n)]
    return Case(keys, ids, labels, confidences, thresholds)


def split_rows(case, num_parts, rng):
    """The rows of a case in parts of random sizes, in random order, some of them empty."""
    rows = rng.permutation(len(case.keys))
    cuts = np.sort(rng.integers(0, len(rows) + 1, num_parts - 1))
    return np.split(rows, cuts)


def run(case, policy, *, seed=0, parts=None, labeled_labels=(), **settings):
    """(copies of the case's images, the `Selection`) from a scan over parts."""
    parts = [np.arange(len(case.keys))] if parts is None else parts
    parts_of_images = [case.images(rows) for rows in parts]
    selection = apply_policy(
        lambda function: functools.reduce(operator.add, map(function, parts_of_images)),
        policy,
        thresholds=case.thresholds,
        seed=seed,
        labeled_counts=np.bincount(
            np.asarray(labeled_labels, np.int64), minlength=case.num_classes
        ),
        **settings,
    )
    copies = np.full(len(case.keys), -1, np.int32)
    for rows, images in zip(parts, parts_of_images, strict=True):
        part_copies = selection.copies(images)
        assert part_copies.dtype == np.int32
        copies[rows] = part_copies
    return copies, selection


@pytest.fixture
def shrink(monkeypatch):
    """Function that makes histograms, collected images and chunks small: cuts take many passes."""

    def shrink(rng):
        entries = int(rng.choice([2, 16, 256, 2**12], p=[0.05, 0.25, 0.4, 0.3]))
        monkeypatch.setattr(radix_selection, "HISTOGRAM_ENTRIES", entries)
        monkeypatch.setattr(radix_selection, "MAX_MEMBERS", int(rng.choice([0, 1, 3, 2**22])))
        monkeypatch.setattr(ranking, "CHUNK_SIZE", int(rng.choice([1, 3, 2**14])))

    return shrink


def ordered_members(case, c, seed):
    """Rows of the candidates of class c, most confident first, by plain sorting."""
    hashes = hash_keys(case.keys, seed)
    rows = [
        row
        for row in range(len(case.keys))
        if case.labels[row] == c and case.confidences[row] >= case.thresholds[c]
    ]
    return sorted(
        rows, key=lambda row: (-float(case.confidences[row]), int(hashes[row]), case.ids[row])
    )


def test_keys_of_inverts_hash_keys():
    hashes = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    np.testing.assert_array_equal(hash_keys(keys_of(hashes, 17), 17), hashes)


def assign_round_robin(members, size):
    """Copies of each member when `size` are assigned round-robin."""
    copies = dict.fromkeys(members, 0)
    for number in range(size if members else 0):
        copies[members[number % len(members)]] += 1
    return copies


def mean_of_filled(counts):
    """The mean of the counts above 0, rounded up."""
    filled = [int(count) for count in counts if count]
    return math.ceil(fractions.Fraction(sum(filled), len(filled))) if filled else 0


def oracle_paper(case, k, seed):
    members = [ordered_members(case, c, seed) for c in range(case.num_classes)]
    k = k or mean_of_filled([len(rows) for rows in members])
    copies = np.zeros(len(case.keys), int)
    for rows in members:
        for row, count in assign_round_robin(rows, k).items():
            copies[row] = count
    return copies


def oracle_gap(case, labeled, floor, margin, seed):
    classes = []
    for c in range(case.num_classes):
        members = [("labeled", row) for row in ordered_members(labeled, c, seed)] + [
            ("pseudo", row) for row in ordered_members(case, c, seed)
        ]
        images = list(members)
        while members and len(images) < floor:
            images.append(members[len(images) % len(members)])
        classes.append(images)
    smallest = min((len(images) for images in classes if images), default=0)
    copies = {"labeled": np.zeros(len(labeled.keys), int), "pseudo": np.zeros(len(case.keys), int)}
    for images in classes:
        while len(images) > smallest + margin:
            images.pop()
        for kind, row in images:
            copies[kind][row] += 1
    return copies["labeled"], copies["pseudo"]


def num_parts(rng):
    return int(rng.choice([1, 2, 7, 64], p=[0.4, 0.3, 0.27, 0.03]))


def test_paper_policy_equals_the_oracle_on_random_cases(shrink):
    rng = np.random.default_rng(0)
    cut = tied = 0
    for seed in range(3000):
        case = random_case(rng, seed)
        shrink(rng)
        k = int(rng.choice([0, 1, 2, 5, 40]))
        parts = split_rows(case, num_parts(rng), rng)
        copies, selection = run(case, "paper", seed=seed, parts=parts, images_per_class=k)
        assert selection.labeled_rows is None and selection.statistics.labeled_copies is None
        np.testing.assert_array_equal(copies, oracle_paper(case, k, seed))
        cut += (selection.cuts.ranks > 0).any()
        tied += bool(selection.cuts.tied_ids)
    assert cut > 1000 and tied > 100  # Both branches are covered.


def test_no_policy_keeps_every_candidate_once(shrink):
    rng = np.random.default_rng(4)
    for seed in range(300):
        case = random_case(rng)
        shrink(rng)
        copies, _ = run(case, "none", seed=seed, parts=split_rows(case, num_parts(rng), rng))
        expected = case.confidences >= case.thresholds[case.labels]
        np.testing.assert_array_equal(copies, expected)


def test_paper_statistics_on_random_cases(shrink):
    rng = np.random.default_rng(1)
    for _ in range(500):
        case = random_case(rng)
        shrink(rng)
        k = int(rng.choice([0, 1, 2, 5, 40]))
        parts = split_rows(case, num_parts(rng), rng)
        copies, selection = run(case, "paper", seed=7, parts=parts, images_per_class=k)
        statistics = selection.statistics
        counts = statistics.candidates
        k = k or mean_of_filled(counts)
        assert statistics.thresholds == tuple(case.thresholds.tolist())
        for c in range(case.num_classes):
            members = case.labels == c
            kept = members & (copies > 0)
            enough = case.confidences >= case.thresholds[c]
            assert counts[c] == np.sum(members & enough)
            assert statistics.kept[c] == np.sum(kept) == min(counts[c], k)
            # Exactly K rows in an epoch for a class that has candidates.
            assert statistics.copies[c] == copies[members].sum() == (k if counts[c] else 0)
            lowest = case.confidences[kept].min() if kept.any() else None
            assert statistics.lowest_confidence[c] == lowest


def test_gap_policy_equals_the_oracle_on_random_cases(shrink):
    rng = np.random.default_rng(2)
    cut = repeated = 0
    for seed in range(3000):
        case = random_case(rng, seed)
        shrink(rng)
        m = int(rng.integers(0, 6))
        labeled = make_case(
            rng.integers(0, case.num_classes, m),
            np.ones(m),
            case.num_classes,
            0,
            rng.integers(0, 2**64, m, np.uint64),
        )
        floor, margin = int(rng.integers(0, 12)), int(rng.integers(0, 4))
        copies, selection = run(
            case,
            "gap",
            seed=seed,
            parts=split_rows(case, num_parts(rng), rng),
            labeled_labels=labeled.labels,
            floor=floor,
            margin=margin,
        )
        labeled_copies = selection.labeled_copies(labeled.keys, labeled.labels)
        assert labeled_copies.dtype == np.int32
        expected_labeled, expected = oracle_gap(case, labeled, floor, margin, seed)
        np.testing.assert_array_equal(labeled_copies, expected_labeled)
        np.testing.assert_array_equal(copies, expected)
        statistics = selection.statistics
        expected = [labeled_copies[labeled.labels == c].sum() for c in range(case.num_classes)]
        assert list(statistics.labeled_copies) == expected
        for c in range(case.num_classes):
            kept = (case.labels == c) & (copies > 0)
            assert statistics.kept[c] == kept.sum()
            assert statistics.copies[c] == copies[kept].sum()
            lowest = case.confidences[kept].min() if kept.any() else None
            assert statistics.lowest_confidence[c] == lowest
        repeated += labeled_copies.max(initial=0) > 1
        cut += sum(copies) < sum(statistics.candidates)
    assert min(cut, repeated) > 200  # Both branches are covered.


def largest_remainders(weights, total):
    """Whole numbers in the proportions of the weights, by exact fractions."""
    if not sum(weights):
        return [0] * len(weights)
    exact = [fractions.Fraction(int(weight) * total, int(sum(weights))) for weight in weights]
    rows = [math.floor(number) for number in exact]
    order = sorted(range(len(exact)), key=lambda c: (rows[c] - exact[c], c))
    for c in order[: total - sum(rows)]:
        rows[c] += 1
    return rows


def test_labeled_shares_policy_equals_the_oracle_on_random_cases(shrink):
    rng = np.random.default_rng(8)
    cut = repeated = rounded = 0
    for seed in range(1000):
        case = random_case(rng, seed)
        shrink(rng)
        labels = rng.integers(0, case.num_classes, int(rng.integers(0, 9)))
        k = int(rng.choice([0, 1, 2, 5, 40]))
        copies, selection = run(
            case,
            "labeled_shares",
            seed=seed,
            parts=split_rows(case, num_parts(rng), rng),
            labeled_labels=labels,
            images_per_class=k,
        )
        members = [ordered_members(case, c, seed) for c in range(case.num_classes)]
        k = k or mean_of_filled([len(rows) for rows in members])
        weights = [np.sum(labels == c) * bool(members[c]) for c in range(case.num_classes)]
        rows = largest_remainders(weights, k * np.count_nonzero(weights))
        expected = np.zeros(len(case.keys), int)
        for c in range(case.num_classes):
            for row, count in assign_round_robin(members[c], rows[c]).items():
                expected[row] = count
        np.testing.assert_array_equal(copies, expected)
        statistics = selection.statistics
        assert list(statistics.copies) == rows and statistics.labeled_copies is None
        assert sum(rows) == k * np.count_nonzero(weights)
        counts = zip(statistics.kept, statistics.candidates, strict=True)
        cut += any(0 < kept < number for kept, number in counts)
        repeated += expected.max(initial=0) > 1
        rounded += any(k * weight % max(1, sum(weights)) for weight in weights)
    assert min(cut, repeated, rounded) > 100  # All branches are covered.


@pytest.mark.parametrize(
    "counts, total",
    [
        ((4236, 4673, 4301, 4248, 4430, 3621, 4313, 4226, 4691, 4508), 43_626),
        ((4433, 4773, 4282, 4248, 4577, 3514, 4367, 4320, 4827, 4672), 44_499),
        ((1818, 867, 983, 997, 750, 704, 613, 611, 1858, 822), 40_000),
    ],
)
@pytest.mark.parametrize("parts", [1, 7])
def test_gap_policy_reaches_the_published_totals(counts, total, parts):
    """Per-class counts include the labelled images: 5,000 of them, 500 of each class here."""
    labels = np.repeat(np.arange(10), np.array(counts) - 500)
    labeled_labels = np.repeat(np.arange(10), 500)
    rng = np.random.default_rng(0)
    case = make_case(labels, rng.uniform(0.8, 1, len(labels)), 10, 0.8)
    copies, selection = run(
        case,
        "gap",
        parts=split_rows(case, parts, rng),
        labeled_labels=labeled_labels,
        floor=4000,
        margin=1000,
    )
    labeled_copies = selection.labeled_copies(
        np.arange(5000, dtype=np.uint64) + np.uint64(10**6), labeled_labels
    )
    assert copies.sum() + labeled_copies.sum() == total
    # The published split counts repeated labelled images as pseudo-labelled.
    repeats = np.array(selection.statistics.labeled_copies) - 500
    assert copies.sum() + repeats.sum() == total - 5000
    assert labeled_copies.min() >= 1
    assert all((repeats > 0) == (np.array(counts) < 4000))


def test_gap_policy_cuts_the_least_confident_and_labelled_images_last():
    case = make_case([0, 0, 0, 1], [0.9, 1.0, 0.95, 0.9], 2, 0.8)
    copies, selection = run(case, "gap", labeled_labels=[0, 0], floor=1, margin=2)
    assert copies.tolist() == [0, 1, 0, 1]
    labeled_copies = selection.labeled_copies(np.array([10, 11], np.uint64), np.array([0, 0]))
    assert labeled_copies.tolist() == [1, 1]


def test_an_empty_class_is_not_the_smallest_of_the_gap_policy():
    case = make_case([0] * 6, [0.9] * 6, 3, 0.5)
    copies, selection = run(case, "gap", floor=2, margin=1)
    assert copies.tolist() == [1] * 6
    assert selection.statistics.candidates[1:] == (0, 0)


def large_case(rng, n=500):
    return Case(
        stable_keys([f"image-{i}" for i in range(n)]),
        [f"image-{i}" for i in range(n)],
        rng.integers(0, 7, n),
        rng.choice([0.5, 0.9, 1.0], n).astype(np.float32),
        np.full(7, 0.6, np.float32),
    )


SETTINGS = {
    "paper": {"images_per_class": 25},
    "labeled_shares": {"images_per_class": 25},
    "gap": {"floor": 45, "margin": 4},
    "none": {},
}


@pytest.mark.parametrize("policy", ["paper", "labeled_shares", "gap", "none"])
@pytest.mark.parametrize("parts", [1, 2, 7, 64])
def test_result_does_not_depend_on_the_order_or_the_parts_of_images(policy, parts):
    rng = np.random.default_rng(3)
    case = large_case(rng)
    labeled_labels = rng.integers(0, 7, 40)
    labeled_keys = stable_keys([f"labeled-{i}" for i in range(40)])
    settings = {"seed": 5, "labeled_labels": labeled_labels, **SETTINGS[policy]}
    copies, selection = run(case, policy, **settings)
    shuffled, again = run(case, policy, parts=split_rows(case, parts, rng), **settings)
    np.testing.assert_array_equal(shuffled, copies)
    assert again.statistics == selection.statistics
    if policy == "gap":
        order = rng.permutation(40)
        np.testing.assert_array_equal(
            again.labeled_copies(labeled_keys[order], labeled_labels[order]),
            selection.labeled_copies(labeled_keys, labeled_labels)[order],
        )


@pytest.mark.parametrize("size", [1, 26, 3000, 10_000])
def test_small_limits_change_only_the_number_of_passes(monkeypatch, size):
    """20,000 images, a third of them with the confidence 1."""
    rng = np.random.default_rng(6)
    case = large_case(rng, 20_000)
    settings = {"seed": 1, "images_per_class": size}
    copies, selection = run(case, "paper", **settings)
    monkeypatch.setattr(radix_selection, "HISTOGRAM_ENTRIES", 7 * 16)
    monkeypatch.setattr(radix_selection, "MAX_MEMBERS", 50)
    parts = [case.images(rows) for rows in split_rows(case, 5, rng)]
    results = []

    def scan(function):
        results.append(functools.reduce(operator.add, map(function, parts)))
        return results[-1]

    again = apply_policy(scan, "paper", thresholds=case.thresholds, **settings)
    assert again.statistics == selection.statistics
    np.testing.assert_array_equal(again.copies(case.images(range(20_000))), copies)
    *histograms, members = results
    assert len(members.labels) <= 50
    assert {histogram.counts.shape for histogram in histograms} == {(7, 16)}
    # Each resolves 4 bits. At 1.0 the leading bits of a code are those of the hash; at 0.9, 25 bits
    # are those of the confidence.
    assert 2 <= len(histograms) <= (9 if size == 3000 else 5)


def test_ids_are_read_only_if_keys_are_equal():
    """Reading the ids of all images is slow."""

    def read_ids():
        raise AssertionError("ids were read")

    keys = np.arange(100, dtype=np.uint64)
    images = ScoredImages(keys, np.zeros(100, int), np.ones(100, np.float32), read_ids)
    selection = apply_policy(
        lambda function: function(images), "paper", thresholds=[0.5], seed=0, images_per_class=50
    )
    assert selection.copies(images).sum() == 50
    images = dataclasses.replace(images, keys=np.zeros(100, np.uint64))
    with pytest.raises(AssertionError, match="ids were read"):
        apply_policy(
            lambda function: function(images),
            "paper",
            thresholds=[0.5],
            seed=0,
            images_per_class=50,
        )


def test_images_with_equal_keys_are_ordered_by_their_ids_across_parts():
    rng = np.random.default_rng(0)
    ids = [f"image/{number:03d}" for number in rng.permutation(40)]
    case = Case(
        np.full(40, 7, np.uint64), ids, np.zeros(40, int), np.ones(40, np.float32), np.zeros(1)
    )
    for parts in (1, 2, 7, 64):
        copies, _ = run(case, "paper", parts=split_rows(case, parts, rng), images_per_class=15)
        kept = {image_id for image_id, count in zip(ids, copies, strict=True) if count}
        assert kept == set(sorted(ids)[:15]) and copies.max() == 1


@pytest.mark.parametrize("parts", [1, 2])
def test_a_duplicated_id_is_an_error(parts):
    case = make_case([0] * 4, [0.9] * 4, 1, 0.5, keys=[1, 1, 1, 1])
    case.ids = ["a", "b", "c", "b"]
    with pytest.raises(ValueError, match=r"an id is duplicated among \['a', 'b', 'b', 'c'\]"):
        run(case, "paper", parts=np.split(np.arange(4), parts), images_per_class=2)


def test_each_class_has_a_threshold_of_its_own():
    case = make_case([0, 0, 1, 1, 2, 2], [0.5, 0.9] * 3, 3, 0)
    case.thresholds = np.array([0.9, 0.5, 0.95], np.float32)
    copies, selection = run(case, "none")
    assert copies.tolist() == [0, 1, 1, 1, 0, 0]
    assert selection.statistics.candidates == (1, 2, 0)
    case.thresholds = np.array([1.5, 1.5, 0.5], np.float32)
    assert run(case, "none")[0].tolist() == [0, 0, 0, 0, 1, 1]


def test_ties_are_broken_by_the_seed():
    case = make_case(np.zeros(1000, int), np.ones(1000), 1, 0.3)

    def kept(seed):
        return run(case, "paper", images_per_class=500, seed=seed)[0]

    np.testing.assert_array_equal(kept(0), kept(0))
    # Two random halves agree on about half of the images; 400..600 is 6 standard deviations.
    assert 400 < np.sum(kept(0) == kept(1)) < 600
    assert 150 < kept(0)[:500].sum() < 350


def test_confidence_equal_to_the_threshold_is_kept():
    # float32(0.7) is below 0.7 in float64.
    images = ScoredImages(np.arange(2, dtype=np.uint64), np.zeros(2, int), np.float32([0.7, 0.69]))
    selection = apply_policy(lambda function: function(images), "none", thresholds=[0.7], seed=0)
    assert selection.copies(images).tolist() == [1, 0]


def test_mean_number_of_candidates_leaves_out_empty_classes_and_rounds_up():
    case = make_case([0, 0, 0, 0, 2], [0.9] * 5, 4, 0.3)
    _, selection = run(case, "paper", images_per_class=0)
    statistics = selection.statistics
    assert statistics.copies == (3, 0, 3, 0)  # ceil(5 / 2)
    assert statistics.kept == (3, 0, 1, 0)
    assert statistics.lowest_confidence == (np.float32(0.9), None, np.float32(0.9), None)


def test_a_few_classes_with_candidates_keep_most_of_them():
    """A weak teacher of 200 classes, which predicts seven of them with confidence."""
    counts = [322, 300, 240, 160, 95, 3, 2]
    labels = np.repeat(np.arange(0, 200, 30), counts)
    copies, selection = run(
        make_case(labels, np.full(1122, 0.9), 200, 0.3), "paper", seed=1, images_per_class=0
    )
    assert selection.statistics.candidates.count(0) == 193
    # The mean over 200 classes would be 6, and 5 x 6 + 3 + 2 = 35 images would be kept.
    mean = 161  # ceil(1122 / 7) = ceil(160.3)
    assert sum(selection.statistics.kept) == np.sum(copies > 0) == 3 * mean + 160 + 95 + 3 + 2
    assert selection.statistics.copies[::30] == (mean,) * 7


def test_no_confident_image_selects_nothing():
    for policy in ("paper", "none"):
        settings = {"images_per_class": 0} if policy == "paper" else {}
        copies, selection = run(make_case([0], [0.1], 2, 0.3), policy, **settings)
        assert copies.tolist() == [0]
        assert selection.statistics.candidates == (0, 0)


def test_statistics_are_plain_numbers():
    for policy, settings in SETTINGS.items():
        _, selection = run(make_case([0], [0.5], 2, 0.3), policy, labeled_labels=[1], **settings)
        flat = [
            x for value in dataclasses.asdict(selection.statistics).values() for x in value or ()
        ]
        assert {type(x) for x in flat} <= {int, float, type(None)}


def test_rows_are_pure_functions_of_counts():
    candidates, labeled = np.array([10, 0, 3]), np.array([2, 0, 2])
    assert paper_rows(candidates, images_per_class=7).tolist() == [7, 0, 7]
    assert paper_rows(candidates, images_per_class=0).tolist() == [7, 0, 7]  # ceil(13 / 2)
    assert gap_rows(candidates, labeled, floor=6, margin=2).tolist() == [8, 0, 6]
    labeled = np.array([3, 5, 1])
    assert labeled_shares_rows(candidates, labeled, images_per_class=5).tolist() == [8, 0, 2]
    # Exact, by the largest remainder: 6.75, 6.75, 1.5; ties go to the first class.
    candidates, labeled = np.array([5, 5, 5]), np.array([9, 9, 2])
    assert labeled_shares_rows(candidates, labeled, images_per_class=5).tolist() == [7, 7, 1]
    assert labeled_shares_rows(candidates, labeled, images_per_class=0).tolist() == [7, 7, 1]


@pytest.mark.parametrize(
    "labels, confidences, message",
    [
        ([0, 1], [0.5, np.nan], "confidence nan in row 1"),
        ([0, 1], [1.5, 0.5], "confidence 1.5 in row 0"),
        ([0, 1], [-0.1, 0.5], "confidence -0.1"),
        ([0, 1], [0.5, np.inf], "confidence inf in row 1"),
        ([0, 1], [0.5, -TINY], "confidence -1.* in row 1"),
        ([0, 1], [np.nextafter(np.float32(1), 2), 1], "confidence 1.0000001.* in row 0"),
        ([0, 2], [0.5, 0.5], "labels from 0 to 2: expected 0 to 1"),
        ([-1, 0], [0.5, 0.5], "labels from -1"),
        ([0.0, 1.0], [0.5, 0.5], "expected integers"),
        ([0], [0.5, 0.5], "same shape"),
        ([[0, 1]], [[0.5, 0.5]], "same shape"),
    ],
)
@pytest.mark.parametrize("policy", ["paper", "labeled_shares", "gap", "none"])
@pytest.mark.parametrize("threshold", [0.3, 1.0])
def test_invalid_arrays_are_rejected(policy, labels, confidences, message, threshold):
    """In any part, and even if no image of the part is a candidate."""
    valid = ScoredImages(np.array([5, 6], np.uint64), np.array([0, 1]), np.float32([0.9, 0.9]))
    keys = np.array([1, 2], np.uint64)
    invalid = ScoredImages(keys, labels, np.asarray(confidences, np.float32))
    for parts in ([invalid], [valid, invalid], [invalid, valid]):
        with pytest.raises(ValueError, match=message):
            apply_policy(
                lambda function, parts=parts: functools.reduce(operator.add, map(function, parts)),
                policy,
                thresholds=np.full(2, threshold, np.float32),
                seed=0,
                labeled_counts=np.zeros(2, int),
                **SETTINGS[policy],
            )


def test_invalid_numbers_are_rejected():
    empty = make_case([], [], 2, 0)
    with pytest.raises(ValueError, match="images_per_class=-1"):
        run(empty, "paper", images_per_class=-1)
    with pytest.raises(ValueError, match="images_per_class=-1"):
        run(empty, "labeled_shares", images_per_class=-1)
    with pytest.raises(ValueError, match="margin=-1"):
        run(empty, "gap", floor=0, margin=-1)
    with pytest.raises(ValueError, match="floor=-1"):
        run(empty, "gap", floor=-1, margin=0)
    with pytest.raises(ValueError, match="policy='papre'"):
        run(empty, "papre")


@pytest.mark.parametrize("policy", ["paper", "labeled_shares", "gap", "none"])
def test_no_images_at_all_select_nothing(policy):
    copies, selection = run(make_case([], [], 3, 0), policy, **SETTINGS[policy])
    assert len(copies) == 0 and selection.statistics.candidates == (0, 0, 0)
    assert selection.statistics.lowest_confidence == (None, None, None)
