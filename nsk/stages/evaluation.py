"""Evaluation of a model on labelled splits, with the suites of `nsk/evaluation/suites`."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from nsk.config.evaluation import split_list
from nsk.config.fields import used_values
from nsk.data import pipeline
from nsk.data.evaluation_decoding import (
    Crop,
    decode_file,
    decode_uncropped,
    decode_with_crop,
    resize_pixels,
)
from nsk.data.normalization import ALL_BITS
from nsk.data.shards import ShardSet
from nsk.evaluation.predictor import Predictor
from nsk.evaluation.suites import SUITES
from nsk.evaluation.suites.suite import Metrics, SplitImages, Suite
from nsk.models.model_files import load_model
from nsk.stages.ingestion import content_digests
from nsk.stages.runner import MODEL_FILE, StageRunner, resize_mode_of, shard_set
from nsk.store.folders import StageFolder

# Returns a model and the crop of the images that it was made for.
LoadModel = Callable[[], tuple[keras.Model, Crop]]


def evaluate(runner: StageRunner, model: StageFolder, images: StageFolder) -> StageFolder:
    """Returns the stage that evaluates a model: predictions and metrics on clean dev and test.

    Args:
        runner: the runner of stages.
        model: the trained or fine-tuned model.
        images: the ingested images.
    """
    splits = {split: shard_set(images, split) for split in ("dev", "test")}
    run, strategy = runner.config.run, runner.runtime.local_strategy
    return runner.build_or_reuse(
        f"{model.path.parent.name}/evaluation",
        lambda folder: evaluate_model(
            model.path / MODEL_FILE,
            splits,
            folder,
            run.eval_batch_size,
            strategy,
            run.jit_compile,
            resize_mode_of(model),
        ),
        suite_settings("clean"),
        model=model,
        images=images.part("dev", "test"),
    )


def evaluate_model(
    model_path: Path,
    splits: Mapping[str, ShardSet],
    folder: Path,
    batch_size: int,
    strategy: tf.distribute.Strategy | None = None,
    jit_compile: str = "auto",
    resize_mode: str = "crop",
) -> dict[str, Metrics]:
    """Evaluates a model, clean and without noise.

    Args:
        model_path: the `.keras` file.
        splits: dict from "dev" and "test" to their images.
        folder: where `dev.parquet` and `test.parquet` are written.
        batch_size: maximum number of images in a batch.
        strategy: where the model is replicated; None: the default device.
        jit_compile: auto | on | off, see `Predictor`.
        resize_mode: how images become squares, see `nsk.data.decoding.decode_image`.

    Returns:
        dict from each split to its metrics.

    Raises:
        UserError: the model or a shard is damaged, or the predictions are not finite.
    """
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model = load_model(model_path)
    predictor = Predictor(model, batch_size, strategy, jit_compile=jit_compile)
    crop = Crop(model.input_shape[1], rule=resize_mode)
    return _evaluate_splits(SUITES["clean"], predictor, splits, crop, batch_size, folder)


def evaluate_suite(
    runner: StageRunner,
    name: str,
    model: StageFolder,
    images: StageFolder,
    load: LoadModel | None = None,
) -> StageFolder:
    """Returns the stage that evaluates a model with a suite.

    An interrupted evaluation resumes with the first missing condition.

    Args:
        runner: the runner of stages.
        name: of the suite.
        model: the model's stage.
        images: the stage with the images.
        load: loads the model; None: the `.keras` file of its stage.
    """
    suite, run = SUITES[name], runner.config.run
    options = _options(runner, suite, model, images)
    bits = images.counts.get("significant_bits") or model.counts.get("significant_bits")

    def build(folder):
        strategy = runner.runtime.local_strategy
        with strategy.scope():
            network, crop = load() if load else _load_from_stage(model)
        predictor = Predictor(network, run.eval_batch_size, strategy, jit_compile=run.jit_compile)
        sizes = images.counts["images"]
        splits = {split: shard_set(images, split) for split in ("dev", "test") if sizes.get(split)}
        return _evaluate_splits(
            suite, predictor, splits, crop, run.eval_batch_size, folder, bits, **options
        )

    parent = model.path.parent
    is_in_generation = parent != runner.workdir
    return runner.build_or_reuse(
        f"{parent.name}/{name}" if is_in_generation else name,
        build,
        _fingerprint_settings(runner, name, options, model, bits),
        resumes=True,
        model=model,
        images=images.part("dev", "test"),
    )


def evaluate_generations(
    runner: StageRunner, images: StageFolder, models: Mapping[int, StageFolder]
) -> dict[int, dict[str, StageFolder]]:
    """Returns the stages of `--evaluate`'s suites.

    Args:
        runner: the runner of stages.
        images: the ingested images.
        models: stages of the models by the index of their generation.

    Returns:
        dict from the same indices to dicts from suites to their stages.
    """
    suites = split_list(runner.config.evaluation.evaluate)
    return {
        index: {name: evaluate_suite(runner, name, model, images) for name in suites}
        for index, model in models.items()
        if suites
    }


def _evaluate_splits(
    suite, predictor, splits, crop, batch_size, folder, significant_bits=None, **options
):
    """What a suite finds for the shard sets of some splits; a damaged shard is a UserError."""
    images = {
        split: SplitImages(
            split,
            pipeline.clean_batches(
                shards,
                crop.image_size,
                batch_size,
                decode=functools.partial(decode_with_crop, crop=crop),
            ),
            pipeline.encoded_batches(shards, batch_size),
        )
        for split, shards in splits.items()
    }
    functions = _image_functions(crop, significant_bits or ALL_BITS)
    options |= {name: functions[name] for name in suite.settings if name in functions}
    with contextlib.ExitStack() as stack:
        for shards in splits.values():
            stack.enter_context(shards.naming_broken_shards())
        arguments = [suite.options(**options)] if suite.options else []
        return suite.evaluate(predictor, images, folder, *arguments)


def _image_functions(crop: Crop, significant_bits: int) -> dict[str, Callable]:
    """Functions that a suite may have among its options."""
    return {
        "decode": functools.partial(decode_file, crop=crop, significant_bits=significant_bits),
        "decode_uncropped": functools.partial(decode_uncropped, rule=crop.rule),
        # Published frames are cropped already.
        "resize": functools.partial(
            resize_pixels, crop=dataclasses.replace(crop, crop_fraction=1.0)
        ),
    }


def _load_from_stage(model):
    network = load_model(model.path / MODEL_FILE)
    return network, Crop(network.input_shape[1], rule=resize_mode_of(model))


def _options(
    runner: StageRunner, suite: Suite, model: StageFolder, images: StageFolder
) -> dict[str, Any]:
    """The options of a suite by name, without those of `_image_functions`."""
    values = runner.config.evaluation.parsed()
    values["class_names"] = model.counts.get("class_names") or images.counts["class_names"]
    return {name: values[name] for name in suite.settings if name in values}


def _fingerprint_settings(
    runner: StageRunner,
    name: str,
    options: dict,
    model: StageFolder,
    significant_bits: int | None,
) -> dict[str, Any]:
    """What a suite's results depend on, beside the model and the images."""
    suite, used = SUITES[name], used_values([runner.config.evaluation])
    digests = content_digests(runner)
    content = {
        setting: {name: digests.describe(_files(path)) for name, path in _paths(options[setting])}
        for setting in suite.files
        if options[setting]
    }
    settings = {
        setting: used[setting]
        for setting in suite.settings
        if setting in used and setting not in suite.files
    }
    return {
        **suite_settings(name),
        **settings,
        **suite.variant(model.counts["image_size"], options),
        **({"content": content} if content else {}),
        **_settings_of_files(suite, significant_bits),
    }


def _settings_of_files(suite, significant_bits):
    """How a suite decodes image files of its own, as far as it is not as usual."""
    is_used = "decode" in suite.settings and significant_bits not in (None, ALL_BITS)
    return {"significant_bits": significant_bits} if is_used else {}


def _paths(value):
    """(name, path) of a setting's paths: of one, or of a dict of them."""
    named = value.items() if isinstance(value, dict) else [("path", value)]
    return [(name, Path(path)) for name, path in named]


def _files(path: Path) -> dict[str, Path]:
    """What a result depends on: all below a folder; beside an array, that of its labels."""
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file for file in path.rglob("*")}
    files = path.parent.glob("*.npy") if path.suffix == ".npy" else [path]
    return {file.name: file for file in files}


def suite_settings(name: str) -> dict[str, dict[str, int]]:
    """Settings in the fingerprint of every stage of a suite: its version.

    So a changed suite evaluates earlier models again, beside their earlier evaluations.
    """
    return {"suites": {name: SUITES[name].version}}
