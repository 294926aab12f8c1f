"""A small data set of TensorFlow Datasets, and encoded images."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from nsk.data import record_files, sources


def encoded_image(seed=0, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


class Pictures(tfds.core.GeneratorBasedBuilder):
    """A small TFDS data set: two labels, and some images without one."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: dict = {}  # noqa: RUF012  (TFDS would search for a file of checksums beside this one.)
    SPLITS = ("train", "test", "unlabelled")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "picture": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "coarse": tfds.features.ClassLabel(names=["thing"]),
                    "label": tfds.features.ClassLabel(names=["hare", "tortoise"]),
                }
            )
        )

    def _split_generators(self, manager):
        return {name: self._generate_examples(name) for name in self.SPLITS}

    def _generate_examples(self, split):
        for number in range(3):
            label = -1 if split == "unlabelled" else number % 2
            image = io.BytesIO(encoded_image(number, "JPEG"))
            yield f"{split}{number}", {"picture": image, "coarse": 0, "label": label}


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Pictures(data_dir=folder, file_format="tfrecord").download_and_prepare()
    return folder


@pytest.fixture
def pictures(tfds_folder, monkeypatch):
    builder = tfds.builder
    monkeypatch.setattr(tfds, "builder", lambda name: builder(name, data_dir=tfds_folder))


@pytest.fixture(name="encoded_image")
def encoded_image_fixture():
    return encoded_image


@pytest.fixture
def fill():
    """Function of (root, *paths): writes images and opens the folder as a source.

    Files named .txt and .csv hold text, those without a suffix images.
    """

    def fill(root, *paths):
        for seed, path in enumerate(paths):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            kind = "JPEG" if path.lower().endswith(("jpg", "jpeg")) else "PNG"
            is_text = path.endswith((".txt", ".csv"))
            (root / path).write_bytes(b"text" if is_text else encoded_image(seed, kind))
        return sources.open_source(f"folder:{root}")

    return fill


@pytest.fixture
def write_tfrecord():
    """Function of (path, examples): writes a TFRecord file without a manifest."""

    def write(path, examples):
        path.parent.mkdir(parents=True, exist_ok=True)
        with record_files.RecordWriter(path) as writer:
            for example in examples:
                writer.write(example)

    return write
