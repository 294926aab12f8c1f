"""Predictions of a saved model for the images of a shard set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from nsk.data import pipeline
from nsk.data.image_subset import ShardSubset
from nsk.data.label_noise import LabelNoise
from nsk.data.shards import ShardSet
from nsk.evaluation.predictor import Predictions, Predictor
from nsk.models.features import with_features
from nsk.models.label_noise import prepare_for_noise
from nsk.models.model_files import load_model

PredictShards = Callable[[ShardSet | ShardSubset, Sequence[int] | None], Iterator[Predictions]]


def load_predictor(
    path: Path,
    batch_size: int,
    strategy: tf.distribute.Strategy | None,
    views: str,
    jit_compile: str = "auto",
    resize_mode: str = "crop",
    label_noise: LabelNoise | None = None,
    noisy_network: Mapping[str, Any] | None = None,
) -> PredictShards:
    """Loads a model to predict the images of shards.

    Args:
        path: a `.keras` file.
        batch_size: number of images in a batch, see `Predictor`.
        strategy: distributes the predictions over replicas; None: the current strategy.
        views: "image" or "mirror", see `Predictor`.
        jit_compile: auto | on | off, see `Predictor`.
        resize_mode: that the model was trained with, see `nsk.data.decoding.decode_image`.
        label_noise: noise on the images, with which the noise inside the network is on; its
            features are then not predicted. None: no noise.
        noisy_network: arguments of `models.build_model` of the same network with the rates of the
            noise inside it; None: those of the model.

    Returns:
        Function of a `ShardSet`, or a part of it, and the indices of some of its shards (None: all)
        that yields the model's `Predictions` of their images, with their features if these are
        known, batch by batch and in order.

    Raises:
        UserError: the model cannot be loaded.
    """
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model = load_model(path)
        feature_model = None if label_noise else with_features(model)
    if label_noise:
        prepare_for_noise(model, noisy_network)
    predict = Predictor(model, batch_size, strategy, views, jit_compile, feature_model)

    def predict_shards(shard_set, shards=None):
        image_size = model.input_shape[1]
        batches = pipeline.clean_batches(
            shard_set,
            image_size,
            batch_size,
            shards,
            resize_mode=resize_mode,
            label_noise=label_noise,
        )
        with shard_set.naming_broken_shards():
            yield from predict(batches)

    return predict_shards
