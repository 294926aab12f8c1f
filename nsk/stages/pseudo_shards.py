"""Write: the selected images with their pseudo-labels, as TFRecord shards.

Output shard j is made of a few input shards in a row, its group, so that it is about as large as
they are however few images are kept. An image's bytes stand once in a shard: one of many copies is
spread over the shards behind its own, in a ring, so that training does not see all of them in one
window (`nsk/data/streams.py`). What a shard holds is a function of its group and of the groups
before it, so that shards that are there already are kept and the others are made, in any order.
"""

import collections
import dataclasses
import shutil

import numpy as np

from nsk.data import records, shards
from nsk.evaluation.prediction_files import read_scores, read_top_k
from nsk.progress import Progress
from nsk.pseudo.engine import LOCAL
from nsk.pseudo.score_rows import read_copies
from nsk.stages.scoring import score_file, score_paths
from nsk.stages.selection import LABELED
from nsk.store.files import written_whole

SHARDS = "shards"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which images stand in which output shard, known from the numbers of copies alone.

    Attributes:
        groups: list of lists of input shards' indices, one for each output shard.
        images: list of {copies: number of images} of each group.
    """

    groups: list
    images: list

    def spread(self, copies):
        """Over how many shards so many copies of an image are spread."""
        return min(copies, len(self.groups))

    def share(self, copies, distance):
        """How many of them stand in the shard at a distance from the image's own; ints."""
        each, more = divmod(copies, self.spread(copies))
        return each + (distance < more) if distance < self.spread(copies) else 0

    def groups_of(self, shard):
        """(distance, group) of all groups whose images may stand in an output shard."""
        farthest = max((self.spread(max(one)) for one in self.images if one), default=1)
        for distance in range(farthest):
            group = (shard - distance) % len(self.groups)
            if any(self.spread(copies) > distance for copies in self.images[group]):
                yield distance, group

    def describe(self, shard):
        """What the manifest says of an output shard."""
        found = {"name": f"{shard:05d}.tfrecord", "records": 0, "copies": 0, "images": 0}
        for distance, group in self.groups_of(shard):
            for copies, images in self.images[group].items():
                share = self.share(copies, distance)
                found["records"] += images if share else 0
                found["copies"] += images * share
                found["images"] += images if distance == 0 else 0
        return found


def make_plan(unlabeled, selection_folder, shard_bytes):
    """`Plan` of a selection; a group's images take about `shard_bytes` or a little less."""
    groups, images, group, size = [], [], [], 0
    kept = collections.Counter()
    for shard, (name, path) in enumerate(zip(unlabeled.names, unlabeled.paths, strict=True)):
        copies = read_copies(selection_folder / score_file(name))
        if len(copies) != unlabeled.counts[shard]:
            raise ValueError(
                f"{name} has {unlabeled.counts[shard]} images and a selection of {len(copies)}"
            )
        numbers, counts = np.unique(copies[copies > 0], return_counts=True)
        share = counts.sum() / max(1, len(copies)) * path.stat().st_size
        if group and size + share > shard_bytes:
            groups.append(group)
            images.append(dict(kept))
            group, size, kept = [], 0, collections.Counter()
        group.append(shard)
        size += share
        kept.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
    return Plan([*groups, group], [*images, dict(kept)])


def write(
    unlabeled,
    scores_folder,
    selection_folder,
    folder,
    *,
    shard_bytes=shards.SHARD_BYTES,
    title="writing",
    engine=LOCAL,
):
    """Joins the unlabelled shards with their score and selection files, row for row.

    Args:
        unlabeled: the unlabelled `ShardSet`.
        scores_folder: the teacher's score files.
        selection_folder: files of `select_stage`, from these scores or an earlier teacher's.
        folder: where the shard set goes, into `shards/`; under the gap policy the labelled images'
            copies stand beside it.
        shard_bytes: int, size of a shard, about, before copies.
        title: name of the work on the progress line.
        engine: where the shards are written; see `nsk.pseudo.engine`.

    Returns:
        dict: `images` and `copies`.
    """
    (folder / SHARDS).mkdir(exist_ok=True)
    plan = make_plan(unlabeled, selection_folder, shard_bytes)
    files = [plan.describe(shard) for shard in range(len(plan.groups))]
    writer = Writer(plan, unlabeled, scores_folder, selection_folder, folder, title)
    missing = [
        shard for shard, file in enumerate(files) if not (folder / SHARDS / file["name"]).exists()
    ]
    engine.each(missing, lambda: writer.write)
    top_k = read_top_k(score_paths(unlabeled, scores_folder)[0])
    shards.write_manifest(folder / SHARDS, "pseudo", unlabeled.class_names, files, top_k)
    if (selection_folder / LABELED).exists():
        shutil.copyfile(selection_folder / LABELED, folder / LABELED)
    return {
        "images": sum(file["images"] for file in files),
        "copies": sum(file["copies"] for file in files),
    }


