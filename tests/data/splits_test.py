"""Quotas of the classes in a split; `ingest_test.py` tests the splits themselves."""

import numpy as np
import pytest

from nsk.data.splits import balanced_quotas, proportional_quotas, quotas_with_every_class


def test_quotas():
    available = np.array([9, 9, 0, 9])
    assert balanced_quotas(8, available).tolist() == [3, 3, 0, 2]
    assert balanced_quotas(50, np.full(10, 99)).tolist() == [5] * 10
    assert balanced_quotas(52, np.full(10, 99)).tolist() == [6, 6] + [5] * 8
    assert proportional_quotas(10, np.array([50, 30, 20])).tolist() == [5, 3, 2]
    # 7 x (10, 10, 1) / 21 = 3.33, 3.33, 0.33: equal remainders, so the first class gets the rest.
    assert proportional_quotas(7, np.array([10, 10, 1])).tolist() == [4, 3, 0]
    # 5 x (6, 3, 1) / 10 = 3, 1.5, 0.5.
    assert proportional_quotas(5, np.array([6, 3, 1])).tolist() == [3, 2, 0]
    random = np.random.default_rng(0)
    for _ in range(50):
        available = random.integers(0, 20, 7) + (np.arange(7) == 0)
        number = random.integers(0, available.sum() + 1)
        quotas = proportional_quotas(int(number), available)
        assert quotas.sum() == number
        assert (quotas <= available).all()
        assert (np.abs(quotas - number * available / available.sum()) < 1).all()


def test_every_class_has_a_quota():
    """Each taken from the largest quota of all, which may be several classes in turn."""
    available = np.array([900, 800, 0, 3, 1, 2])
    quotas = quotas_with_every_class(np.array([5, 5, 0, 0, 0, 0]), available)
    assert quotas.tolist() == [3, 4, 0, 1, 1, 1]
    quotas = quotas_with_every_class(np.array([3, 2, 0, 0, 0, 0]), available)
    assert quotas.tolist() == [1, 1, 0, 1, 1, 1]
    unchanged = np.array([5, 4, 0, 1, 1, 1])
    assert quotas_with_every_class(unchanged, available).tolist() == unchanged.tolist()
    with pytest.raises(ValueError, match="4 images"):
        quotas_with_every_class(np.array([3, 1, 0, 0, 0, 0]), available)
