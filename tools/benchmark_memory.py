"""Memory of streaming an epoch from shards, over 1, 4 and 16 copies of the same data.

    python -m tools.benchmark_memory [--copies=1,4,16] [--images=16384]

Each size is streamed in a process of its own, which reads every image once, with crop, flip and
RandAugment, and tells the most memory that it held (`ru_maxrss`). The last line is one JSON object.
"""

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from nsk import noise
from nsk.data import perturb, pipeline, records, shards
from nsk.data.augment import ImageNoise
from nsk.data.image_operations import RandAugmentOptions
from nsk.data.streams import ShardStream

SIDE = 32
IMAGES_PER_SHARD = 1024
BATCH_SIZE = 256
WINDOW_MEBIBYTES = 16


def write_shards(folder, count):
    """Noise images as PNG, about 3 KB each: a `ShardSet`."""
    random = np.random.default_rng(0)
    with shards.ShardWriter(folder, "images", ["only"], IMAGES_PER_SHARD) as writer:
        for number in range(count):
            pixels = random.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
            encoded = tf.io.encode_png(pixels).numpy()
            writer.write(records.image_example(f"{number}", encoded, 0))
    return shards.ShardSet.load(folder)


def link_copies(shard_set, folder, copies):
    """A shard set with every shard so many times, without repeating a byte on disk."""
    folder.mkdir()
    files = []
    for copy in range(copies):
        for path, count in zip(shard_set.paths, shard_set.counts, strict=True):
            name = f"{copy:03d}-{path.name}"
            os.link(path, folder / name)
            files.append({"name": name, "records": count, "copies": count, "images": count})
    shards.write_manifest(folder, "images", shard_set.class_names, files)


def stream(folder):
    """Streams one epoch; dict of `images` and `peak_mebibytes`."""

    options = RandAugmentOptions(num_ops=2, magnitude=9.0)
    image_noise = ImageNoise(crop_padding=4, flip=True, rand_augment=options)
    noisy = functools.partial(perturb.perturb, image_size=SIDE, image_noise=image_noise)

    one = ShardStream(
        "labeled",
        (shards.ShardSet.load(folder),),
        lambda parsed: tf.one_hot(parsed["label"], 1),
        {},
        BATCH_SIZE,
        WINDOW_MEBIBYTES * pipeline.MEBIBYTE,
    )
    steps = one.epoch_size // BATCH_SIZE
    for _ in pipeline.training_batches((one,), noise.key(0), noisy, SIDE, 0, steps):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB.
    return {"images": steps * BATCH_SIZE, "peak_mebibytes": round(peak)}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--copies", default="1,4,16", help="how often the data is repeated")
    parser.add_argument("--images", type=int, default=16384, help="images in the data")
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
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[copies] = one = json.loads(told.splitlines()[-1])
            print(f"{copies:3d} x: {one['images']:,} images, at most {one['peak_mebibytes']:,} MiB")
    print(json.dumps({"peak_mebibytes": {n: one["peak_mebibytes"] for n, one in results.items()}}))


if __name__ == "__main__":
    main()