class Writer:
    """Writes output shards; what the next one holds, too, is kept for it.

    Args:
        plan: a `Plan`.
        unlabeled, scores_folder, selection_folder, folder, title: as for `write`.
    """

    def __init__(self, plan, unlabeled, scores_folder, selection_folder, folder, title):
        self.plan, self.unlabeled = plan, unlabeled
        self.scores_folder, self.selection_folder = scores_folder, selection_folder
        self.folder, self.title = folder, title
        self._held = {}  # Group: its images that stand in the next shard, too.
        self._next_shard = None

    def write(self, numbers):
        """Writes a list of output shards; neighbours one after the other read least."""
        files = [self.plan.describe(number) for number in numbers]
        progress, done = Progress(self.title, sum(file["records"] for file in files)), 0
        for number, file in zip(numbers, files, strict=True):
            path = self.folder / SHARDS / file["name"]
            with (
                written_whole(path) as unfinished,
                shards.RecordWriter(unfinished) as writer,
            ):
                for image, copies in self.images(number):
                    writer.write(records.pseudo_example(**image, copies=copies))
            done += file["records"]
            progress.update(done)
        progress.close()

    def images(self, shard):
        """Yields (keywords of `records.pseudo_example`, copies) of one output shard, in order."""
        held = {}
        if shard != self._next_shard:
            self._held = {}
        for distance, group in self.plan.groups_of(shard):
            images = self._held.pop(group, None) or self._read(group, distance)
            for image, copies in images:
                yield image, self.plan.share(copies, distance)
            # Those of which copies are left for the next shard.
            held[group] = [
                (image, copies) for image, copies in images if self.plan.share(copies, distance + 1)
            ]
        self._held, self._next_shard = held, shard + 1

    def _read(self, group, distance):
        """The images of a group that stand at a distance from it: list of (keywords, copies)."""
        found = []
        for shard in self.plan.groups[group]:
            name = score_file(self.unlabeled.names[shard])
            copies = read_copies(self.selection_folder / name)
            wanted = [copy > 0 and self.plan.share(copy, distance) > 0 for copy in copies.tolist()]
            if not any(wanted):
                continue
            scores = read_scores(score_paths(self.unlabeled, self.scores_folder)[shard])
            if len(scores) != len(copies):
                raise ValueError(
                    f"{name} has scores of {len(scores)} images and copies of {len(copies)}: "
                    "expected files of the same images."
                )
            rows = zip(read_images(self.unlabeled, shard), scores.ids, strict=True)
            for row, ((image_id, encoded), scored_id) in enumerate(rows):
                if image_id != scored_id:
                    raise ValueError(
                        f"{name} row {row} is {image_id}, its score is of {scored_id}: expected "
                        "files of the same images."
                    )
                if wanted[row]:
                    found.append((_keywords(scores, row, encoded), int(copies[row])))
        return found


def _keywords(scores, row, encoded):
    return {
        "id": scores.ids[row],
        "encoded": encoded,
        "label": scores.labels[row],
        "confidence": scores.confidences[row],
        "log_probabilities": scores.log_probabilities[row],
        "classes": None if scores.classes is None else scores.classes[row],
        "remaining": None if scores.remaining is None else scores.remaining[row],
    }


def read_images(shard_set, shard):
    """Yields (id, encoded bytes) of one shard's records."""
    with shard_set.naming_broken_shards():
        for batch in shard_set.read(shard).batch(256).map(records.parse_images).as_numpy_iterator():
            for image_id, encoded in zip(batch["id"], batch["encoded"], strict=True):
                yield image_id.decode(), encoded
