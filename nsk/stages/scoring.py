"""Scoring: a teacher labels the unlabelled images, usually clean and without noise."""

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging

from nsk.config.fields import used_values
from nsk.data.image_subset import ImageSubset
from nsk.data.shards import ShardSet
from nsk.errors import UserError
from nsk.evaluation.calibration import fit_temperature
from nsk.evaluation.feature_distance import (
    choose_references,
    neighbor_distances,
    unit_vectors,
)
from nsk.evaluation.prediction_files import (
    count_rows,
    make_stored_predictions,
    write_predictions,
)
from nsk.evaluation.predictor import Predictions
from nsk.evaluation.shard_predictor import PredictShards, load_predictor
from nsk.progress import Progress
from nsk.pseudo import calibration
from nsk.pseudo.engine import LOCAL, Engine
from nsk.stages import external_scores
from nsk.stages.label_noise import student_noise
from nsk.stages.runner import MODEL_FILE, StageRunner, resize_mode_of, shard_set
from nsk.stages.score_files import DEV_FILE, UNLABELED_FOLDER, score_paths
from nsk.store.files import write_once
from nsk.store.folders import Build, StageFolder

TEMPERATURE_FILE = "temperature.json"
REFERENCES_FILE = "dev_features.npy"
# Raised when the files of a scoring change, so that earlier scores are not reused. 2: they have
# distances in features. 3: the temperature has a prior.
VERSION = 3
# With fewer dev images a distance to the nearest of them says little.
MIN_REFERENCES = 20
# Shards of which the ids are read, and then the images of a subset: the system's file cache still
# holds them.
SHARDS_IN_GROUP = 16


@dataclasses.dataclass(frozen=True)
class ScoringOptions:
    """How the unlabelled images are scored.

    Attributes:
        top_k: number of classes whose log-probabilities are stored, the most probable ones; 0: all.
        title: name of the work in the progress line.
        worker, num_workers: this process scores the shards `worker`, `worker + num_workers`, ...
        subset: the images that are scored; None: all.
    """

    top_k: int = 0
    title: str = "scoring"
    worker: int = 0
    num_workers: int = 1
    subset: ImageSubset | None = None


def score(
    runner: StageRunner, generation: int, teacher: StageFolder, images: StageFolder
) -> StageFolder | None:
    """Returns the stage that scores the unlabelled images, and dev, with a teacher.

    Args:
        runner: the runner of stages.
        generation: number of the student that learns from the scores, 1 or more.
        teacher: the teacher's model.
        images: the ingested images.

    Returns:
        The stage; None if this process is one of several that share the shards, and others have
        not finished theirs.

    Raises:
        UserError: `--unlabeled_fraction` leaves no image.
    """
    scores = _score(runner, generation, teacher, images)
    fraction = runner.config.scoring.unlabeled_fraction
    if scores is not None and fraction < 1:
        used, available = scores.counts["scored"], images.counts["images"]["unlabeled"]
        if not used:
            raise UserError(
                f"--unlabeled_fraction={fraction} of {available:,} unlabelled images is none of "
                "them: raise it."
            )
        logging.info(
            "--unlabeled_fraction=%s: %s of %s unlabelled images are used.",
            fraction,
            f"{used:,}",
            f"{available:,}",
        )
    return scores


def _score(runner, generation, teacher, images):
    """The stage; see `score`."""
    config, name = runner.config, f"gen{generation}/scores"
    unlabeled, dev = (shard_set(images, split) for split in ("unlabeled", "dev"))
    top_k = config.scoring.num_stored_classes(images.counts["num_classes"])
    source = config.scoring.first_scores if generation == 1 else "teacher"
    has_noise = config.scoring.label_with_noise and source == "teacher"
    section = config.scoring.with_values(
        top_k=top_k, first_scores=source, label_with_noise=has_noise
    )
    settings = used_values([section])
    subset = None
    if config.scoring.unlabeled_fraction < 1:
        subset = ImageSubset(config.scoring.unlabeled_fraction, config.split_seed)
        settings["unlabeled_seed"] = subset.seed
    command, load_predict = config.command, make_load_predict(runner, teacher)
    load_noisy_predict = None
    if has_noise:
        settings["noise"], options = student_noise(runner, generation, teacher, images, name)
        load_noisy_predict = functools.partial(load_predict, **options)
    if source == "records":

        def build_from_records(folder):
            counts = external_scores.import_external_scores(
                unlabeled, folder, top_k=top_k, subset=subset
            )
            paths = score_paths(unlabeled, folder)
            external_scores.check_classes(load_predict(), unlabeled, dev, paths)
            return counts

        inputs = {"images": images.part("unlabeled")}
        return runner.build_or_reuse(name, build_from_records, settings, **inputs)

    settings["version"] = VERSION

    def build(folder, worker=command.shard_index, num_workers=command.num_shard_workers):
        options = ScoringOptions(top_k, name, worker, num_workers, subset)
        engine = runner.make_engine(folder)
        return score_shards(
            unlabeled, dev, load_predict, folder, options, engine, load_noisy_predict
        )

    build_all, join = share_build(runner, build)
    return runner.build_or_reuse(
        name,
        build_all,
        settings,
        join=join,
        resumes=True,
        worker=command.shard_index,
        num_workers=command.num_shard_workers,
        teacher=teacher,
        images=images.part("unlabeled", "dev"),
    )


