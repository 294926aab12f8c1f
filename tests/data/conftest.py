"""Handwritten digits in memory and as a shard set."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nsk.data import records, shards

CLASS_NAMES = [str(digit) for digit in range(10)]


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def digit_images():
    """uint8 (600, 8, 8, 3)."""
    images = np.minimum(load_digits().images[:600] * 16, 255).astype(np.uint8)
    return np.repeat(images[..., np.newaxis], 3, axis=-1)


@pytest.fixture(scope="session")
def digit_files(digit_images):
    """The same images as PNG."""
    return [png(image) for image in digit_images]


@pytest.fixture
def labeled(digit_files, tmp_path):
    """600 digits (more than are parsed in one call) in shards of 250."""
    labels = load_digits().target[:600]
    with shards.ShardWriter(tmp_path / "labeled", "images", CLASS_NAMES, 250) as writer:
        for number, (encoded, label) in enumerate(zip(digit_files, labels, strict=True)):
            writer.write(records.image_example(f"digit/{number}", encoded, label))
    return shards.ShardSet.load(tmp_path / "labeled")
