"""What an evaluation suite is, and what it is given."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import tensorflow as tf

from nsk.evaluation.predictor import Predictor

SPLITS = ("dev", "test")
Metrics = dict[str, float | int | None]


@dataclasses.dataclass(frozen=True)
class SplitImages:
    """The labelled images of a split.

    Attributes:
        split: "dev" or "test".
        batches: dataset of dicts `id` string (n,), `label` int64 (n,) and `image` uint8 (n, height,
            width, 3): every image once. It may be iterated several times, and mapped.
    """

    split: str
    batches: tf.data.Dataset


@dataclasses.dataclass(frozen=True)
class Suite:
    """An evaluation of a model.

    Attributes:
        evaluate: function of (predictor, images, folder) that returns {metric: value}; None as a
            value: not defined for these images. `predictor(batches)` yields predictions and
            `predictor.model` is the Keras model. Files for later analysis may be written into the
            folder, under names that hold the suite's and the split's.
        table: dict from the metrics that the closing table shows to their formats (".2%", ".3f").
        splits: the splits to evaluate.
        version: raised when the suite's results change, so that models are evaluated again.
    """

    evaluate: Callable[[Predictor, SplitImages, Path], Metrics]
    table: Mapping[str, str] = dataclasses.field(default_factory=dict)
    splits: tuple[str, ...] = SPLITS
    version: int = 1