def make_load_predict(runner: StageRunner, teacher: StageFolder) -> Callable[[], PredictShards]:
    """Function without arguments that loads a teacher to label images, see `PredictShards`."""
    config = runner.config
    return functools.partial(
        load_predictor,
        teacher.path / MODEL_FILE,
        config.run.eval_batch_size,
        # A strategy belongs to this process; Beam distributes the work by itself.
        runner.runtime.local_strategy if config.run.engine == "local" else None,
        config.scoring.score_views,
        config.run.jit_compile,
        resize_mode_of(teacher),
    )


def share_build(
    runner: StageRunner, build: Callable[..., dict | None]
) -> tuple[Build, Build | None]:
    """Divides work on shards among the workers of a run; Beam distributes it by itself.

    Args:
        runner: the runner of stages.
        build: function of a folder, the worker's index and the number of workers that does the
            worker's share and returns the stage's counts, or None if shards are missing; of a
            folder alone, it does all that is missing.

    Returns:
        `build` and `join` of `StageRunner.build_or_reuse`.
    """
    workers = runner.workers
    if runner.config.run.engine != "local" or workers.count == 1:
        return build, None

    def build_share(folder):
        """Every worker does a share; then the chief does what is missing."""
        with workers.propagate_errors():
            build(folder, workers.index, workers.count)
        return build(folder) if workers.is_chief else None

    return build_share, build_share


def score_shards(
    unlabeled: ShardSet,
    dev: ShardSet,
    load_predict: Callable[[], PredictShards],
    folder: Path,
    options: ScoringOptions = ScoringOptions(),
    engine: Engine = LOCAL,
    load_noisy_predict: Callable[[], PredictShards] | None = None,
) -> dict[str, int | float] | None:
    """Writes a score file for each shard of unlabelled images, row for row, and one for dev.

    With a subset, the rows are those of its images, in their order.

    Beside them it writes the features of dev, to which those of the unlabelled images are compared,
    if the model's features are known.

    Existing files are complete and are kept: a scoring that was stopped resumes, and several
    workers may share a folder.

    Args:
        unlabeled: the unlabelled images.
        dev: the dev images.
        load_predict: function without arguments that loads a model; see `PredictShards`.
        folder: where `unlabeled/NUMBER.parquet`, named as the shards, and `dev.parquet` go.
        options: see `ScoringOptions`.
        engine: where the shards are scored; see `nsk.pseudo.engine`.
        load_noisy_predict: the same of predictions with noise, for the unlabelled images, whose
            features are then not compared; None: they are predicted without noise.

    Returns:
        dict of `scored`, the number of images, and `temperature`, fitted on dev; None if shards of
        other workers are missing.
    """
    (folder / UNLABELED_FOLDER).mkdir(exist_ok=True)
    predict = load_predict()
    temperature = _score_dev(dev, predict, folder, options.top_k)
    paths = score_paths(unlabeled, folder)
    shards = range(options.worker, len(paths), options.num_workers)
    missing = [shard for shard in shards if not paths[shard].exists()]
    if load_noisy_predict:
        load_predict = load_noisy_predict
    elif engine is LOCAL:  # The model is already loaded in this process.
        load_predict = lambda: predict  # noqa: E731
    has_distances = load_noisy_predict is None
    scorer = _ShardScorer(load_predict, unlabeled, folder, options, temperature, has_distances)
    engine.run(missing, scorer.load)
    if not all(path.exists() for path in paths):
        return None
    return {"scored": sum(map(count_rows, paths)), "temperature": temperature}


