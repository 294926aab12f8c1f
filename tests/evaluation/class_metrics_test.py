"""Metrics of classes against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics

from nsk.evaluation.class_metrics import measure_classes

# 8 classes: the last two have no images, and the last one is never predicted either.
TRUTH = np.random.default_rng(0).choice(6, 300, p=[0.6, 0.2, 0.1, 0.05, 0.03, 0.02])
PREDICTED = np.where(
    np.random.default_rng(1).random(300) < 0.6,
    TRUTH,
    np.random.default_rng(2).choice([0, 0, 1, 2, 3, 6], 300),
)


def test_recall_precision_and_f1_are_those_of_scikit_learn():
    found = measure_classes(TRUTH, PREDICTED, 8)
    precision, recall, f1, images = sklearn.metrics.precision_recall_fscore_support(
        TRUTH, PREDICTED, labels=range(8), zero_division=np.nan
    )
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.f1, f1)
    assert np.isnan(found.recall[[6, 7]]).all() and np.isnan(found.f1[7])
    assert found.precision[6] == 0 and np.isnan(found.precision[7])


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_means_over_classes_are_those_of_scikit_learn():
    found = measure_classes(TRUTH, PREDICTED, 8)
    expected = sklearn.metrics.balanced_accuracy_score(TRUTH, PREDICTED)
    assert found.balanced_accuracy == pytest.approx(expected)
    expected = sklearn.metrics.f1_score(TRUTH, PREDICTED, average="macro")
    assert found.macro_f1 == pytest.approx(expected)


def test_always_predicting_the_common_class_has_the_balanced_accuracy_of_chance():
    found = measure_classes([0] * 95 + [1] * 5, [0] * 100, 2)
    assert found.balanced_accuracy == 0.5
    assert found.recall.tolist() == [1, 0]
    assert found.precision[0] == 0.95 and np.isnan(found.precision[1])


def test_memory_does_not_grow_with_the_square_of_the_classes():
    found = measure_classes([99_999, 3], [99_999, 4], 100_000)
    assert found.balanced_accuracy == 0.5 and found.macro_f1 == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("truth", "predicted"), [([], []), ([0, 1], [0]), ([2], [0]), ([0], [-1]), ([0.0], [0])]
)
def test_invalid_arrays_are_rejected(truth, predicted):
    with pytest.raises(ValueError, match="expected"):
        measure_classes(truth, predicted, 2)
