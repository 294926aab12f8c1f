"""Adoption: a model that was trained elsewhere, as the teacher or to be evaluated."""

import dataclasses
import os
import shutil

import keras
from absl import logging

from nsk.config.config import Config
from nsk.config.evaluation import EvaluationConfig
from nsk.data.class_names import normalize_name
from nsk.data.evaluation_decoding import Crop, default_crop
from nsk.data.normalization import ALL_BITS
from nsk.errors import UserError
from nsk.models import named_weights, weights
from nsk.models.classifier import Classifier, load_classifier
from nsk.models.model_files import load_model, read_decoding
from nsk.stages.evaluation import LoadModel
from nsk.stages.runner import MODEL_FILE, StageRunner
from nsk.stages.training import save_model, trainable_parameters
from nsk.store.folders import StageFolder


def adopt_teacher(runner: StageRunner, images: StageFolder) -> StageFolder:
    """Returns the stage that saves the model of `--teacher` in the workdir."""
    config, class_names = runner.config, images.counts["class_names"]
    known = read_decoding(weights.weight_files(config.teacher_path)[0])
    # The teacher sees images as in its own training, whatever its students will see.
    resize_mode = known.resize_mode or config.chain.training_resize_mode
    bits = _bits_of_teacher(config.chain.teacher, known.significant_bits, images)

    def build(folder):
        model = load_teacher(config)
        if config.chain.has_whole_teacher:
            shutil.copyfile(config.teacher_path, folder / MODEL_FILE)
        else:
            save_model(model, folder / MODEL_FILE)
        return {
            "model": model.name,
            "parameters": trainable_parameters(model),
            "image_size": model.input_shape[1],
            "resize_mode": resize_mode,
            "significant_bits": bits,
            "class_names": class_names,
        }

    settings = {
        "sha256": weights.sha256(config.teacher_path),
        "class_names": class_names,
        "resize_mode": resize_mode,
    }
    if not config.chain.has_whole_teacher:
        settings |= {"network": config.model_name(0), "image_size": config.chain.image_size.at(0)}
    if bits not in (None, ALL_BITS):  # As in `Hyperparameters.for_fingerprint`.
        settings["significant_bits"] = bits
    return runner.build_or_reuse("gen0/teacher", build, settings)


def _bits_of_teacher(teacher: str, known: int | None, images: StageFolder) -> int | None:
    """Bits of the 16-bit images that a teacher was trained on, or else of the run's own."""
    found = images.counts.get("significant_bits")
    if known and found and known != found:
        logging.warning(
            "--teacher=%s was trained on 16-bit images that use %d bits, but those of this run use "
            "%d, so they look darker or brighter to it: give --significant_bits=%d if %s is white "
            "in them, too.",
            teacher,
            known,
            found,
            known,
            f"{2**known - 1:,}",
        )
    return known or found


def load_teacher(config: Config) -> keras.Model:
    """Loads the model of `--teacher`: a whole one, or published weights of the first of `--models`.

    Raises:
        UserError: it cannot be loaded.
    """
    path = config.teacher_path
    if config.chain.has_whole_teacher:
        return load_model(path)
    return named_weights.load(config.model_name(0), path, config.chain.image_size.at(0)).model


def load_any_model(runner: StageRunner) -> tuple[Classifier, Crop]:
    """Loads the model of `--model`, in the scope of the local strategy.

    Returns:
        The model, and the crop that it was made for, with the settings that were given.

    Raises:
        UserError: the model cannot be loaded.
    """
    settings = runner.config.evaluation
    with runner.runtime.local_strategy.scope():
        classifier = load_classifier(
            os.path.expanduser(settings.model),
            os.path.expanduser(settings.weights),
            image_size=runner.config.chain.image_size.at(0),
            pixels=settings.pixels,
        )
    return classifier, _crop(classifier, settings, runner.config.chain.resize_mode)


def adopt_any_model(
    runner: StageRunner, images: StageFolder, classifier: Classifier, crop: Crop
) -> tuple[StageFolder, LoadModel]:
    """Returns the stage that describes the model of `--model`, and a function that returns it.

    Args:
        runner: the runner of stages.
        images: the stage with the images.
        classifier: the model.
        crop: of the images, see `load_any_model`.

    Raises:
        UserError: the model is of other classes than the images.
    """
    settings, names = runner.config.evaluation, images.counts["class_names"]
    _check_classes(classifier, names, settings.model)
    described = {
        "sha256": classifier.sha256,
        "crop": dataclasses.asdict(crop),
        "class_names": classifier.class_names or names,
        "significant_bits": classifier.decoding.significant_bits,
    }
    stage = runner.build_or_reuse(
        "model",
        lambda folder: {
            "name": classifier.name,
            "image_size": classifier.image_size,
            "num_classes": classifier.num_classes,
            **described,
        },
        {**described, "pixels": settings.pixels},
    )
    return stage, lambda: (classifier.model, crop)


def _crop(classifier: Classifier, settings: EvaluationConfig, resize_mode: str) -> Crop:
    """The crop that the model was made for, with the settings that were given.

    With a `resize_mode` of auto that is the mode of the model's training.
    """
    trained_with = classifier.decoding.resize_mode
    if resize_mode == "auto":
        resize_mode = trained_with or "crop"
    elif trained_with not in (None, resize_mode):
        logging.warning(
            "--resize_mode=%s: %s was trained with --resize_mode=%s, and its accuracy is that of "
            "other images than it was trained for.",
            resize_mode,
            settings.model,
            trained_with,
        )
    crop = default_crop(
        settings.model,
        classifier.weights_format,
        image_size=classifier.image_size,
        num_classes=classifier.num_classes,
    )
    if resize_mode != "crop":
        crop = dataclasses.replace(crop, crop_fraction=1.0, antialias=True, rule=resize_mode)
    if settings.crop_fraction:
        crop = dataclasses.replace(crop, crop_fraction=settings.crop_fraction)
    if settings.interpolation != "auto":
        crop = dataclasses.replace(crop, interpolation=settings.interpolation)
    return crop


def _check_classes(classifier, names, model):
    """UserError if the classes of the model are others than the images', or in another order."""
    if classifier.num_classes != len(names):
        raise UserError(
            f"The model {model} has {classifier.num_classes} classes: expected {len(names)}, as "
            "the images have. Give a model or images of the same classes."
        )
    for index, (found, expected) in enumerate(
        zip(classifier.class_names or names, names, strict=True)
    ):
        if normalize_name(found) != normalize_name(expected):
            raise UserError(
                f"--model={model}: its class {index} is {found!r}, but that of the images is "
                f"{expected!r}: give images whose classes have the same names, in the same order."
            )
