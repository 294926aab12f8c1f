"""Measures the images per second of RandAugment: this project's, KerasCV's, Keras's and Pillow's.

    python -m tools.benchmark_augment [--sizes=32,224] [--batch_sizes=512,160] [--rounds=7]

Two operations for each image, magnitude 9 of 30:

- ours: `nsk.data.rand_augment`, mapped over batches as in training, with the operations of its
  table that Pillow has, too.
- keras_cv: `keras_cv.layers.RandAugment`, mapped over single images, which is faster than over
  batches. It has 10 of these operations.
- keras: `keras.layers.RandAugment`, mapped over batches; all images of a batch draw the same two.
- pillow_2proc: the same operations in Pillow, in two processes that have the images in memory. The
  results are not sent back, which would take more time in training.

The images are crops of scikit-learn's two sample photographs, the same for all. The contenders run
in turns of about --seconds each; the result is the median over the rounds. The last line is a JSON
object.
"""

import argparse
import functools
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from nsk.data.randaugment_table import OPERATIONS, Strength
from nsk.report.text_table import align_columns

# Only functions import TensorFlow: Pillow's processes import this module, and do not need it.

NUM_OPS, MAGNITUDE, MAX_LEVEL, FILL, TRANSLATE_SHARE = 2, 9.0, 30.0, 128, 0.45
PROCESSES = 2
BATCHES_HELD = 4


def photographs(count: int, size: int) -> np.ndarray:
    """Random crops of the sample photographs, uint8 (count, size, size, 3)."""
    from sklearn.datasets import load_sample_images

    generator, originals = np.random.default_rng(0), load_sample_images().images
    crops = []
    for number in range(count):
        image = originals[number % len(originals)]
        top, left = (generator.integers(0, side - size + 1) for side in image.shape[:2])
        crops.append(image[top : top + size, left : left + size])
    return np.stack(crops)


# The contenders: `seconds(num_images)` measures the time of that many images.


class Contender(Protocol):
    """An implementation of RandAugment that is timed."""

    def seconds(self, num_images: int) -> float:
        """The time of augmenting this many images."""

    def close(self) -> None:
        """Stops the processes, if any."""


