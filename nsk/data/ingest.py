"""Ingest: reads the sources, divides the images into splits and writes the shard sets.

Every image is normalised once and spooled to disk (`nsk.data.spool`). Then the splits are decided
(`nsk.data.splits`) and written.
"""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from nsk.config.data import DataConfig
from nsk.data import deep_images, records, shards
from nsk.data.class_counts import describe_classes
from nsk.data.class_names import describe_coverage, with_descriptions
from nsk.data.conflicts import resolve_conflicts
from nsk.data.image_folders import describe_unsupported
from nsk.data.image_index import ImageIndex, read_external_teacher, read_image
from nsk.data.pools import Pool, count_unused_splits, open_pools, open_test_pool
from nsk.data.sources.source import Source
from nsk.data.splits import (
    FIXED_SEED,
    ChooseSplits,
    base_pool,
    choose_evaluation_splits,
    choose_splits,
    hash_ids,
)
from nsk.data.spool import spool_images
from nsk.errors import UserError, list_counts
from nsk.progress import Progress

# Labelled images are written into many shards, even if they are few, so that a stream over them and
# many others can spread them over an epoch.
NUM_LABELED_SHARDS, MIN_LABELED_PER_SHARD = 16, 16

AS_UNLABELED = (
    "--unlabeled_dataset=folder:PATH of them, with --keep_remaining, makes them unlabelled ones."
)
MAX_NAMES_IN_COUNTS = 100  # Of suffixes and hidden files.


def placeholder_counts(labeled: int, unlabeled: int, num_classes: int) -> dict:
    """Counts for planning without data, as `ingest` returns them, as far as a plan needs them.

    Args:
        labeled: labelled images.
        unlabeled: unlabelled images.
        num_classes: number of classes.
    """
    images = {"labeled": labeled, "unlabeled": unlabeled, "dev": 0, "test": 0}
    return {"num_classes": num_classes, "images": images, "external_teacher": unlabeled}


def ingest(config: DataConfig, seed: int, folder: str | Path) -> dict:
    """Writes the shard sets labeled, unlabeled, dev and test below `folder`.

    The labels of unlabelled images, if the source has them, are written to
    `sealed/unlabeled_truth.parquet` (id string, label int32, source_id string) and nowhere else: if
    a source's ids may reveal the labels, the `id` of such an image is a digest of its `source_id`.

    Args:
        config: the settings of the data; its `split_seed` is not used.
        seed: of the choice of labelled and dev images and of the order in the shards.
        folder: created if needed.

    Returns:
        dict of `num_classes`, `class_names`, `image_side` (the shorter side in pixels if it is the
        same for all images, else None), `image_sizes` (`smallest` and `largest` shorter side),
        `images` (split -> number), `per_class` (split -> list of numbers, without unlabeled),
        `external_teacher` (unlabelled images with scores of an external teacher),
        `duplicates_removed` (split -> images left out since an earlier split has the same pixels or
        group), `removed_by_group` (split -> how many of these have other pixels),
        `conflicts` (see `resolve_conflicts`),
        `outside_square` (how much of the images in splits is outside of their central squares:
        `mean` share of the pixels, and `above_half`, share of images that it is more than half of),
        `significant_bits` (that 16-bit images are scaled by; None: there are none), `deep_images`
        (see `deep_images.summarize`), `unused` (split of the source -> readable images in no
        split), `unused_splits` (see `count_unused_splits`), `other_files` (number of files that are
        not images), `skipped` (the attributes of `SkippedFiles`), `reencoded`, and `corrupt`
        (`count`, and `images`: id and reason of the first 100), and the same as `doubtful` of
        images that decoders report errors of.

    Raises:
        UserError: a source is not valid, or has too few images for the requested splits.
    """
    pools, class_names = open_pools(config)
    counts = _ingest(pools, class_names, choose_splits, config, seed, folder)
    return counts | {"unused_splits": count_unused_splits(pools)}


