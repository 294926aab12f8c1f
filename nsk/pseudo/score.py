"""Score: a teacher labels the unlabelled images, clean and without noise."""

from nsk.progress import Progress
from nsk.pseudo.scores import from_predictions, write_scores


def score(shard_set, load_shard, predict, folder, title="scoring"):
    """Writes one score file for each image shard, row for row.

    Args:
        shard_set: the unlabelled `ShardSet`.
        load_shard: function of a shard's number that returns its decoded `pipeline.Images`.
        predict: function of uint8 images (n, height, width, 3) that returns float32
            log-probabilities (n, classes).
        folder: where the score files go, named as the shards.

    Returns:
        dict: `scored`, the number of images.
    """
    progress = Progress(title, shard_set.num_records)
    done = 0
    for number, name in enumerate(shard_set.names):
        images = load_shard(number)
        write_scores(
            folder / score_file(name), from_predictions(images.ids, predict(images.images))
        )
        done += len(images)
        progress.update(done)
    progress.close()
    return {"scored": done}


def score_file(shard_name):
    """Name of the score file of an image shard."""
    return shard_name.removesuffix(".tfrecord") + ".parquet"
