"""Small real photographs for the tests of this folder."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def photographs(height, width, number=2):
    """Parts of two photographs, reduced: uint8 (number, height, width, 3)."""
    full = load_sample_images().images
    images = []
    for index in range(number):
        left = 60 * index
        part = Image.fromarray(full[index % 2]).crop((left, 20, left + 400, 420))
        images.append(np.asarray(part.resize((width, height), Image.Resampling.BOX)))
    return np.stack(images)
