"""Inspects shard sets: counts, classes, checksums, and a PNG sheet of images with their labels.

    python -m tools.inspect_shards FOLDER [--classes] [--verify] [--sheet=shards.png]
        [--num_images=40]

FOLDER is a shard set, or a folder of several, such as a run's workdir. `--classes` reads every
record and counts each class's rows in an epoch, in all shard sets with labels. `--verify` reads
every record and, if a shard set belongs to a finished stage, compares every file with its SHA-256:
damaged files are listed, and the exit code is 2. The sheet shows images at equal distances in the
first shard set, with their class names, and the confidence and copies of pseudo-labels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nsk.commands.preparation import hide_native_messages
from nsk.errors import UserError
from nsk.main import WRONG_INPUT, print_error
from nsk.report.text_table import align_columns
from nsk.store import verification
from nsk.store.manifest import MANIFEST

if TYPE_CHECKING:
    from PIL import Image

    from nsk.data.shards import ShardSet

ROW_LENGTH = 8
CELL_SIDE = 96


def find_sets(folder: Path) -> list[ShardSet]:
    """Finds the shard sets in a folder and below it.

    Raises:
        UserError: there is none, or a shard set is incomplete.
    """
    from nsk.data.shards import MANIFEST, ShardSet

    manifests = sorted(folder.rglob(MANIFEST))
    if not manifests and next(folder.rglob("*.parquet"), None):
        raise UserError(
            f"{folder} holds no shard set, but Parquet files, such as scores, selections or "
            "evaluations: read them with pandas or DuckDB, see README."
        )
    if not manifests:
        raise UserError(
            f"{folder} holds no shard set (no {MANIFEST}): give a folder such as "
            "WORKDIR/data/images-.../unlabeled or WORKDIR."
        )
    return [ShardSet.load(path.parent) for path in manifests]


def describe(shard_set: ShardSet) -> tuple[str, ...]:
    """(name, kind, shards, records, images, rows in an epoch, MiB) of a shard set, as strings."""
    size = sum(path.stat().st_size for path in shard_set.paths)
    return (
        str(shard_set.folder),
        shard_set.kind,
        f"{len(shard_set.names):,}",
        f"{shard_set.num_records:,}",
        f"{shard_set.num_images:,}",
        f"{sum(shard_set.copies):,}",
        f"{size / 2**20:,.1f}",
    )


def class_counts(shard_set: ShardSet) -> np.ndarray:
    """Counts the rows of each class in an epoch: int64 array (num_classes,)."""
    import tensorflow as tf

    from nsk.data import records

    def parse(serialized):
        if shard_set.kind == "pseudo":
            parsed = records.parse_pseudo(serialized, shard_set.num_classes, shard_set.top_k)
            return parsed["label"], parsed["copies"]
        labels = records.parse_images(serialized)["label"]
        return labels, tf.ones_like(labels)

    counts = np.zeros(shard_set.num_classes, np.int64)
    with shard_set.naming_broken_shards():
        for labels, copies in shard_set.read().batch(256).map(parse).as_numpy_iterator():
            is_labeled = labels >= 0
            np.add.at(counts, labels[is_labeled], copies[is_labeled])
    return counts


def class_tables(sets: Sequence[ShardSet], folder: Path) -> Iterator[str]:
    """Yields the lines of tables of `class_counts`.

    Shard sets with the same classes are columns of the same table; those without labels are left
    out.
    """
    counts = {shard_set: class_counts(shard_set) for shard_set in sets}
    tables = {}
    for shard_set, set_counts in counts.items():
        if set_counts.any():
            tables.setdefault(shard_set.class_names, []).append((shard_set.folder, set_counts))
    for class_names, set_columns in tables.items():
        rows = [("class", *(_relative_name(path, folder) for path, _ in set_columns))]
        for index, name in enumerate(class_names):
            rows.append((name, *(f"{set_counts[index]:,}" for _, set_counts in set_columns)))
        yield ""
        yield from align_columns(rows, left=1)


def _relative_name(path: Path, folder: Path) -> str:
    return path.name if path == folder else path.relative_to(folder).as_posix()


def find_damage(shard_set: ShardSet) -> list[str]:
    """A line for every damaged file of a shard set: its records, counts, copies or checksum."""
    from nsk.data import records

    found = {}
    for index, path in enumerate(shard_set.paths):
        try:
            copies = 0
            for record in shard_set.records(index):
                copies += int(records.parse_copies([record])["copies"][0])
            if copies != shard_set.copies[index]:
                found[path.resolve()] = (
                    f"{path} has {copies} copies, its manifest says {shard_set.copies[index]}"
                )
        except UserError as error:
            found[path.resolve()] = str(error)
    folder = shard_set.folder.resolve()
    finished = [path for path in (folder, *folder.parents) if (path / MANIFEST).is_file()]
    if finished:
        for path, reason in verification.find_damage(finished[0]):
            if path.is_relative_to(folder):
                known = found.get(path)
                found[path] = f"{known} ({reason})" if known else f"{path}: {reason}"
    return list(found.values())


def examples(shard_set: ShardSet, num_images: int) -> Iterator[tuple[bytes, str, str]]:
    """Yields (encoded image, class name, confidence and copies) at equal distances in the set."""
    from nsk.data import records

    distance = max(1, shard_set.num_records // num_images)
    dataset = shard_set.read().shard(distance, 0).take(num_images).batch(num_images)
    with shard_set.naming_broken_shards():
        (serialized,) = dataset
    if shard_set.kind == "pseudo":
        parsed = records.parse_pseudo(serialized, shard_set.num_classes, shard_set.top_k)
    else:
        parsed = records.parse_images(serialized)
    parsed = {name: value.numpy() for name, value in parsed.items()}
    for row, encoded in enumerate(parsed["encoded"]):
        label = parsed["label"][row]
        name, details = "?" if label < 0 else shard_set.class_names[label], ""
        if shard_set.kind == "pseudo":
            details = f" {parsed['confidence'][row]:.3f} x{parsed['copies'][row]}"
        yield encoded, name, details


def make_sheet(shard_set: ShardSet, num_images: int) -> Image.Image:
    """Draws images of the shard set, each above its class name."""
    from nsk.data.decoding import decode_image
    from tools.show_augment import draw_sheet, shortened

    cells = [
        (shortened(name, CELL_SIDE, details), decode_image(encoded, CELL_SIDE).numpy()[None])
        for encoded, name, details in examples(shard_set, num_images)
    ]
    rows = [
        (
            f"{first + 1:,} to {first + len(cells[first : first + ROW_LENGTH]):,}",
            cells[first : first + ROW_LENGTH],
        )
        for first in range(0, len(cells), ROW_LENGTH)
    ]
    return draw_sheet(f"{shard_set.folder}, {shard_set.kind}", [""] * ROW_LENGTH, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of shard sets; verifies them and draws a sheet on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a shard set, or a folder of several")
    parser.add_argument("--classes", action="store_true", help="count each class's rows")
    parser.add_argument("--verify", action="store_true", help="read everything, compare checksums")
    parser.add_argument("--sheet", type=Path, help="the .png file to write")
    parser.add_argument("--num_images", type=int, default=40, help="images on the sheet")
    options = parser.parse_args(arguments)
    if options.num_images < 1:
        raise UserError(f"--num_images={options.num_images}: expected 1 or more.")
    if options.sheet:
        from tools.show_augment import check_png

        check_png("--sheet", options.sheet)
    with hide_native_messages():
        import tensorflow as tf

        tf.config.list_physical_devices()
    sets = find_sets(options.folder)
    header = ("shard set", "kind", "shards", "records", "images", "rows an epoch", "MiB")
    print(*align_columns([header, *map(describe, sets)], left=2), sep="\n")
    if options.classes:
        print(*class_tables(sets, options.folder), sep="\n")
    if options.sheet:
        sheet = make_sheet(sets[0], options.num_images)
        sheet.save(options.sheet)
        print(f"{options.sheet}: {sheet.width} x {sheet.height} pixels")
    if options.verify:
        found = [line for shard_set in sets for line in find_damage(shard_set)]
        for line in found:
            print(line)
        num_sets = _count(len(sets), "shard set")
        if found:
            files, them = _count(len(found), "damaged file"), "it" if len(found) == 1 else "them"
            raise UserError(f"{files} in {num_sets}: rebuild {them}.")
        print(f"{num_sets}: all records and checksums are ok.")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print_error(str(error))
        sys.exit(WRONG_INPUT)
