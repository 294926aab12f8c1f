"""Classifiers of any origin: logits, gradients, sizes, classes and messages."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk.errors import UserError
from nsk.evaluation.predictor import Predictor
from nsk.models import build_model
from nsk.models.classifier import load_classifier
from nsk.models.pixel_scales import PIXEL_SCALES
from nsk.stages.export import export_model
from tests.models.checkpoint_files import randomize

# NumPy 2 warns of the way in which Keras 3.15 reads variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype("float32")
NAMES = ["a", "b", "c"]
EXACT = ("export", "export/model.keras", "whole.h5", "probabilities.keras", "by name")
FORMS = (*EXACT, "export/saved_model", "serve", "serve_probabilities")


@pytest.fixture(scope="module")
def network():
    model = build_model("convnet5", num_classes=3, image_size=8, dropout_rate=0.5)
    randomize(model)
    return model


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """Folder of one network in many forms."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "export").mkdir()
    export_model(network, NAMES, folder / "export")
    network.export(folder / "serve", verbose=False)
    network.save(folder / "whole.h5")
    with_softmax = keras.Sequential([network, keras.layers.Softmax()], name="with_softmax")
    with_softmax.save(folder / "probabilities.keras")
    with_softmax.export(folder / "serve_probabilities", verbose=False)
    return folder


def load(folder, form, **arguments):
    if form == "by name":
        return load_classifier("convnet5", str(folder / "export"), **arguments)
    return load_classifier(str(folder / form), **arguments)


def loss_gradient(model):
    images = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = model(images, training=False)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits([0, 1, 2, 0, 1], logits)
    return tape.gradient(losses, images).numpy()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_logits_and_gradients_of_the_network(form, network, folder):
    classifier = load(folder, form)
    expected = network(IMAGES).numpy()
    received = classifier.model(tf.constant(IMAGES), training=False)
    assert received.dtype == tf.float32
    if form in EXACT:
        np.testing.assert_allclose(received, expected, atol=1e-5)
    np.testing.assert_allclose(tf.nn.softmax(received), tf.nn.softmax(expected), atol=1e-5)
    gradients = loss_gradient(network)
    assert np.abs(gradients).max() > 1e-4
    np.testing.assert_allclose(
        loss_gradient(classifier.model), gradients, atol=1e-3 * np.abs(gradients).max()
    )
    assert (classifier.image_size, classifier.num_classes) == (8, 3)
    assert classifier.model.input_shape == (None, 8, 8, 3)
    assert classifier.class_names == (NAMES if "export" in form or form == "by name" else None)
    assert classifier.name == classifier.model.name and len(classifier.sha256) == 64


@pytest.mark.parametrize(
    "form", ["export", "export/saved_model", "serve_probabilities", "probabilities.keras"]
)
def test_a_predictor_takes_them_on_several_replicas(form, network, folder):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        classifier = load(folder, form)
    predict = Predictor(classifier.model, 4, strategy, jit_compile="off")
    received = predict.log_probabilities(IMAGES[:3].astype(np.uint8))
    np.testing.assert_allclose(received, tf.nn.log_softmax(network(IMAGES[:3])), atol=1e-4)


def test_models_of_any_size_take_the_given_one(tmp_path):
    inputs = keras.Input((None, None, 3))
    features = keras.layers.GlobalAveragePooling2D()(inputs)
    keras.Model(inputs, keras.layers.Dense(4)(features)).save(tmp_path / "any.keras")
    with pytest.raises(UserError, match=r"any\.keras takes images of any size: give --image_size"):
        load_classifier(str(tmp_path / "any.keras"))
    classifier = load_classifier(str(tmp_path / "any.keras"), image_size=20)
    assert classifier.model.input_shape == (None, 20, 20, 3) and classifier.image_size == 20
    assert classifier.model(tf.zeros([2, 20, 20, 3]), training=False).shape == (2, 4)
    with pytest.raises(ValueError, match="not for training"):
        classifier.model(tf.zeros([2, 20, 20, 3]), training=True)


