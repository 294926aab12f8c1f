"""Ingestion: the images of all sources as shard sets (labeled, unlabeled, dev, test)."""

import functools
from collections.abc import Sequence

from absl import logging

from nsk.config.data import PATHS
from nsk.config.fields import used_values
from nsk.data import deep_images, ingest, pools, sources
from nsk.data.class_names import read_class_descriptions
from nsk.data.content import ContentDigests
from nsk.errors import UserError
from nsk.stages.runner import StageRunner
from nsk.store.folders import StageFolder


def ingest_images(runner: StageRunner, logs_summary: bool = True) -> StageFolder:
    """Returns the stage that ingests all images.

    Args:
        runner: the runner of stages.
        logs_summary: whether the lines of `describe_images` are logged.

    Raises:
        UserError: there are no unlabelled images for students.
    """
    config, data = runner.config, runner.config.data
    images = _build(runner, "data/images", ingest.ingest, data, check=pools.check_counts)
    if config.needs_unlabeled and not images.counts["images"]["unlabeled"]:
        if data.unlabeled_dataset:
            raise UserError(
                f"--unlabeled_dataset={data.unlabeled_dataset} has no images for students to "
                "learn from: give another one."
            )
        raise UserError(
            f"No unlabelled images of --dataset={data.dataset} remain for students: lower "
            "--num_labeled or --labeled_fraction, or give --unlabeled_dataset."
        )
    _report(runner, images, logs_summary)
    return images


def describe_images(runner: StageRunner, images: StageFolder) -> list[str]:
    """Lines of text on the ingested images: the splits, and everything that was left out."""
    return ingest.describe(images.counts, read_class_descriptions(runner.config.data))


def _log_lines(lines):
    for line in lines:
        logging.info("%s", line)


def ingest_test_images(
    runner: StageRunner,
    significant_bits: int | None = None,
    model_classes: Sequence[str] | None = None,
) -> StageFolder:
    """Returns the stage that ingests the test images alone, and dev if the settings ask for it.

    They are the same images as those of a run with the same settings. If `--test_dataset` is given,
    but neither `--dataset` nor dev, only that is read, and its classes are those of the model.

    Args:
        runner: the runner of stages.
        significant_bits: of 16-bit images, those that a model was trained on, unless
            `--significant_bits` is given; None: found from the images.
        model_classes: names of the model's classes; None: not known.
    """
    data = runner.config.data
    if significant_bits and not data.significant_bits:
        data = data.with_values(significant_bits=significant_bits)
    read, used = ingest.ingest_for_evaluation, {}
    if data.has_test_alone:
        data = data.with_values(dataset="")
        read = functools.partial(read, model_classes=model_classes)
        used["model_classes"] = model_classes
    images = _build(runner, "images", read, data, **used)
    _report(runner, images)
    return images


def _report(runner, images, logs_summary=True):
    """Logs what was ingested, or what is to be warned of alone."""
    counts = images.counts
    if logs_summary:
        _log_lines(describe_images(runner, images))
    if line := ingest.unsupported_warning(counts):
        logging.warning("%s", line)
    if counts["deep_images"]:
        line = deep_images.warning(counts["deep_images"], counts["significant_bits"])
        if line:
            logging.warning("%s", line)


def _build(runner, name, ingest_into, data, check=None, **used):
    """The stage that a function of settings, seed and folder ingests images into.

    `check` is called with the settings and sources before any image is read; `used` are other
    values that the images depend on.
    """
    config, digests = runner.config, content_digests(runner)
    opened = sources.open_sources(data)
    # At first: all that follows reads the images, which may take long.
    _log_lines(f"--{flag}: {note}" for flag, source in opened.items() for note in source.notes)
    if check is not None:
        check(data, opened)
    content = sources.content(data, digests, opened)

    def build(folder):
        counts = ingest_into(data, config.split_seed, folder)
        found = sources.content(data, digests)
        for flag, source in content.items():
            if found[flag] != source:
                raise UserError(
                    f"The files of --{flag}={getattr(data, flag)} changed while they were "
                    "read: run again when nothing writes to them."
                )
        return counts

    settings = used_values([data])
    located = {name: value for name, value in settings.items() if name not in PATHS}
    return runner.build_or_reuse(
        name, build, {**located, **used, "split_seed": config.split_seed, "content": content}
    )


def content_digests(runner: StageRunner) -> ContentDigests:
    """What describes input files; it remembers them in the workdir."""
    return ContentDigests(runner.workdir / "content.json")
