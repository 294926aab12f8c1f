"""Shares of classes from predictions, against the shares that made them and another optimiser."""

import numpy as np
import pytest
from scipy.optimize import minimize

from nsk.evaluation.class_shares import estimate_class_shares

CONFUSION = np.array([[80, 15, 5], [10, 85, 5], [20, 0, 80]])


@pytest.mark.parametrize("shares", [(0.2, 0.3, 0.5), (0.9, 0.05, 0.05), (0, 1, 0)])
def test_the_shares_that_explain_the_predictions_are_found(shares):
    counts = 1e6 * np.asarray(shares) @ (CONFUSION / 100)
    np.testing.assert_allclose(estimate_class_shares(counts, 1000 * CONFUSION), shares, atol=0.002)


def test_the_likelihood_is_as_high_as_another_optimiser_finds():
    counts = np.array([50, 20, 130])  # No shares explain these exactly.
    accuracy = np.trace(CONFUSION) / CONFUSION.sum()
    likelihood = CONFUSION + accuracy * np.eye(3) + (1 - accuracy) / 3
    likelihood = likelihood / likelihood.sum(axis=1, keepdims=True)

    def loss(logits):
        return -counts @ np.log(np.exp(logits) / np.exp(logits).sum() @ likelihood)

    shares = estimate_class_shares(counts, CONFUSION)
    assert shares.sum() == pytest.approx(1) and shares.min() >= 0
    found = -counts @ np.log(shares @ likelihood)
    assert found <= minimize(loss, np.zeros(3), method="Nelder-Mead").fun + 1e-3


def test_a_class_without_dev_images_is_taken_for_what_is_predicted():
    confusion = np.array([[50, 0, 0], [0, 50, 0], [0, 0, 0]])
    shares = estimate_class_shares(np.array([10, 10, 80]), confusion)
    np.testing.assert_allclose(shares, [0.1, 0.1, 0.8], atol=0.02)
