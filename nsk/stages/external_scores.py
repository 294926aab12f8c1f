"""Scores of an external teacher, stored in records: their import, and a check of their classes."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from nsk.data import records
from nsk.data.image_subset import ImageSubset
from nsk.data.shards import ShardSet
from nsk.errors import UserError, list_names
from nsk.evaluation.agreement import agreement_p_value, expected_correct, find_renaming
from nsk.evaluation.prediction_files import (
    count_rows,
    make_stored_predictions,
    read_table,
    write_predictions,
)
from nsk.evaluation.shard_predictor import PredictShards
from nsk.stages.score_files import DEV_FILE, UNLABELED_FOLDER, score_paths

P_VALUE = 1e-3  # Of an agreement that is not by chance.


def import_external_scores(
    unlabeled: ShardSet, folder: Path, *, top_k: int = 0, subset: ImageSubset | None = None
) -> dict[str, int | None]:
    """Writes score files of an external teacher's probabilities, stored in the records.

    The external teacher's predictions of dev are not known: dev's file has no rows.

    Args:
        unlabeled: the unlabelled images.
        folder: where the score files are written, as by `score_shards`.
        top_k: number of classes with a stored log-probability, the most probable ones; 0: all.
        subset: the images whose scores are written; None: all.

    Returns:
        dict of `scored`, the number of images, and `temperature`, which is None.

    Raises:
        UserError: a record has no probabilities.
    """
    (folder / UNLABELED_FOLDER).mkdir(exist_ok=True)
    num_scored = 0
    for shard, path in enumerate(score_paths(unlabeled, folder)):
        try:
            ids, log_probabilities = records.parse_external_log_probabilities(
                unlabeled.records(shard), unlabeled.num_classes
            )
        except ValueError as error:
            raise UserError(
                f"--first_scores=records: {error}: expected the probabilities of "
                f"{unlabeled.num_classes} classes with every unlabelled image."
            ) from None
        if subset is not None:
            is_used = subset.contains(ids)
            ids = list(itertools.compress(ids, is_used))
            log_probabilities = log_probabilities[is_used]
        confidences = np.exp(log_probabilities.max(axis=1)).clip(0.0, 1.0)
        predictions = make_stored_predictions(ids, log_probabilities, top_k, confidences)
        write_predictions(path, predictions)
        num_scored += len(ids)
    no_images = np.empty((0, unlabeled.num_classes), np.float32)
    dev = make_stored_predictions([], no_images, 0, np.empty(0, np.float32))
    write_predictions(folder / DEV_FILE, dev, np.empty(0, np.int32))
    return {"scored": num_scored, "temperature": None}


def check_classes(
    predict: PredictShards, unlabeled: ShardSet, dev: ShardSet, paths: Sequence[Path]
) -> None:
    """Compares an external teacher with the run's own on a shard of unlabelled images.

    It is the first one with scores.

    Nothing can be compared if the run's own teacher is at chance level on dev: a warning says so.

    Args:
        predict: predictions of the run's own teacher.
        unlabeled: the unlabelled images.
        dev: the dev images.
        paths: files with the scores of the external teacher, in the order of the shards.

    Raises:
        UserError: the external teacher has its classes in another order, or other classes.
    """
    names = unlabeled.class_names
    shard = next((shard for shard, path in enumerate(paths) if count_rows(path)), None)
    if shard is None:
        return
    _, predicted, truth = _predictions(predict, dev, range(len(dev.names)))
    if agreement_p_value(truth, predicted) > P_VALUE:
        logging.warning(
            "--first_scores=records: the teacher trained here is at chance level on dev, so it is "
            "not known whether the records' classes are in the same order."
        )
        return
    ids, predicted, _ = _predictions(predict, unlabeled, [shard])
    table = read_table(paths[shard], ["id", "label"])
    external = table["label"].to_numpy()
    predicted = predicted[np.isin(ids, table["id"].to_numpy(zero_copy_only=False))]
    agree = (
        "The predictions in the records and those of the teacher trained here agree for "
        f"{np.mean(predicted == external):.1%} of the images "
        f"({expected_correct(predicted, external) / len(external):.1%} by chance)"
    )
    renamed = find_renaming(predicted, external)
    if renamed:
        own_first = sorted((own, other) for other, own in renamed.items())
        moved = [f"{names[own]} as {names[other]}" for own, other in own_first]
        raise UserError(
            f"--first_scores=records: the records' classes are in another order. {agree}, and they "
            f"name {list_names(moved)}: give records whose classes are in the order "
            f"{list_names(list(names))}, or --class_names in the order of the records."
        )
    if agreement_p_value(predicted, external) > P_VALUE:
        raise UserError(
            f"--first_scores=records: {agree}, as by chance, so the records' classes are not "
            f"{list_names(list(names))}: give records with predictions of these classes."
        )
    logging.info("%s.", agree)


def _predictions(predict, shard_set, shards):
    """(ids, predicted classes, labels) of images, arrays (n,)."""
    batches = list(predict(shard_set, list(shards)))
    predicted = [batch.log_probabilities.argmax(axis=1) for batch in batches]
    ids = np.concatenate([batch.ids for batch in batches])
    return ids, np.concatenate(predicted), np.concatenate([batch.labels for batch in batches])
