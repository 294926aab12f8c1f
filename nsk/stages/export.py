"""Export: a model as `.keras`, and as a SavedModel that needs neither keras nor nsk.

    model.keras
    decoding.json          resize_mode and significant_bits, see `export_model`
    class_names.txt        one name per line, in the order of the probabilities
    calibration.json       temperature of calibrated probabilities, fitted on dev
    model.tflite           for LiteRT, with --export_formats=saved_model,tflite
    saved_model/
        serving_default    encoded: string (n,), JPEG, PNG, GIF or BMP files of any size
        pixels             images: float32 (n, size, size, 3), values in [0, 255]

Images are decoded as ingestion and training together do: EXIF rotation, transparency on white,
16-bit PNGs by the bits that those of the data set used, `--resize_mode`.

Both signatures return `class_names`: string (n,), the top-1 classes; `probabilities`: float32
(n, classes); and `labels`: string (n, classes), the name of each column of `probabilities`.
`serving_default` returns `is_readable`, too: bool (n,); a file that cannot be decoded has the class
name "" and probabilities 0, and the others are classified.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from nsk.data import pipeline
from nsk.data.evaluation_decoding import Crop, decode_with_crop
from nsk.data.normalization import ALL_BITS
from nsk.data.upright_decoding import decode_readable
from nsk.evaluation.calibration import fit_temperature
from nsk.evaluation.prediction_files import read_predictions, read_table
from nsk.models.model_files import CALIBRATION, DECODING, load_model
from nsk.stages.lite_export import LITE_FILE, write_lite_model
from nsk.stages.runner import MODEL_FILE, StageRunner, resize_mode_of, shard_set
from nsk.stages.score_files import DEV_FILE
from nsk.store.folders import StageFolder
from nsk.store.manifest import write_json

COMPARED_IMAGES = 32
# Raised when the files of an export change. 2: the temperature has a prior.
VERSION = 2


def export(
    runner: StageRunner, model: StageFolder, images: StageFolder, evaluation: StageFolder
) -> StageFolder:
    """Returns the stage that exports the best model.

    Args:
        runner: the runner of stages.
        model: the model.
        images: the ingested images.
        evaluation: the model's predictions of dev, which give the temperature.
    """
    class_names = images.counts["class_names"]
    bits = model.counts.get("significant_bits") or images.counts.get("significant_bits")
    formats = runner.config.run.export_formats.split(",")
    if model.counts.get("members"):
        logging.info(
            "The best generation is an ensemble: it is exported as one model, %d times as large "
            "and slow as one of its networks.",
            model.counts["members"],
        )

    def build(folder):
        network = load_model(model.path / MODEL_FILE)
        counts = export_model(network, class_names, folder, resize_mode_of(model), bits)
        if "tflite" in formats:
            counts["tflite_difference"] = write_lite_model(
                network, _dev_images(images, network, resize_mode_of(model)), folder / LITE_FILE
            )
        return counts | write_calibration(evaluation.path / DEV_FILE, len(class_names), folder)

    return runner.build_or_reuse(
        "export",
        build,
        {"significant_bits": bits, "formats": formats, "version": VERSION},
        model=model,
        evaluation=evaluation.part(DEV_FILE),
    )


def _dev_images(images, network, resize_mode):
    """The first dev images, uint8 (n, size, size, 3), to compare models on."""
    batches = pipeline.clean_batches(
        shard_set(images, "dev"),
        network.input_shape[1],
        COMPARED_IMAGES,
        decode=functools.partial(
            decode_with_crop, crop=Crop(network.input_shape[1], rule=resize_mode)
        ),
    )
    return next(iter(batches.as_numpy_iterator()))["image"]


def write_calibration(dev_path: Path, num_classes: int, folder: Path) -> dict[str, float]:
    """Writes the temperature of calibrated probabilities.

    Args:
        dev_path: file with the model's predictions of dev.
        num_classes: number of classes.
        folder: where `calibration.json` is written.

    Returns:
        dict of `temperature`.
    """
    truth = read_table(dev_path, ["truth"])["truth"].to_numpy()
    log_probabilities = read_predictions(dev_path).all_log_probabilities(num_classes)
    temperature = fit_temperature(log_probabilities, truth)
    write_json(folder / CALIBRATION, {"temperature": temperature, "dev_images": len(truth)})
    return {"temperature": temperature}


def export_model(
    model: keras.Model,
    class_names: Sequence[str],
    folder: Path,
    resize_mode: str = "crop",
    significant_bits: int | None = None,
) -> dict[str, Any]:
    """Writes a model for use outside of nsk.

    Args:
        model: from float32 pixels in [0, 255], shape (n, size, size, 3), to logits.
        class_names: names of the classes, in the order of the logits.
        folder: where the files are written.
        resize_mode: how encoded images become squares, see `nsk.data.decoding.decode_image`.
        significant_bits: bits that 16-bit PNGs use; None: not known.

    Returns:
        dict of `image_size`, `resize_mode` and `significant_bits`.
    """
    image_size = model.input_shape[1]
    model.save(folder / "model.keras")
    (folder / "class_names.txt").write_text(
        "".join(f"{name}\n" for name in class_names), encoding="utf-8"
    )
    names, crop = tf.constant(class_names), Crop(image_size, rule=resize_mode)

    def classify_pixels(images):
        # An empty batch is padded with a black image, dropped below: on an empty batch, TensorFlow
        # 2.21's convolution on CPU returns a wrong shape.
        count = tf.shape(images)[0]
        padding = tf.cast(tf.equal(count, 0), tf.int32)
        padded = tf.pad(images, [[0, padding], [0, 0], [0, 0], [0, 0]])
        logits = tf.cast(model(padded, training=False), tf.float32)
        probabilities = tf.nn.softmax(logits)[:count]
        return {
            "class_names": tf.gather(names, tf.argmax(probabilities, axis=-1)),
            "probabilities": probabilities,
            "labels": tf.tile(names[tf.newaxis], [count, 1]),
        }

    def classify_encoded(encoded):
        images, is_readable = decode_readable(encoded, crop, significant_bits or ALL_BITS)
        outputs = classify_pixels(tf.cast(images, tf.float32))
        readable_rows = is_readable[:, tf.newaxis]
        return outputs | {
            "class_names": tf.where(is_readable, outputs["class_names"], ""),
            "probabilities": tf.where(readable_rows, outputs["probabilities"], 0.0),
            "is_readable": is_readable,
        }

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default", classify_encoded, [tf.TensorSpec([None], tf.string, name="encoded")]
    )
    pixels = tf.TensorSpec([None, image_size, image_size, 3], tf.float32, name="images")
    archive.add_endpoint("pixels", classify_pixels, [pixels])
    archive.write_out(folder / "saved_model", verbose=False)
    decoding = {"resize_mode": resize_mode, "significant_bits": significant_bits}
    write_json(folder / DECODING, decoding)
    return {"image_size": image_size, **decoding}
