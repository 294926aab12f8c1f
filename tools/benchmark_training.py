"""How much of a training step's and a forward pass's speed is left once data comes from shards.

    python -m tools.benchmark_training [--rounds=7] [--steps=100] [--cache=none]

- A student's run (labelled and pseudo-labelled shards mixed, RandAugment, crop, flip, dropout,
  stochastic depth, EMA, TensorBoard) against the bare step: the same compiled function on one batch
  that stays in memory. The two alternate; each ratio is of neighbours.
- Scoring from shards to Parquet against forward passes alone.
- What a 224-pixel image costs, stage by stage: decoding, random resized crop, RandAugment.

Images are parts of scikit-learn's two sample photographs. Medians over the rounds. The last line is
one JSON object; `ratio` is 1 where data costs nothing.
"""

import argparse
import functools
import io
import json
import statistics
import tempfile
import time
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
from nsk.distributed import strategy as strategies
from nsk.evaluation.predictor import Predictor
from nsk.stages import scoring as score
from nsk.stages import training as train_stage
from nsk.training.curves import Curves

CLASSES = [f"class {number}" for number in range(10)]
NUM_LABELED, NUM_PSEUDO, NUM_DEV = 1024, 32768, 32
KEY = noise.key(0, "benchmark")
# A turn begins with full buffers, as it ends where data is fast enough, and leaves nothing running:
# data made ahead in one turn's time would be a present to the other.
WARM_UP_STEPS, SECONDS_TO_FILL = 4, 2.0


def photographs(count, height, width):
    """Random parts of the sample photographs: yields uint8 (height, width, 3)."""
    random = np.random.default_rng(0)
    whole = load_sample_images().images
    for number in range(count):
        image = whole[number % len(whole)]
        top, left = (
            random.integers(0, full - side + 1)
            for full, side in zip(image.shape[:2], (height, width), strict=True)
        )
        yield image[top : top + height, left : left + width]


