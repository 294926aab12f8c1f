"""Score: a teacher labels the unlabelled images, clean and without noise."""

import numpy as np

from nsk.progress import Progress
from nsk.pseudo.scores import from_predictions, write_scores


def score(shard_set, predictions, folder, title="scoring"):
    """Writes one score file for each image shard, row for row.

    Args:
        shard_set: the unlabelled `ShardSet`.
        predictions: iterator over `predict.Predictions` of its images, in file order and in batches
            of any size: images are decoded ahead while a file is written.
        folder: where the score files go, named as the shards.

    Returns:
        dict: `scored`, the number of images.
    """
    progress = Progress(title, shard_set.num_records)
    done, ids, rows = 0, [], []
    for name, count in zip(shard_set.names, shard_set.counts, strict=True):
        while len(ids) < count:
            batch = next(predictions, None)
            if batch is None:
                raise ValueError(f"{done + len(ids)} predictions of {shard_set.num_records} images")
            ids += batch.ids
            rows.append(batch.log_probabilities)
        whole = np.concatenate(rows)
        write_scores(folder / score_file(name), from_predictions(ids[:count], whole[:count]))
        ids, rows = ids[count:], [whole[count:]]
        done += count
        progress.update(done)
    if ids or next(predictions, None) is not None:
        raise ValueError(f"more predictions than {shard_set.num_records} images")
    progress.close()
    return {"scored": done}


def score_file(shard_name):
    """Name of the score file of an image shard."""
    return shard_name.removesuffix(".tfrecord") + ".parquet"
