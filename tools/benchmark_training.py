"""Speed of training and scoring from shards, relative to steps on data that is in memory.

    python -m tools.benchmark_training [--rounds=7] [--steps=100] [--cache=none]

- Training a student (labelled and pseudo-labelled shards mixed, RandAugment, crop, flip, dropout,
  stochastic depth, EMA, TensorBoard), compared with the same compiled steps on a single batch in
  memory. The two alternate, and ratios are of adjacent measurements.
- Scoring from shards to Parquet, compared with only forward passes.
- The cost of a 224-pixel image in each step: decoding, random resized crop, RandAugment.

Images are crops of scikit-learn's two sample photographs. Results are medians over the rounds. The
last line is a JSON object; a `ratio` of 1 means that data costs no time.
"""

import argparse
import functools
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from nsk import noise
from nsk.config.config import Config
from nsk.data import augment, crops, pipeline, records, shards
from nsk.data.augment import ImageNoise
from nsk.data.image_operations import RandAugmentOptions
from nsk.data.parallel_map import map_in_parallel
from nsk.distributed.runtime import Runtime
from nsk.distributed.strategy import make_strategy
from nsk.evaluation.predictor import Predictor
from nsk.stages import scoring, training
from nsk.stages.hyperparameters import training_hyperparameters
from nsk.stages.input_streams import make_batches
from nsk.training.curves import Curves

CLASSES = [f"class {number}" for number in range(10)]
NUM_LABELED, NUM_PSEUDO, NUM_DEV = 1024, 32768, 32
KEY = noise.key(0, "benchmark")
# A measurement starts with full prefetch buffers, which is also how it ends if data is fast enough,
# so that no measurement benefits from batches prepared during the other one.
WARM_UP_STEPS, BUFFER_SECONDS = 4, 2.0