def encode(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_shards(folder):
    """Labelled, dev and pseudo-labelled 32-pixel JPEGs: a dict of `ShardSet`s."""
    random = np.random.default_rng(1)
    counts = {"labeled": NUM_LABELED, "pseudo": NUM_PSEUDO, "dev": NUM_DEV}
    for name, count in counts.items():
        kind = "pseudo" if name == "pseudo" else "images"
        with shards.ShardWriter(folder / name, kind, CLASSES, 1024) as writer:
            for number, pixels in enumerate(photographs(count, 32, 32)):
                label, id = number % len(CLASSES), f"{name}/{number}"
                if kind == "images":
                    writer.write(records.image_example(id, encode(pixels), label))
                else:
                    scores = np.log(random.dirichlet(np.full(len(CLASSES), 0.1)) + 1e-6)
                    label = int(scores.argmax())
                    row = (label, float(np.exp(scores[label])), scores, 1)
                    writer.write(records.pseudo_example(id, encode(pixels), *row))
    return {name: shards.ShardSet.load(folder / name) for name in counts}


def make_job(model, cache, sets, folder):
    """A student of 32 labelled and 96 pseudo-labelled images in a step, with all the noise."""
    config = Config.from_values(
        {
            "models": [model] * 2,
            "train_steps": [1_000_000],
            "labeled_batch_size": [32],
            "ratio": [3.0],
            "ema_decay": 0.999,
            "cache": cache,
        }
    )
    values = config.model.at(1)
    settings = {
        "name": "gen1/student",
        "seed": 0,
        "architecture": model,
        "image_size": 32,
        "num_labeled": NUM_LABELED,
        "model": {
            name: values[name]
            for name in ("dropout_rate", "survival_probability", "batch_norm_momentum")
        },
        "noise": {**config.noise.at(1), "flip": True},
        "train": config.train.at(1),
        "targets": {"pseudo_label": "soft", "temperature": 1.0, "smooth_epsilon": 0.1},
    }
    return train_stage.Job(
        settings, sets["labeled"], sets["dev"], sets["pseudo"], {}, None, folder, folder, 1e9, 512
    )


def benchmark_training(model, cache, sets, folder, rounds, steps):
    """Images per second of a student's run and of its bare step, and the ratio of the two."""
    job = make_job(model, cache, sets, folder)
    streams = train_stage.make_streams(job)
    trainer = train_stage.make_trainer(job, streams, strategies.make_strategy("one"))
    recipe = trainer.recipe
    dataset = train_stage.make_batches(job.settings, streams)(0, recipe.num_steps)
    resident = tf.data.Dataset.from_tensors(next(iter(dataset))).repeat()
    curves = Curves(folder / model, recipe.learning_rates)

    def timed(dataset):
        run = functools.partial(trainer.run_steps, iter(dataset), tf.constant(0))
        run(tf.constant(WARM_UP_STEPS))
        time.sleep(SECONDS_TO_FILL)
        started = time.perf_counter()
        losses, norms = run(tf.constant(steps))
        if dataset is not resident:
            curves.add_steps(losses.numpy(), norms.numpy(), 0.0)
        losses.numpy()
        return steps * recipe.global_batch_size / (time.perf_counter() - started)

    pairs = alternate(rounds, lambda: timed(dataset), lambda: timed(resident))
    return summarize(f"training {model}", pairs, "from shards", "bare step")


def benchmark_scoring(model, sets, folder, rounds):
    """Images per second of scoring from shards to Parquet and of forward passes alone."""
    settings = make_job(model, "none", sets, folder).settings
    predict = Predictor(train_stage.build_model(settings, len(CLASSES), False), 512)
    unlabeled, dev = sets["pseudo"], sets["dev"]
    resident = next(iter(pipeline.clean_batches(unlabeled, 32, 512)))["image"]

    def predictions(shard_set, shards):
        return predict(pipeline.clean_batches(shard_set, 32, 512, shards))

    def from_shards():
        with tempfile.TemporaryDirectory(dir=folder) as scores:
            started = time.perf_counter()
            score.score(unlabeled, dev, lambda: predictions, Path(scores))
            return (NUM_PSEUDO + NUM_DEV) / (time.perf_counter() - started)

    def forward():
        started = time.perf_counter()
        for _ in range(NUM_PSEUDO // 512):
            predict.log_probabilities(resident)
        return NUM_PSEUDO / (time.perf_counter() - started)

    pairs = alternate(rounds, from_shards, forward)
    return summarize(f"scoring {model}", pairs, "shards to Parquet", "forward passes")


def benchmark_decoding(rounds, count=640, batch_size=160):
    """Images per second of a 224-pixel pipeline from JPEGs of 375 x 500, stage by stage."""
    encoded = tf.constant([encode(pixels) for pixels in photographs(count, 375, 500)])
    options = RandAugmentOptions(num_ops=2, magnitude=9.0)
    image_noise = ImageNoise(flip=True, rand_augment=options)

    def decode(images):
        return tf.map_fn(
            lambda one: tf.reduce_max(tf.io.decode_jpeg(one, channels=3)),
            images,
            fn_output_signature=tf.uint8,
        )

    def crop(images):
        return crops.random_resized_crop(images, KEY, 224)

    stages = {
        "decode": decode,
        "random resized crop": crop,
        "and RandAugment": lambda images: augment.augment(crop(images), KEY, image_noise),
    }
    datasets = {
        name: pipeline.made_ahead(
            tf.data.Dataset.from_tensor_slices(encoded).batch(batch_size), stage
        )
        for name, stage in stages.items()
    }

    def timed(dataset):
        started = time.perf_counter()
        for _ in dataset:
            pass
        return count / (time.perf_counter() - started)

    rows = alternate(rounds, *(functools.partial(timed, one) for one in datasets.values()))
    medians = dict(zip(stages, map(statistics.median, zip(*rows, strict=True)), strict=True))
    ratio = statistics.median(row[-1] / row[0] for row in rows)
    for name, speed in medians.items():
        print(f"224 pixels, {name}: {speed:,.0f} images/s, {1e6 / speed:,.0f} us an image")
    print(f"224 pixels, the whole over decoding alone: {ratio:.3f}")
    return {"images_per_second": medians, "ratio": ratio}


def alternate(rounds, *measures):
    """Tuples of what the functions return, called in turn; the first turn warms up."""
    return [tuple(measure() for measure in measures) for _ in range(rounds + 1)][1:]


def summarize(title, pairs, name, baseline):
    """Prints and returns the medians of pairs (speed, baseline's speed) and of their ratios."""
    speed, base = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    print(f"{title}: {name} {speed:,.0f} images/s, {baseline} {base:,.0f}; ratio {ratio:.3f}")
    return {"images_per_second": speed, "baseline": base, "ratio": ratio}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="alternations that are timed")
    parser.add_argument("--steps", type=int, default=100, help="training steps in a turn")
    parser.add_argument("--cache", choices=("memory", "none"), default="none")
    parser.add_argument("--models", default="resnet20,convnet5", help="networks that are trained")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        sets = write_shards(folder)
        results = {
            model: benchmark_training(
                model, options.cache, sets, folder, options.rounds, options.steps
            )
            for model in options.models.split(",")
        }
        results["score"] = benchmark_scoring("resnet20", sets, folder, options.rounds)
    results["224"] = benchmark_decoding(options.rounds)
    ratios = {name: round(result["ratio"], 3) for name, result in results.items()}
    print(json.dumps({"ratio": ratios, "cache": options.cache, "details": results}))


if __name__ == "__main__":
    main()
