"""Evaluation of a model on labelled splits, with every suite of `nsk/evaluation/suites`."""

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from nsk.data import pipeline
from nsk.data.shards import ShardSet
from nsk.evaluation.predictor import Predictor
from nsk.evaluation.suites import SUITES, run_suites
from nsk.evaluation.suites.suite import Metrics, SplitImages
from nsk.models.model_files import load_model
from nsk.stages.runner import MODEL_FILE, StageRunner, shard_set
from nsk.store.folders import StageFolder


def evaluate(runner: StageRunner, model: StageFolder, images: StageFolder) -> StageFolder:
    """Returns the stage that evaluates a model: predictions and metrics on dev and test.

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
            model.path / MODEL_FILE, splits, folder, run.eval_batch_size, strategy, run.jit_compile
        ),
        suite_settings(),
        model=model,
        images=images,
    )


def evaluate_model(
    model_path: Path,
    splits: Mapping[str, ShardSet],
    folder: Path,
    batch_size: int,
    strategy: tf.distribute.Strategy | None = None,
    jit_compile: str = "auto",
) -> dict[str, Metrics]:
    """Evaluates a model, clean and without noise.

    Args:
        model_path: the `.keras` file.
        splits: dict from "dev" and "test" to their images.
        folder: where the suites write their files, `dev.parquet` and `test.parquet` among them.
        batch_size: maximum number of images in a batch.
        strategy: where the model is replicated; None: the default device.
        jit_compile: auto | on | off, see `Predictor`.

    Returns:
        dict from each split to its metrics.

    Raises:
        UserError: the model or a shard is damaged, or the predictions are not finite.
    """
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model = load_model(model_path)
    predictor = Predictor(model, batch_size, strategy, jit_compile=jit_compile)
    metrics = {}
    for split, shards in splits.items():
        batches = pipeline.clean_batches(shards, model.input_shape[1], batch_size)
        with shards.naming_broken_shards():
            metrics[split] = run_suites(predictor, SplitImages(split, batches), folder)
    return metrics


def suite_settings() -> dict[str, dict[str, int]]:
    """Settings in the fingerprint of the stage: the versions of all suites.

    So a new or changed suite evaluates earlier models again, beside their earlier evaluations.
    """
    return {"suites": {name: suite.version for name, suite in SUITES.items()}}
