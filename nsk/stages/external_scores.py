"""Checks that the classes of an external teacher, whose scores records hold, are those of a run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from nsk.data.shards import ShardSet
from nsk.errors import UserError, list_names
from nsk.evaluation.agreement import agreement_p_value, expected_correct, find_renaming
from nsk.evaluation.prediction_files import count_rows, read_table
from nsk.evaluation.shard_predictor import PredictShards

P_VALUE = 1e-3  # Of an agreement that is not by chance.


def check_classes(
    predict: PredictShards, unlabeled: ShardSet, dev: ShardSet, score_paths: Sequence[Path]
) -> None:
    """Compares an external teacher with the run's own on a shard of unlabelled images.

    It is the first one with scores.

    Nothing can be compared if the run's own teacher is at chance level on dev: a warning says so.

    Args:
        predict: predictions of the run's own teacher.
        unlabeled: the unlabelled images.
        dev: the dev images.
        score_paths: files with the scores of the external teacher, in the order of the shards.

    Raises:
        UserError: the external teacher has its classes in another order, or other classes.
    """
    names = unlabeled.class_names
    shard = next((shard for shard, path in enumerate(score_paths) if count_rows(path)), None)
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
    table = read_table(score_paths[shard], ["id", "label"])
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
