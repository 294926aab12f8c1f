"""Adoption: a given teacher is copied, by its content."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest

from nsk import models
from nsk.models.model_files import load_model
from nsk.stages import validation
from nsk.stages.adoption import adopt_teacher
from nsk.stages.ingestion import ingest_images
from nsk.stages.runner import MODEL_FILE
from tests.models.checkpoint_files import official_tensors, randomize, write_checkpoint


def test_a_given_teacher_is_copied_and_found_again_by_its_content(make_runner, tmp_path):
    first, second = tmp_path / "first.keras", tmp_path / "second.keras"
    models.build_model("convnet5", num_classes=10, image_size=8, seed=1).save(first)
    shutil.copyfile(first, second)

    def adopt(path):
        runner = make_runner(tmp_path / "run", models=["convnet5"], teacher=str(path))
        return adopt_teacher(runner, ingest_images(runner))

    teacher = adopt(first)
    assert teacher.path.parent == tmp_path / "run" / "gen0"
    assert (teacher.path / MODEL_FILE).read_bytes() == first.read_bytes()
    assert teacher.counts == {
        "model": "convnet5",
        "parameters": 104_042,
        "image_size": 8,
        "resize_mode": "crop",
        "significant_bits": None,
        "class_names": [str(digit) for digit in range(10)],
    }
    again = adopt(second)
    assert again.reused and again.path == teacher.path
    models.build_model("convnet5", num_classes=10, image_size=8, seed=2).save(second)
    assert adopt(second).path != teacher.path


def test_the_bits_of_the_training_of_a_teacher_are_known_later(make_runner, tmp_path, caplog):
    path = tmp_path / "teacher" / "model.keras"
    path.parent.mkdir()
    models.build_model("convnet5", num_classes=10, image_size=8, seed=1).save(path)
    runner = make_runner(tmp_path / "run", models=["convnet5"], teacher=str(path))
    images = ingest_images(runner)

    def adopt(of_teacher, of_images):
        decoding = {"resize_mode": "crop", "significant_bits": of_teacher}
        (path.parent / "decoding.json").write_text(json.dumps(decoding))
        counts = images.counts | {"significant_bits": of_images}
        return adopt_teacher(runner, dataclasses.replace(images, counts=counts))

    usual = adopt(None, None)
    assert adopt(None, 16).path == usual.path  # All bits are what images without bits have.
    assert adopt(12, None).counts["significant_bits"] == 12
    assert adopt(None, 14).counts["significant_bits"] == 14
    assert not caplog.records
    assert adopt(12, 14).counts["significant_bits"] == 12
    assert "use 12 bits, but those of this run use 14" in caplog.text
    assert "--significant_bits=12 if 4,095 is white" in caplog.text


@pytest.mark.parametrize("kind", ["tf1", "h5"])
def test_published_weights_are_a_teacher(make_runner, tmp_path, kind):
    """Files with the names and shapes of the official ones."""
    keras.utils.set_random_seed(0)
    reference = keras.applications.EfficientNetB0(
        weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None
    )
    randomize(reference)
    if kind == "tf1":
        path = tmp_path / "b0" / "model.ckpt"
        write_checkpoint(path, official_tensors(reference))
    else:
        path = tmp_path / "b0.weights.h5"
        reference.save_weights(path)
    values = {"models": ["efficientnet_b0", "convnet5"], "image_size": [32, 8]}
    runner = make_runner(tmp_path / "run", **values, teacher=str(path))
    images = ingest_images(runner)
    validation.check_chain(runner, images.counts)
    teacher = adopt_teacher(runner, images)
    assert teacher.counts["model"] == "efficientnet_b0" and teacher.counts["image_size"] == 32
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    network = load_model(teacher.path / MODEL_FILE)
    expected = reference(pixels, training=False)
    np.testing.assert_allclose(network(pixels, training=False), expected, rtol=1e-3, atol=1e-3)