def random_crops(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Yields random crops of the sample photographs: uint8 (height, width, 3)."""
    random = np.random.default_rng(0)
    photographs = load_sample_images().images
    for number in range(count):
        image = photographs[number % len(photographs)]
        top, left = (
            random.integers(0, image_side - side + 1)
            for image_side, side in zip(image.shape[:2], (height, width), strict=True)
        )
        yield image[top : top + height, left : left + width]


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Encodes uint8 pixels (height, width, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_shards(folder: Path) -> dict[str, shards.ShardSet]:
    """Writes labelled, dev and pseudo-labelled shards of 32-pixel JPEGs."""
    random = np.random.default_rng(1)
    counts = {"labeled": NUM_LABELED, "pseudo": NUM_PSEUDO, "dev": NUM_DEV}
    for name, count in counts.items():
        kind = "pseudo" if name == "pseudo" else "images"
        with shards.ShardWriter(folder / name, kind, CLASSES, 1024) as writer:
            for number, pixels in enumerate(random_crops(count, 32, 32)):
                label, id = number % len(CLASSES), f"{name}/{number}"
                if kind == "images":
                    writer.write(records.image_example(id, encode_jpeg(pixels), label))
                else:
                    scores = np.log(random.dirichlet(np.full(len(CLASSES), 0.1)) + 1e-6)
                    label = int(scores.argmax())
                    row = (label, float(np.exp(scores[label])), scores, 1)
                    writer.write(records.pseudo_example(id, encode_jpeg(pixels), *row))
    return {name: shards.ShardSet.load(folder / name) for name in counts}


def make_job(
    model: str, cache: str, shard_sets: dict[str, shards.ShardSet], folder: Path
) -> training.Job:
    """A student with all noise and 32 labelled and 96 pseudo-labelled images per step."""
    config = Config.from_values(
        {
            "models": [model] * 2,
            "train_steps": [1_000_000],
            "labeled_batch_size": [32],
            "ratio": [3.0],
            "ema_decay": 0.999,
            "cache": cache,
            "flip": "on",
        }
    )
    counts = {"images": {"labeled": NUM_LABELED}, "image_side": 32}
    settings = training_hyperparameters(config, 1, counts)
    labeled, dev, pseudo = (shard_sets[name] for name in ("labeled", "dev", "pseudo"))
    return training.Job(settings, labeled, dev, pseudo, {}, None, folder, folder, 1e9, 512)


def benchmark_training(
    model: str,
    cache: str,
    shard_sets: dict[str, shards.ShardSet],
    folder: Path,
    rounds: int,
    steps: int,
) -> dict[str, float]:
    """Images per second of training from shards and of only the steps; see `summarize`."""
    job = make_job(model, cache, shard_sets, folder)
    streams = job.open_streams()
    trainer = training.make_trainer(job, streams, Runtime.from_strategy(make_strategy("one")))
    recipe = trainer.recipe
    dataset = make_batches(job.settings, streams)(0, recipe.num_steps)
    in_memory = tf.data.Dataset.from_tensors(next(iter(dataset))).repeat()
    curves = Curves(folder / model, recipe.learning_rates)

    def measure(dataset):
        run = functools.partial(trainer.run_steps, iter(dataset), tf.constant(0))
        run(tf.constant(WARM_UP_STEPS))
        time.sleep(BUFFER_SECONDS)
        started = time.perf_counter()
        losses, norms = run(tf.constant(steps))
        if dataset is not in_memory:
            curves.add_steps(losses.numpy(), norms.numpy(), 0.0)
        losses.numpy()
        return steps * recipe.global_batch_size / (time.perf_counter() - started)

    pairs = alternate(rounds, lambda: measure(dataset), lambda: measure(in_memory))
    return summarize(f"training {model}", pairs, "from shards", "only steps")


def benchmark_scoring(
    model: str, shard_sets: dict[str, shards.ShardSet], folder: Path, rounds: int
) -> dict[str, float]:
    """Images per second of scoring from shards to Parquet and of only forward passes."""
    settings = make_job(model, "none", shard_sets, folder).settings
    predict = Predictor(training.build_network(settings, len(CLASSES), False), 512)
    unlabeled, dev = shard_sets["pseudo"], shard_sets["dev"]
    in_memory = next(iter(pipeline.clean_batches(unlabeled, 32, 512)))["image"]

    def predictions(shard_set, shards):
        return predict(pipeline.clean_batches(shard_set, 32, 512, shards))

    def from_shards():
        with tempfile.TemporaryDirectory(dir=folder) as scores:
            started = time.perf_counter()
            scoring.score_shards(unlabeled, dev, lambda: predictions, Path(scores))
            return (NUM_PSEUDO + NUM_DEV) / (time.perf_counter() - started)

    def forward_passes():
        started = time.perf_counter()
        for _ in range(NUM_PSEUDO // 512):
            predict.log_probabilities(in_memory)
        return NUM_PSEUDO / (time.perf_counter() - started)

    pairs = alternate(rounds, from_shards, forward_passes)
    return summarize(f"scoring {model}", pairs, "shards to Parquet", "forward passes")


def benchmark_decoding(rounds: int, count: int = 640, batch_size: int = 160) -> dict:
    """Images per second after each step of a 224-pixel pipeline from JPEGs of 375 x 500."""
    encoded = tf.constant([encode_jpeg(pixels) for pixels in random_crops(count, 375, 500)])
    options = RandAugmentOptions(num_ops=2, magnitude=9.0)
    image_noise = ImageNoise(flip=True, rand_augment=options)

    def decode(images):
        return tf.map_fn(
            lambda image: tf.reduce_max(tf.io.decode_jpeg(image, channels=3)),
            images,
            fn_output_signature=tf.uint8,
        )

    def crop(images):
        return crops.random_resized_crop(images, KEY, 224)

    pipelines = {
        "decode": decode,
        "random resized crop": crop,
        "crop and RandAugment": lambda images: augment.augment(crop(images), KEY, image_noise),
    }
    datasets = {
        name: map_in_parallel(
            tf.data.Dataset.from_tensor_slices(encoded).batch(batch_size), transform
        )
        for name, transform in pipelines.items()
    }

    def measure(dataset):
        started = time.perf_counter()
        for _ in dataset:
            pass
        return count / (time.perf_counter() - started)

    rows = alternate(
        rounds, *(functools.partial(measure, dataset) for dataset in datasets.values())
    )
    medians = dict(zip(pipelines, map(statistics.median, zip(*rows, strict=True)), strict=True))
    ratio = statistics.median(row[-1] / row[0] for row in rows)
    for name, speed in medians.items():
        print(f"224 pixels, {name}: {speed:,.0f} images/s, {1e6 / speed:,.0f} us/image")
    print(f"224 pixels, crop and RandAugment relative to decoding: {ratio:.3f}")
    return {"images_per_second": medians, "ratio": ratio}


def alternate(rounds: int, *measures: Callable[[], float]) -> list[tuple[float, ...]]:
    """Calls functions in turn; results of each round but the first, which warms up."""
    return [tuple(measure() for measure in measures) for _ in range(rounds + 1)][1:]


def summarize(
    title: str, pairs: Sequence[tuple[float, float]], name: str, baseline: str
) -> dict[str, float]:
    """Prints and returns the medians of (speed, baseline's speed) and of their ratios."""
    speed, baseline_speed = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(first / second for first, second in pairs)
    print(
        f"{title}: {name} {speed:,.0f} images/s, {baseline} {baseline_speed:,.0f}; "
        f"ratio {ratio:.3f}"
    )
    return {"images_per_second": speed, "baseline": baseline_speed, "ratio": ratio}


def main(arguments: Sequence[str] | None = None) -> None:
    """Times training, scoring and decoding and prints a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="number of timed rounds")
    parser.add_argument("--steps", type=int, default=100, help="training steps per round")
    parser.add_argument("--cache", choices=("memory", "none"), default="none")
    parser.add_argument("--models", default="resnet20,convnet5", help="comma-separated")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shard_sets = write_shards(folder)
        results = {
            model: benchmark_training(
                model, options.cache, shard_sets, folder, options.rounds, options.steps
            )
            for model in options.models.split(",")
        }
        results["score"] = benchmark_scoring("resnet20", shard_sets, folder, options.rounds)
    results["224"] = benchmark_decoding(options.rounds)
    ratios = {name: round(result["ratio"], 3) for name, result in results.items()}
    print(json.dumps({"ratio": ratios, "cache": options.cache, "details": results}))


if __name__ == "__main__":
    main()
