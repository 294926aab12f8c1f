"""Selection: which unlabelled images a student sees, and how often.

Writes, for each score file, a Parquet file of the same name with the column `copies`, row for
row; `classes.csv` with a row for each class; and under the gap policy `labeled.parquet` with the
`id` and `copies` of each labelled image.
"""

import csv
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from nsk.config.fields import used_values
from nsk.config.selection import SelectionConfig
from nsk.data import records
from nsk.data.shards import ShardSet
from nsk.errors import GenerationFailedError, list_names
from nsk.evaluation.prediction_files import read_table
from nsk.hashing import stable_keys
from nsk.pseudo import calibration
from nsk.pseudo.engine import LOCAL, Engine
from nsk.pseudo.policies import Statistics, apply_policy
from nsk.pseudo.score_rows import ScoreColumns, read_scored_images, scan, write_copies
from nsk.stages import comparison
from nsk.stages.runner import StageRunner, shard_set
from nsk.stages.score_files import DEV_FILE, score_paths
from nsk.store.folders import StageFolder

LABELED_FILE = "labeled.parquet"
CLASSES_FILE = "classes.csv"


def select(
    runner: StageRunner,
    generation: int,
    scores: StageFolder,
    images: StageFolder,
    compared: StageFolder | None = None,
) -> StageFolder:
    """Returns the stage that selects the unlabelled images that a student sees.

    Args:
        runner: the runner of stages.
        generation: number of the student, 1 or more.
        scores: the teacher's scores.
        images: the ingested images.
        compared: the pool's comparison with dev; None: there is none.
    """
    section, seed = runner.config.selection.at(generation), runner.config.run.seed
    unlabeled, labeled = (shard_set(images, split) for split in ("unlabeled", "labeled"))
    max_distance = comparison.max_distance(section, compared)
    return runner.build_or_reuse(
        f"gen{generation}/selection",
        lambda folder: select_images(
            section,
            seed,
            score_paths(unlabeled, scores.path),
            scores.path / DEV_FILE,
            labeled,
            folder,
            runner.make_engine(folder),
            max_distance=max_distance,
        ),
        {"seed": seed, "max_distance": max_distance, **used_values([section])},
        scores=scores,
        images=images.part("labeled"),
    )


def select_images(
    settings: SelectionConfig,
    seed: int,
    paths: Sequence[Path],
    dev_path: Path,
    labeled: ShardSet,
    folder: Path,
    engine: Engine = LOCAL,
    *,
    max_distance: float | None = None,
) -> dict[str, Any]:
    """Filters and balances the pseudo-labelled images.

    Args:
        settings: the section with the values of one generation.
        seed: of the order among equal confidences.
        paths: the score files of the unlabelled images.
        dev_path: the score file of dev.
        labeled: the labelled images.
        folder: where the selection is written.
        engine: where the files are read and written; see `nsk.pseudo.engine`.
        max_distance: images farther from dev in features are not selected; None: all may be.

    Returns:
        dict of `images`, the number selected, their `copies`, and `per_class`: the
        `policies.Statistics`; `dev_kept` and `dev_correct`, dev images at the thresholds or above;
        `dev_before_cut` and `dev_before_cut_correct`, those at least as confident as the least
        confident image selected.

    Raises:
        GenerationFailedError: nothing is selected.
    """
    confidence = "calibrated_confidence" if settings.calibrate else "confidence"
    dev_table = read_table(dev_path, ["label", confidence, "truth"])
    dev = [dev_table[name].to_numpy() for name in ("label", confidence, "truth")]
    thresholds = make_thresholds(
        *dev, labeled.class_names, settings.min_confidence, settings.target_precision
    )

    columns = ScoreColumns(confidence, max_distance)
    labeled_ids, labeled_labels = read_labels(labeled)
    labeled_counts = np.bincount(labeled_labels, minlength=labeled.num_classes)
    selection = apply_policy(
        functools.partial(scan, engine, paths, columns),
        settings.policy,
        thresholds=thresholds,
        seed=seed,
        labeled_counts=labeled_counts,
        **_policy_settings(settings),
    )
    statistics = selection.statistics
    if not any(statistics.candidates):
        raise _no_candidates_error(statistics, paths, columns)
    if not any(statistics.kept):
        raise _nothing_kept_error(settings, statistics)
    _write_classes(folder / CLASSES_FILE, labeled.class_names, labeled_counts, statistics)
    write_copies(engine, selection, paths, columns, folder)
    if selection.labeled_rows is not None:
        copies = selection.labeled_copies(stable_keys(labeled_ids), labeled_labels)
        columns = {"id": pa.array(labeled_ids, pa.string()), "copies": copies}
        pq.write_table(pa.table(columns), folder / LABELED_FILE, compression="zstd")
    return {
        "images": sum(statistics.kept),
        "copies": sum(statistics.copies),
        "per_class": {**dataclasses.asdict(statistics), **_dev_counts(dev, statistics, thresholds)},
    }


def _dev_counts(dev, statistics, thresholds):
    """The dev images of each class that a selection would keep, and the correct ones of them."""
    kept, correct = calibration.count_correct(*dev, thresholds)
    before_cut, before_cut_correct = calibration.count_correct(*dev, cut_thresholds(statistics))
    return {
        "dev_kept": kept.tolist(),
        "dev_correct": correct.tolist(),
        "dev_before_cut": before_cut.tolist(),
        "dev_before_cut_correct": before_cut_correct.tolist(),
    }


