"""Radix selection against plain sorting."""

import functools
import operator

import numpy as np
import pytest

from nsk.hashing import hash_keys
from nsk.pseudo import radix_selection
from nsk.pseudo import ranking as ranking_module
from nsk.pseudo.radix_selection import Histogram, count_candidates, radix_select
from nsk.pseudo.ranking import Ranking, ScoredImages
from tests.pseudo.ranking_test import adjacent_floats, random_images

LEVELS = [
    np.float32([1.0]),
    np.float32([0.0, -0.0, 1e-45, 2e-45, 1e-40]),
    np.float32([0.3, 0.7, 1.0]),
    np.nextafter(np.float32([1, 1, 0.5, 0.5]), np.float32([0, 2, 0, 1])).clip(0, 1),
    adjacent_floats(),
]


def part_of(images, rows):
    ids = images.read_ids()
    return ScoredImages(
        images.keys[rows],
        images.labels[rows],
        images.confidences[rows],
        lambda: [ids[row] for row in rows],
    )


def sort_candidates(images, ranking):
    """For each class the rows of its candidates in order."""
    ids, hashes = images.read_ids(), hash_keys(images.keys, ranking.seed)
    order = sorted(
        range(len(images)),
        key=lambda row: (-float(images.confidences[row]), int(hashes[row]), ids[row]),
    )
    return [
        [
            row
            for row in order
            if images.labels[row] == c and images.confidences[row] >= ranking.thresholds[c]
        ]
        for c in range(ranking.num_classes)
    ]


class Passes:
    """A scan over parts of the images that keeps the result of every pass."""

    def __init__(self, parts):
        self.parts, self.results = parts, []

    def __call__(self, function):
        self.results.append(functools.reduce(operator.add, map(function, self.parts)))
        return self.results[-1]

    @property
    def num_histograms(self):
        return sum(isinstance(result, Histogram) for result in self.results)


@pytest.mark.parametrize("num_parts", [1, 2, 7, 64])
def test_cuts_are_those_of_plain_sorting(monkeypatch, num_parts):
    """Few images, digits of few bits and a low limit of collected images: many passes."""
    rng = np.random.default_rng(num_parts)
    num_histograms = []
    for number in range({1: 400, 2: 300, 7: 200, 64: 40}[num_parts]):
        num_classes = int(rng.integers(1, 5))
        entries = int(rng.choice([1, 16, 64, 2**10])) * num_classes
        max_members = int(rng.choice([0, 1, 4]))
        monkeypatch.setattr(radix_selection, "HISTOGRAM_ENTRIES", entries)
        monkeypatch.setattr(radix_selection, "MAX_MEMBERS", max_members)
        monkeypatch.setattr(ranking_module, "CHUNK_SIZE", int(rng.choice([1, 5, 2**14])))
        num_images = int(rng.integers(0, 60))
        images = random_images(rng, num_images, num_classes, LEVELS[number % len(LEVELS)])
        ranking = Ranking(rng.choice(np.float32([0.0, 0.3, 1.0]), num_classes), number)
        parts = np.array_split(rng.permutation(num_images), num_parts)
        scan = Passes([part_of(images, rows) for rows in parts])

        expected = sort_candidates(images, ranking)
        counts = np.array([len(rows) for rows in expected])
        ranks = rng.integers(0, counts + 2)
        histogram = count_candidates(scan, ranking)
        np.testing.assert_array_equal(histogram.num_candidates, counts)
        lowest = [images.confidences[rows].min(initial=np.inf).item() for rows in expected]
        assert histogram.lowest.tolist() == lowest
        cuts = radix_select(scan, ranking, histogram, ranks)
        num_histograms.append(scan.num_histograms)
        check_collected_images(scan, ranks, counts, max_members)

        is_selected = np.zeros(num_images, bool)
        for rows, part in zip(parts, scan.parts, strict=True):
            for candidates in ranking.candidates(part):
                is_selected[rows[candidates.rows]] = cuts.select(part, candidates)
        for c, rows in enumerate(expected):
            selected = np.flatnonzero(is_selected & (images.labels == c))
            assert selected.tolist() == sorted(rows[: ranks[c]])
            if 0 < ranks[c] < counts[c]:
                assert cuts.confidences[c] == images.confidences[rows[ranks[c] - 1]]
            else:
                assert cuts.confidences[c] == np.inf
    assert max(num_histograms) > 6 and min(num_histograms) == 1


def check_collected_images(scan, ranks, counts, max_members):
    """Images are collected once, of the classes with candidates on both sides of the cut only."""
    is_cut = (ranks > 0) & (ranks < counts)
    collected = [part for part in scan.results if isinstance(part, radix_selection._Members)]
    assert len(collected) == is_cut.any()
    for members in collected:
        assert set(members.labels.tolist()) == set(np.flatnonzero(is_cut).tolist())
        is_resolved = len(set(members.codes.tolist())) <= is_cut.sum()
        assert len(members.labels) <= max_members or is_resolved


@pytest.mark.parametrize("num_classes", [1, 10, 1000, 2**19, 2**21])
def test_the_size_of_a_histogram_hardly_depends_on_the_number_of_classes(num_classes):
    ranking = Ranking(np.zeros(num_classes, np.float32), 0)
    images = ScoredImages(np.zeros(0, np.uint64), np.zeros(0, int), np.zeros(0, np.float32))
    histogram = count_candidates(lambda function: function(images), ranking)
    bins = histogram.counts.shape[1]
    assert 2 <= bins <= 2**radix_selection.MAX_DIGIT_BITS
    assert num_classes * bins <= max(radix_selection.HISTOGRAM_ENTRIES, 2 * num_classes)
