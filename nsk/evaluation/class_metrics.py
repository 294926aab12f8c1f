"""Recall, precision and F1 of every class, and their means over classes; pure NumPy.

`truth` and `predicted` are int arrays of shape (n,), classes in [0, num_classes). Memory grows with
n and num_classes, not with the square of num_classes. Every function raises ValueError for empty
arrays, other shapes or types, and classes out of range.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """Metrics of every class; arrays of shape (num_classes,).

    Attributes:
        images: int64, images of the class.
        predictions: int64, images that are predicted as the class.
        correct: int64, images of the class that are predicted as it.
    """

    images: np.ndarray
    predictions: np.ndarray
    correct: np.ndarray

    @property
    def recall(self) -> np.ndarray:
        """Share of the class's images that are predicted as it, float64; NaN without images."""
        return _ratio(self.correct, self.images)

    @property
    def precision(self) -> np.ndarray:
        """Share of the class's predictions that are correct, float64; NaN without predictions."""
        return _ratio(self.correct, self.predictions)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of recall and precision, float64; NaN without images and predictions."""
        return _ratio(2 * self.correct, self.images + self.predictions)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images, in [0, 1]."""
        return float(np.nanmean(self.recall))

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images or predictions, in [0, 1]."""
        return float(np.nanmean(self.f1))


def measure_classes(truth: ArrayLike, predicted: ArrayLike, num_classes: int) -> ClassMetrics:
    """Counts the images, predictions and correct predictions of every class.

    Args:
        truth: true classes.
        predicted: predicted classes.
        num_classes: int.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 1 or truth.shape != predicted.shape or not len(truth):
        raise ValueError(
            f"truth {truth.shape} and predicted {predicted.shape}: expected two arrays of the same "
            "shape (n,) with at least one image."
        )
    for name, array in (("truth", truth), ("predicted", predicted)):
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} of type {array.dtype}: expected integers.")
        if array.min() < 0 or array.max() >= num_classes:
            raise ValueError(
                f"{name} from {array.min()} to {array.max()}: expected 0 to {num_classes - 1}."
            )
    return ClassMetrics(
        *(np.bincount(array, minlength=num_classes) for array in (truth, predicted)),
        correct=np.bincount(truth[truth == predicted], minlength=num_classes),
    )


def _ratio(numerators, denominators):
    """Numerators / denominators, NaN where the denominator is 0."""
    return np.divide(
        numerators, denominators, out=np.full(len(numerators), np.nan), where=denominators > 0
    )
