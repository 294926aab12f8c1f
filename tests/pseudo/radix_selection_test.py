"""The order of a class's images and its cut, step by step, against plain sorting."""

import functools
import operator

import numpy as np
import pytest

from nsk.pseudo.radix_selection import Ranking, Rows, codes, hash_keys, stable_key, stable_keys

LARGEST = np.iinfo(np.uint64).max
ONE = 0x3F800000  # The bits of 1.0 in float32: the number of floats below it, down to 0.


def neighbours():
    """float32s in [0, 1], ascending, many of them next to each other, with all hard places.

    They are near 1.0, near 0.0 (denormal) and around every power of two, and around every power of
    two of their distance from 1.0.
    """
    near = np.arange(-300, 301)
    places = [np.arange(5000), ONE - np.arange(5000)]
    places += [(1 << power) + near for power in range(9, 30)]
    places += [ONE - (1 << power) + near for power in range(9, 30)]
    places += [(exponent << 23) + near for exponent in range(1, 128)]
    places.append(np.random.default_rng(0).integers(0, ONE, 20_000))
    places = np.unique(np.concatenate(places))
    return places[(places >= 0) & (places <= ONE)].astype(np.uint32).view(np.float32)


def test_codes_of_different_confidences_never_meet_whatever_the_hashes():
    """The last code of a confidence comes before the first code of the next smaller one."""
    confidences = neighbours()
    assert confidences[0] == 0 and confidences[-1] == 1 and len(confidences) > 30_000
    first = codes(confidences, np.zeros(len(confidences), np.uint64))
    last = codes(confidences, np.full(len(confidences), LARGEST))
    assert (first <= last).all()
    assert (last[1:] < first[:-1]).all()
    assert first[-1] == codes(np.float32([1]), np.uint64([0]))[0]


def test_codes_are_in_the_order_of_confidence_and_hash():
    rng = np.random.default_rng(0)
    confidences = rng.choice(neighbours(), 3000)
    confidences = np.concatenate([np.repeat(confidences, 20), np.ones(20_000, np.float32)])
    hashes = rng.integers(0, LARGEST, len(confidences), np.uint64, endpoint=True)
    hashes[::7] = rng.choice(np.array([0, 1, 2**63, LARGEST - 1, LARGEST], np.uint64))
    order = np.lexsort((hashes, -confidences))
    assert (np.diff(codes(confidences, hashes)[order].astype(object)) >= 0).all()


def test_codes_of_images_at_one_hold_59_bits_of_the_hash_and_any_others_29():
    """So that those of a saturated teacher are as well spread as any others."""
    confidences = np.float32([1.0, np.nextafter(np.float32(1), 0), 0.9999, 0.5, 1e-45, 0.0])
    for confidence, bits in zip(confidences, (59, 58, 48, 35, 29, 29), strict=True):
        steps = np.arange(2**10, dtype=np.uint64) << np.uint64(64 - bits)
        hashes = np.concatenate([steps, (LARGEST - steps)[::-1]])
        of_codes = codes(np.full(len(hashes), confidence, np.float32), hashes)
        assert (of_codes[1:] > of_codes[:-1]).all(), confidence


def test_minus_zero_is_zero():
    hashes = np.array([3 << 60, 3 << 60], np.uint64)
    of_codes = codes(np.float32([0.0, -0.0]), hashes)
    assert of_codes[0] == of_codes[1]


def test_codes_leave_their_arguments_alone():
    confidences, hashes = np.float32([0.3, 1.0, -0.0]), np.arange(3, dtype=np.uint64)
    codes(confidences, hashes)
    assert confidences.tolist() == [np.float32(0.3), 1, 0] and hashes.tolist() == [0, 1, 2]


def make_rows(rng, n, num_classes, levels):
    """`Rows` whose confidences are among a few levels, and ids."""
    ids = [f"image/{number}" for number in range(n)]
    keys = stable_keys(ids)
    if n:
        keys[rng.random(n) < 0.2] = keys[0]  # As if the ids' hashes met.
    return keys, rng.integers(0, num_classes, n), rng.choice(levels, n), ids


def some_rows(all_rows, places):
    keys, labels, confidences, ids = all_rows
    return Rows(keys[places], labels[places], confidences[places], lambda: [ids[p] for p in places])


LEVELS = [
    np.float32([1.0]),
    np.float32([0.0, -0.0, 1e-45, 2e-45, 1e-40]),
    np.float32([0.3, 0.7, 1.0]),
    np.nextafter(np.float32([1, 1, 0.5, 0.5]), np.float32([0, 2, 0, 1])).clip(0, 1),
    neighbours(),
]


