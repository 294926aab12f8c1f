"""Ingest: reads the sources, divides the images into splits and writes the shard sets.

Every image is normalised once and spooled to disk, so that memory holds only ids, labels and pixel
digests. Then the splits are decided in the order test, dev, labeled, unlabeled. Each step first
drops the images whose pixels already stand in an earlier split: no image is in two splits, and the
requested numbers stay exact. All choices go by hashes of the ids, so the order in which a source
yields its images does not matter.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from nsk.data import records, shards, sources
from nsk.errors import UserError

SPLITS = ("test", "dev", "labeled", "unlabeled")  # In the order in which they are decided.
FIXED_SEED = "fixed"  # The test split is the same for every seed.
IMAGES_AT_ONCE = 256
CORRUPT_NAMED = 100


@dataclasses.dataclass
class Images:
    """What is remembered of every readable image.

    Attributes:
        ids: list of strings.
        labels: int32 array, -1 where the label is not known.
        digests: list of bytes, equal where the pixels are.
        spans: int64 array of shape (images, 2), offset and length in the spool.
        pools: dict from the split of a source to the rows that it gave.
    """

    ids: list[str]
    labels: np.ndarray
    digests: list[bytes]
    spans: np.ndarray
    pools: dict[str, np.ndarray]


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


def choose_splits(images, class_names, config, split_seed):
    """Decides which image goes where.

    Args:
        images: `Images`.
        class_names: list of strings.
        config: a `DataConfig`.
        split_seed: int.

    Returns:
        dict from test, dev, labeled and unlabeled to their rows, and a dict of how many duplicates
        each of them left out.

    Raises:
        UserError: there are not enough images for a split.
    """
    division = _Division(images, class_names)
    base = "train" if "train" in images.pools else "labeled"

    if "test" in images.pools:
        division.take("test", division.labelled("test", "test"))
    else:
        rows = division.labelled("test", base)
        number = round(config.test_fraction * len(rows))
        division.take("test", division.choose(rows, number, "test", FIXED_SEED, "--test_fraction"))

    pool = "dev" if "dev" in images.pools else base
    rows = division.labelled("dev", pool)
    number = config.num_dev or round(config.dev_fraction * len(rows))
    if config.num_dev or config.dev_fraction:
        flag = "--num_dev" if config.num_dev else "--dev_fraction"
        rows = division.choose(rows, number, "dev", split_seed, flag)
    elif pool != "dev":
        raise UserError(
            f"No dev split: --dataset={config.dataset} has none of its own, so give --num_dev or "
            "--dev_fraction, the labelled images held out to decide on."
        )
    division.take("dev", rows)

    pool = "labeled" if "labeled" in images.pools else base
    rows = division.labelled("labeled", pool)
    number = config.num_labeled or round(config.labeled_fraction * len(rows))
    if config.num_labeled or config.labeled_fraction:
        flag = "--num_labeled" if config.num_labeled else "--labeled_fraction"
        balanced = bool(config.num_labeled)
        rows = division.choose(rows, number, "labeled", split_seed, flag, balanced)
    elif pool != "labeled":
        raise UserError(
            f"No labelled split: --dataset={config.dataset} has none of its own, so give "
            "--num_labeled or --labeled_fraction, the labelled training images."
        )
    division.take("labeled", rows)

    rows = division.fresh("unlabeled", "unlabeled" if "unlabeled" in images.pools else base)
    if not len(rows):
        raise UserError(
            f"No unlabelled images are left: {len(division.splits['labeled'])} labelled, "
            f"{len(division.splits['dev'])} dev and {len(division.splits['test'])} test images "
            "took all. Lower --num_labeled or --labeled_fraction, or give --unlabeled_dataset."
        )
    division.take("unlabeled", rows)
    return division.splits, division.removed


class _Division:
    """The splits decided so far, and what of the images is still free."""

    def __init__(self, images, class_names):
        self.images = images
        self.class_names = class_names
        self.splits = {}
        self.removed = {}
        self._gone = np.zeros(len(images.ids), bool)
        self._taken_digests = set()

    def fresh(self, split, pool):
        """The free rows of a pool; drops and counts those with the pixels of an earlier split."""
        digests = self.images.digests
        rows = self.images.pools[pool]
        rows = rows[~self._gone[rows]]
        duplicate = np.array([digests[row] in self._taken_digests for row in rows.tolist()], bool)
        self._gone[rows[duplicate]] = True
        self.removed[split] = int(duplicate.sum())
        return rows[~duplicate]

    def labelled(self, split, pool):
        """The free rows of a pool whose label is known."""
        rows = self.fresh(split, pool)
        labelled = rows[self.images.labels[rows] >= 0]
        if not len(labelled):
            raise UserError(
                f"No {split} images: of the {len(rows)} to take them from, without "
                f"{self.removed[split]} duplicates of earlier splits, none has a label: add some."
            )
        return labelled

    def take(self, split, rows):
        self.splits[split] = rows
        self._gone[rows] = True
        self._taken_digests.update(self.images.digests[row] for row in rows.tolist())

    def choose(self, rows, number, split, seed, flag, balanced=False):
        """`number` of the rows, class by class in the order of their hashes."""
        labels = self.images.labels[rows]
        available = np.bincount(labels, minlength=len(self.class_names))
        if number > len(rows):
            raise UserError(
                f"{flag} asks for {number} {split} images but only {len(rows)} labelled ones are "
                "left to choose from: lower it."
            )
        if number == 0:
            raise UserError(f"{flag} leaves no {split} image of {len(rows)}: raise it.")
        quotas = (balanced_quotas if balanced else proportional_quotas)(number, available)
        short = np.flatnonzero(quotas > available)
        if len(short):
            worst = short[np.argmin(available[short])]
            raise UserError(
                f"{flag}={number} needs {quotas[worst]} {split} images of class "
                f"{self.class_names[worst]!r} but only {available[worst]} are left: lower it to "
                f"{available[worst] * np.count_nonzero(available)} or less."
            )
        missing = np.flatnonzero((quotas == 0) & (available > 0))
        if split == "labeled" and len(missing):
            raise UserError(
                f"{flag} gives {number} labelled images but none of class "
                f"{self.class_names[missing[0]]!r}: raise it, every class needs one."
            )
        order = np.lexsort((hash_keys(seed, split, self.images.ids, rows), labels))
        ordered = rows[order]
        starts = np.cumsum(available) - available
        return np.concatenate(
            [ordered[start : start + quota] for start, quota in zip(starts, quotas, strict=True)]
        )


def balanced_quotas(number, available):
    """Divides `number` as equally as possible; what is left over goes to the first classes.

    Args:
        number: int.
        available: int array of shape (num_classes,); classes without images take no part.

    Returns:
        int array of shape (num_classes,), which may exceed `available`.
    """
    present = np.flatnonzero(available)
    quotas = np.zeros(len(available), np.int64)
    quotas[present] = number // len(present)
    quotas[present[: number % len(present)]] += 1
    return quotas


def proportional_quotas(number, available):
    """Divides `number` in proportion to `available`, by the largest remainder.

    Args:
        number: int, at most the sum of `available`.
        available: int array of shape (num_classes,).

    Returns:
        int array of shape (num_classes,), nowhere above `available`.
    """
    quotas, remainders = np.divmod(available.astype(np.int64) * number, available.sum())
    largest = np.argsort(-remainders, kind="stable")[: number - quotas.sum()]
    quotas[largest] += 1
    return quotas


def hash_keys(seed, purpose, ids, rows):
    """Numbers to sort images by: random-looking, and a function of seed, purpose and id alone.

    Args:
        seed: int or string.
        purpose: string that tells this use from every other.
        ids: list of strings.
        rows: int array, the ids that are wanted.

    Returns:
        uint64 array of the shape of `rows`.
    """
    prefix = f"{seed}\x1f{purpose}\x1f"
    keys = (
        hashlib.blake2b((prefix + ids[row]).encode(), digest_size=8).digest()
        for row in rows.tolist()
    )
    return np.frombuffer(b"".join(keys), ">u8")


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
