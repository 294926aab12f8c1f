"""Ingest: reads the sources, divides the images into splits and writes the shard sets.

Every image is normalised once and spooled to disk, so that memory holds only ids, labels and pixel
digests. Then the splits are decided (`nsk.data.splits`) and written.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import itertools
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging
from PIL import Image

from nsk.data import records, shards, sources
from nsk.data.splits import FIXED_SEED, Images, choose_splits, hash_keys
from nsk.errors import UserError
from nsk.progress import Progress
from nsk.store.files import num_cores

# Encoded images in memory: so many, or as few as have together so many bytes.
IMAGES_AT_ONCE, BYTES_AT_ONCE = 256, 2**28
SECONDS_BETWEEN_LINES = 30.0
NAMED = 10  # Most unreadable images that are named in a line.
CORRUPT_NAMED = 100
# Labelled images stand in many shards, though they be few, so that a stream over them and many
# others can spread them over an epoch.
LABELED_SHARDS, LABELED_IN_SHARD = 16, 16


@dataclasses.dataclass(frozen=True)
class StatedImages:
    """Numbers in the place of ingested images, for a plan of what is not there.

    Attributes:
        counts: what `ingest` returns, as far as a plan needs it.
        path: None, since there is no folder.
    """

    counts: dict
    path: None = None


def state_images(labeled, unlabeled, num_classes):
    """`StatedImages` of so many images and classes; those of dev and test are not stated."""
    images = {"labeled": labeled, "unlabeled": unlabeled, "dev": 0, "test": 0}
    return StatedImages({"num_classes": num_classes, "images": images, "taught": unlabeled})


def ingest(config, seed, folder):
    """Writes the shard sets labeled, unlabeled, dev and test below `folder`.

    The labels of unlabelled images, where the source knew them, go to
    `sealed/unlabeled_truth.parquet` (id string, label int32, source_id string) and nowhere else:
    where a source's ids may tell the labels, such an image's `id` is a digest of its `source_id`.

    Args:
        config: a `DataConfig`; its `split_seed` is not looked at.
        seed: int, of the choice of labelled and dev images and of the order in the shards.
        folder: path, made if needed.

    Returns:
        dict of `num_classes`, `class_names`, `image_side` (the shorter side in pixels where all
        images have the same, else None), `image_sizes` (`smallest` and `largest` shorter side),
        `images` (split -> number), `per_class` (split -> list of numbers, without unlabeled),
        `taught` (unlabelled images of which a teacher elsewhere has said something),
        `duplicates_removed` (split -> images left out since an earlier split has the same pixels),
        `unused` (split of the source -> readable images that serve as nothing), `other_files`
        (files in folders that are not read), `reencoded`, and `corrupt` (`count`, and `images`: id
        and reason of the first 100).

    Raises:
        UserError: a source is not as it should be, or has too few images for the requested splits.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    origins, class_names = open_sources(config)
    with _temporary_file(folder / "spool.unfinished") as spool:
        images, counts = read_images(origins, spool, config, len(class_names))
        splits, removed, unused = choose_splits(images, class_names, config, seed)
        ids = _opaque_ids(images, splits["unlabeled"], origins)
        progress = Progress("data/images", sum(map(len, splits.values())))
        done = 0
        for split, rows in splits.items():
            order_seed = FIXED_SEED if split == "test" else seed
            rows = rows[np.argsort(hash_keys(order_seed, f"order/{split}", images.ids, rows))]
            splits[split] = rows
            limits = _shard_limits(config, split, len(rows))
            with shards.ShardWriter(folder / split, "images", class_names, *limits) as writer:
                for row in rows.tolist():
                    label = None if split == "unlabeled" else images.labels[row]
                    encoded = _read_span(spool, images.spans[row])
                    id = ids.get(row, images.ids[row])
                    taught = b""
                    if split == "unlabeled" and row in images.taught:
                        taught = _read_span(spool, (sum(images.spans[row]), images.taught[row]))
                    writer.write(records.image_example(id, encoded, label, taught))
                    done += 1
                    progress.update(done)
        progress.close()
    _seal_truth(folder / "sealed" / "unlabeled_truth.parquet", images, splits["unlabeled"], ids)
    smallest, largest = int(images.sides.min()), int(images.sides.max())
    return counts | {
        "num_classes": len(class_names),
        "class_names": class_names,
        "image_side": smallest if smallest == largest else None,
        "image_sizes": {"smallest": smallest, "largest": largest},
        "images": {split: len(rows) for split, rows in splits.items()},
        "per_class": {
            split: np.bincount(images.labels[rows], minlength=len(class_names)).tolist()
            for split, rows in splits.items()
            if split != "unlabeled"
        },
        "duplicates_removed": removed,
        "taught": sum(row in images.taught for row in splits["unlabeled"].tolist()),
        "unused": unused,
        "other_files": sum(source.other_files() for source in _distinct_sources(origins)),
    }