def _policy_settings(settings):
    """Keyword arguments of the policy, see `policies.apply_policy`."""
    return {
        "paper": {"images_per_class": settings.images_per_class},
        "labeled_shares": {"images_per_class": settings.images_per_class},
        "gap": {"floor": settings.gap_floor, "margin": settings.gap_margin},
        "none": {},
    }[settings.policy]


def cut_thresholds(statistics: Statistics) -> np.ndarray:
    """Minimum confidence to be selected by filter and policy: float32 array (num_classes,).

    The class's threshold if all of its candidates are selected; infinite if none is.
    """
    classes = zip(
        statistics.thresholds,
        statistics.candidates,
        statistics.kept,
        statistics.lowest_confidence,
        strict=True,
    )
    return np.float32(
        [
            threshold if kept == candidates else np.inf if lowest is None else lowest
            for threshold, candidates, kept, lowest in classes
        ]
    )


def make_thresholds(
    labels: np.ndarray,
    confidences: np.ndarray,
    truth: np.ndarray,
    class_names: Sequence[str],
    min_confidence: float,
    target_precision: float,
) -> np.ndarray:
    """Minimum confidence of each class: float32 array of shape (num_classes,).

    Args:
        labels: int array of shape (n,), the teacher's top-1 classes on dev.
        confidences: float32 array of shape (n,), their probabilities.
        truth: int array of shape (n,), the true labels.
        class_names: names of all classes.
        min_confidence: lower bound for all classes.
        target_precision: above 0, dev decides for each class; see `calibration.class_thresholds`.
    """
    thresholds = calibration.class_thresholds(
        labels,
        confidences,
        truth,
        len(class_names),
        min_confidence=min_confidence,
        target_precision=target_precision,
    )
    _warn_of_missed_precision(thresholds, class_names, target_precision)
    return thresholds.values


def _warn_of_missed_precision(thresholds, class_names, target_precision):
    """Warns of the classes whose precision on dev is unknown or below the target."""
    min_images = calibration.MIN_DEV_IMAGES
    for classes, reason in (
        (
            thresholds.with_few_images,
            f"fewer than {min_images} dev images get their label with --min_confidence: the "
            "threshold of all classes together is used",
        ),
        (
            thresholds.below_target,
            f"no threshold that keeps {min_images} dev images reaches it: the threshold of the "
            "highest precision is used, or that of all classes together if it is higher",
        ),
    ):
        if classes:
            logging.warning(
                "--target_precision=%s: for the classes %s, %s.",
                target_precision,
                name_classes(classes, class_names, thresholds.values),
                reason,
            )
    if (thresholds.with_few_images or thresholds.below_target) and not thresholds.reached_overall:
        logging.warning(
            "--target_precision=%s: all classes together do not reach it on %d dev images or more, "
            "either.",
            target_precision,
            min_images,
        )


def _no_candidates_error(statistics, paths, columns):
    confidences = (read_scored_images([path], columns).confidences for path in paths)
    highest = max(array.max(initial=0) for array in confidences)
    subject = "No image" if columns.max_distance is None else "No image of a known class"
    return GenerationFailedError(
        f"{subject} reaches the minimum confidence of its class, at least "
        f"{min(statistics.thresholds):.6g}; the highest confidence is {highest:.6g}. Lower "
        "--min_confidence or --target_precision, or train a better teacher."
    )


def _nothing_kept_error(settings, statistics):
    """Why a policy keeps none of the candidates."""
    number = f"{sum(statistics.candidates):,}"
    if settings.policy == "labeled_shares":
        return GenerationFailedError(
            f"--policy=labeled_shares: none of {number} pseudo-labels is of a class with labelled "
            "images: give --policy=paper or a labelled image of every class."
        )
    return GenerationFailedError(
        f"The labelled images leave no room for any of {number} pseudo-labels: raise "
        f"--gap_margin={settings.gap_margin}."
    )


def _write_classes(path, class_names, labeled_counts, statistics):
    """Writes a row for each class: its labelled images, and what is selected of its candidates."""
    columns = {
        "class": class_names,
        "labeled": labeled_counts.tolist(),
        "threshold": [f"{threshold:.6g}" for threshold in statistics.thresholds],
        "candidates": statistics.candidates,
        "kept": statistics.kept,
        "copies": statistics.copies,
        "lowest_confidence": [
            "" if lowest is None else f"{lowest:.6g}" for lowest in statistics.lowest_confidence
        ],
    }
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def name_classes(
    classes: Sequence[int], class_names: Sequence[str], thresholds: Sequence[float]
) -> str:
    """The first ten classes with their thresholds, as `cat (0.9), dog (0.85)`, and a count."""
    return list_names([f"{class_names[label]} ({thresholds[label]:.4g})" for label in classes])


def read_labels(labeled: ShardSet) -> tuple[list[str], np.ndarray]:
    """Reads the ids (n strings) and labels (int32 array (n,)) of labelled images."""
    ids, labels = [], []
    with labeled.naming_broken_shards():
        for batch in labeled.read().batch(1024).map(records.parse_images).as_numpy_iterator():
            ids += [image_id.decode() for image_id in batch["id"]]
            labels.append(batch["label"].astype(np.int32))
    return ids, np.concatenate(labels)


def read_labeled_copies(folder: Path) -> Mapping[str, int]:
    """{id: copies in an epoch} of the labelled images of a selection; empty: each once."""
    if not (folder / LABELED_FILE).exists():
        return {}
    table = read_table(folder / LABELED_FILE)
    return dict(zip(table["id"].to_pylist(), table["copies"].to_pylist(), strict=True))