def pooling_model(tmp_path, *layers, size=8, name="m"):
    model = keras.Sequential(
        [
            keras.Input((size, size, 3)),
            *layers,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, "softmax", name="predictions"),
        ],
        name=name,
    )
    model.layers[-1].set_weights([np.eye(3), np.zeros(3)])
    model.save(tmp_path / f"{name}.keras")
    return str(tmp_path / f"{name}.keras")


@pytest.mark.parametrize("pixels", PIXEL_SCALES)
def test_the_scale_of_pixels_is_the_models_own(pixels, tmp_path):
    path = pooling_model(tmp_path)
    model = load_classifier(path, pixels=pixels).model
    expected = PIXEL_SCALES[pixels](tf.constant(IMAGES)).numpy().mean((1, 2))
    np.testing.assert_allclose(model(tf.constant(IMAGES)), expected, rtol=1e-4, atol=1e-3)


def test_a_network_of_keras_applications_must_scale_pixels(tmp_path):
    message = r"is resnet50 of keras\.applications, which does not scale pixels .*--pixels=255\|"
    with pytest.raises(UserError, match=message):
        load_classifier(pooling_model(tmp_path, name="resnet50"))
    path = pooling_model(tmp_path, keras.layers.Rescaling(1 / 255), name="efficientnetb0")
    assert load_classifier(path).weights_format == "keras.applications"


def test_half_precision_is_converted(tmp_path):
    inputs = keras.Input((8, 8, 3))
    features = keras.layers.GlobalAveragePooling2D()(inputs)
    outputs = keras.layers.Dense(4, "softmax", dtype="mixed_bfloat16")(features)
    keras.Model(inputs, outputs).save(tmp_path / "m.keras")
    logits = load_classifier(str(tmp_path / "m.keras")).model(tf.constant(IMAGES))
    assert logits.dtype == tf.float32 and np.ptp(logits) > 10


def test_settings_that_do_not_fit_are_named(folder, tmp_path):
    cases = [
        ({"image_size": 9}, r"takes images of 8 pixels, not --image_size=9: leave it out"),
        ({"pixels": "256"}, "--pixels=256: expected one of 255, unit"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            load(folder, "export", **arguments)
    with pytest.raises(UserError, match="--pixels=unit is for models from files: convnet5 scales"):
        load(folder, "by name", pixels="unit")
    assert load(folder, "by name", image_size=16).image_size == 16


def test_names_of_other_classes_are_refused(network, tmp_path):
    network.save(tmp_path / "model.keras")
    (tmp_path / "class_names.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="has 3 classes, but 2 names of classes are beside it"):
        load_classifier(str(tmp_path))


@pytest.mark.parametrize(
    ("shape", "units", "activation", "message"),
    [
        ((8, 9, 3), 3, None, "takes images of 8 x 9 pixels: expected a model of square images"),
        ((8, 8, 1), 3, None, "takes images of 1 channels: expected one of RGB images"),
        ((8, 8, 3), 1, None, r"returns float32 \(3, 1\) for 3 images: expected logits or"),
        ((8, 8, 3), 3, "sigmoid", "ends with a sigmoid"),
    ],
)
def test_models_that_are_no_classifiers_are_refused(shape, units, activation, message, tmp_path):
    inputs = keras.Input(shape)
    features = keras.layers.GlobalAveragePooling2D()(inputs)
    outputs = keras.layers.Dense(units, activation)(features)
    keras.Model(inputs, outputs).save(tmp_path / "m.keras")
    with pytest.raises(UserError, match=rf"m\.keras {message}") as error:
        load_classifier(str(tmp_path / "m.keras"))
    assert "\n" not in str(error.value)


def test_a_model_that_fails_is_named(tmp_path):
    inputs = keras.Input((None, None, 3))
    features = keras.layers.Conv2D(4, 9)(inputs)
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(features))
    keras.Model(inputs, outputs).save(tmp_path / "m.keras")
    message = r"cannot classify images of 4 pixels \(.*\): give another --image_size"
    with pytest.raises(UserError, match=message) as error:
        load_classifier(str(tmp_path / "m.keras"), image_size=4)
    assert "\n" not in str(error.value)