@dataclasses.dataclass(frozen=True)
class _ShardScorer:
    """Scores shards of unlabelled images; may be sent to another process.

    Attributes:
        load_predict, unlabeled, folder, options: as for `score_shards`.
        temperature: of the calibrated confidences.
        has_distances: whether the features are compared with those of dev, if they are known.
    """

    load_predict: Callable[[], PredictShards]
    unlabeled: ShardSet
    folder: Path
    options: ScoringOptions
    temperature: float
    has_distances: bool

    def load(self):
        """Loads the model and returns a function that scores a list of shards."""
        references = _read_references(self.folder) if self.has_distances else None
        return functools.partial(self._score, self.load_predict(), references)

    def _score(self, predict, references, shards):
        counts, subset = self.unlabeled.counts, self.options.subset
        progress, num_read = Progress(self.options.title, sum(counts[shard] for shard in shards)), 0
        size = len(shards) if subset is None else SHARDS_IN_GROUP
        for first in range(0, len(shards), size):
            group = shards[first : first + size]
            images = self.unlabeled if subset is None else subset.of(self.unlabeled, group)
            batches = predict(images, group)
            for shard in group:
                self._score_shard(shard, batches, images.counts[shard], references)
                num_read += counts[shard]
                progress.update(num_read)
            if next(batches, None) is not None:
                raise ValueError(f"more predictions than images in the shards {group}")
        progress.close()

    def _score_shard(self, shard, batches, count, references):
        """Writes the score file of a shard, with the next `count` predictions of the batches."""
        unlabeled, options = self.unlabeled, self.options
        if count:
            ids, log_probabilities, distances = next_shard(
                batches, references, count, unlabeled.names[shard]
            )
        else:
            ids, log_probabilities = [], np.empty((0, unlabeled.num_classes), np.float32)
            distances = None if references is None else np.empty(0, np.float32)
        calibrated = calibration.calibrated_confidences(log_probabilities, self.temperature)
        predictions = make_stored_predictions(
            ids, log_probabilities, options.top_k, calibrated, distances
        )
        write_predictions(score_paths(unlabeled, self.folder)[shard], predictions)


def _score_dev(dev, predict, folder, top_k):
    """Scores dev as the unlabelled images are scored; returns the temperature fitted on it.

    The first process sets the temperature and the features of dev for all, also for those that
    resume later: another machine may round differently.
    """
    batches = list(predict(dev, range(len(dev.names))))
    log_probabilities = np.concatenate([batch.log_probabilities for batch in batches])
    truth = np.concatenate([batch.labels for batch in batches])
    fitted = fit_temperature(log_probabilities, truth)
    temperature = json.loads(write_once(folder / TEMPERATURE_FILE, json.dumps(fitted).encode()))
    calibrated = calibration.calibrated_confidences(log_probabilities, temperature)
    ids = [image_id for batch in batches for image_id in batch.ids]
    distances = _dev_distances(batches, folder)
    predictions = make_stored_predictions(ids, log_probabilities, top_k, calibrated, distances)
    write_predictions(folder / DEV_FILE, predictions, truth)
    return temperature


def _dev_distances(batches, folder):
    """Distances of dev images to the other ones, float32 (n,); None: the features are unknown.

    Writes the features to which all images are compared.
    """
    if sum(len(batch.ids) for batch in batches) < MIN_REFERENCES or batches[0].features is None:
        return None
    features = np.concatenate([batch.features for batch in batches])
    rows = choose_references(features)
    content = io.BytesIO()
    np.save(content, unit_vectors(features[rows]))
    write_once(folder / REFERENCES_FILE, content.getvalue())
    own_references = np.full(len(features), -1)
    own_references[rows] = np.arange(len(rows))
    return neighbor_distances(features, _read_references(folder), own_references)


def _read_references(folder):
    """The features that `_dev_distances` wrote: float32 tensor (m, channels); None: no file."""
    path = folder / REFERENCES_FILE
    return tf.constant(np.load(path, allow_pickle=False)) if path.exists() else None


def next_shard(
    batches: Iterator[Predictions], references: tf.Tensor | None, count: int, name: str
) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    """Collects the predictions of a shard from those of several shards.

    Args:
        batches: `Predictions`, none of which has images of two shards.
        references: features to which those of the images are compared, float32 (m, channels); None:
            they are not.
        count: number of images in the shard.
        name: of the shard, for messages.

    Returns:
        (ids, log-probabilities float32 (count, num_classes), distances to the references float32
        (count,) or None).

    Raises:
        ValueError: there are more or fewer predictions.
    """
    ids, rows, distances = [], [], []
    while len(ids) < count:
        batch = next(batches, None)
        if batch is None or len(ids) + len(batch.ids) > count:
            received = len(ids) + (0 if batch is None else len(batch.ids))
            raise ValueError(f"{received} predictions of {count} images in {name}")
        ids += batch.ids
        rows.append(batch.log_probabilities)
        if references is not None:
            distances.append(neighbor_distances(batch.features, references))
    return ids, np.concatenate(rows), np.concatenate(distances) if distances else None