def ingest_for_evaluation(
    config: DataConfig,
    seed: int,
    folder: str | Path,
    model_classes: Sequence[str] | None = None,
) -> dict:
    """Writes the shard set test and, if the settings ask for one, dev: the same images as `ingest`.

    Pools that neither is taken from are not read, unless what they hold has an effect on dev or on
    the bits of 16-bit images. Without any other labelled images, those of dev are the test images.

    Args:
        config: the settings of the data; without a `dataset`, `test_dataset` alone is read.
        seed: of the choice of dev images.
        folder: created if needed.
        model_classes: names of the classes without a `dataset`, see `open_test_pool`.

    Returns:
        see `ingest`.

    Raises:
        UserError: a source is not valid, or has too few images.
    """
    if not config.dataset:
        pools, class_names = open_test_pool(config, model_classes)
        return _ingest(pools, class_names, choose_evaluation_splits, config, seed, folder)
    pools, class_names = open_pools(config, for_training=False)
    pools, left_out = _divide_for_evaluation(pools, config)
    return _ingest(pools, class_names, choose_evaluation_splits, config, seed, folder, left_out)


def _divide_for_evaluation(
    pools: dict[str, Pool], config: DataConfig
) -> tuple[dict[str, Pool], list[Pool]]:
    """The pools that test and dev depend on, and the other ones.

    Raises:
        UserError: there are no images to take test or dev from.
    """
    base, needs_dev = base_pool(pools), bool(config.num_dev or config.dev_fraction)
    missing = {"test"} - pools.keys() | ({"dev"} - pools.keys() if needs_dev else set())
    if base in pools or not missing:
        kept = {"test", "dev"} | ({base} if missing else set())
        if needs_dev or "dev" in pools:  # Their images may join groups of dev and test.
            kept |= {name for name, pool in pools.items() if pool.source.has_groups}
        return (
            {name: pool for name, pool in pools.items() if name in kept},
            [pool for name, pool in pools.items() if name not in kept],
        )
    only = ", ".join(pools)
    if needs_dev:
        flag = "--num_dev" if config.num_dev else "--dev_fraction"
        raise UserError(
            f"{flag}: --dataset={config.dataset} has only {only}, which is evaluated as test, and "
            "no other images to take dev from: leave it out, or give images for training, too."
        )
    if "dev" not in pools:
        raise UserError(
            f"--dataset={config.dataset} has only {only}: it needs labelled images to evaluate."
        )
    logging.info(
        "--dataset=%s has only %s: its dev images are the test ones.", config.dataset, only
    )
    others = [pool for name, pool in pools.items() if name != "dev"]
    return {"test": pools["dev"]}, others


