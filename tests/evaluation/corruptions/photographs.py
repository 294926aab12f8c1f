"""Images of the tests: parts of two photographs, and constant ones, which show lost levels."""

import functools

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from nsk.evaluation.corruptions.random_numbers import RandomNumbers


@functools.cache
def photographs(side, count=4):
    """uint8 (count + 2, side, side, 3): `count` parts of photographs, a white and a gray image."""
    images = []
    for index in range(count):
        whole = Image.fromarray(load_sample_images().images[index % 2])
        size = 400 - 90 * (index // 2)
        box = (20 * index, 5 * index, 20 * index + size, 5 * index + size)
        images.append(np.asarray(whole.resize((side, side), Image.Resampling.BILINEAR, box)))
    images += [np.full((side, side, 3), level, np.uint8) for level in (255, 77)]
    return np.stack(images)


def numbers_of(images, label="test"):
    return RandomNumbers(3, [f"image {index}" for index in range(len(images))], label)
