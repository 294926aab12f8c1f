"""Distillation: the labelled images with a teacher's predictions, as shards for the student.

Pseudo-label shards hold the teacher's predictions of unlabelled images; distillation needs those of
the labelled ones, too. Output shard j is made from the labelled shard j alone, row for row, so that
the labelled images come in the same order as without distillation.

Reference: Hinton, Vinyals, Dean: Distilling the knowledge in a neural network (2015), arXiv
1503.02531.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from nsk.data import records, shards
from nsk.data.shards import ShardSet
from nsk.evaluation.prediction_files import make_stored_predictions
from nsk.evaluation.shard_predictor import PredictShards
from nsk.progress import Progress
from nsk.pseudo.engine import LOCAL, Engine
from nsk.stages.runner import StageRunner, shard_set
from nsk.stages.scoring import ScoringOptions, make_load_predict, next_shard, share_build
from nsk.store.files import atomic_write
from nsk.store.folders import StageFolder

SHARDS_FOLDER = "shards"
READ_RECORDS = 256  # Records that are parsed in one call.


def score_labeled(
    runner: StageRunner, generation: int, teacher: StageFolder, images: StageFolder
) -> StageFolder | None:
    """Returns the stage that writes the labelled images with a teacher's predictions.

    Args:
        runner: the runner of stages.
        generation: number of the student that learns from them, 1 or more.
        teacher: the teacher's model.
        images: the ingested images.

    Returns:
        The stage; None if the student is trained without distillation.
    """
    config, name = runner.config, f"gen{generation}/labeled"
    if not config.targets.at(generation).distillation_alpha:
        return None
    labeled = shard_set(images, "labeled")
    top_k = config.scoring.num_stored_classes(images.counts["num_classes"])
    load_predict = make_load_predict(runner, teacher)

    def build(folder, worker=0, num_workers=1):
        options = ScoringOptions(top_k, name, worker, num_workers)
        engine = runner.make_engine(folder)
        return write_scored_shards(labeled, load_predict, folder, options, engine)

    build_all, join = share_build(runner, build)
    return runner.build_or_reuse(
        name,
        build_all,
        {"score_views": config.scoring.score_views, "top_k": top_k},
        join=join,
        resumes=True,
        teacher=teacher,
        images=images.part("labeled"),
    )


def write_scored_shards(
    labeled: ShardSet,
    load_predict: Callable[[], PredictShards],
    folder: Path,
    options: ScoringOptions,
    engine: Engine = LOCAL,
) -> dict[str, int] | None:
    """Writes a shard of each shard of labelled images, with a model's predictions of them.

    Existing shards are complete and are kept.

    Args:
        labeled: the labelled images.
        load_predict: function without arguments that loads a model; see `PredictShards`.
        folder: where the shard set is written, into `shards/`.
        options: see `ScoringOptions`.
        engine: where the shards are written; see `nsk.pseudo.engine`.

    Returns:
        dict of `images`, their number; None if shards of other workers are missing.
    """
    output = folder / SHARDS_FOLDER
    output.mkdir(exist_ok=True)
    mine = range(options.worker, len(labeled.names), options.num_workers)
    missing = [shard for shard in mine if not (output / labeled.names[shard]).exists()]
    engine.run(missing, _ShardWriter(load_predict, labeled, output, options).load)
    if not all((output / name).exists() for name in labeled.names):
        return None
    files = [
        {"name": name, "records": count, "copies": count, "images": count}
        for name, count in zip(labeled.names, labeled.counts, strict=True)
    ]
    shards.write_manifest(output, "scored", labeled.class_names, files, options.top_k)
    return {"images": labeled.num_records}


@dataclasses.dataclass(frozen=True)
class _ShardWriter:
    """Writes labelled images with predictions; may be sent to another process.

    Attributes:
        load_predict, labeled, options: as for `write_scored_shards`.
        output: folder of the shards.
    """

    load_predict: Callable[[], PredictShards]
    labeled: ShardSet
    output: Path
    options: ScoringOptions

    def load(self):
        """Loads the model and returns a function that writes a list of shards."""
        return functools.partial(self._write, self.load_predict())

    def _write(self, predict: PredictShards, shard_indices: Sequence[int]):
        counts = [self.labeled.counts[shard] for shard in shard_indices]
        progress = Progress(self.options.title, sum(counts))
        batches, num_written = predict(self.labeled, shard_indices), 0
        for shard, count in zip(shard_indices, counts, strict=True):
            name = self.labeled.names[shard]
            ids, log_probabilities, _ = next_shard(batches, None, count, name)
            predictions = make_stored_predictions(ids, log_probabilities, self.options.top_k)
            self._write_shard(shard, predictions)
            num_written += count
            progress.update(num_written)
        progress.close()

    def _write_shard(self, shard, predictions):
        """Joins the images of a shard with their `StoredPredictions`, row for row."""
        path = self.output / self.labeled.names[shard]
        with atomic_write(path) as unfinished, shards.RecordWriter(unfinished) as writer:
            for row, image in enumerate(_read_images(self.labeled, shard)):
                if image["id"] != predictions.ids[row]:
                    raise ValueError(
                        f"{path.name} row {row} is {image['id']}, its prediction is of "
                        f"{predictions.ids[row]}: expected the same images."
                    )
                writer.write(records.scored_example(**image, **predictions.stored_row(row)))


def _read_images(labeled, shard):
    """Yields `id`, `encoded` and `label` of the images of a shard, a dict each."""
    with labeled.naming_broken_shards():
        for batch in labeled.read(shard).batch(READ_RECORDS).as_numpy_iterator():
            parsed = {name: rows.numpy() for name, rows in records.parse_images(batch).items()}
            for row in zip(*parsed.values(), strict=True):
                image = dict(zip(parsed, row, strict=True))
                yield {**image, "id": image["id"].decode()}
