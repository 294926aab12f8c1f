"""Peak memory of streaming an epoch from shards, for 1, 4 and 16 copies of the same data.

    python -m tools.benchmark_memory [--copies=1,4,16] [--images=16384]

Each size is streamed in a separate process, which reads every image once, with crop, flip and
RandAugment, and reports its peak memory (`ru_maxrss`). The last line is a JSON object.
"""

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from nsk import noise
from nsk.data import perturb, pipeline, records, shards
from nsk.data.augment import ImageNoise
from nsk.data.image_operations import RandAugmentOptions
from nsk.data.shard_stream import ShardStream

SIDE = 32
IMAGES_PER_SHARD = 1024
BATCH_SIZE = 256
WINDOW_MEBIBYTES = 16


def write_shards(folder: Path, count: int) -> shards.ShardSet:
    """Writes random images as PNGs of about 3 KB each."""
    random = np.random.default_rng(0)
    with shards.ShardWriter(folder, "images", ["only"], IMAGES_PER_SHARD) as writer:
        for number in range(count):
            pixels = random.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
            encoded = tf.io.encode_png(pixels).numpy()
            writer.write(records.image_example(f"{number}", encoded, 0))
    return shards.ShardSet.load(folder)


def link_copies(shard_set: shards.ShardSet, folder: Path, copies: int) -> None:
    """Makes a shard set that repeats every shard `copies` times, by hard links."""
    folder.mkdir()
    files = []
    for copy in range(copies):
        for path, count in zip(shard_set.paths, shard_set.counts, strict=True):
            name = f"{copy:03d}-{path.name}"
            os.link(path, folder / name)
            files.append({"name": name, "records": count, "copies": count, "images": count})
    shards.write_manifest(folder, "images", shard_set.class_names, files)


def stream(folder: Path) -> dict[str, int]:
    """Streams an epoch; dict of `images` and `peak_mebibytes`."""
    options = RandAugmentOptions(num_ops=2, magnitude=9.0)
    image_noise = ImageNoise(crop_padding=4, flip=True, rand_augment=options)
    perturb_images = functools.partial(perturb.perturb, image_size=SIDE, image_noise=image_noise)

    labeled = ShardStream(
        "labeled",
        (shards.ShardSet.load(folder),),
        lambda parsed: tf.one_hot(parsed["label"], 1),
        {},
        BATCH_SIZE,
        WINDOW_MEBIBYTES * pipeline.MEBIBYTE,
    )
    steps = labeled.epoch_size // BATCH_SIZE
    for _ in pipeline.training_batches((labeled,), noise.key(0), perturb_images, SIDE, 0, steps):
        pass
    peak_mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # In KiB on Linux.
    return {"images": steps * BATCH_SIZE, "peak_mebibytes": round(peak_mebibytes)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the peak memory at each number of copies, and a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--copies", default="1,4,16", help="numbers of copies, comma-separated")
    parser.add_argument("--images", type=int, default=16384, help="images in each copy")
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stream:
        print(json.dumps(stream(options.stream)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shard_set = write_shards(folder / "data", options.images)
        for copies in map(int, options.copies.split(",")):
            link_copies(shard_set, folder / f"{copies}", copies)
            command = [
                sys.executable,
                "-m",
                "tools.benchmark_memory",
                f"--stream={folder}/{copies}",
            ]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result = json.loads(output.splitlines()[-1])
            results[copies] = result["peak_mebibytes"]
            print(f"{copies:3d} x: {result['images']:,} images, peak {results[copies]:,} MiB")
    print(json.dumps({"peak_mebibytes": results}))


if __name__ == "__main__":
    main()
