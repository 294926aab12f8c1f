"""Distances to the nearest references, against SciPy's."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from nsk.evaluation import feature_distance
from nsk.evaluation.feature_distance import (
    choose_references,
    neighbor_distances,
    unit_vectors,
)


def random_features(count, seed):
    return np.random.default_rng(seed).normal(1, 1, (count, 7)).astype(np.float32)


def test_the_distance_is_that_to_the_fifth_nearest_reference():
    features, references = random_features(40, 0), random_features(30, 1)
    expected = np.sort(cdist(features, references, "cosine"), axis=1)[:, 4]
    received = neighbor_distances(features, unit_vectors(references))
    assert received.dtype == np.float32
    np.testing.assert_allclose(received, expected, atol=1e-6)


def test_an_image_is_no_neighbour_of_itself():
    features, own = random_features(12, 2), np.array([-1, 0, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    references = features[own >= 0]
    distances = cdist(features, references, "cosine")
    distances[np.flatnonzero(own >= 0), own[own >= 0]] = np.inf
    expected = np.sort(distances, axis=1)[:, 4]
    received = neighbor_distances(features, unit_vectors(references), own)
    np.testing.assert_allclose(received, expected, atol=1e-6)


def test_of_few_references_the_farthest_counts_that_an_image_among_them_has():
    references = random_features(4, 3)
    distances = cdist(references, references, "cosine")
    received = neighbor_distances(references, unit_vectors(references), np.arange(4))
    np.testing.assert_allclose(received, np.sort(distances, axis=1)[:, 3], atol=1e-6)


def test_features_of_zero_are_at_distance_one():
    references = unit_vectors(random_features(9, 4))
    assert neighbor_distances(np.zeros((2, 7), np.float32), references).tolist() == [1, 1]


@pytest.mark.parametrize("references", [np.ones((1, 7)), np.ones((9, 6))])
def test_references_that_do_not_fit_are_rejected(references):
    with pytest.raises(ValueError, match="expected"):
        neighbor_distances(random_features(3, 5), references.astype(np.float32))


def test_references_are_spread_over_all_images(monkeypatch):
    assert choose_references(np.zeros((3, 2))).tolist() == [0, 1, 2]
    monkeypatch.setattr(feature_distance, "MAX_REFERENCES", 4)
    assert choose_references(np.zeros((10, 2))).tolist() == [0, 2, 5, 7]
