"""Predicts the classes of images with any model, into a CSV or Parquet file."""

import functools
import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from nsk.commands.preparation import NO_TRAINING, prepare
from nsk.config.config import Config
from nsk.errors import UserError, list_counts, list_names, printable
from nsk.progress import Progress
from nsk.store.disk_errors import naming_disk_errors


def execute(values: Mapping[str, Any]) -> dict[str, int] | None:
    """Predicts the images of `--images` with the model of `--model`.

    Args:
        values: values of settings by name.

    Returns:
        dict of the numbers `images`, `errors` and `abstained`; None for all workers but the chief.

    Raises:
        UserError: settings or the model do not allow it, or there are no images.
    """
    output = Path(values.get("output") or "").expanduser()
    workdir = str(output.parent) if values.get("output") else ""
    runner = prepare({**values, **NO_TRAINING, "workdir": workdir}, _check)
    from nsk.report.prediction_table import check_suffix
    from nsk.stages import adoption

    check_suffix(output)
    paths = find_images(runner.config)
    classifier, crop = adoption.load_any_model(runner)
    if not runner.workers.is_chief:
        return None
    return _predict(runner, classifier, crop, paths, output)


def _check(config: Config):
    """UserError if a setting is missing."""
    if not config.evaluation.model:
        raise UserError(
            "--model is not given: give the path of a .keras file or SavedModel, or the name of a "
            "network and its --weights."
        )
    if not config.evaluation.output:
        raise UserError("--output is not given: name a file, as --output=predictions.csv.")
    if not config.command.images:
        raise UserError(
            "--images is not given: name a folder, file, pattern, or a list or table of paths."
        )


def find_images(config: Config) -> list[str]:
    """Paths of the images that `--images` names, in order.

    Raises:
        UserError: there are none.
    """
    given = config.command.images
    path = os.path.expanduser(given)
    if os.path.isdir(path):
        found = _list_folder(path)
    elif path.lower().endswith((".csv", ".tsv", ".txt", ".parquet")) and os.path.isfile(path):
        from nsk.data.sources.label_table import read_paths

        folder = os.path.dirname(path)
        paths = read_paths(Path(path), config.data.path_column, "images")
        found = [_relative_to(folder, name) for name in paths]
    else:
        found = [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))
        found = [name for name in found if not os.path.isdir(name)]
    if not found:
        raise UserError(
            f"--images={given} has no images: give a folder of images, a pattern of their paths, "
            "or a CSV file with their paths."
        )
    return found


def _list_folder(path: str) -> list[str]:
    """Paths of the images below a folder, also of formats that are not read; the rest is logged."""
    from nsk.data.image_folders import count_suffixes, list_files

    files = list_files(path)
    for kind, counts in (
        ("files that are not images", count_suffixes(set(files.others) - files.unsupported.keys())),
        ("hidden files or files of an operating system", files.litter),
    ):
        if counts:
            total = f"{sum(counts.values()):,}"
            logging.info("Not read: %s %s: %s.", total, kind, list_counts(counts))
    return sorted([*files.images, *files.unsupported])


def _relative_to(folder: str, path: str) -> str:
    """A path of a table: relative to the current folder, or else to that of the table.

    It may have backslashes between folders. A path without a file stays as it is.
    """
    expanded = os.path.expanduser(path)
    for separated in (expanded, expanded.replace("\\", "/")):
        for found in (separated, os.path.join(folder, separated)):
            if path and os.path.exists(found):
                return found
    return expanded


def _predict(runner, classifier, crop, paths, output):
    from nsk.data.decoded_files import decode_in_batches
    from nsk.data.evaluation_decoding import decode_with_crop
    from nsk.data.normalization import ALL_BITS
    from nsk.evaluation.predictor import Predictor
    from nsk.report.prediction_table import PredictionRows, open_table

    config, strategy = runner.config, runner.runtime.local_strategy
    run, data = config.run, config.data
    predictor = Predictor(
        classifier.model, run.eval_batch_size, strategy, jit_compile=run.jit_compile
    )
    if classifier.temperature is None:
        logging.info(
            "The model has no temperature, which a run fits on dev: probabilities are not "
            "calibrated."
        )
    names = _class_names(config, classifier)
    rows = PredictionRows(names, classifier.temperature, config.command.abstain_below)
    progress, counts = Progress("predict", len(paths)), {"images": len(paths)}
    decode = functools.partial(decode_with_crop, crop=crop)
    bits = data.significant_bits or classifier.decoding.significant_bits or ALL_BITS
    limits = (data.max_image_bytes, data.max_image_pixels, bits)
    with naming_disk_errors(output.parent), open_table(output, rows.schema) as table:
        for batch in decode_in_batches(paths, decode, predictor.batch_size, *limits):
            images = batch.images
            predicted = predictor.log_probabilities(images) if len(images) else ()
            read = paths[batch.first : batch.first + len(batch.errors)]
            columns = rows.columns(list(map(printable, read)), batch.errors, predicted)
            table.write(columns)
            for count, values in (("errors", batch.errors), ("abstained", columns["abstained"])):
                counts[count] = counts.get(count, 0) + sum(map(bool, values))
            progress.update(batch.first + len(batch.errors))
    progress.close()
    _log_result(counts, rows, output)
    return counts


def _class_names(config, classifier):
    """Names of the model's classes: of a given file, of the model, or else their numbers."""
    if not config.data.class_names:
        return classifier.class_names or [str(index) for index in range(classifier.num_classes)]
    from nsk.data.class_names import read_class_names

    names = read_class_names(Path(config.data.class_names).expanduser())
    if len(names) != classifier.num_classes:
        raise UserError(
            f"--class_names={config.data.class_names} has {len(names)} names: the model has "
            f"{classifier.num_classes} classes."
        )
    return names


def _log_result(counts, rows, output):
    broken = f", of which {counts['errors']:,} cannot be read" if counts["errors"] else ""
    named = f": {list_names(rows.broken)}" if rows.broken else ""
    abstained = f"; {counts['abstained']:,} without a label" if counts["abstained"] else ""
    images = f"{counts['images']:,} images"
    logging.info("%s: %s%s%s%s.", output, images, broken, named, abstained)
