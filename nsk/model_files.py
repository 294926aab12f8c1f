"""Models in files: loaded safely, and made ready to predict."""

import os

import keras
import tensorflow as tf

from nsk import (
    models,  # noqa: F401 -- registers the layers that saved models have.
    stage,
)
from nsk.data import pipeline
from nsk.errors import UserError
from nsk.evaluation.predict import Predictor
from nsk.models import weights


def class_names_of(path):
    """Class names of a model that nsk trained or exported, from beside it; None where unknown."""
    listed = path.with_name("class_names.txt")
    if listed.is_file():
        try:
            return listed.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{listed} cannot be read ({error}): give UTF-8 text.") from None
    if path.with_name(stage.MANIFEST).is_file():
        return stage.load(path.parent).counts.get("class_names")
    return None


def load_model(path):
    """A `.keras` model, safely: nothing in the file is executed.

    Raises:
        UserError: it is missing, damaged, no `.keras` file or no classifier of images.
    """
    if path.suffix != ".keras" or not os.path.isfile(path):
        raise UserError(
            f"{path} is not a .keras file: give the path of a model saved by nsk or Keras."
        )
    try:
        weights.check_archive(path)
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises nearly anything on what it was not made for.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"The model {path} cannot be loaded ({reason}): give another one."
        ) from None
    shapes = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if [len(shape or ()) for shape in shapes] != [4, 2]:
        raise UserError(
            f"The model {path} takes {shapes[0]} and returns {shapes[1]}: expected images (None, "
            "size, size, 3) and logits (None, classes)."
        )
    return model


def load_predictor(path, batch_size, strategy, views, jit_compile="auto"):
    """Loads a model; the other arguments are those of `Predictor`.

    Returns:
        Function of a `ShardSet` and some of its shards' indices (None: all of them) that yields
        the model's `Predictions` of their images, batch by batch.
    """
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        loaded = load_model(path)
    predict = Predictor(loaded, batch_size, strategy, views, jit_compile)

    def predictions(shard_set, shards=None):
        image_size = loaded.input_shape[1]
        batches = pipeline.clean_batches(shard_set, image_size, batch_size, shards)
        with shard_set.naming_broken_shards():
            yield from predict(batches)

    return predictions