def _shard_limits(config, split, count):
    """(most images, bytes) of a shard of a split with so many images."""
    images_per_shard = config.images_per_shard
    if split == "labeled":
        share = -(-count // LABELED_SHARDS)
        images_per_shard = min(images_per_shard, max(share, LABELED_IN_SHARD))
    return images_per_shard, config.shard_mebibytes * 2**20


def describe(counts):
    """What `ingest` returned as lines for a person: what went where, and all that was left out."""
    sizes = ", ".join(f"{size:,} {split}" for split, size in counts["images"].items())
    side = counts["image_side"]
    if side is None:
        sides = counts["image_sizes"]
        pixels = f"shorter sides from {sides['smallest']} to {sides['largest']} pixels"
    else:
        pixels = f"shorter side {side} pixels"
    lines = [
        f"Images: {sizes}; {counts['num_classes']} classes; {pixels}; "
        f"{counts['reencoded']:,} were re-encoded."
    ]
    duplicates = {split: number for split, number in counts["duplicates_removed"].items() if number}
    for split, number in duplicates.items():
        lines.append(
            f"Left out of {split}: {number:,} with the pixels of an earlier split's image."
        )
    for pool, number in counts.get("unused", {}).items():
        if number:
            lines.append(f"Not used: {number:,} readable {pool} images, which no split takes.")
    if counts.get("other_files"):
        lines.append(
            f"Not read: {counts['other_files']:,} files that are no "
            f"{', '.join(sources.IMAGE_SUFFIXES)} or in no class folder."
        )
    corrupt = counts["corrupt"]
    if corrupt["count"]:
        named = "; ".join(f"{one['id']} ({one['reason']})" for one in corrupt["images"][:3])
        lines.append(
            f"Left out: {corrupt['count']:,} that cannot be read, listed in stage.json: {named}"
            + ("; ..." if corrupt["count"] > 3 else ".")
        )
    return lines


def open_sources(config):
    """Opens the sources and says which of their splits serve as what.

    Returns:
        dict from train, labeled, dev, test or unlabeled to (source, its split, whether its labels
        are of the same classes), and the list of class names.
    """
    opened = sources.open_sources(config)
    source = opened["dataset"]
    if source.class_names is None:
        raise UserError(
            f"--dataset={config.dataset} has no labels: give images in class folders, with none "
            "beside them, or labelled records."
        )
    if len(source.class_names) < 2:
        raise UserError(
            f"--dataset={config.dataset} has one class alone, {source.class_names[0]!r}: give two."
        )
    origins = {split: (source, split, True) for split in source.splits}
    if config.test_dataset:
        other = opened["test_dataset"]
        if other.class_names != source.class_names:
            raise UserError(
                f"--test_dataset={config.test_dataset} has the classes "
                f"{_short(other.class_names)} but --dataset={config.dataset} has "
                f"{_short(source.class_names)}: they must be equal."
            )
        origins["test"] = (other, _first_split(other, "test", "train", "labeled", "dev"), True)
    if config.unlabeled_dataset:
        other = opened["unlabeled_dataset"]
        # Images of other classes are welcome here, but their labels then mean nothing.
        same = other.class_names == source.class_names
        origins["unlabeled"] = (other, _first_split(other, "unlabeled", "train", "labeled"), same)
    if "train" not in origins and "labeled" not in origins:
        raise UserError(
            f"--dataset={config.dataset} has only {', '.join(source.splits)}: it needs class "
            "folders, or a labeled folder with class folders, or a --train_split."
        )
    return origins, source.class_names


def _first_split(source, *wanted):
    return next((split for split in wanted if split in source.splits), source.splits[0])


def _short(names):
    if names is None:
        return "(none)"
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")


@contextlib.contextmanager
def _temporary_file(path):
    try:
        with open(path, "w+b") as file:
            yield file
    finally:
        path.unlink(missing_ok=True)


def _read_span(spool, span):
    offset, length = span
    spool.seek(int(offset))
    return spool.read(int(length))


def read_images(origins, spool, config, num_classes):
    """Normalises every image into the spool.

    Args:
        origins: as `open_sources` returns them.
        spool: a binary file, open for writing and reading.
        config: a `DataConfig`, for what images may be read and how many may not.
        num_classes: int.

    Returns:
        `Images`, and a dict of `reencoded` and `corrupt`.
    """
    ids, labels, digests, spans, sides, corrupt = [], [], [], [], [], []
    pools, taught, reencoded = {}, {}, 0
    shown = time.monotonic()
    for split, (source, source_split, same_classes) in origins.items():
        start = len(ids)
        for image, result, side in _normalized(source.images(source_split), config):
            if isinstance(result, ValueError):
                corrupt.append({"id": image.id, "reason": str(result)})
            else:
                spans.append((spool.tell(), len(result.encoded)))
                spool.write(result.encoded)
                try:
                    of_teacher = image.taught_log_probabilities(num_classes)
                except ValueError as error:
                    raise UserError(
                        f"{image.id}: {error}: give records of these classes."
                    ) from None
                if of_teacher:
                    taught[len(ids)] = spool.write(of_teacher)
                ids.append(image.id)
                labels.append(image.label if same_classes and image.label is not None else -1)
                digests.append(result.digest)
                sides.append(side)
                reencoded += result.reencoded
            # How many there will be is not known yet, so that there is no `Progress`.
            if time.monotonic() - shown >= SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                logging.info("data/images: %d images read", len(ids) + len(corrupt))
        pools[split] = np.arange(start, len(ids))
        _check_unique(ids[start:], split)
    total = len(ids) + len(corrupt)
    if len(corrupt) > config.max_corrupt_fraction * total:
        named = "; ".join(f"{image['id']} ({image['reason']})" for image in corrupt[:NAMED])
        if len(corrupt) > NAMED:
            named += f"; and {len(corrupt) - NAMED} more"
        raise UserError(
            f"{len(corrupt)} of {total} images cannot be decoded, more than --max_corrupt_fraction="
            f"{config.max_corrupt_fraction}: {named}. Mend or remove them, or raise the flag."
        )
    spans = np.array(spans, np.int64).reshape(-1, 2)
    labels, sides = np.array(labels, np.int32), np.array(sides, np.int32)
    images = Images(ids, labels, digests, spans, sides, pools, taught)
    named = {"count": len(corrupt), "images": corrupt[:CORRUPT_NAMED]}
    return images, {"reencoded": reencoded, "corrupt": named}


def _normalized(source_images, config):
    """Yields each image, its `NormalizedImage` and shorter side, or a ValueError and 0."""

    def normalize(image):
        if image.unreadable:
            return ValueError(image.unreadable), 0
        try:
            normalized = records.normalize_image(
                image.encoded, config.max_image_bytes, config.max_image_pixels
            )
        except ValueError as error:
            return error, 0
        with Image.open(io.BytesIO(normalized.encoded)) as opened:  # Reads the header alone.
            return normalized, min(opened.size)

    # Decoding lets go of Python's lock, so threads help with images of photograph size.
    with concurrent.futures.ThreadPoolExecutor(num_cores()) as executor:
        for chunk in _chunks(source_images):
            for image, (result, side) in zip(chunk, executor.map(normalize, chunk), strict=True):
                yield image, result, side


def _chunks(source_images):
    """Yields lists of images."""
    chunk, size = [], 0
    for image in source_images:
        chunk.append(image)
        size += len(image.encoded)
        if len(chunk) == IMAGES_AT_ONCE or size >= BYTES_AT_ONCE:
            yield chunk
            chunk, size = [], 0
    yield chunk


def _check_unique(ids, split):
    if len(set(ids)) < len(ids):
        ordered = sorted(ids)
        twice = next(one for one, other in itertools.pairwise(ordered) if one == other)
        raise UserError(
            f"The id {twice!r} stands twice in {split}: ids must be unique, rename one."
        )


def _distinct_sources(origins):
    return {id(source): source for source, _, _ in origins.values()}.values()


def _opaque_ids(images, rows, origins):
    """dict from row to another id, for those rows whose own id may tell the label."""
    telling = np.zeros(len(images.ids), bool)
    for split, (source, _, _) in origins.items():
        telling[images.pools[split]] = source.ids_tell_labels
    rows = rows[telling[rows] & (images.labels[rows] >= 0)]
    return {
        row: "image-" + hashlib.blake2b(images.ids[row].encode(), digest_size=16).hexdigest()
        for row in rows.tolist()
    }


def _seal_truth(path, images, rows, opaque_ids):
    rows = rows[images.labels[rows] >= 0]
    if not len(rows):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source_ids = {row: images.ids[row] for row in rows.tolist()}
    table = {
        "id": pa.array([opaque_ids.get(row, id) for row, id in source_ids.items()], pa.string()),
        "label": pa.array(images.labels[rows], pa.int32()),
        "source_id": pa.array(source_ids.values(), pa.string()),
    }
    pq.write_table(pa.table(table), path)
