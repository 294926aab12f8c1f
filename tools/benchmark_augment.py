"""How many images per second RandAugment makes: this project's, KerasCV's, Keras's and Pillow's.

    python -m tools.benchmark_augment [--sizes=32,224] [--batch_sizes=512,160] [--rounds=7]

Two operations for each image, magnitude 9 of 30:

- ours: `nsk.data.augment.rand_augment`, mapped over batches as training does it.
- keras_cv: `keras_cv.layers.RandAugment`, mapped over single images, which it is faster at than at
  batches. It has 10 of our 16 operations.
- keras: `keras.layers.RandAugment`, mapped over batches; all images of a batch draw the same two.
- pillow_2proc: our 16 operations in Pillow, in two processes that hold their images already. What
  they make is not handed back, which a training would have to pay for.

The images are parts of scikit-learn's two sample photographs, the same for all. The contenders take
turns of about --seconds each; medians over the rounds. The last line is one JSON object.
"""

import argparse
import json
import multiprocessing
import random
import statistics
import time

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from nsk.report.text_table import columns

# Only functions import TensorFlow: Pillow's processes import this module, and do without.

NUM_OPS, MAGNITUDE, MAX_LEVEL, FILL = 2, 9.0, 30.0, 128
PROCESSES = 2
BATCHES_HELD = 4


def photographs(count, size):
    """Random parts of the sample photographs, uint8 (count, size, size, 3)."""
    from sklearn.datasets import load_sample_images

    generator, whole = np.random.default_rng(0), load_sample_images().images
    parts = []
    for number in range(count):
        image = whole[number % len(whole)]
        top, left = (generator.integers(0, side - size + 1) for side in image.shape[:2])
        parts.append(image[top : top + size, left : left + size])
    return np.stack(parts)


# The contenders: `seconds(num_images)` tells how long that many images take.


