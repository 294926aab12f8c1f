"""Measures the images per second of the 19 corruptions: this project's and imagecorruptions'.

    python -m tools.benchmark_corruptions [--sizes=32,224] [--images=2048,64] [--rounds=3]

- ours: `nsk.evaluation.corruptions.corrupt`, batch after batch.
- ours_all_cores: the same on all cores, as in an evaluation.
- imagecorruptions: `imagecorruptions.corrupt`, image after image on one core. It has the severities
  of ImageNet-C at any size; `--constants=imagenet` gives ours the same.

Each corruption is timed at severities 1 to 5; a speed is the number of corrupted images by the sum
of their times, which are medians over the rounds. The contenders take turns at every condition and
corrupt the same images, imagecorruptions only the first --peer_images of them. These are crops of
scikit-learn's two sample photographs or the first test images of --dataset=tfds:NAME, resized to
each size. The last line is a JSON object.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from nsk.evaluation.corruptions import BENCHMARK, CORRUPTIONS, SEVERITIES, corrupt
from nsk.report.text_table import align_columns

CONTENDERS = ("ours", "ours_all_cores", "imagecorruptions")

# Seconds of conditions (name, severity), by contender and condition.
Times = dict[str, dict[tuple[str, int], float]]


def load_images(dataset: str, count: int, size: int) -> np.ndarray:
    """Images to corrupt, uint8 (count, size, size, 3).

    Args:
        dataset: "photographs", or "tfds:NAME" for the first images of the split test.
        count: of images; if the data set has fewer, they are repeated.
        size: side, pixels.
    """
    if dataset == "photographs":
        from tools.benchmark_augment import photographs

        return photographs(count, size)
    import tensorflow_datasets as tfds

    examples = tfds.load(dataset.removeprefix("tfds:"), split=f"test[:{count}]")
    images = [
        np.asarray(Image.fromarray(image.squeeze()).convert("RGB").resize((size, size)))
        for image in (example["image"] for example in examples.as_numpy_iterator())
    ]
    return np.resize(np.stack(images), (count, size, size, 3))


def contenders(images: np.ndarray, batch_size: int, constants: str, num_peer_images: int) -> dict:
    """The contenders.

    Args:
        images: uint8 (n, size, size, 3).
        batch_size: images that ours corrupts together.
        constants: see `corrupt`.
        num_peer_images: images that imagecorruptions corrupts.

    Returns:
        dict from a name to (number of images, function of a corruption's name and severity that
        corrupts them).
    """
    import cv2
    from imagecorruptions import corrupt as peer

    from nsk.evaluation.suites.conditions import transform_batches

    cv2.setNumThreads(1)
    ids = [str(index) for index in range(len(images))]
    parts = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    batches = [{"image": images[part], "id": np.array(ids[part], "S")} for part in parts]

    def ours(name, severity):
        for part in parts:
            corrupt(images[part], name, severity, ids[part], constants=constants)

    def ours_all_cores(name, severity):
        def transform(batch, batch_ids):
            return corrupt(batch, name, severity, batch_ids, constants=constants)

        for _ in transform_batches(batches, transform):
            pass

    def imagecorruptions(name, severity):
        for image in images[:num_peer_images]:
            peer(image, corruption_name=name, severity=severity)

    return {
        "ours": (len(images), ours),
        "ours_all_cores": (len(images), ours_all_cores),
        "imagecorruptions": (min(num_peer_images, len(images)), imagecorruptions),
    }


def measure(functions: dict[str, Callable], names: Sequence[str], rounds: int) -> Times:
    """Times every condition, the contenders in turns.

    Args:
        functions: dict from a contender to a function of a corruption's name and severity.
        names: corruptions.
        rounds: number of timings, of which the median counts.
    """
    times = {contender: {} for contender in functions}
    for name in names:
        for function in functions.values():
            function(name, 1)  # Warms up.
        for severity in SEVERITIES:
            seconds = {contender: [] for contender in functions}
            for _ in range(rounds):
                for contender, function in functions.items():
                    started = time.perf_counter()
                    function(name, severity)
                    seconds[contender].append(time.perf_counter() - started)
            for contender, values in seconds.items():
                times[contender][name, severity] = statistics.median(values)
    return times


def speeds(
    times: Times, num_images: dict[str, int], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Images per second of each corruption and of all of the benchmark that were timed together.

    Args:
        times: of `measure`.
        num_images: in a condition, by contender.
        names: corruptions.

    Returns:
        dict from a corruption or "benchmark" to a dict from a contender to images per second.
    """
    rows = {name: [name] for name in names}
    rows["benchmark"] = [name for name in names if name in BENCHMARK] or list(names)
    return {
        row: {
            contender: num_images[contender]
            * len(members)
            * len(SEVERITIES)
            / sum(seconds[name, severity] for name in members for severity in SEVERITIES)
            for contender, seconds in times.items()
        }
        for row, members in rows.items()
    }


def table(results: dict[str, dict[str, float]], size: int) -> list[str]:
    """Lines of a table of `speeds`, with the ratios of ours to imagecorruptions."""
    rows = [(f"{size} px, images per second", *CONTENDERS, "ratio", "ratio, all cores")]
    for name, by_contender in results.items():
        one, every, peer = (by_contender[contender] for contender in CONTENDERS)
        cells = [f"{speed:,.0f}" for speed in (one, every, peer)]
        rows.append((name, *cells, f"{one / peer:.1f}", f"{every / peer:.1f}"))
    return align_columns(rows, left=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Times the contenders at each size and prints tables and a line of JSON."""
    options = _parse(arguments)
    results = {}
    per_size = zip(
        options.sizes, options.images, options.batch_sizes, options.peer_images, strict=True
    )
    for size, count, batch_size, num_peer_images in per_size:
        images = load_images(options.dataset, count, size)
        chosen = contenders(images, batch_size, options.constants, num_peer_images)
        times = measure(
            {contender: function for contender, (_, function) in chosen.items()},
            options.corruptions,
            options.rounds,
        )
        counts = {contender: number for contender, (number, _) in chosen.items()}
        results[size] = speeds(times, counts, options.corruptions)
        print(*table(results[size], size), "", sep="\n")
    print(json.dumps({"cores": os.cpu_count(), "images_per_second": results}))


def _parse(arguments):
    def integers(text):
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=integers, default=[32, 224], help="sides of the images")
    parser.add_argument(
        "--images", type=integers, default=[2048, 64], help="images in a condition, for each size"
    )
    parser.add_argument(
        "--batch_sizes",
        type=integers,
        default=[256, 16],
        help="images in a batch of ours, for each size",
    )
    parser.add_argument(
        "--peer_images",
        type=integers,
        default=[64, 4],
        help="images of imagecorruptions, for each size",
    )
    parser.add_argument("--rounds", type=int, default=3, help="timings of a condition")
    parser.add_argument("--corruptions", default=",".join(CORRUPTIONS), help="list of names")
    parser.add_argument("--constants", default="auto", help="auto, cifar, tiny or imagenet")
    parser.add_argument("--dataset", default="photographs", help="photographs, or tfds:NAME")
    options = parser.parse_args(arguments)
    options.corruptions = options.corruptions.split(",")
    if set(options.corruptions) - set(CORRUPTIONS):
        parser.error(f"--corruptions: expected some of {', '.join(CORRUPTIONS)}")
    lists = (options.sizes, options.images, options.batch_sizes, options.peer_images)
    if len(set(map(len, lists))) > 1:
        parser.error("--images, --batch_sizes, --peer_images: expected a number for each size")
    return options


if __name__ == "__main__":
    main()
