"""SavedModels of this project, of Keras and of TensorFlow: the signature that takes images."""

import re

import numpy as np
import pytest
import tensorflow as tf

from nsk.errors import UserError
from nsk.models import build_model, saved_models
from nsk.stages.export import export_model

IMAGES = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype("float32")
NAMES = ["cat", "naïve dog", "3"]


@pytest.fixture(scope="module")
def network():
    return build_model("convnet5", num_classes=3, image_size=8)


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """Folder of a network as this project and as Keras export it."""
    folder = tmp_path_factory.mktemp("saved_models")
    export_model(network, NAMES, folder)
    network.export(folder / "keras", verbose=False)
    return folder


def save(folder, **signatures):
    """Saves functions of (input shape, function of the input, dtype) as signatures."""
    module = tf.Module()
    module.weights = tf.Variable(np.eye(3, 4, dtype=np.float32))
    functions = {}
    for name, (shape, function, *dtype) in signatures.items():
        spec = tf.TensorSpec(shape, *(dtype or [tf.float32]), name="x")
        traced = tf.function(lambda x, function=function: function(x, module.weights))
        functions[name] = traced.get_concrete_function(spec)
    tf.saved_model.save(module, str(folder), functions)
    return folder


def pooled(x, weights):
    return {"scores": tf.reduce_mean(tf.cast(x, tf.float32), [1, 2]) @ weights}


def gradient(function, images):
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        total = tf.reduce_sum(tf.nn.softmax(function(images))[:, 0])
    return tape.gradient(total, images).numpy()


def test_the_export_of_this_project_returns_probabilities_and_names(network, folder):
    assert saved_models.is_saved_model(folder / "saved_model")
    loaded = saved_models.load(folder / "saved_model")
    expected = tf.nn.softmax(network(IMAGES))
    np.testing.assert_allclose(loaded.function(IMAGES), expected, atol=1e-6)
    assert loaded.input_shape == (None, 8, 8, 3) and loaded.class_names == NAMES


def test_the_export_of_keras_returns_what_the_model_does(network, folder):
    loaded = saved_models.load(folder / "keras")
    np.testing.assert_allclose(loaded.function(IMAGES), network(IMAGES), atol=1e-5)
    assert loaded.input_shape == (None, 8, 8, 3) and loaded.class_names is None


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_those_of_the_network(compiled, network, folder):
    expected = gradient(network, IMAGES)
    assert np.abs(expected).max() > 1e-6
    loaded = saved_models.load(folder / "keras").function
    run = tf.function(gradient_in_graph(loaded)) if compiled else lambda x: gradient(loaded, x)
    received = np.asarray(run(tf.constant(IMAGES)))
    np.testing.assert_allclose(received, expected, atol=1e-4 * np.abs(expected).max())


def gradient_in_graph(function):
    def run(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = tf.reduce_sum(tf.nn.softmax(function(images))[:, 0])
        return tape.gradient(total, images)

    return run


def test_the_only_signature_that_classifies_images_is_used(tmp_path):
    save(
        tmp_path,
        tokens=([None, 7], lambda x, w: {"scores": x}),
        other=([None, None, None, 3], pooled, tf.float16),
        bytes=([None, 8, 8, 3], pooled, tf.uint8),
        features=([None, 8, 8, 3], lambda x, w: {"map": x}),
    )
    loaded = saved_models.load(tmp_path)
    assert loaded.input_shape == (None, None, None, 3)
    received = loaded.function(IMAGES)
    assert received.dtype == tf.float32 and received.shape == (4, 4)
    np.testing.assert_allclose(received[:, :3], IMAGES.mean((1, 2)), rtol=1e-2)


def test_the_preferred_of_several_signatures_is_used(tmp_path):
    def negative(x, weights):
        return {"scores": -pooled(x, weights)["scores"]}

    shape = [None, 8, 8, 3]
    save(tmp_path, first=(shape, negative), serving_default=(shape, pooled), z=(shape, negative))
    assert (saved_models.load(tmp_path).function(IMAGES).numpy() >= 0).all()


@pytest.mark.parametrize(
    ("signatures", "message"),
    [
        (
            {"words": ([None, 7], lambda x, w: {"y": x})},
            r"has 0 signatures that classify images, among words: float32 \(None, 7\) -> float32 "
            r"\(None, 7\): expected one with one float input \(None, size, size, 3\)",
        ),
        (
            {"a": ([None, 8, 8, 3], pooled), "b": ([None, 8, 8, 3], pooled)},
            r"has 2 signatures .* a: float32 \(None, 8, 8, 3\) -> float32 \(None, 4\); b: ",
        ),
        ({"one": ([1, 8, 8, 3], pooled)}, r"has 0 signatures .* one: float32 \(1, 8, 8, 3\) -> "),
        ({}, "has 0 signatures that classify images, among none at all"),
        (
            {"two": ([None, 8, 8, 3], lambda x, w: {**pooled(x, w), "b": x[:, 0, 0]})},
            r"two: float32 \(None, 8, 8, 3\) -> float32 \(None, \d\), float32 \(None, \d\)",
        ),
    ],
)
def test_signatures_that_do_not_fit_are_named(signatures, message, tmp_path):
    save(tmp_path, **signatures)
    with pytest.raises(UserError, match=message) as error:
        saved_models.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_damaged_savedmodel_is_refused(tmp_path):
    assert not saved_models.is_saved_model(tmp_path)
    save(tmp_path, a=([None, 8, 8, 3], pooled))
    for file in (tmp_path / "variables").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"cannot be loaded .* complete one") as error:
        saved_models.load(tmp_path)
    assert "\n" not in str(error.value)


def test_the_digest_is_that_of_all_files(tmp_path):
    save(tmp_path / "a", a=([None, 8, 8, 3], pooled))
    digest = saved_models.sha256(tmp_path / "a")
    assert re.fullmatch("[0-9a-f]{64}", digest)
    (tmp_path / "a").rename(tmp_path / "b")
    assert saved_models.sha256(tmp_path / "b") == digest
    (variables,) = (tmp_path / "b" / "variables").glob("*.data-*")
    variables.write_bytes(variables.read_bytes()[:-1])
    changed = saved_models.sha256(tmp_path / "b")
    variables.rename(variables.with_name("renamed"))
    assert len({digest, changed, saved_models.sha256(tmp_path / "b")}) == 3