@pytest.mark.parametrize("parts", [1, 2, 7, 64])
def test_narrowing_finds_the_cut_that_sorting_finds(monkeypatch, parts):
    """Cases of few images, digits of few bits and room for few members: many rounds."""
    rng = np.random.default_rng(parts)
    rounds = []
    for number in range({1: 400, 2: 300, 7: 200, 64: 40}[parts]):
        num_classes = int(rng.integers(1, 5))
        monkeypatch.setattr(
            ranking, "HISTOGRAM_ENTRIES", int(rng.choice([1, 16, 64, 2**10])) * num_classes
        )
        monkeypatch.setattr(ranking, "CHUNK", int(rng.choice([1, 5, 2**14])))
        most = int(rng.choice([0, 1, 4]))
        n = int(rng.integers(0, 60))
        all_rows = make_rows(rng, n, num_classes, LEVELS[number % len(LEVELS)])
        keys, labels, confidences, ids = all_rows
        ordered = Ranking(rng.choice(np.float32([0.0, 0.3, 1.0]), num_classes), number)
        places = np.array_split(rng.permutation(n), parts)
        rows = [some_rows(all_rows, part) for part in places]

        def scan(function, rows=rows):
            return functools.reduce(operator.add, map(function, rows))

        hashes = hash_keys(keys, number)
        in_order = [
            sorted(
                (p for p in range(n) if labels[p] == c and confidences[p] >= ordered.thresholds[c]),
                key=lambda p: (-float(confidences[p]), int(hashes[p]), ids[p]),
            )
            for c in range(num_classes)
        ]
        counts = np.array([len(of_class) for of_class in in_order])
        ranks = rng.integers(0, counts + 2)
        intervals = ranking.Intervals.whole(num_classes)
        done = 0
        while True:
            counted = scan(lambda rows: ranking.histogram(rows, ordered, intervals))  # noqa: B023
            if not done:
                np.testing.assert_array_equal(counted.num_candidates, counts)
                lowest = [confidences[of_class].min(initial=np.inf).item() for of_class in in_order]
                assert counted.lowest.tolist() == lowest
            intervals = ranking.narrow(intervals, counted, ranks)
            done += 1
            assert intervals.is_open.tolist() == ((ranks > 0) & (ranks < counts)).tolist()
            if intervals.members.sum() <= most or not intervals.bits:
                break
        rounds.append(done)
        members = scan(lambda rows: ranking.members(rows, ordered, intervals))  # noqa: B023
        found = np.bincount(members.labels, minlength=num_classes)
        np.testing.assert_array_equal(found, intervals.members)
        cuts, ties = ranking.find_cuts(members, intervals, ranks)
        if ties:
            of_ids = scan(lambda rows: ranking.TiedIds.of(rows, ordered, cuts, tuple(ties)))  # noqa: B023
            cuts.tied_ids.update(of_ids.first(ties))
        before = np.zeros(n, bool)
        for part, of_part in zip(places, rows, strict=True):
            for inside, of_labels, _, of_hashes, of_codes in ordered.candidates(of_part):
                which = cuts.before(of_part, inside, of_labels, of_hashes, of_codes)
                before[part[inside]] = which
        for c, of_class in enumerate(in_order):
            assert np.flatnonzero(before & (labels == c)).tolist() == sorted(of_class[: ranks[c]])
            if 0 < ranks[c] < counts[c]:
                assert cuts.confidences[c] == confidences[of_class[ranks[c] - 1]]
    assert max(rounds) > 6 and min(rounds) == 1


@pytest.mark.parametrize("num_classes", [1, 10, 1000, 2**19, 2**21])
def test_a_histogram_has_about_as_many_entries_whatever_the_number_of_classes(num_classes):
    intervals = ranking.Intervals.whole(num_classes)
    bits = intervals.digit_bits
    assert 1 <= bits <= ranking.MAX_DIGIT_BITS
    assert num_classes * 2**bits <= max(ranking.HISTOGRAM_ENTRIES, 2 * num_classes)


def test_candidates_are_the_rows_that_reach_the_threshold_of_their_class(monkeypatch):
    monkeypatch.setattr(ranking, "CHUNK", 3)
    rng = np.random.default_rng(0)
    all_rows = make_rows(rng, 20, 3, np.float32([0.0, 0.5, 1.0]))
    rows = some_rows(all_rows, np.arange(20))
    for thresholds in ([0, 0, 0], [0.5, 0.5, 0.5], [0.5, 1, 0], [1.5, 0, 1]):
        ordered = Ranking(np.float32(thresholds), 4)
        parts = list(ordered.candidates(rows))
        places, labels, confidences, hashes, of_codes = map(
            np.concatenate, zip(*parts, strict=True)
        )
        expected = np.flatnonzero(rows.confidences >= ordered.thresholds[rows.labels])
        np.testing.assert_array_equal(places, expected)
        np.testing.assert_array_equal(labels, rows.labels[expected])
        np.testing.assert_array_equal(confidences, rows.confidences[expected])
        np.testing.assert_array_equal(hashes, hash_keys(rows.keys[expected], 4))
        np.testing.assert_array_equal(of_codes, codes(confidences, hashes))


def test_hash_is_splitmix64_without_collisions():
    # The first output of the published generator from state 0: its finaliser of the increment.
    increment = np.uint64([0x9E3779B97F4A7C15])
    assert hash_keys(increment ^ stable_key("0"), 0)[0] == np.uint64(0xE220A8397B1DCDAF)
    keys = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(hash_keys(keys, 3))) == len(keys)
    assert keys[-1] == 99_999  # They are not worked on in place.


def test_stable_keys_are_fixed_forever():
    # Run folders on disk hold choices that were made with these values.
    assert stable_key("abc") == stable_key(b"abc") == np.uint64(0x5995D533D814BBD8)
    keys = stable_keys(["abc", "xyz"])
    assert keys.dtype == np.uint64 and keys[0] == stable_key("abc") and keys[0] != keys[1]
    assert stable_keys([]).shape == (0,)
