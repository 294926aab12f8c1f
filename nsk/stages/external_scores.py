"""Checks that the classes of an external teacher, whose scores records hold, are those of a run."""

from pathlib import Path

import numpy as np
from absl import logging

from nsk.data.shards import ShardSet
from nsk.errors import UserError, list_names
from nsk.evaluation.prediction_files import read_table
from nsk.evaluation.shard_predictor import PredictShards
from nsk.pseudo.class_order import ClassAgreement, compare_classes


def check_classes(
    predict: PredictShards, unlabeled: ShardSet, dev: ShardSet, score_path: Path
) -> None:
    """Compares an external teacher with the run's own on the first shard of unlabelled images.

    Nothing can be compared if the run's own teacher is at chance level on dev: a warning says so.

    Args:
        predict: predictions of the run's own teacher.
        unlabeled: the unlabelled images.
        dev: the dev images.
        score_path: file with the scores of the external teacher for the first shard.

    Raises:
        UserError: the external teacher has its classes in another order, or other classes.
    """
    names = unlabeled.class_names
    predicted, truth = _predictions(predict, dev, range(len(dev.names)))
    on_dev = compare_classes(predicted, truth, len(names))
    if on_dev.is_by_chance:
        logging.warning(
            "--first_scores=records: the teacher trained here is at chance level on dev, so it is "
            "not known whether the records' classes are in the same order."
        )
        return
    predicted, _ = _predictions(predict, unlabeled, [0])
    external = read_table(score_path, ["label"])["label"].to_numpy()
    found = compare_classes(predicted, external, len(names))
    moved = [f"{names[own]} as {names[other]}" for own, other in found.moved]
    if moved:
        raise UserError(
            f"--first_scores=records: the records' classes are in another order. {_agree(found)}, "
            f"and they name {list_names(moved)}: give records whose classes are in the order "
            f"{list_names(list(names))}, or --first_label."
        )
    if found.is_by_chance:
        raise UserError(
            f"--first_scores=records: {_agree(found)}, as by chance, so the records' classes are "
            f"not {list_names(list(names))}: give records with predictions of these classes."
        )
    logging.info("%s.", _agree(found))


def _predictions(predict, shard_set, shards):
    """Predicted classes and labels of images, int arrays (n,)."""
    batches = list(predict(shard_set, list(shards)))
    predicted = [batch.log_probabilities.argmax(axis=1) for batch in batches]
    return np.concatenate(predicted), np.concatenate([batch.labels for batch in batches])


def _agree(found: ClassAgreement) -> str:
    return (
        f"The predictions in the records and those of the teacher trained here agree for "
        f"{found.agreement:.1%} of the images ({found.chance:.1%} by chance)"
    )
