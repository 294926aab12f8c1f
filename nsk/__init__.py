"""nsk: Noisy Student self-training with TensorFlow and Keras."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

__version__ = "0.1.0"


def load_model(path: str | os.PathLike) -> "keras.Model":
    """Loads a network that was trained or exported here, or by Keras.

    Args:
        path: a `.keras` file.

    Returns:
        keras.Model from float32 pixels in [0, 255], shape (n, size, size, 3), to logits (n,
        classes). A model from elsewhere is returned as it is: it may expect other pixels, and
        return probabilities.

    Raises:
        nsk.errors.UserError: the file is missing, damaged or no image classifier.
    """
    from pathlib import Path

    from nsk.models import model_files

    return model_files.load_model(Path(path))
