"""Shard sets of handwritten digits, hyperparameters for them, and runners of stages."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nsk.config.config import Config
from nsk.data import records, shards
from nsk.distributed.runtime import Runtime
from nsk.distributed.strategy import make_strategy
from nsk.stages.hyperparameters import training_hyperparameters
from nsk.stages.runner import StageRunner

CLASS_NAMES = [str(digit) for digit in range(10)]
NUM_LABELED, NUM_PSEUDO = 60, 90


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def digits():
    """All images, uint8 (1797, 8, 8, 3), their labels, and the images as PNG."""
    data = load_digits()
    images = np.minimum(data.images * 16, 255).astype(np.uint8)
    images = np.repeat(images[..., np.newaxis], 3, axis=-1)
    return images, data.target, [png(image) for image in images[:400]]


@pytest.fixture(scope="session")
def pseudo_scores():
    """Log-probabilities (90, 10) and copies (90,) of the pseudo-labelled digits."""
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(10, 0.2), NUM_PSEUDO)
    return np.log(probabilities).astype(np.float16), random.integers(1, 4, NUM_PSEUDO)


@pytest.fixture(scope="session")
def labeled_scores():
    """Log-probabilities (60, 10) of a teacher for the labelled digits."""
    random = np.random.default_rng(1)
    return np.log(random.dirichlet(np.full(10, 0.2), NUM_LABELED)).astype(np.float16)


@pytest.fixture(scope="session")
def shard_sets(digits, pseudo_scores, labeled_scores, tmp_path_factory):
    """60 labelled, also with a teacher's predictions, 90 pseudo-labelled and 200 dev images."""
    folder = tmp_path_factory.mktemp("shards")
    _, labels, encoded = digits
    for split, first, last in (("labeled", 0, NUM_LABELED), ("dev", 200, 400)):
        with shards.ShardWriter(folder / split, "images", CLASS_NAMES, 100) as writer:
            for number in range(first, last):
                writer.write(records.image_example(f"{number}", encoded[number], labels[number]))
    with shards.ShardWriter(folder / "pseudo", "pseudo", CLASS_NAMES, 50) as writer:
        for number, (scores, copies) in enumerate(zip(*pseudo_scores, strict=True), NUM_LABELED):
            label, confidence = scores.argmax(), np.exp(np.float32(scores.max()))
            row = (encoded[number], label, confidence, scores, copies)
            writer.write(records.pseudo_example(f"{number}", *row), copies)
    (folder / "scored").mkdir()
    with shards.RecordWriter(folder / "scored" / "00000.tfrecord") as writer:
        for number, scores in enumerate(labeled_scores):
            writer.write(
                records.scored_example(f"{number}", encoded[number], labels[number], scores)
            )
    file = {"name": "00000.tfrecord", "records": 60, "copies": 60, "images": 60}
    shards.write_manifest(folder / "scored", "scored", CLASS_NAMES, [file])
    splits = ("labeled", "dev", "pseudo", "scored")
    return {split: shards.ShardSet.load(folder / split) for split in splits}


@pytest.fixture(scope="session")
def make_settings(shard_sets):
    """Function that makes hyperparameters of a student, or for generation 0 of a teacher, with
    `changes` of the settings."""

    def make(generation=1, **changes):
        values = {
            "models": ["convnet5"] * 3,
            "labeled_batch_size": [8],
            "ratio": [3],
            "train_steps": [40],
            "randaugment_num_ops": [0],
            "crop_padding": [0],
            "learning_rate": [0.1],
            "evaluations": 2,
            **changes,
        }
        if "train_images" in values or "train_epochs" in values:
            del values["train_steps"]
        counts = {"images": {"labeled": NUM_LABELED}, "image_side": 8}
        settings = training_hyperparameters(Config.from_values(values), generation, counts)
        pseudo = shard_sets["pseudo"] if settings.learns_pseudo_labels else None
        return settings.with_cache(shard_sets["labeled"], shard_sets["dev"], pseudo)

    return make


@pytest.fixture(scope="session")
def make_runner():
    """Function that makes a `StageRunner` on one device for a small chain of two networks."""

    def make(workdir, **values):
        config = Config.from_values({**chain_values(workdir), **values})
        return StageRunner(config, Runtime.from_strategy(make_strategy(config.run.strategy)))

    return make


@pytest.fixture(scope="session")
def make_values():
    """Function that makes the values of settings of the same chain, for commands."""
    return lambda workdir, **values: {**chain_values(workdir), **values}


def chain_values(workdir):
    return {
        "workdir": str(workdir),
        "strategy": "one",
        "num_labeled": 50,
        "num_dev": 100,
        "models": ["convnet5", "resnet9"],
        "train_steps": ["2"],
        "randaugment_num_ops": ["0"],  # Tracing it takes seconds.
    }
