"""Score: a teacher labels the unlabelled images, clean and without noise."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np

from nsk.data import records
from nsk.errors import UserError
from nsk.evaluation.prediction_files import from_predictions, write_scores
from nsk.progress import Progress
from nsk.pseudo import calibration
from nsk.pseudo.engine import LOCAL
from nsk.store.files import first_written

UNLABELED = "unlabeled"
DEV = "dev.parquet"
TEMPERATURE = "temperature.json"


def score(
    unlabeled,
    dev,
    make_predict,
    folder,
    *,
    top_k=0,
    worker=0,
    num_workers=1,
    title="scoring",
    engine=LOCAL,
):
    """Writes one score file for each shard of unlabelled images, row for row, and one for dev.

    Files that are there already are whole, and are kept: so a scoring that was stopped goes on, and
    several workers share one folder, each with every `num_workers`-th shard.

    Args:
        unlabeled, dev: `ShardSet`s.
        make_predict: function without arguments that loads a model and returns a function of (a
            shard set, a list of its shards' indices) that yields `predict.Predictions` of these
            shards' images, in order and none of two shards.
        folder: where `unlabeled/NUMBER.parquet`, named as the shards, and `dev.parquet` go.
        top_k: int, hold the log-probabilities of the most probable so many classes; 0: all.
        worker, num_workers: ints, which share of the shards is scored.
        title: name of the work on the progress line.
        engine: where the shards are scored; see `nsk.pseudo.engine`.

    Returns:
        dict: `scored`, the number of images, and `temperature`, the one that fits dev best; None
            where other workers' shards are not there yet.
    """
    (folder / UNLABELED).mkdir(exist_ok=True)
    predict = make_predict()
    temperature = _score_dev(dev, predict, folder, top_k)
    paths = score_paths(unlabeled, folder)
    missing = [
        shard for shard in range(worker, len(paths), num_workers) if not paths[shard].exists()
    ]
    if engine is LOCAL:  # In this process it is loaded already.
        make_predict = lambda: predict  # noqa: E731
    scorer = Scorer(make_predict, unlabeled, folder, top_k, temperature, title)
    engine.each(missing, scorer.load)
    if not all(path.exists() for path in paths):
        return None
    return {"scored": unlabeled.num_records, "temperature": temperature}


def adopt(unlabeled, folder, *, top_k=0):
    """Writes the score files of what a teacher elsewhere has said, which the images' records hold.

    Arguments and result are those of `score`; of dev nothing is known: `temperature` is None, and
    dev's file has no rows.

    Raises:
        UserError: a record says nothing.
    """
    (folder / UNLABELED).mkdir(exist_ok=True)
    for shard, path in enumerate(score_paths(unlabeled, folder)):
        try:
            parsed = records.parse_log_probabilities(
                unlabeled.records(shard), unlabeled.num_classes
            )
        except ValueError as error:
            raise UserError(
                f"--first_scores=records: {error}: expected those of {unlabeled.num_classes} "
                "classes with every unlabelled image."
            ) from None
        ids, log_probabilities = parsed
        confidences = np.exp(log_probabilities.max(axis=1)).clip(0.0, 1.0)
        write_scores(path, from_predictions(ids, log_probabilities, top_k, confidences))
    nothing = np.empty((0, unlabeled.num_classes), np.float32)
    dev = from_predictions([], nothing, 0, np.empty(0, np.float32))
    write_scores(folder / DEV, dev, np.empty(0, np.int32))
    return {"scored": unlabeled.num_records, "temperature": None}


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores shards; the attributes are those of `score`, and the temperature of dev."""

    make_predict: object
    unlabeled: object
    folder: Path
    top_k: int
    temperature: float
    title: str

    def load(self):
        """A function that scores a list of shards."""
        return functools.partial(self._score, self.make_predict())

    def _score(self, predict, shards):
        counts = [self.unlabeled.counts[shard] for shard in shards]
        paths = score_paths(self.unlabeled, self.folder)
        progress = Progress(self.title, sum(counts))
        predictions, done = predict(self.unlabeled, shards), 0
        for shard, count in zip(shards, counts, strict=True):
            ids, log_probabilities = _next_shard(predictions, count, self.unlabeled.names[shard])
            calibrated = calibration.calibrated_confidences(log_probabilities, self.temperature)
            scores = from_predictions(ids, log_probabilities, self.top_k, calibrated)
            write_scores(paths[shard], scores)
            done += count
            progress.update(done)
        if next(predictions, None) is not None:
            raise ValueError(f"more predictions than {done} images")
        progress.close()


def _score_dev(dev, predict, folder, top_k):
    """Scores dev as the unlabelled images are scored; returns the temperature that fits it best.

    The first process decides on it for all, those that go on later included: another machine may
    round differently.
    """
    parts = list(predict(dev, range(len(dev.names))))
    log_probabilities = np.concatenate([part.log_probabilities for part in parts])
    truth = np.concatenate([part.labels for part in parts])
    fitted = calibration.fit_temperature(log_probabilities, truth)
    temperature = json.loads(first_written(folder / TEMPERATURE, json.dumps(fitted).encode()))
    calibrated = calibration.calibrated_confidences(log_probabilities, temperature)
    ids = [one for part in parts for one in part.ids]
    scores = from_predictions(ids, log_probabilities, top_k, calibrated)
    write_scores(folder / DEV, scores, truth)
    return temperature


def _next_shard(predictions, count, name):
    """(ids, log-probabilities float32 (count, classes)) of the next `count` images."""
    ids, rows = [], []
    while len(ids) < count:
        batch = next(predictions, None)
        if batch is None or len(ids) + len(batch.ids) > count:
            received = len(ids) + (0 if batch is None else len(batch.ids))
            raise ValueError(f"{received} predictions of {count} images in {name}")
        ids += batch.ids
        rows.append(batch.log_probabilities)
    return ids, np.concatenate(rows)


def score_paths(unlabeled, folder):
    """Paths of the score files of a shard set, in its order."""
    return [folder / UNLABELED / score_file(name) for name in unlabeled.names]


def score_file(shard_name):
    """Name of the score file of an image shard."""
    return shard_name.removesuffix(".tfrecord") + ".parquet"
