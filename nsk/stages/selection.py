"""The selection of one generation as files: the functions of `select` on a folder of score files.

Writes, for each score file, a Parquet file of the same name with the column `copies`, row for row;
and under the gap policy `labeled.parquet` with the `id` and `copies` of each labelled image.
"""

import dataclasses
import functools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from nsk.data import records
from nsk.errors import CannotTeachError
from nsk.evaluation.prediction_files import read_table
from nsk.pseudo import calibration
from nsk.pseudo import policies as select
from nsk.pseudo.engine import LOCAL
from nsk.pseudo.radix_selection import stable_keys
from nsk.pseudo.score_rows import read_rows, scan, write_copies

LABELED = "labeled.parquet"


def select_images(settings, paths, dev_path, labeled, folder, engine=LOCAL):
    """Filters and balances.

    Args:
        settings: dict of `min_confidence`, `calibrate`, `target_precision`, `policy`, `seed` and
            the policy's own settings; see `select.select`.
        paths: the score files.
        dev_path: the scores of dev.
        labeled: the labelled `ShardSet`.
        folder: where the selection goes.
        engine: where the files are read and written; see `nsk.pseudo.engine`.

    Returns:
        dict: `images` that are kept and their `copies` in all; `per_class`, the
            `select.Statistics` and, of dev images that the thresholds keep, `dev_kept` and
            `dev_correct`; `dev_before_cut` and `dev_before_cut_correct`, of those that are as
            confident as the least confident image that the policy keeps.

    Raises:
        CannotTeachError: the threshold or the policy keeps nothing.
    """
    settings = dict(settings)
    confidence = "calibrated_confidence" if settings.pop("calibrate") else "confidence"
    least, target = settings.pop("min_confidence"), settings.pop("target_precision")
    dev = read_table(dev_path, ["label", confidence, "truth"])
    dev = [dev[name].to_numpy() for name in ("label", confidence, "truth")]
    thresholds = make_thresholds(*dev, labeled.class_names, least, target)

    labeled_ids, labeled_labels = read_labels(labeled)
    selection = select.select(
        functools.partial(scan, engine, paths, confidence),
        thresholds=thresholds,
        labeled_counts=np.bincount(labeled_labels, minlength=labeled.num_classes),
        **settings,
    )
    statistics = selection.statistics
    _check_kept(statistics, settings, paths, confidence, labeled.class_names)
    write_copies(engine, selection, paths, confidence, folder)
    if selection.labeled_sizes is not None:
        copies = selection.labeled_copies(stable_keys(labeled_ids), labeled_labels)
        columns = {"id": pa.array(labeled_ids, pa.string()), "copies": copies}
        pq.write_table(pa.table(columns), folder / LABELED, compression="zstd")
    dev_kept, dev_correct = calibration.precision_by_class(*dev, thresholds)
    cuts = cut_thresholds(statistics)
    dev_before_cut, dev_before_cut_correct = calibration.precision_by_class(*dev, cuts)
    return {
        "images": sum(statistics.kept),
        "copies": sum(statistics.copies),
        "per_class": {
            **dataclasses.asdict(statistics),
            "dev_kept": dev_kept.tolist(),
            "dev_correct": dev_correct.tolist(),
            "dev_before_cut": dev_before_cut.tolist(),
            "dev_before_cut_correct": dev_before_cut_correct.tolist(),
        },
    }


def cut_thresholds(statistics):
    """The confidence that an image needs to be kept by filter and policy: float32 (num_classes,).

    It is the class's threshold where all of its candidates are kept.
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


def make_thresholds(labels, confidences, truth, class_names, min_confidence, target_precision):
    """The confidence that each class's images need: float32 array of shape (num_classes,).

    Args:
        labels, confidences, truth: arrays of shape (n,): what the teacher says of dev, and the true
            labels.
        class_names: sequence of strings.
        min_confidence: float, for all classes.
        target_precision: float; above 0, dev decides for each class; see
            `calibration.precision_thresholds`.
    """
    if not target_precision:
        return np.full(len(class_names), min_confidence, np.float32)
    found = calibration.precision_thresholds(
        labels, confidences, truth, len(class_names), target_precision, min_confidence
    )
    needed = calibration.MIN_DEV_IMAGES
    for classes, reason in (
        (
            found.few,
            f"fewer than {needed} dev images are given their label with --min_confidence, so they "
            "take the threshold of all classes together",
        ),
        (
            found.missed,
            f"no threshold that keeps {needed} dev images reaches it, so they take the one that "
            "comes closest, or that of all classes together where it is higher",
        ),
    ):
        if classes:
            logging.warning(
                "--target_precision=%s: of the classes %s, %s.",
                target_precision,
                ", ".join(f"{class_names[one]} ({found.values[one]:.4g})" for one in classes),
                reason,
            )
    if (found.few or found.missed) and not found.reached_by_all:
        logging.warning(
            "--target_precision=%s: all classes together do not reach it on %d dev images or more, "
            "either.",
            target_precision,
            needed,
        )
    return found.values


def _check_kept(statistics, settings, paths, confidence, class_names):
    """CannotTeachError where nothing is kept; a warning that names the starved classes."""
    if not any(statistics.candidates):
        highest = max(read_rows([path], confidence).confidences.max(initial=0) for path in paths)
        raise CannotTeachError(
            f"No image has the confidence that its class needs, at least "
            f"{min(statistics.thresholds):.6g}; the most confident has {highest:.6g}. Lower "
            "--min_confidence or --target_precision, or train a better teacher."
        )
    if not any(statistics.kept):
        raise CannotTeachError(
            f"The labelled images leave no room for any of {sum(statistics.candidates):,} "
            f"pseudo-labels: raise --gap_margin={settings['margin']}."
        )
    if statistics.starved:
        logging.warning(
            "No image is labelled %s with the confidence that it needs: students see %s only with "
            "true labels.",
            ", ".join(
                f"{class_names[index]} ({statistics.thresholds[index]:.4g})"
                for index in statistics.starved
            ),
            "it" if len(statistics.starved) == 1 else "them",
        )


def read_labels(labeled):
    """Ids (list of strings) and labels (int32 array) of a labelled `ShardSet`."""
    ids, labels = [], []
    with labeled.naming_broken_shards():
        for batch in labeled.read().batch(1024).map(records.parse_images).as_numpy_iterator():
            ids += [one.decode() for one in batch["id"]]
            labels.append(batch["label"].astype(np.int32))
    return ids, np.concatenate(labels)


def read_labeled_copies(folder):
    """{id: copies in an epoch} of the labelled images, from a selection; {}: one each."""
    if not (folder / LABELED).exists():
        return {}
    table = read_table(folder / LABELED)
    return dict(zip(table["id"].to_pylist(), table["copies"].to_pylist(), strict=True))
