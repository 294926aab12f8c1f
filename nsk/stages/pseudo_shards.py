"""Pseudo-label shards: the selected images with their pseudo-labels, as TFRecord files.

Output shard j is made from a group of consecutive input shards, so that it has about their size
even if few images are selected. An image's bytes are stored once in a shard: the copies of an image
are spread over its own shard and the following ones, in a ring, so that training does not see all
of them in one window (`nsk/data/shard_stream.py`). The content of a shard is a function of its
group and of the groups before it: existing shards are kept, and missing ones are written in any
order.
"""

import collections
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsk.data import records, shards
from nsk.data.shards import ShardSet
from nsk.evaluation.prediction_files import read_predictions, read_top_k
from nsk.progress import Progress
from nsk.pseudo.engine import LOCAL, Engine
from nsk.pseudo.score_rows import read_copies
from nsk.stages.runner import StageRunner, shard_set
from nsk.stages.score_files import score_file_name, score_paths
from nsk.stages.selection import LABELED_FILE
from nsk.store.files import atomic_write
from nsk.store.folders import StageFolder

SHARDS_FOLDER = "shards"


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """Which images go into which output shard; depends on the numbers of copies only.

    Attributes:
        groups: the indices of the input shards of each output shard.
        images: for each group {copies: number of images with that many}.
    """

    groups: list[list[int]]
    images: list[dict[int, int]]

    def num_shards_for(self, copies: int) -> int:
        """Number of shards over which the copies of an image are spread."""
        return min(copies, len(self.groups))

    def copies_at(self, copies: int, distance: int) -> int:
        """How many copies of an image are in the shard `distance` after the image's own."""
        num_shards = self.num_shards_for(copies)
        copies_per_shard, remainder = divmod(copies, num_shards)
        return copies_per_shard + (distance < remainder) if distance < num_shards else 0

    def groups_in(self, shard: int) -> Iterator[tuple[int, int]]:
        """Yields (distance, group) of the groups with images in an output shard."""
        num_shards = (self.num_shards_for(max(images)) for images in self.images if images)
        for distance in range(max(num_shards, default=1)):
            group = (shard - distance) % len(self.groups)
            if any(self.num_shards_for(copies) > distance for copies in self.images[group]):
                yield distance, group

    def describe(self, shard: int) -> dict[str, str | int]:
        """The manifest's entry of an output shard."""
        entry = {"name": f"{shard:05d}.tfrecord", "records": 0, "copies": 0, "images": 0}
        for distance, group in self.groups_in(shard):
            for copies, num_images in self.images[group].items():
                copies_in_shard = self.copies_at(copies, distance)
                entry["records"] += num_images if copies_in_shard else 0
                entry["copies"] += num_images * copies_in_shard
                entry["images"] += num_images if distance == 0 else 0
        return entry


def plan_shards(unlabeled: ShardSet, selection_folder: Path, shard_bytes: int) -> ShardPlan:
    """Groups the input shards so that each group's selected images take about `shard_bytes`."""
    groups, group_images, group, size = [], [], [], 0
    images = collections.Counter()
    for shard, (name, path) in enumerate(zip(unlabeled.names, unlabeled.paths, strict=True)):
        copies = read_copies(selection_folder / score_file_name(name))
        num_images = unlabeled.counts[shard]
        if len(copies) > num_images:
            raise ValueError(f"{name} has {num_images} images and a selection of {len(copies)}")
        numbers, counts = np.unique(copies[copies > 0], return_counts=True)
        selected_bytes = counts.sum() / max(1, num_images) * path.stat().st_size
        if group and size + selected_bytes > shard_bytes:
            groups.append(group)
            group_images.append(dict(images))
            group, size, images = [], 0, collections.Counter()
        group.append(shard)
        size += selected_bytes
        images.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
    return ShardPlan([*groups, group], [*group_images, dict(images)])


def write(
    runner: StageRunner,
    generation: int,
    images: StageFolder,
    scores: StageFolder,
    selected: StageFolder,
) -> StageFolder:
    """Returns the stage that writes the selected images with their pseudo-labels as shards.

    Args:
        runner: the runner of stages.
        generation: number of the student that learns from them.
        images: the ingested images.
        scores: the teacher's scores.
        selected: which images are kept, from these or an earlier teacher's scores.
    """
    name, shard_mebibytes = f"gen{generation}/pseudo", runner.config.data.shard_mebibytes
    return runner.build_or_reuse(
        name,
        lambda folder: write_pseudo_shards(
            shard_set(images, "unlabeled"),
            scores.path,
            selected.path,
            folder,
            shard_bytes=shard_mebibytes * 2**20,
            title=name,
            engine=runner.make_engine(folder),
        ),
        {"shard_mebibytes": shard_mebibytes},
        resumes=True,
        images=images.part("unlabeled"),
        scores=scores,
        selection=selected,
    )