def _ingest(
    pools: dict[str, Pool],
    class_names: list[str],
    choose: ChooseSplits,
    config: DataConfig,
    seed: int,
    folder: str | Path,
    left_out: Iterable[Pool] = (),
) -> dict:
    """`ingest` of opened pools, with the splits that `choose` decides; see `spool_images`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _temporary_file(folder / "spool.unfinished") as spool:
        index, counts = spool_images(pools, spool, config, len(class_names), left_out)
        index, conflicts = resolve_conflicts(index, class_names, config.conflicting_labels)
        splits, removed, removed_by_group, unused = choose(index, class_names, config, seed)
        for split, rows in splits.items():
            order_seed = FIXED_SEED if split == "test" else seed
            splits[split] = rows[
                np.argsort(hash_ids(order_seed, f"order/{split}", index.ids, rows))
            ]
        unlabeled = splits.get("unlabeled", np.zeros(0, np.int64))
        ids = _opaque_ids(index, unlabeled, pools)
        _write_shard_sets(folder, config, class_names, index, splits, ids, spool)
    _seal_truth(folder / "sealed" / "unlabeled_truth.parquet", index, unlabeled, ids)
    smallest, largest = int(index.sides[:, 0].min()), int(index.sides[:, 0].max())
    skipped = _skipped_files(pools)
    return counts | {
        "num_classes": len(class_names),
        "class_names": class_names,
        "image_side": smallest if smallest == largest else None,
        "image_sizes": {"smallest": smallest, "largest": largest},
        "outside_square": _outside_square(index.sides[np.concatenate(list(splits.values()))]),
        "images": {split: len(rows) for split, rows in splits.items()},
        "per_class": {
            split: np.bincount(index.labels[rows], minlength=len(class_names)).tolist()
            for split, rows in splits.items()
            if split != "unlabeled"
        },
        "duplicates_removed": removed,
        "removed_by_group": removed_by_group,
        "conflicts": conflicts,
        "external_teacher": sum(row in index.external_teacher for row in unlabeled.tolist()),
        "unused": unused,
        "unused_splits": {},
        "other_files": sum(skipped["others"].values()),
        "skipped": skipped,
    }


def _outside_square(sides: np.ndarray) -> dict[str, float]:
    """How much of images is outside of their central squares; see `ingest`."""
    shares = 1 - sides[:, 0] / sides[:, 1]
    return {
        "mean": round(float(shares.mean()), 4) if len(shares) else 0.0,
        "above_half": round(float((shares > 0.5).mean()), 4) if len(shares) else 0.0,
    }


def _write_shard_sets(
    folder: Path,
    config: DataConfig,
    class_names: list[str],
    index: ImageIndex,
    splits: dict[str, np.ndarray],
    opaque_ids: dict[int, str],
    spool: BinaryIO,
) -> None:
    """Writes one shard set for each split, with the images in the order of its rows."""
    progress = Progress("data/images, writing", sum(map(len, splits.values())))
    written = 0
    for split, rows in splits.items():
        is_unlabeled = split == "unlabeled"
        limits = _shard_limits(config, split, len(rows))
        with shards.ShardWriter(folder / split, "images", class_names, *limits) as writer:
            for row in rows.tolist():
                label = None if is_unlabeled else index.labels[row]
                encoded = read_image(spool, index, row)
                scores = read_external_teacher(spool, index, row) if is_unlabeled else b""
                id = opaque_ids.get(row, index.ids[row])
                writer.write(records.image_example(id, encoded, label, scores))
                written += 1
                progress.update(written)
    progress.close()


def _shard_limits(config: DataConfig, split: str, count: int) -> tuple[int, int]:
    """(images, bytes) at which a shard of a split with `count` images is full."""
    images_per_shard = config.images_per_shard
    if split == "labeled":
        share = -(-count // NUM_LABELED_SHARDS)
        images_per_shard = min(images_per_shard, max(share, MIN_LABELED_PER_SHARD))
    return images_per_shard, config.shard_mebibytes * 2**20


def describe(counts: dict, descriptions: Mapping[str, str] | None = None) -> list[str]:
    """Describes what `ingest` returned: the splits, and everything that was left out.

    Args:
        counts: what it returned.
        descriptions: words for names of classes; None: there are none.

    Returns:
        Lines of text.
    """
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
    names = counts["class_names"]
    lines += describe_classes(with_descriptions(names, descriptions), counts["per_class"])
    lines += describe_coverage(names, descriptions)
    if counts["deep_images"]:
        lines.append(deep_images.describe(counts["deep_images"], counts["significant_bits"]))
    lines += _describe_removed(counts)
    lines += _describe_conflicts(counts["conflicts"])
    for pool, number in counts["unused"].items():
        if number:
            hint = ""
            if pool in ("train", "labeled"):
                hint = " --keep_remaining makes them unlabelled ones, too."
            lines.append(f"Not used: {number:,} readable {pool} images that are in no split.{hint}")
    for split, number in counts["unused_splits"].items():
        lines.append(f"Not used: all {number:,} images of the split {split}.")
    lines += _describe_skipped(counts)
    lines += _describe_broken(counts)
    return lines


def _describe_removed(counts: dict) -> Iterator[str]:
    """Yields lines on images that were left out since earlier splits have their kin."""
    for split, number in counts["duplicates_removed"].items():
        of_group = counts["removed_by_group"][split]
        if number > of_group:
            yield (
                f"Left out of {split}: {number - of_group:,} with the same pixels as an image of "
                "an earlier split or source."
            )
        if of_group:
            yield f"Left out of {split}: {of_group:,} of the group of an image of an earlier split."


def unsupported_warning(counts: dict) -> str:
    """A line on images of formats that are not decoded, from what `ingest` returned; "" if none."""
    line = describe_unsupported(Counter(counts["skipped"]["unsupported"]).elements())
    return f"{line}." if line else ""


def _describe_broken(counts: dict) -> Iterator[str]:
    """Yields lines on the files that cannot be read, or only with errors."""
    for kind, text in (
        ("corrupt", "Left out: {:,} that cannot be read"),
        ("doubtful", "Decoded with errors, perhaps damaged: {:,}"),
    ):
        count, images = counts[kind]["count"], counts[kind]["images"]
        if count:
            named = "; ".join(f"{image['id']} ({image['reason']})" for image in images[:3])
            end = "; ..." if count > 3 else "."
            yield f"{text.format(count)}, listed in stage.json: {named}{end}"


def _describe_conflicts(conflicts: dict) -> list[str]:
    """A line about images with the same pixels under several labels, if there are any."""
    if not conflicts["images"]:
        return []
    named = "; ".join(conflicts["named"][:3]) + ("; ..." if len(conflicts["named"]) > 3 else "")
    return [
        f"The same pixels under several labels: {conflicts['images']:,} images, of which "
        f"{conflicts['dropped']:,} are left out (--conflicting_labels): {named}."
    ]


def _describe_skipped(counts: dict) -> Iterator[str]:
    """Yields lines on the files that were not read."""
    skipped = counts["skipped"]
    for split, number in skipped["without_class"].items():
        yield (
            f"Not used: {number:,} images of {split} without class folders, so without labels: "
            f"give these with --labels. {AS_UNLABELED}"
        )
    for split, number in skipped["without_label"].items():
        yield (
            f"Not used: {number:,} images of {split} that have no label in the table of --labels. "
            f"{AS_UNLABELED}"
        )
    if skipped["outside"]:
        yield f"Not read: {skipped['outside']:,} images beside the class folders."
    if counts["other_files"]:
        yield (
            f"Not read: {counts['other_files']:,} files that are not images"
            + (f": {list_counts(skipped['others'])}." if skipped["others"] else ".")
        )
    if skipped["litter"]:
        yield (
            f"Skipped: {sum(skipped['litter'].values()):,} hidden files or files of an operating "
            f"system: {list_counts(skipped['litter'])}."
        )


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "w+b") as file:
            yield file
    finally:
        path.unlink(missing_ok=True)


def _distinct_sources(pools: dict[str, Pool]):
    return {id(pool.source): pool.source for pool in pools.values()}.values()


def _root(source: Source) -> str:
    """The folder of a source, without links; "" if it has none."""
    root = getattr(source, "root", None)
    return os.path.realpath(root) if root else ""


def _skipped_files(pools: dict[str, Pool]) -> dict:
    """The `SkippedFiles` of all sources together, as a dict."""
    names = ("others", "without_class", "without_label", "unsupported", "litter")
    total = {name: Counter() for name in names}
    outside, elsewhere = 0, set(map(_root, _distinct_sources(pools)))
    for source in _distinct_sources(pools):
        skipped = source.skipped_files(elsewhere - {_root(source)})
        outside += skipped.outside
        for name, counter in total.items():
            counter.update(getattr(skipped, name))
    return {"outside": outside} | {name: _most_common(counter) for name, counter in total.items()}


def _most_common(counter: Counter) -> dict[str, int]:
    """The largest numbers first; small ones beyond `MAX_NAMES_IN_COUNTS` are added up."""
    counts = [(name, number) for name, number in counter.most_common() if number]
    named, remaining = counts[:MAX_NAMES_IN_COUNTS], counts[MAX_NAMES_IN_COUNTS:]
    if remaining:
        named.append(("others", sum(number for _, number in remaining)))
    return dict(named)


def _opaque_ids(index: ImageIndex, rows: np.ndarray, pools: dict[str, Pool]) -> dict[int, str]:
    """Neutral ids, by row, of the labelled images with an id that may reveal the label."""
    id_reveals_label = np.zeros(len(index.ids), bool)
    for name, pool in pools.items():
        id_reveals_label[index.pools[name]] = pool.source.ids_reveal_labels
    rows = rows[id_reveals_label[rows] & (index.labels[rows] >= 0)]
    return {
        row: "image-" + hashlib.blake2b(index.ids[row].encode(), digest_size=16).hexdigest()
        for row in rows.tolist()
    }


def _seal_truth(
    path: Path, index: ImageIndex, rows: np.ndarray, opaque_ids: dict[int, str]
) -> None:
    rows = rows[index.labels[rows] >= 0]
    if not len(rows):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source_ids = {row: index.ids[row] for row in rows.tolist()}
    table = {
        "id": pa.array([opaque_ids.get(row, id) for row, id in source_ids.items()], pa.string()),
        "label": pa.array(index.labels[rows], pa.int32()),
        "source_id": pa.array(source_ids.values(), pa.string()),
    }
    pq.write_table(pa.table(table), path)
