"""What is in shard sets: counts, classes, checksums, and a PNG sheet of images with their labels.

    python -m tools.inspect_shards FOLDER [--classes] [--verify] [--sheet=shards.png]
        [--num_images=40]

FOLDER is a shard set, or a folder of several, such as a run's workdir. `--classes` reads every
record and counts each class's rows in an epoch, in all shard sets with labels. `--verify` reads
every record and, where a shard set belongs to a finished stage, compares every file with its
SHA-256: what is damaged is named, and the exit code is 2. The sheet shows images of the first
shard set, evenly taken from it: what each is called, and for a pseudo-label its confidence and
copies.
"""

import argparse
import sys
from pathlib import Path

from nsk.errors import UserError
from nsk.main import WRONG_INPUT, native_messages_hidden, tell
from nsk.report.text_table import columns
from nsk.store import folders as stage

ROW_LENGTH = 8
CELL_SIDE = 96


def find_sets(folder):
    """The shard sets in a folder and below it: list of `ShardSet`s.

    Raises:
        UserError: there is none, or one is incomplete.
    """
    from nsk.data.shards import MANIFEST, ShardSet

    manifests = sorted(folder.rglob(MANIFEST))
    if not manifests and next(folder.rglob("*.parquet"), None):
        raise UserError(
            f"{folder} holds Parquet files, as scores, selections and evaluations do, and no shard "
            "set: read them with pandas or DuckDB, as README shows."
        )
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


def class_counts(shard_set):
    """Rows of each class in an epoch: int64 array of shape (num_classes,)."""
    import numpy as np
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
            known = labels >= 0
            np.add.at(counts, labels[known], copies[known])
    return counts


def class_tables(sets, folder):
    """Lines of tables of `class_counts`: one for all sets of the same classes, a column for each.

    Sets without labels are left out.
    """
    counts = {shard_set: class_counts(shard_set) for shard_set in sets}
    tables = {}
    for shard_set, of_set in counts.items():
        if of_set.any():
            tables.setdefault(shard_set.class_names, []).append((shard_set.folder, of_set))
    for class_names, columns_of in tables.items():
        rows = [("class", *(_below(one, folder) for one, _ in columns_of))]
        for index, name in enumerate(class_names):
            rows.append((name, *(f"{of_set[index]:,}" for _, of_set in columns_of)))
        yield ""
        yield from columns(rows, left=1)


def _below(path, folder):
    return path.name if path == folder else path.relative_to(folder).as_posix()


def damages(shard_set):
    """A line for every file of a shard set that is damaged: records, counts, copies, checksum."""
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
    finished = [one for one in (folder, *folder.parents) if (one / stage.MANIFEST).is_file()]
    if finished:
        for path, reason in stage.damages(finished[0]):
            if path.is_relative_to(folder):
                told = found.get(path)
                found[path] = f"{told} ({reason})" if told else f"{path}: {reason}"
    return list(found.values())


def examples(shard_set, num_images):
    """(encoded image, name, what else is known) of images evenly taken from a shard set."""
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
        name, more = "?" if label < 0 else shard_set.class_names[label], ""
        if shard_set.kind == "pseudo":
            more = f" {parsed['confidence'][row]:.3f} x{parsed['copies'][row]}"
        yield encoded, name, more


def make_sheet(shard_set, num_images):
    """A Pillow image of the shard set's images, each above what it is called."""
    from nsk.data import records
    from tools.show_augment import draw_sheet, fitted

    cells = [
        (fitted(name, CELL_SIDE, more), records.decode_image(encoded, CELL_SIDE).numpy()[None])
        for encoded, name, more in examples(shard_set, num_images)
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
    with native_messages_hidden():
        import tensorflow as tf

        tf.config.list_physical_devices()
    sets = find_sets(options.folder)
    header = ("shard set", "kind", "shards", "records", "images", "rows an epoch", "MiB")
    print(*columns([header, *map(describe, sets)], left=2), sep="\n")
    if options.classes:
        print(*class_tables(sets, options.folder), sep="\n")
    if options.sheet:
        sheet = make_sheet(sets[0], options.num_images)
        sheet.save(options.sheet)
        print(f"{options.sheet}: {sheet.width} x {sheet.height} pixels")
    if options.verify:
        found = [line for shard_set in sets for line in damages(shard_set)]
        for line in found:
            print(line)
        of_sets = _count(len(sets), "shard set")
        if found:
            files, what = _count(len(found), "damaged file"), "it" if len(found) == 1 else "them"
            raise UserError(f"{files} in {of_sets}: make {what} again.")
        print(f"{of_sets}: every record and checksum is right.")


def _count(number, what):
    return f"{number:,} {what}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        tell(str(error))
        sys.exit(WRONG_INPUT)
