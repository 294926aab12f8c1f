"""The order of the images of a class, against plain sorting."""

import numpy as np

from nsk.hashing import hash_keys, stable_keys
from nsk.pseudo import ranking as ranking_module
from nsk.pseudo.ranking import Ranking, ScoredImages, sort_codes

LARGEST = np.iinfo(np.uint64).max
ONE = 0x3F800000  # The bits of 1.0 in float32: the number of floats below it, down to 0.


def adjacent_floats():
    """Ascending float32s in [0, 1], many of them adjacent, with all edge cases.

    They are near 1.0, near 0.0 (denormal), around every power of two, and around every power of two
    of their distance from 1.0.
    """
    near = np.arange(-300, 301)
    bits = [np.arange(5000), ONE - np.arange(5000)]
    bits += [(1 << power) + near for power in range(9, 30)]
    bits += [ONE - (1 << power) + near for power in range(9, 30)]
    bits += [(exponent << 23) + near for exponent in range(1, 128)]
    bits.append(np.random.default_rng(0).integers(0, ONE, 20_000))
    bits = np.unique(np.concatenate(bits))
    return bits[(bits >= 0) & (bits <= ONE)].astype(np.uint32).view(np.float32)


def test_different_confidences_have_different_codes_whatever_the_hashes():
    """The last code of a confidence precedes the first code of the next lower one."""
    confidences = adjacent_floats()
    assert confidences[0] == 0 and confidences[-1] == 1 and len(confidences) > 30_000
    first = sort_codes(confidences, np.zeros(len(confidences), np.uint64))
    last = sort_codes(confidences, np.full(len(confidences), LARGEST))
    assert (first <= last).all()
    assert (last[1:] < first[:-1]).all()
    assert first[-1] == sort_codes(np.float32([1]), np.uint64([0]))[0]


def test_codes_ascend_with_descending_confidence_and_ascending_hash():
    rng = np.random.default_rng(0)
    confidences = rng.choice(adjacent_floats(), 3000)
    confidences = np.concatenate([np.repeat(confidences, 20), np.ones(20_000, np.float32)])
    hashes = rng.integers(0, LARGEST, len(confidences), np.uint64, endpoint=True)
    hashes[::7] = rng.choice(np.array([0, 1, 2**63, LARGEST - 1, LARGEST], np.uint64))
    order = np.lexsort((hashes, -confidences))
    assert (np.diff(sort_codes(confidences, hashes)[order].astype(object)) >= 0).all()


def test_codes_at_confidence_1_hold_59_bits_of_the_hash_and_all_others_at_least_29():
    """The codes of a saturated teacher are spread as evenly as any others."""
    confidences = np.float32([1.0, np.nextafter(np.float32(1), 0), 0.9999, 0.5, 1e-45, 0.0])
    for confidence, bits in zip(confidences, (59, 58, 48, 35, 29, 29), strict=True):
        steps = np.arange(2**10, dtype=np.uint64) << np.uint64(64 - bits)
        hashes = np.concatenate([steps, (LARGEST - steps)[::-1]])
        codes = sort_codes(np.full(len(hashes), confidence, np.float32), hashes)
        assert (codes[1:] > codes[:-1]).all(), confidence


def test_minus_zero_has_the_code_of_zero():
    hashes = np.array([3 << 60, 3 << 60], np.uint64)
    codes = sort_codes(np.float32([0.0, -0.0]), hashes)
    assert codes[0] == codes[1]


def test_sort_codes_does_not_modify_its_arguments():
    confidences, hashes = np.float32([0.3, 1.0, -0.0]), np.arange(3, dtype=np.uint64)
    sort_codes(confidences, hashes)
    assert confidences.tolist() == [np.float32(0.3), 1, 0] and hashes.tolist() == [0, 1, 2]


def random_images(rng, num_images, num_classes, levels):
    """`ScoredImages` with confidences among a few levels; some keys are equal."""
    ids = [f"image/{number}" for number in range(num_images)]
    keys = stable_keys(ids)
    if num_images:
        keys[rng.random(num_images) < 0.2] = keys[0]
    labels = rng.integers(0, num_classes, num_images)
    return ScoredImages(keys, labels, rng.choice(levels, num_images), lambda: ids)


def test_candidates_are_the_images_that_reach_the_threshold_of_their_class(monkeypatch):
    monkeypatch.setattr(ranking_module, "CHUNK_SIZE", 3)
    images = random_images(np.random.default_rng(0), 20, 3, np.float32([0.0, 0.5, 1.0]))
    for thresholds in ([0, 0, 0], [0.5, 0.5, 0.5], [0.5, 1, 0], [1.5, 0, 1]):
        ranking = Ranking(np.float32(thresholds), 4)
        chunks = list(ranking.candidates(images))
        rows, labels, confidences, hashes, codes = map(np.concatenate, zip(*chunks, strict=True))
        expected = np.flatnonzero(images.confidences >= ranking.thresholds[images.labels])
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_array_equal(labels, images.labels[expected])
        np.testing.assert_array_equal(confidences, images.confidences[expected])
        np.testing.assert_array_equal(hashes, hash_keys(images.keys[expected], 4))
        np.testing.assert_array_equal(codes, sort_codes(confidences, hashes))
