"""Comparison of the unlabelled images with dev, before a student is trained on them.

Writes `comparison.json`, the figures, and `suspicious.csv`, the images that are farthest from dev.
"""

import csv
import functools
import json
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from nsk.config.selection import SelectionConfig
from nsk.errors import UserError
from nsk.evaluation.prediction_files import read_schema_names, read_table
from nsk.pseudo import calibration, pool_comparison, pool_report
from nsk.pseudo.engine import LOCAL, Engine
from nsk.stages.runner import StageRunner, shard_set
from nsk.stages.score_files import DEV_FILE, score_paths
from nsk.store.folders import StageFolder

COMPARISON_FILE = "comparison.json"
SUSPICIOUS_FILE = "suspicious.csv"
DISTANCE = "feature_distance"
# Raised when the figures change, so that earlier comparisons are not reused.
VERSION = 1


def compare(
    runner: StageRunner, generation: int, scores: StageFolder, images: StageFolder
) -> StageFolder | None:
    """Compares the unlabelled images with dev, and warns if they are not alike.

    Args:
        runner: the runner of stages.
        generation: number of the student, 1 or more.
        scores: the teacher's scores.
        images: the ingested images.

    Returns:
        The stage; its counts are `pool_comparison.compare`'s. None with `--unknown_classes=off`, if
        the teacher's predictions of dev are unknown, those of an external teacher, or without
        noise beside those of unlabelled images with noise, or if a finished run without it is read.
    """
    section = runner.config.selection.at(generation)
    if section.unknown_classes == "off" or scores.counts["temperature"] is None:
        return None
    if runner.config.scoring.label_with_noise:
        return None
    class_names = images.counts["class_names"]
    name = f"gen{generation}/comparison"
    settings = {
        "version": VERSION,
        "confidence": "calibrated_confidence" if section.calibrate else "confidence",
        "min_confidence": section.min_confidence,
        "target_precision": section.target_precision,
    }
    if section.unknown_classes == "warn" and not runner.can_obtain(name, settings, scores=scores):
        return None  # Of a run without it, which no other stage needs.
    compared = runner.build_or_reuse(
        name,
        lambda folder: compare_files(
            section,
            score_paths(shard_set(images, "unlabeled"), scores.path),
            scores.path / DEV_FILE,
            class_names,
            folder,
            runner.make_engine(folder),
        ),
        settings,
        scores=scores,
    )
    if runner.workers.is_chief:
        _log(compared, class_names, section.unknown_classes)
    return compared


def max_distance(section: SelectionConfig, compared: StageFolder | None) -> float | None:
    """The distance beyond which images are not selected; None: they may be.

    Args:
        section: the section with the values of one generation.
        compared: the comparison with dev; None: there is none.

    Raises:
        UserError: images are to be filtered, and distances are not known.
    """
    if section.unknown_classes != "filter":
        return None
    if compared is None or compared.counts["distance"] is None:
        raise UserError(
            "--unknown_classes=filter needs the features of the teacher, which are unknown for "
            "this network, and 20 dev images: give --unknown_classes=warn or another --teacher."
        )
    return compared.counts["distance"]["limit"]


def _log(compared, class_names, unknown_classes):
    """Logs the figures, as a warning if the images are unlike dev."""
    counts, is_filtered = compared.counts, unknown_classes == "filter"
    figures = pool_report.describe_pool(counts, class_names)
    if not counts["unlike"]:
        logging.info("Unlabelled images, beside dev: %s.", figures)
    else:
        logging.warning("The unlabelled images are not like dev: %s.", figures)
        logging.warning(
            "%s %s/%s lists the images least like dev.",
            pool_report.suggest(counts, class_names, is_filtered),
            compared.name,
            SUSPICIOUS_FILE,
        )
    if is_filtered and counts["distance"] is not None:
        logging.info(
            "--unknown_classes=filter: %s of %s images, %s of them above the threshold, are "
            "farther from dev than 95%% of the dev images and are not selected.",
            f"{counts['distance']['beyond_limit']:,}",
            f"{counts['images']:,}",
            f"{counts['distance']['beyond_limit_above_threshold']:,}",
        )


def compare_files(
    settings: SelectionConfig,
    paths: Sequence[Path],
    dev_path: Path,
    class_names: Sequence[str],
    folder: Path,
    engine: Engine = LOCAL,
) -> dict[str, Any]:
    """Compares score files of unlabelled images with that of dev.

    Args:
        settings: the section with the values of one generation.
        paths: the score files of the unlabelled images.
        dev_path: the score file of dev, with at least one image.
        class_names: names of all classes.
        folder: where the files are written.
        engine: where the score files are read; see `nsk.pseudo.engine`.

    Returns:
        What `pool_comparison.compare` returns, which is also written.
    """
    confidence = "calibrated_confidence" if settings.calibrate else "confidence"
    has_distances = DISTANCE in read_schema_names(dev_path)
    columns = ["label", confidence, *([DISTANCE] if has_distances else [])]
    table = read_table(dev_path, [*columns, "truth"])
    dev, truth = _rows(table, columns), table["truth"].to_numpy()
    # As the selection has them.
    thresholds = calibration.class_thresholds(
        dev.labels,
        dev.confidences,
        truth,
        len(class_names),
        min_confidence=settings.min_confidence,
        target_precision=settings.target_precision,
    ).values
    limit = pool_comparison.distance_limit(dev.distances) if has_distances else np.inf
    read = functools.partial(_read_files, columns, thresholds, limit)
    pool = engine.map_reduce(paths, read)
    found = pool_comparison.compare(dev, truth, pool, thresholds)
    (folder / COMPARISON_FILE).write_text(json.dumps(found, indent=2) + "\n")
    _write_suspicious(folder / SUSPICIOUS_FILE, pool, columns, class_names)
    return found


def _rows(table, columns):
    label, confidence, *distance = (table[name].to_numpy() for name in columns)
    return pool_comparison.Rows(label, confidence, *(distance or [None]))


def _read_files(columns, thresholds, limit, paths):
    """The `pool_comparison.Pool` of score files."""

    def read(path):
        table = read_table(path, ["id", *columns])
        rows = _rows(table, columns)
        counts = pool_comparison.count(rows, thresholds, limit)
        return pool_comparison.Pool.of(counts, np.array(table["id"].to_pylist(), np.str_), rows)

    return functools.reduce(operator.add, map(read, paths))


def _write_suspicious(path, pool, columns, class_names):
    """Writes the images least like dev, the least alike first, with their predicted classes."""
    values = [pool.confidences, pool.distances_of][: len(columns) - 1]
    rows = zip(pool.ids, pool.labels, *values, strict=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", *columns])
        for image_id, label, *numbers in rows:
            writer.writerow([image_id, class_names[label], *(f"{value:.6g}" for value in numbers)])