class Dataset:
    """What tf.data maps over the images, with the parallelism of training.

    Args:
        images: uint8 (batches, batch_size, size, size, 3), or (images, size, size, 3) where
            `function` takes single images.
        function: of (number of the element, element).
        images_of_element: int.
    """

    def __init__(self, images, function, images_of_element):
        import tensorflow as tf

        self.elements = tf.data.Dataset.from_tensor_slices(images).repeat().enumerate()
        self.function, self.images_of_element = function, images_of_element

    def seconds(self, num_images):
        from nsk.data import pipeline

        elements = self.elements.take(-(-num_images // self.images_of_element))
        # Nothing is computed before the first element is asked for, but functions are traced.
        iterator = iter(pipeline.made_ahead(elements, self.function))
        started = time.perf_counter()
        for _ in iterator:
            pass
        return time.perf_counter() - started

    def close(self):
        pass


def ours(images):
    from nsk import noise
    from nsk.data import augment

    key = noise.key(0, "benchmark")

    def function(number, batch):
        return augment.rand_augment(
            batch,
            noise.fold_in(key, number),
            num_ops=NUM_OPS,
            magnitude=MAGNITUDE,
            max_level=MAX_LEVEL,
            fill=FILL,
        )

    return Dataset(images, function, images.shape[1])


def keras_cv(images):
    import keras_cv

    # The magnitude is given as a share and is not varied, and no operation is left out by chance.
    layer = keras_cv.layers.RandAugment(
        value_range=(0, 255),
        augmentations_per_image=NUM_OPS,
        magnitude=MAGNITUDE / MAX_LEVEL,
        magnitude_stddev=0.0,
        rate=1.0,
    )
    return Dataset(images.reshape(-1, *images.shape[2:]), lambda _, image: layer(image), 1)


def keras(images):
    import keras

    layer = keras.layers.RandAugment(
        value_range=(0, 255), num_ops=NUM_OPS, factor=MAGNITUDE / MAX_LEVEL
    )
    return Dataset(images, lambda _, batch: layer(batch, training=True), images.shape[1])


class Pillow:
    """Processes that hold all images and share them out among themselves."""

    def __init__(self, images):
        images = images.reshape(-1, *images.shape[2:])
        # Not forked: TensorFlow's threads would not come along, but its locks would.
        self.pool = multiprocessing.get_context("spawn").Pool(PROCESSES, _hold, [images])

    def seconds(self, num_images):
        share = -(-num_images // PROCESSES)
        started = time.perf_counter()
        self.pool.map(_augment_held, [share] * PROCESSES, chunksize=1)
        return time.perf_counter() - started

    def close(self):
        self.pool.terminate()
        self.pool.join()


CONTENDERS = {"ours": ours, "keras_cv": keras_cv, "keras": keras, "pillow_2proc": Pillow}


# What Pillow's processes do.


def pillow_operations(level, size):
    """Our 16 operations on Pillow images, under the profile "increasing".

    Args:
        level: float in [0, 1], the strength.
        size: int, side of the images in pixels.

    Returns:
        dict from an operation's name to a function of (image, sign, center), the centre being
        cutout's column and row as shares of the sides.
    """
    gray, nearest = (FILL,) * 3, Image.Resampling.NEAREST
    move, hole = 0.45 * level * size, round(0.36 * level * size)
    brighter = [value + int(110 * level) if value < 128 else value for value in range(256)]

    def affine(x, y, move_x, move_y):
        """x and y: of the shears."""

        def apply(image, sign, _):
            matrix = (1, x * sign, move_x * sign, y * sign, 1, move_y * sign)
            return image.transform(
                image.size, Image.Transform.AFFINE, matrix, nearest, fillcolor=gray
            )

        return apply

    def enhance(enhancer):
        return lambda image, sign, _: enhancer(image).enhance(1 + 0.9 * level * sign)

    def cutout(image, _, center):
        left, top = (int(share * size) - hole // 2 for share in center)
        image = image.copy()
        image.paste(gray, (left, top, left + hole, top + hole))
        return image

    return {
        "auto_contrast": lambda image, *_: ImageOps.autocontrast(image),
        "equalize": lambda image, *_: ImageOps.equalize(image),
        "invert": lambda image, *_: ImageOps.invert(image),
        "rotate": lambda image, sign, _: image.rotate(30 * level * sign, nearest, fillcolor=gray),
        "posterize": lambda image, *_: ImageOps.posterize(image, 8 - round(4 * level)),
        "solarize": lambda image, *_: ImageOps.solarize(image, 256 * (1 - level)),
        "color": enhance(ImageEnhance.Color),
        "contrast": enhance(ImageEnhance.Contrast),
        "brightness": enhance(ImageEnhance.Brightness),
        "sharpness": enhance(ImageEnhance.Sharpness),
        "shear_x": affine(0.3 * level, 0, 0, 0),
        "shear_y": affine(0, 0.3 * level, 0, 0),
        "translate_x": affine(0, 0, move, 0),
        "translate_y": affine(0, 0, 0, move),
        "solarize_add": lambda image, *_: image.point(brighter * 3),
        "cutout": cutout,
    }


def _hold(images):
    global held, operations
    held = [Image.fromarray(image) for image in images]
    operations = list(pillow_operations(MAGNITUDE / MAX_LEVEL, images.shape[1]).values())


def _augment_held(count):
    for number in range(count):
        image = held[number % len(held)]
        for operation in random.choices(operations, k=NUM_OPS):
            center = random.random(), random.random()
            image = operation(image, random.choice((-1, 1)), center)


# The measurement.


def compare(contenders, batch_size, seconds, rounds):
    """Images per second of each contender, in turns.

    Args:
        contenders: dict from a name to an object with `seconds(num_images)`.
        batch_size: int, images that a turn has at least.
        seconds: float, how long a turn takes, about.
        rounds: int.

    Returns:
        dict from a name to the median over the rounds.
    """
    counts = {}
    for name, contender in contenders.items():
        contender.seconds(batch_size)  # Warms up.
        speed = batch_size / contender.seconds(batch_size)
        counts[name] = batch_size * max(1, round(seconds * speed / batch_size))
    speeds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            speeds[name].append(counts[name] / contender.seconds(counts[name]))
    return {name: statistics.median(values) for name, values in speeds.items()}


def main(arguments=None):
    def integers(text):
        return [int(one) for one in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=integers, default=[32, 224], help="sides of the images")
    parser.add_argument(
        "--batch_sizes", type=integers, default=[512, 160], help="images in a batch, for each size"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each that are timed")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn, about")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="those that take part")
    options = parser.parse_args(arguments)
    names = options.contenders.split(",")
    if set(names) - set(CONTENDERS):
        parser.error(f"--contenders={options.contenders}: expected some of {', '.join(CONTENDERS)}")
    if len(options.sizes) != len(options.batch_sizes):
        parser.error("--sizes and --batch_sizes: expected one batch size for each size")

    results = {}
    for size, batch_size in zip(options.sizes, options.batch_sizes, strict=True):
        images = photographs(BATCHES_HELD * batch_size, size)
        images = images.reshape(BATCHES_HELD, batch_size, size, size, 3)
        contenders = {name: CONTENDERS[name](images) for name in names}
        results[size] = compare(contenders, batch_size, options.seconds, options.rounds)
        for contender in contenders.values():
            contender.close()
    print(*table(results, names), sep="\n")
    print(json.dumps({"images_per_second": results}))


def table(results, names):
    """Lines of a table: images per second at each size, and how many times as many ours are."""
    rows = [("images per second", *(cell for size in results for cell in (f"{size} px", "ours x")))]
    for name in names:
        row = [name]
        for speeds in results.values():
            times = f"{speeds['ours'] / speeds[name]:.1f}" if "ours" in speeds else ""
            row += [f"{speeds[name]:,.0f}", times]
        rows.append(tuple(row))
    return columns(rows, left=1)


if __name__ == "__main__":
    main()
