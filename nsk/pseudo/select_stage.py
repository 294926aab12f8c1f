"""The selection of one generation as files: the functions of `select` on a folder of score files.

Writes, for each score file, a Parquet file of the same name with `id` and `copies`, row for row;
and under the gap policy `labeled.parquet` with the `id` and `copies` of each labelled image.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from nsk.data import records
from nsk.errors import CannotTeachError
from nsk.pseudo import select
from nsk.pseudo.scores import read_scores, read_table

LABELED = "labeled.parquet"


def select_images(settings, scores_folder, labeled, folder):
    """Filters and balances.

    Args:
        settings: dict of `policy`, `min_confidence`, `seed` and the policy's own settings.
        scores_folder: folder of score files.
        labeled: the labelled `ShardSet`.
        folder: where the selection goes.

    Returns:
        dict: `images` that are kept and their `copies` in all; `per_class`, the
            `select.Statistics`.

    Raises:
        CannotTeachError: the threshold or the policy keeps nothing.
    """
    paths = sorted(scores_folder.glob("*.parquet"))
    scores = read_scores(paths)
    class_names = labeled.class_names
    labeled_ids, labeled_labels = read_labels(labeled)
    selection = select.select(
        keys=scores.keys,
        labels=scores.labels,
        confidences=scores.confidences,
        num_classes=len(class_names),
        labeled_keys=select.stable_keys(labeled_ids),
        labeled_labels=labeled_labels,
        **settings,
    )
    statistics = selection.statistics
    _check_kept(statistics, settings, scores, class_names)
    row = 0
    for path in paths:
        ids = read_table(path, ["id"])["id"]
        _write_copies(folder / path.name, ids, selection.copies[row : row + len(ids)])
        row += len(ids)
    if selection.labeled_copies is not None:
        _write_copies(folder / LABELED, labeled_ids, selection.labeled_copies)
    return {
        "images": sum(statistics.kept),
        "copies": sum(statistics.copies),
        "per_class": dataclasses.asdict(statistics),
    }


def _check_kept(statistics, settings, scores, class_names):
    """CannotTeachError where nothing is kept; a warning that names the starved classes."""
    if not any(statistics.candidates):
        raise CannotTeachError(
            f"--min_confidence={settings['min_confidence']} keeps none of {len(scores):,} images: "
            f"the most confident has {scores.confidences.max():.6g}. Lower it, or train a better "
            "teacher."
        )
    if not any(statistics.kept):
        raise CannotTeachError(
            f"The labelled images leave no room for any of {sum(statistics.candidates):,} "
            f"pseudo-labels: raise --gap_margin={settings['gap_margin']}."
        )
    if statistics.starved:
        names = ", ".join(class_names[index] for index in statistics.starved)
        logging.warning(
            "No image is labelled %s with a confidence of %s or more: students see %s only with "
            "true labels.",
            names,
            settings["min_confidence"],
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


def read_copies(path):
    """`ids` (list of strings) and `copies` (int32 array) of one file of a selection."""
    table = read_table(path)
    return table["id"].to_pylist(), table["copies"].to_numpy()


def _write_copies(path, ids, copies):
    columns = {"id": pa.array(ids, pa.string()), "copies": pa.array(np.asarray(copies), pa.int32())}
    pq.write_table(pa.table(columns), path, compression="zstd")
