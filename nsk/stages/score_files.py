"""The files of a scoring: one for each shard of unlabelled images, and one for dev."""

from pathlib import Path

from nsk.data.shards import ShardSet

UNLABELED_FOLDER = "unlabeled"
DEV_FILE = "dev.parquet"


def score_paths(unlabeled: ShardSet, folder: Path) -> list[Path]:
    """Paths of the score files of a shard set, in the order of its shards."""
    return [folder / UNLABELED_FOLDER / score_file_name(name) for name in unlabeled.names]


def score_file_name(shard_name: str) -> str:
    """Name of the score file of an image shard."""
    return shard_name.removesuffix(".tfrecord") + ".parquet"
