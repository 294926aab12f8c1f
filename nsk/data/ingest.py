"""Ingest: reads the sources, divides the images into splits and writes the shard sets.

Every image is normalised once and spooled to disk, so that memory holds only ids, labels and pixel
digests. Then the splits are decided (`nsk.data.splits`) and written.
"""

import concurrent.futures
import contextlib
import io
import itertools
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from nsk.data import records, shards, sources
from nsk.data.splits import FIXED_SEED, Images, choose_splits, hash_keys
from nsk.errors import UserError

IMAGES_AT_ONCE = 256
CORRUPT_NAMED = 100


def ingest(config, seed, folder, progress=None):
    """Writes the shard sets labeled, unlabeled, dev and test below `folder`.

    The labels of unlabelled images, where the source knew them, go to
    `sealed/unlabeled_truth.parquet` (id string, label int32) and nowhere else.

    Args:
        config: a `DataConfig`.
        seed: int, the run's seed; `config.split_seed` takes its place where it is not -1.
        folder: path, made if needed.
        progress: None or a function of (what, done, total) that is called now and then with
            "reading" or "writing", the images done, and how many there are (None while that is not
            known).

    Returns:
        dict of `num_classes`, `class_names`, `image_side` (the first labelled image's shorter
        side), `images` (split -> number), `per_class` (split -> list of numbers, without
        unlabeled), `duplicates_removed` (split -> images left out since an earlier split has the
        same pixels), `reencoded`, and `corrupt` (`count`, and `images`: id and reason of the first
        100).

    Raises:
        UserError: a source is not as it should be, or has too few images for the requested splits.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    split_seed = seed if config.split_seed < 0 else config.split_seed
    progress = progress or (lambda what, done, total: None)
    origins, class_names = open_sources(config)
    with _temporary_file(folder / "spool.unfinished") as spool:
        images, counts = read_images(origins, spool, config.max_corrupt_fraction, progress)
        splits, removed = choose_splits(images, class_names, config, split_seed)
        done = 0
        for split, rows in splits.items():
            order_seed = FIXED_SEED if split == "test" else split_seed
            rows = rows[np.argsort(hash_keys(order_seed, f"order/{split}", images.ids, rows))]
            splits[split] = rows
            with shards.ShardWriter(
                folder / split, "images", class_names, config.images_per_shard
            ) as writer:
                for row in rows.tolist():
                    label = None if split == "unlabeled" else images.labels[row]
                    encoded = _read_span(spool, images.spans[row])
                    writer.write(records.image_example(images.ids[row], encoded, label))
                    done += 1
                    if done % IMAGES_AT_ONCE == 0:
                        progress("writing", done, sum(map(len, splits.values())))
        with Image.open(io.BytesIO(_read_span(spool, images.spans[splits["labeled"][0]]))) as first:
            image_side = min(first.size)
    _seal_truth(folder / "sealed" / "unlabeled_truth.parquet", images, splits["unlabeled"])
    return counts | {
        "num_classes": len(class_names),
        "class_names": class_names,
        "image_side": image_side,
        "images": {split: len(rows) for split, rows in splits.items()},
        "per_class": {
            split: np.bincount(images.labels[rows], minlength=len(class_names)).tolist()
            for split, rows in splits.items()
            if split != "unlabeled"
        },
        "duplicates_removed": removed,
    }


def describe(counts):
    """What `ingest` returned as lines for a person: what went where, and all that was left out."""
    sizes = ", ".join(f"{size:,} {split}" for split, size in counts["images"].items())
    lines = [
        f"Images: {sizes}; {counts['num_classes']} classes; the first labelled one's shorter side "
        f"has {counts['image_side']} pixels; {counts['reencoded']:,} were re-encoded."
    ]
    duplicates = {split: number for split, number in counts["duplicates_removed"].items() if number}
    for split, number in duplicates.items():
        lines.append(
            f"Left out of {split}: {number:,} with the pixels of an earlier split's image."
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
    source = sources.open_source(config.dataset, config)
    if source.class_names is None:
        raise UserError(
            f"--dataset={config.dataset} has no labels: give images in class folders or labelled."
        )
    if len(source.class_names) < 2:
        raise UserError(
            f"--dataset={config.dataset} has one class alone, {source.class_names[0]!r}: give two."
        )
    origins = {split: (source, split, True) for split in source.splits}
    if config.test_dataset:
        other = sources.open_source(config.test_dataset, config)
        if other.class_names != source.class_names:
            raise UserError(
                f"--test_dataset={config.test_dataset} has the classes "
                f"{_short(other.class_names)} but --dataset={config.dataset} has "
                f"{_short(source.class_names)}: they must be equal."
            )
        origins["test"] = (other, _first_split(other, "test", "train", "labeled", "dev"), True)
    if config.unlabeled_dataset:
        other = sources.open_source(config.unlabeled_dataset, config)
        # Images of other classes are welcome here, but their labels then mean nothing.
        same = other.class_names == source.class_names
        origins["unlabeled"] = (other, _first_split(other, "unlabeled", "train", "labeled"), same)
    if "train" not in origins and "labeled" not in origins:
        raise UserError(
            f"--dataset={config.dataset} has only {', '.join(source.splits)}: it needs class "
            "folders, or a labeled folder with class folders."
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
    offset, length = span.tolist()
    spool.seek(offset)
    return spool.read(length)


def read_images(origins, spool, max_corrupt_fraction, progress):
    """Normalises every image into the spool.

    Args:
        origins: as `open_sources` returns them.
        spool: a binary file, open for writing and reading.
        max_corrupt_fraction: float, the largest share of unreadable images.
        progress: as in `ingest`.

    Returns:
        `Images`, and a dict of `reencoded` and `corrupt`.
    """
    ids, labels, digests, lengths, corrupt = [], [], [], [], []
    pools, reencoded = {}, 0
    for split, (source, source_split, same_classes) in origins.items():
        start = len(ids)
        for image, result in _normalized(source.images(source_split)):
            if isinstance(result, ValueError):
                corrupt.append({"id": image.id, "reason": str(result)})
            else:
                spool.write(result.encoded)
                ids.append(image.id)
                labels.append(image.label if same_classes and image.label is not None else -1)
                digests.append(result.digest)
                lengths.append(len(result.encoded))
                reencoded += result.reencoded
            if (len(ids) + len(corrupt)) % IMAGES_AT_ONCE == 0:
                progress("reading", len(ids) + len(corrupt), None)
        pools[split] = np.arange(start, len(ids))
        _check_unique(ids[start:], split)
    total = len(ids) + len(corrupt)
    if len(corrupt) > max_corrupt_fraction * total:
        named = "; ".join(f"{image['id']} ({image['reason']})" for image in corrupt[:3])
        raise UserError(
            f"{len(corrupt)} of {total} images cannot be decoded, more than --max_corrupt_fraction="
            f"{max_corrupt_fraction}: {named}. Mend or remove them, or raise the flag."
        )
    lengths = np.array(lengths, np.int64)
    spans = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1)
    images = Images(ids, np.array(labels, np.int32), digests, spans, pools)
    named = {"count": len(corrupt), "images": corrupt[:CORRUPT_NAMED]}
    return images, {"reencoded": reencoded, "corrupt": named}


def _normalized(source_images):
    """Yields each image with its `NormalizedImage`, or the ValueError that says why it has none."""

    def normalize(image):
        try:
            return records.normalize_image(image.encoded)
        except ValueError as error:
            return error

    # Decoding lets go of Python's lock, so threads help with images of photograph size.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as executor:
        source_images = iter(source_images)
        while chunk := list(itertools.islice(source_images, IMAGES_AT_ONCE)):
            yield from zip(chunk, executor.map(normalize, chunk), strict=True)


def _check_unique(ids, split):
    if len(set(ids)) < len(ids):
        ordered = sorted(ids)
        twice = next(one for one, other in itertools.pairwise(ordered) if one == other)
        raise UserError(
            f"The id {twice!r} stands twice in {split}: ids must be unique, rename one."
        )


def _seal_truth(path, images, rows):
    rows = rows[images.labels[rows] >= 0]
    if not len(rows):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {
        "id": pa.array([images.ids[row] for row in rows.tolist()], pa.string()),
        "label": pa.array(images.labels[rows], pa.int32()),
    }
    pq.write_table(pa.table(table), path)
