"""What an evaluation suite is, and what it is given."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

SPLITS = ("dev", "test")
Metrics = dict[str, float | int | None]


@dataclasses.dataclass(frozen=True)
class SplitImages:
    """The labelled images of a split.

    Attributes:
        split: "dev" or "test".
        batches: dataset of dicts `id` string (n,), `label` int64 (n,) and `image` uint8 (n, height,
            width, 3): every image once. It may be iterated several times, and mapped.
        encoded: the same images as they are stored, `image` string (n,), JPEG or PNG files; None:
            not available.
    """

    split: str
    batches: tf.data.Dataset
    encoded: tf.data.Dataset | None = None


@dataclasses.dataclass(frozen=True)
class _NoOptions:
    """Options of a suite that has none."""


def _no_variant(image_size: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    del image_size, settings
    return {}


@dataclasses.dataclass(frozen=True)
class Suite:
    """An evaluation of a model.

    Attributes:
        evaluate: function of (predictor, splits, folder, options) that returns a dict of JSON
            values: numbers are metrics (None: not defined for these images), everything else is
            data such as curves. `predictor(batches)` yields predictions and `predictor.model` is
            the Keras model; `splits` is a dict from "test" and, if there are dev images, "dev" to
            `SplitImages`. Predictions of every image are written into the folder, a file for each
            condition; files that are there already, left by an interrupted call, are read instead.
        options: dataclass of `evaluate`'s last argument; its fields are settings by name,
            `class_names`, or functions of images that `nsk.stages.evaluation` has. None: `evaluate`
            has no such argument.
        files: the fields that are paths; the result depends on the files there.
        table: dict from the metrics that the closing table shows to their formats (".2%", ".3f").
        splits: the splits that the metrics are of.
        version: raised when the suite's results change, so that models are evaluated again.
        variant: function of the side of the model's images and the suite's settings that returns
            what else the results depend on: how the images are made with some settings alone.
    """

    evaluate: Callable[..., dict[str, Any]]
    options: type | None = None
    files: tuple[str, ...] = ()
    table: Mapping[str, str] = dataclasses.field(default_factory=dict)
    splits: tuple[str, ...] = ("test",)
    version: int = 1
    variant: Callable[[int, Mapping[str, Any]], dict[str, Any]] = _no_variant

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the fields of `options`."""
        return tuple(field.name for field in dataclasses.fields(self.options or _NoOptions))
