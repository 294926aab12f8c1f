"""What is in shard sets: counts, classes, checksums, and a PNG sheet of images with their labels.

    python -m tools.inspect_shards FOLDER [--verify] [--sheet=shards.png] [--num_images=40]

FOLDER is a shard set, or a folder of several, such as a run's workdir. `--verify` reads every
record and, where a shard set belongs to a finished stage, compares every file with its SHA-256:
what is damaged is named, and the exit code is 2. The sheet shows images of the first shard set,
evenly taken from it: what each is called, and for a pseudo-label its confidence and copies.
"""

import argparse
import sys
from pathlib import Path

from nsk import stage
from nsk.errors import UserError
from nsk.main import WRONG_INPUT, native_messages_hidden, tell
from nsk.report.table import columns

ROW_LENGTH = 8
CELL_SIDE = 96


def find_sets(folder):
    """The shard sets in a folder and below it: list of `ShardSet`s.

    Raises:
        UserError: there is none, or one is incomplete.
    """
    from nsk.data.shards import MANIFEST, ShardSet

    manifests = sorted(folder.rglob(MANIFEST))
    if not manifests:
        raise UserError(
            f"{folder} holds no shard set (no {MANIFEST}): give a folder such as "
            "WORKDIR/data/images-.../unlabeled or WORKDIR."
        )
    return [ShardSet.load(path.parent) for path in manifests]


def describe(shard_set):
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


def damages(shard_set):
    """A line for everything that is wrong with a shard set: records, counts, copies, checksums."""
    from nsk.data import records

    for index, path in enumerate(shard_set.paths):
        try:
            copies = 0
            for record in shard_set.records(index):
                copies += int(records.parse_copies([record])["copies"][0])
            if copies != shard_set.copies[index]:
                yield f"{path} has {copies} copies, its manifest says {shard_set.copies[index]}"
        except UserError as error:
            yield str(error)
    folder = shard_set.folder.resolve()
    finished = [one for one in (folder, *folder.parents) if (one / stage.MANIFEST).is_file()]
    if finished:
        for path, reason in stage.damages(finished[0]):
            if path.is_relative_to(folder):
                yield f"{path}: {reason}"


def examples(shard_set, num_images):
    """(encoded image, caption) of images evenly taken from a shard set."""
    from nsk.data import records

    every = max(1, shard_set.num_records // num_images)
    dataset = shard_set.read().shard(every, 0).take(num_images).batch(num_images)
    with shard_set.naming_broken_shards():
        (serialized,) = dataset
    if shard_set.kind == "pseudo":
        parsed = records.parse_pseudo(serialized, shard_set.num_classes, shard_set.top_k)
    else:
        parsed = records.parse_images(serialized)
    parsed = {name: value.numpy() for name, value in parsed.items()}
    for row, encoded in enumerate(parsed["encoded"]):
        label = parsed["label"][row]
        caption = "?" if label < 0 else shard_set.class_names[label]
        if shard_set.kind == "pseudo":
            caption += f" {parsed['confidence'][row]:.3f} x{parsed['copies'][row]}"
        yield encoded, caption


def make_sheet(shard_set, num_images):
    """A Pillow image of the shard set's images, each above what it is called."""
    from nsk.data import records
    from tools.show_augment import draw_sheet

    cells = [
        (caption, records.decode_image(encoded, CELL_SIDE).numpy()[None])
        for encoded, caption in examples(shard_set, num_images)
    ]
    rows = [
        (
            f"{first + 1:,} to {first + len(cells[first : first + ROW_LENGTH]):,}",
            cells[first : first + ROW_LENGTH],
        )
        for first in range(0, len(cells), ROW_LENGTH)
    ]
    return draw_sheet(f"{shard_set.folder}, {shard_set.kind}", [""] * ROW_LENGTH, rows)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a shard set, or a folder of several")
    parser.add_argument("--verify", action="store_true", help="read everything, compare checksums")
    parser.add_argument("--sheet", type=Path, help="the PNG file to write")
    parser.add_argument("--num_images", type=int, default=40, help="images on the sheet")
    options = parser.parse_args(arguments)
    if options.num_images < 1:
        raise UserError(f"--num_images={options.num_images}: expected 1 or more.")
    with native_messages_hidden():
        import tensorflow as tf

        tf.config.list_physical_devices()
    sets = find_sets(options.folder)
    header = ("shard set", "kind", "shards", "records", "images", "rows an epoch", "MiB")
    print(*columns([header, *map(describe, sets)], left=2), sep="\n")
    if options.sheet:
        sheet = make_sheet(sets[0], options.num_images)
        sheet.save(options.sheet)
        print(f"{options.sheet}: {sheet.width} x {sheet.height} pixels")
    if options.verify:
        found = [line for shard_set in sets for line in damages(shard_set)]
        for line in found:
            print(line)
        if found:
            raise UserError(f"{len(found)} damages in {len(sets)} shard sets: make them again.")
        print(f"{len(sets)} shard sets: every record and checksum is right.")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        tell(str(error))
        sys.exit(WRONG_INPUT)
