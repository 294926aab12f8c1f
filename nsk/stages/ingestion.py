"""Ingestion: the images of all sources as shard sets (labeled, unlabeled, dev, test)."""

from absl import logging

from nsk.config.config import Config
from nsk.config.fields import used_values
from nsk.data import ingest, sources
from nsk.errors import UserError
from nsk.stages.runner import StageRunner
from nsk.store.folders import StageFolder


def ingest_images(runner: StageRunner) -> StageFolder:
    """Returns the stage that ingests all images.

    Raises:
        UserError: there are no unlabelled images for students.
    """
    config = runner.config
    data, seed = config.data, config.split_seed
    images = runner.build_or_reuse(
        "data/images", lambda folder: ingest.ingest(data, seed, folder), _settings(config)
    )
    if config.num_students and not images.counts["images"]["unlabeled"]:
        if data.unlabeled_dataset:
            raise UserError(
                f"--unlabeled_dataset={data.unlabeled_dataset} has no images for students to "
                "learn from: give another one."
            )
        raise UserError(
            f"No unlabelled images of --dataset={data.dataset} remain for students: lower "
            "--num_labeled or --labeled_fraction, or give --unlabeled_dataset."
        )
    for line in ingest.describe(images.counts):
        logging.info("%s", line)
    return images


def ingest_test_images(runner: StageRunner) -> StageFolder:
    """Returns the stage that ingests the test images alone, and dev if the settings ask for it.

    They are the same images as those of a run with the same settings.
    """
    config = runner.config
    data, seed = config.data, config.split_seed
    images = runner.build_or_reuse(
        "images", lambda folder: ingest.ingest_for_evaluation(data, seed, folder), _settings(config)
    )
    for line in ingest.describe(images.counts):
        logging.info("%s", line)
    return images


def _settings(config: Config) -> dict:
    """What the images depend on: settings, and the content of the sources."""
    return {
        **used_values([config.data]),
        "split_seed": config.split_seed,
        "content": sources.content(config.data),
    }