class Dataset:
    """A function mapped over the images by tf.data, with the parallelism of training.

    Args:
        images: uint8 (batches, batch_size, size, size, 3), or (images, size, size, 3) if `function`
            takes single images.
        function: of (number of the element, element).
        images_per_element: int.
    """

    def __init__(self, images: np.ndarray, function: Callable, images_per_element: int):
        import tensorflow as tf

        self.elements = tf.data.Dataset.from_tensor_slices(images).repeat().enumerate()
        self.function, self.images_per_element = function, images_per_element

    def seconds(self, num_images: int) -> float:
        """The time of augmenting this many images, without tracing."""
        from nsk.data.parallel_map import map_in_parallel

        elements = self.elements.take(-(-num_images // self.images_per_element))
        # This traces the function, but computes nothing before the first element is requested.
        iterator = iter(map_in_parallel(elements, self.function))
        started = time.perf_counter()
        for _ in iterator:
            pass
        return time.perf_counter() - started

    def close(self) -> None:
        """Does nothing: there are no processes."""
        pass


def ours(images: np.ndarray) -> Dataset:
    """`nsk.data.rand_augment` on whole batches, with the operations that Pillow also has."""
    from nsk import noise
    from nsk.data.image_operations import RandAugmentOptions
    from nsk.data.rand_augment import rand_augment

    key = noise.key(0, "benchmark")
    options = RandAugmentOptions(
        num_ops=NUM_OPS,
        magnitude=MAGNITUDE,
        max_level=MAX_LEVEL,
        operations=tuple(name for name in OPERATIONS if name in PILLOW_OPERATIONS),
        translate_share=TRANSLATE_SHARE,
        fill=FILL,
    )

    def function(number, batch):
        return rand_augment(batch, noise.fold_in(key, number), options)

    return Dataset(images, function, images.shape[1])


def keras_cv(images: np.ndarray) -> Dataset:
    """KerasCV's layer, on single images."""
    import keras_cv

    # A constant magnitude, given as a share; no operation is skipped at random.
    layer = keras_cv.layers.RandAugment(
        value_range=(0, 255),
        augmentations_per_image=NUM_OPS,
        magnitude=MAGNITUDE / MAX_LEVEL,
        magnitude_stddev=0.0,
        rate=1.0,
    )
    return Dataset(images.reshape(-1, *images.shape[2:]), lambda _, image: layer(image), 1)


def keras(images: np.ndarray) -> Dataset:
    """Keras' layer, on whole batches."""
    import keras

    layer = keras.layers.RandAugment(
        value_range=(0, 255), num_ops=NUM_OPS, factor=MAGNITUDE / MAX_LEVEL
    )
    return Dataset(images, lambda _, batch: layer(batch, training=True), images.shape[1])


class Pillow:
    """Pillow in processes that each have all images in memory and augment an equal number."""

    def __init__(self, images: np.ndarray):
        images = images.reshape(-1, *images.shape[2:])
        # Not forked: TensorFlow's locks would be copied, but not its threads.
        self.pool = multiprocessing.get_context("spawn").Pool(PROCESSES, _keep_images, [images])

    def seconds(self, num_images: int) -> float:
        """The time of augmenting this many images, divided among the processes."""
        share = -(-num_images // PROCESSES)
        started = time.perf_counter()
        self.pool.map(_augment_kept, [share] * PROCESSES, chunksize=1)
        return time.perf_counter() - started

    def close(self) -> None:
        """Stops the processes."""
        self.pool.terminate()
        self.pool.join()


CONTENDERS = {"ours": ours, "keras_cv": keras_cv, "keras": keras, "pillow_2proc": Pillow}


# The work of Pillow's processes.


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    nearest, gray = Image.Resampling.NEAREST, (FILL,) * 3
    return image.transform(image.size, Image.Transform.AFFINE, matrix, nearest, fillcolor=gray)


def _solarize_add(image: Image.Image, added: float) -> Image.Image:
    return image.point([value + int(added) if value < 128 else value for value in range(256)] * 3)


def _cutout(image: Image.Image, side: float, center: tuple[float, float]) -> Image.Image:
    side = int(side)
    left, top = (
        int(share * length) - side // 2 for share, length in zip(center, image.size, strict=True)
    )
    image = image.copy()
    image.paste((FILL,) * 3, (left, top, left + side, top + side))
    return image


# From an operation's name to a function of (image, amount, center), with the centre of cutout as
# column and row in shares of the sides. Rows of the table without an entry are not compared.
PILLOW_OPERATIONS = {
    "auto_contrast": lambda image, *_: ImageOps.autocontrast(image),
    "equalize": lambda image, *_: ImageOps.equalize(image),
    "invert": lambda image, *_: ImageOps.invert(image),
    "rotate": lambda image, degrees, _: image.rotate(
        degrees, Image.Resampling.NEAREST, fillcolor=(FILL,) * 3
    ),
    "posterize": lambda image, bits, _: ImageOps.posterize(image, int(bits)),
    "solarize": lambda image, threshold, _: ImageOps.solarize(image, threshold),
    "color": lambda image, factor, _: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor, _: ImageEnhance.Contrast(image).enhance(factor),
    "brightness": lambda image, factor, _: ImageEnhance.Brightness(image).enhance(factor),
    "sharpness": lambda image, factor, _: ImageEnhance.Sharpness(image).enhance(factor),
    "shear_x": lambda image, shear, _: _affine(image, 1, shear, 0, 0, 1, 0),
    "shear_y": lambda image, shear, _: _affine(image, 1, 0, 0, shear, 1, 0),
    "translate_x": lambda image, pixels, _: _affine(image, 1, 0, pixels, 0, 1, 0),
    "translate_y": lambda image, pixels, _: _affine(image, 1, 0, 0, 0, 1, pixels),
    "solarize_add": lambda image, added, _: _solarize_add(image, added),
    "cutout": _cutout,
}


def pillow_operations(level: float, size: int) -> dict[str, Callable]:
    """The operations of the table on Pillow images, under the profile "increasing".

    Args:
        level: in [0, 1], the strength.
        size: side of the images, pixels.

    Returns:
        dict from an operation's name to a function of (image, sign, center), see
        `PILLOW_OPERATIONS`.
    """

    def amount(name, sign):
        if OPERATIONS[name].amount is None:
            return 0.0
        strength = Strength(level, sign, size, size, TRANSLATE_SHARE)
        return float(OPERATIONS[name].amount.function("increasing")(np, strength))

    def apply(name, amounts, image, sign, center):
        return PILLOW_OPERATIONS[name](image, amounts[int(sign)], center)

    return {
        name: functools.partial(apply, name, {sign: amount(name, sign) for sign in (-1, 1)})
        for name in OPERATIONS
        if name in PILLOW_OPERATIONS
    }


def _keep_images(images: np.ndarray) -> None:
    global kept, operations
    kept = [Image.fromarray(image) for image in images]
    operations = list(pillow_operations(MAGNITUDE / MAX_LEVEL, images.shape[1]).values())


def _augment_kept(count: int) -> None:
    for number in range(count):
        image = kept[number % len(kept)]
        for operation in random.choices(operations, k=NUM_OPS):
            center = random.random(), random.random()
            image = operation(image, random.choice((-1, 1)), center)


# The measurement.


def compare(
    contenders: dict[str, Contender], batch_size: int, seconds: float, rounds: int
) -> dict[str, float]:
    """Measures the images per second of each contender, in turns.

    Args:
        contenders: dict from a name to its contender.
        batch_size: the smallest number of images in a turn.
        seconds: approximate duration of a turn.
        rounds: number of turns of each contender.

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Times the contenders at each size and prints a table and a line of JSON."""

    def integers(text):
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=integers, default=[32, 224], help="sides of the images")
    parser.add_argument(
        "--batch_sizes", type=integers, default=[512, 160], help="images in a batch, for each size"
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed turns of each contender")
    parser.add_argument("--seconds", type=float, default=2.0, help="approximate duration of a turn")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="contenders to compare")
    options = parser.parse_args(arguments)
    names = options.contenders.split(",")
    if set(names) - set(CONTENDERS):
        parser.error(f"--contenders={options.contenders}: expected some of {', '.join(CONTENDERS)}")
    if len(options.sizes) != len(options.batch_sizes):
        parser.error("--sizes and --batch_sizes: expected a batch size for each size")

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


def table(results: dict[int, dict[str, float]], names: Sequence[str]) -> list[str]:
    """Lines of a table: images per second at each size, and the factor of ours."""
    rows = [("images per second", *(cell for size in results for cell in (f"{size} px", "ours x")))]
    for name in names:
        row = [name]
        for speeds in results.values():
            factor = f"{speeds['ours'] / speeds[name]:.1f}" if "ours" in speeds else ""
            row += [f"{speeds[name]:,.0f}", factor]
        rows.append(tuple(row))
    return align_columns(rows, left=1)


if __name__ == "__main__":
    main()
