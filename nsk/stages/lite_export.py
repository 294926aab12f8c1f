"""Export for LiteRT (TensorFlow Lite): a model for phones and small devices.

The signature of `model.tflite` takes `images`, float32 (1, size, size, 3), values in [0, 255], and
returns `probabilities`, float32 (1, classes).
"""

import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from nsk.data.native_output import captured_stderr
from nsk.errors import UserError
from nsk.store.files import atomic_write

LITE_FILE = "model.tflite"
TOLERANCE = 1e-4


def write_lite_model(model: keras.Model, images: np.ndarray, path: Path) -> float:
    """Writes a model for LiteRT, and compares it with the Keras model.

    Args:
        model: from float32 pixels in [0, 255], shape (n, size, size, 3), to logits.
        images: uint8 (n, size, size, 3), images to compare the probabilities of.
        path: the file.

    Returns:
        The largest difference of probabilities.

    Raises:
        UserError: the model cannot be converted, or the probabilities differ by more than 1e-4.
    """
    side = model.input_shape[1]

    def classify(images):
        logits = tf.cast(model(images, training=False), tf.float32)
        return {"probabilities": tf.nn.softmax(logits)}

    # Shapes are fixed, since LiteRT has no convolution of images of an unknown size.
    specification = tf.TensorSpec([1, side, side, 3], tf.float32, name="images")
    with tempfile.TemporaryDirectory() as folder:
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serving_default", classify, [specification])
        archive.write_out(folder, verbose=False)
        try:
            content = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
        except Exception as error:  # The converter raises errors of its own.
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"--export_formats=tflite: {model.name} cannot be converted ({reason}): leave "
                "tflite out."
            ) from error
    with captured_stderr():  # Where the interpreter prints which delegate it has created.
        difference = _largest_difference(content, classify, images)
    if not difference <= TOLERANCE:  # NaN is not.
        raise UserError(
            f"--export_formats=tflite: the converted {model.name} has probabilities that differ "
            f"by {difference:.2g} from those of the Keras model, allowed are {TOLERANCE}: leave "
            "tflite out, and report it."
        )
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content)
    return difference


def _largest_difference(content, classify, images):
    with warnings.catch_warnings():
        # The interpreter has moved to a package of its own, which only runs models.
        warnings.simplefilter("ignore")
        run = tf.lite.Interpreter(model_content=content).get_signature_runner()
    largest = 0.0
    for image in images:
        pixels = image[np.newaxis].astype(np.float32)
        expected = classify(pixels)["probabilities"].numpy()
        difference = np.abs(run(images=pixels)["probabilities"] - expected)
        largest = np.maximum(largest, difference.max())  # NaN if one of them is.
    return float(largest)