def write_pseudo_shards(
    unlabeled: ShardSet,
    scores_folder: Path,
    selection_folder: Path,
    folder: Path,
    *,
    shard_bytes: int = shards.SHARD_BYTES,
    title: str = "writing",
    engine: Engine = LOCAL,
) -> dict[str, int]:
    """Joins the unlabelled shards with their prediction and selection files, in their order.

    Args:
        unlabeled: the unlabelled images.
        scores_folder: the teacher's score files, see `scoring.score_shards`.
        selection_folder: files of `selection.select_images`, from these or an earlier teacher's
            predictions.
        folder: where the shard set is written, into `shards/`; under the gap policy the copies of
            the labelled images are written beside it.
        shard_bytes: approximate size of a shard, before copies.
        title: name of the work in the progress line.
        engine: where the shards are written; see `nsk.pseudo.engine`.

    Returns:
        dict of `images` and `copies`, their numbers.
    """
    (folder / SHARDS_FOLDER).mkdir(exist_ok=True)
    plan = plan_shards(unlabeled, selection_folder, shard_bytes)
    files = [plan.describe(shard) for shard in range(len(plan.groups))]
    missing = [
        shard
        for shard, file in enumerate(files)
        if not (folder / SHARDS_FOLDER / file["name"]).exists()
    ]
    inputs = SelectedImages(plan, unlabeled, scores_folder, selection_folder)
    writer = PseudoShardWriter(inputs, folder, title)
    engine.run(missing, lambda: writer.write)
    top_k = read_top_k(score_paths(unlabeled, scores_folder)[0])
    shards.write_manifest(folder / SHARDS_FOLDER, "pseudo", unlabeled.class_names, files, top_k)
    if (selection_folder / LABELED_FILE).exists():
        with atomic_write(folder / LABELED_FILE) as unfinished:
            shutil.copyfile(selection_folder / LABELED_FILE, unfinished)
    return {
        "images": sum(file["images"] for file in files),
        "copies": sum(file["copies"] for file in files),
    }


@dataclasses.dataclass(frozen=True)
class SelectedImages:
    """The selected images of all groups, read from files.

    Attributes:
        plan: see `ShardPlan`.
        unlabeled, scores_folder, selection_folder: as for `write_pseudo_shards`.
    """

    plan: ShardPlan
    unlabeled: ShardSet
    scores_folder: Path
    selection_folder: Path

    def read(self, group: int, distance: int) -> list[tuple[dict[str, Any], int]]:
        """Reads the images of a group that have copies in the shard `distance` after it.

        Returns:
            list of (keyword arguments of `records.pseudo_example`, copies in all shards).

        Raises:
            ValueError: prediction, selection and image files do not match.
        """
        images = []
        for shard in self.plan.groups[group]:
            name = score_file_name(self.unlabeled.names[shard])
            copies = read_copies(self.selection_folder / name)
            is_wanted = [
                number > 0 and self.plan.copies_at(number, distance) > 0
                for number in copies.tolist()
            ]
            if not any(is_wanted):
                continue
            predictions = read_predictions(score_paths(self.unlabeled, self.scores_folder)[shard])
            if len(predictions) != len(copies):
                raise ValueError(
                    f"{name} has predictions of {len(predictions)} images and copies of "
                    f"{len(copies)}: expected files of the same images."
                )
            encoded_images = _predicted_images(self.unlabeled, shard, predictions.ids)
            for row, encoded in enumerate(encoded_images):
                if is_wanted[row]:
                    example = _example_arguments(predictions, row, encoded)
                    images.append((example, int(copies[row])))
        return images


class PseudoShardWriter:
    """Writes output shards; images that are also in the next shard are kept in memory for it.

    Args:
        inputs: the selected images.
        folder, title: as for `write_pseudo_shards`.
    """

    def __init__(self, inputs: SelectedImages, folder: Path, title: str):
        self.inputs, self.plan = inputs, inputs.plan
        self.folder, self.title = folder, title
        self._kept_images = {}  # {group: its images with copies in the next shard}
        self._next_shard = None

    def write(self, shard_indices: Sequence[int]) -> None:
        """Writes some output shards; consecutive ones in ascending order read least."""
        files = [self.plan.describe(shard) for shard in shard_indices]
        progress = Progress(self.title, sum(file["records"] for file in files))
        num_written = 0
        for shard, file in zip(shard_indices, files, strict=True):
            path = self.folder / SHARDS_FOLDER / file["name"]
            with (
                atomic_write(path) as unfinished,
                shards.RecordWriter(unfinished) as writer,
            ):
                for image, copies in self.images(shard):
                    writer.write(records.pseudo_example(**image, copies=copies))
            num_written += file["records"]
            progress.update(num_written)
        progress.close()

    def images(self, shard: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Yields (keyword arguments of `records.pseudo_example`, copies) of a shard, in order."""
        kept_images = {}
        if shard != self._next_shard:
            self._kept_images = {}
        for distance, group in self.plan.groups_in(shard):
            images = self._kept_images.pop(group, None) or self.inputs.read(group, distance)
            for image, copies in images:
                yield image, self.plan.copies_at(copies, distance)
            kept_images[group] = [
                (image, copies)
                for image, copies in images
                if self.plan.copies_at(copies, distance + 1)
            ]
        self._kept_images, self._next_shard = kept_images, shard + 1


def _predicted_images(unlabeled, shard, ids):
    """Yields the encoded images with these ids, which are in the order of the shard.

    Images without a prediction are left out: with `--unlabeled_fraction` not all have one.
    """
    images = read_images(unlabeled, shard)
    for row, id in enumerate(ids):
        encoded = next((encoded for image_id, encoded in images if image_id == id), None)
        if encoded is None:
            raise ValueError(
                f"{unlabeled.names[shard]}: row {row} of its predictions is of {id}, which is not "
                "among the images that follow: expected files of the same images."
            )
        yield encoded


def _example_arguments(predictions, row, encoded):
    """Keyword arguments of `records.pseudo_example` of an image, but for its copies."""
    return {
        "id": predictions.ids[row],
        "encoded": encoded,
        "label": predictions.labels[row],
        "confidence": predictions.confidences[row],
        **predictions.stored_row(row),
    }


def read_images(shard_set: ShardSet, shard: int) -> Iterator[tuple[str, bytes]]:
    """Yields (id, encoded bytes) of the records of a shard."""
    with shard_set.naming_broken_shards():
        for batch in shard_set.read(shard).batch(256).map(records.parse_images).as_numpy_iterator():
            for image_id, encoded in zip(batch["id"], batch["encoded"], strict=True):
                yield image_id.decode(), encoded
