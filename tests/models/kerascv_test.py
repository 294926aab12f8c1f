"""KerasCV's backbones: equal outputs from Keras' own layers, with our noise and seeds."""

import dataclasses
import functools
import math
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk import noise
from nsk.errors import UserError
from nsk.models import build_model, check_name, kerascv
from nsk.models.kerascv_backbones import BACKBONES, MOBILENETS_V3, Backbone
from nsk.models.layers import Dropout, StochasticDepth, survival_probabilities
from nsk.models.model_files import load_model
from nsk.stages import export


def size_of(name):
    return max(32, BACKBONES[name].min_size)


def efficientnet(**arguments):
    return {
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "stackwise_kernel_sizes": [3, 3, 5],
        "stackwise_num_repeats": [1, 2, 2],
        "stackwise_input_filters": [8, 8, 8],
        "stackwise_output_filters": [8, 8, 16],
        "stackwise_expansion_ratios": [1, 4, 4],
        "stackwise_strides": [1, 2, 2],
        **arguments,
    }


def mobilenet():
    names = ("expansion", "filters", "kernel_size", "stride", "se_ratio", "activation")
    columns = zip(*MOBILENETS_V3["small"][:5], strict=True)
    return {f"stackwise_{name}": list(column) for name, column in zip(names, columns, strict=True)}


SQUEEZE_RATIOS = {"stackwise_squeeze_and_excite_ratios": [0, 0.25, 0.25]}
RESNET = {
    "stackwise_filters": [64, 16],
    "stackwise_blocks": [2, 2],
    "stackwise_strides": [1, 2],
    "block_type": "basic_block",
}
STAGES = {"stackwise_channels": [8, 16, 16, 32], "stackwise_depth": [1, 2, 1, 1]}
# A backbone of every class, with few and narrow layers.
TINY = {
    "tiny_efficientnetv2": Backbone(
        "EfficientNetV2Backbone",
        efficientnet(stackwise_conv_types=["fused", "fused", "unfused"], **SQUEEZE_RATIOS),
    ),
    "tiny_efficientnetv1": Backbone("EfficientNetV1Backbone", efficientnet(**SQUEEZE_RATIOS)),
    "tiny_efficientnetlite": Backbone(
        "EfficientNetLiteBackbone", efficientnet(stackwise_input_filters=[32, 8, 8])
    ),
    "tiny_mobilenet": Backbone("MobileNetV3Backbone", mobilenet()),
    "tiny_resnet": Backbone("ResNetBackbone", RESNET),
    "tiny_resnet_v2": Backbone("ResNetV2Backbone", {**RESNET, "block_type": "block"}),
    "tiny_densenet": Backbone("DenseNetBackbone", {"stackwise_num_repeats": [1, 2]}),
    "tiny_csp_darknet": Backbone("CSPDarkNetBackbone", STAGES, divisor=2),
    "tiny_yolo": Backbone("YOLOV8Backbone", STAGES),
    "tiny_mit": Backbone(
        "MiTBackbone",
        {"depths": [1, 1, 1, 2], "embedding_dims": [8, 16, 20, 32]},
        divisor=32,
        min_size=64,
    ),
}
FAST_BACKBONES = ["tiny_efficientnetv2", "tiny_resnet_v2", "tiny_mobilenet", "tiny_mit"]
each_fast_backbone = pytest.mark.parametrize("name", FAST_BACKBONES)
each_backbone = pytest.mark.parametrize(
    "name",
    [
        *FAST_BACKBONES,
        *(pytest.param(x, marks=pytest.mark.slow) for x in TINY if x not in FAST_BACKBONES),
    ],
)
each_noisy_backbone = pytest.mark.parametrize("name", ["tiny_efficientnetv2", "tiny_mit"])


@pytest.fixture(autouse=True)
def tiny_backbones(monkeypatch):
    for name, backbone in TINY.items():
        monkeypatch.setitem(BACKBONES, name, backbone)


def pixels(name, n=4):
    size = size_of(name)
    return np.random.default_rng(0).uniform(0, 255, (n, size, size, 3)).astype("float32")


def build(name, **arguments):
    return build_model(
        f"kerascv:{name}",
        **{
            "num_classes": 10,
            "image_size": size_of(name.partition("@")[0]),
            "seed": 3,
            **arguments,
        },
    )


@functools.cache
def noisy(name):
    """A network with all noise, which tests must not change."""
    arguments = {"dropout_rate": 0.3, "survival_probability": 0.5, "batch_norm_momentum": 0.8}
    return build(name, **arguments)


def randomize(model):
    """Changes all weights, BatchNorm's statistics included."""
    random = np.random.default_rng(0)
    model.set_weights(
        [array + random.uniform(0, 0.1, array.shape) for array in model.get_weights()]
    )


def reference(name):
    """KerasCV's own backbone, which takes pixels in [0, 255]."""
    import keras_cv

    size = size_of(name)
    backbone = BACKBONES[name]
    return getattr(keras_cv.models, backbone.class_name)(
        **backbone.arguments, include_rescaling=True, input_shape=(size, size, 3)
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("efficientnetv2_s", ("efficientnetv2_s", None)),
        ("EfficientNetV2SBackbone", ("efficientnetv2_s", None)),
        ("efficientnet_v2_s@imagenet", ("efficientnetv2_s", "imagenet")),
        ("ResNet50V2Backbone", ("resnet50_v2", None)),
        ("MiT-B0", ("mit_b0", None)),
        ("yolo_v8_xs_backbone@coco", ("yolo_v8_xs", "coco")),
    ],
)
def test_case_underscores_and_the_suffix_do_not_matter(name, expected):
    assert kerascv.parse_name(name) == expected
    check_name(f"kerascv:{name}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", r"unknown backbone 'resnet19' \(similar: kerascv:resnet18, "),
        ("18", "unknown backbone '18'"),
        ("vgg16@imagenet", "KerasCV has none"),
        ("resnet50@coco", "give @imagenet"),
        ("resnet50@", "unknown weights ''"),
        ("VideoSwinTBackbone", "takes videos"),
        ("vitdet_b", "cannot be saved"),
    ],
)
def test_unknown_backbones_and_weights_are_refused_in_one_line(name, message):
    with pytest.raises(UserError, match=message) as error:
        check_name(f"kerascv:{name}")
    assert "\n" not in str(error.value)


def test_every_image_backbone_of_kerascv_has_a_name_and_its_weights(monkeypatch):
    import keras_cv

    for name in TINY:
        monkeypatch.delitem(BACKBONES, name)
    base = keras_cv.models.Backbone
    classes = [value for value in vars(keras_cv.models).values() if isinstance(value, type)]
    for kind in classes:
        if not issubclass(kind, base) or kind is base:
            continue
        unsupported = kind.__name__.lower().startswith(tuple(kerascv.UNSUPPORTED))
        parent = kind.__bases__[0]
        if parent is base and kind.__name__ != "VGG16Backbone":
            backbones = [value for value in BACKBONES.values() if value.class_name == kind.__name__]
            assert bool(backbones) != unsupported, kind
            presets = {preset for value in backbones for preset in value.presets.values()}
            assert unsupported or presets == set(kind.presets_with_weights)
        elif not unsupported:
            name, _ = kerascv.parse_name(kind.__name__)
            assert BACKBONES[name].class_name in (parent.__name__, kind.__name__)


@each_backbone
def test_outputs_and_pretrained_weights_equal_those_of_kerascv(name, tmp_path, monkeypatch):
    original = reference(name)
    randomize(original)
    save_preset(original, tmp_path)
    backbone = dataclasses.replace(TINY[name], presets={"mine": str(tmp_path)})
    monkeypatch.setitem(BACKBONES, name, backbone)
    model = build(f"{name}@mine")
    assert model.count_params() == original.count_params() + 10 * (original.output_shape[-1] + 1)
    features = keras.Model(model.input, model.get_layer("pool").input)
    expected = original(pixels(name))
    assert np.std(expected) > 0
    scale = np.abs(expected).max()
    np.testing.assert_allclose(features(pixels(name)), expected, rtol=1e-4, atol=1e-5 * scale)


def save_preset(backbone, folder):
    from keras_cv.src.utils import preset_utils

    preset_utils.save_to_preset(backbone, str(folder))


def test_weights_that_cannot_be_loaded_are_refused_in_one_line(monkeypatch):
    backbone = dataclasses.replace(TINY["tiny_mit"], presets={"mine": "nowhere"})
    monkeypatch.setitem(BACKBONES, "tiny_mit", backbone)
    with pytest.raises(UserError, match=r"weights nowhere cannot be loaded .*network") as error:
        build("tiny_mit@mine")
    assert "\n" not in str(error.value)


@each_backbone
def test_networks_consist_of_layers_of_keras_and_nsk(name):
    model = noisy(name)
    assert model.name == f"kerascv_{name}"
    assert (
        model.input.shape == (None, size_of(name), size_of(name), 3)
        and model.input.dtype == "float32"
    )
    logits = model(pixels(name))
    assert logits.shape == (4, 10) and logits.dtype == tf.float32
    assert np.all(np.isfinite(logits)) and len(np.unique(logits)) == 40
    modules = {type(layer).__module__.partition(".")[0] for layer in model.layers}
    assert modules <= {"keras", "nsk"}
    random = [layer for layer in model.layers if hasattr(layer, "seed_generator")]
    assert not random and not any(hasattr(variable, "seed") for variable in model.variables)


@pytest.mark.parametrize("name", ["tiny_mobilenet", "tiny_mit"])
def test_names_and_weights_do_not_depend_on_what_was_built_before(name):
    first = noisy(name)
    keras.utils.set_random_seed(1)
    again = build(name)
    assert [layer.name for layer in first.layers] == [layer.name for layer in again.layers]
    assert [weight.path for weight in first.weights] == [weight.path for weight in again.weights]
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = [weight.numpy() for weight in first.weights if weight.path.endswith("kernel")]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)


def test_initial_weights_depend_on_the_seed():
    first, second = noisy("tiny_mobilenet"), build("tiny_mobilenet", seed=4)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        assert a.ndim == 1 or np.any(a != b)


@each_fast_backbone
def test_noise_and_batch_norm_settings_reach_the_layers(name):
    model = noisy(name)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {(x.momentum, x.synchronized) for x in norms} <= {(0.8, False)}
    assert bool(norms) == (name != "tiny_mit")
    assert [x.rate for x in model.layers if isinstance(x, Dropout)] == [0.3]
    depths = [x.survival_probability for x in model.layers if isinstance(x, StochasticDepth)]
    survival = survival_probabilities(0.5, 5)
    # Blocks 2 and 4 of EfficientNet have an identity skip; those of MiT have two branches.
    expected = {
        "tiny_efficientnetv2": [survival[2], survival[4]],
        "tiny_mit": [probability for probability in survival for _ in range(2)],
    }
    assert depths == expected.get(name, [])


@each_noisy_backbone
def test_noise_depends_on_the_position_in_the_global_batch(name):
    model = build(name, dropout_rate=0.3, survival_probability=0.5)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False  # Otherwise each half of a batch has its own statistics.

    def outputs(key, positions):
        with noise.scope(noise.key(key), tf.constant(positions), 8):
            return model(pixels(name, 8)[positions], training=True).numpy()

    whole = outputs(0, range(8))
    halves = np.concatenate([outputs(0, [0, 1, 2, 3]), outputs(0, [4, 5, 6, 7])])
    np.testing.assert_allclose(halves, whole, rtol=1e-4, atol=1e-6 * np.abs(whole).max())
    clean = model(pixels(name, 8)).numpy()
    assert np.all(np.any(whole != clean, axis=1)) and np.any(outputs(1, range(8)) != whole)


def test_batch_norm_can_be_synchronized():
    model = build("tiny_mobilenet", synchronized=True)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert norms and all(x.synchronized for x in norms)


def test_mixed_precision_keeps_weights_and_logits_in_float32():
    name = "tiny_mit"
    model = build(name, precision="bf16", survival_probability=0.5)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert model.get_layer("rescale").output.dtype == "float32"
    backbone = [x for x in model.layers if x.name not in ("pixels", "rescale", "pool", "dropout")]
    assert {x.compute_dtype for x in backbone if x.name != "logits"} == {"bfloat16"}
    logits = model(pixels(name), training=True)
    assert logits.dtype == tf.float32 and np.all(np.isfinite(logits))
    assert keras.config.dtype_policy().name == "float32"


# NumPy 2 warns of the way in which Keras 3.15 reads variables.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@each_backbone
def test_saved_model_gives_equal_outputs(name, tmp_path):
    model = build(name, dropout_rate=0.5, survival_probability=0.5)
    randomize(model)
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(pixels(name)), model(pixels(name)))
    with noise.scope(noise.key(0), tf.range(4), 4):
        np.testing.assert_array_equal(
            loaded(pixels(name), training=True), model(pixels(name), training=True)
        )


def test_sizes_that_cannot_be_divided_are_refused():
    for size in (32, 80):
        with pytest.raises(UserError, match=f"--image_size={size} .*multiple of 32, at least 64"):
            build("mit_b0", image_size=size)
    with pytest.raises(UserError, match="at least 32"):
        build("resnet18", image_size=16)


LOADING_PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from nsk import models
from nsk.models.model_files import load_model
folder, pixels = Path(sys.argv[1]), np.load(sys.argv[1] + "/pixels.npy")
models.build_model("convnet5", num_classes=2, image_size=8)
for name, imported in (("ours", False), ("theirs", True)):
    model = load_model(folder / f"{name}.keras")
    np.testing.assert_array_equal(model(pixels), np.load(folder / f"{name}.npy"))
    assert ("keras_cv" in sys.modules) == imported, name
"""


def test_loading_a_file_imports_kerascv_only_if_it_has_layers_of_kerascv(tmp_path):
    import keras_cv

    ours = build("tiny_efficientnetv2", survival_probability=0.5)
    theirs = keras_cv.models.ImageClassifier(
        backbone=reference("tiny_resnet_v2"), num_classes=10, activation=None
    )
    images = pixels("tiny_resnet_v2")
    np.save(tmp_path / "pixels.npy", images)
    for name, model in (("ours", ours), ("theirs", theirs)):
        np.save(tmp_path / f"{name}.npy", model(images))
        model.save(tmp_path / f"{name}.keras")
    done = subprocess.run(
        [sys.executable, "-c", LOADING_PROGRAM, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


SERVING_PROGRAM = """
import sys
import numpy as np
import tensorflow as tf
folder = sys.argv[1]
model = tf.saved_model.load(folder + "/saved_model")
answer = model.signatures["pixels"](images=tf.constant(np.load(folder + "/pixels.npy")))
np.save(folder + "/answer.npy", answer["probabilities"])
assert not {"keras_cv", "nsk"} & set(sys.modules)
"""


@pytest.mark.slow
@each_fast_backbone
def test_an_exported_model_does_not_need_kerascv(name, tmp_path):
    model = build(name, survival_probability=0.5)
    randomize(model)
    np.save(tmp_path / "pixels.npy", pixels(name))
    export.export_model(model, [str(label) for label in range(10)], tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SERVING_PROGRAM, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = tf.nn.softmax(model(pixels(name)))
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), expected, rtol=1e-4, atol=1e-6)


# Backbones for which KerasCV publishes no number, or one of other layers than it builds.
KERAS_APPLICATIONS = {
    "vgg16": "VGG16",
    "mobilenet_v3_small": "MobileNetV3Small",
    "mobilenet_v3_large": "MobileNetV3Large",
    "densenet121": "DenseNet121",
    "densenet169": "DenseNet169",
    "densenet201": "DenseNet201",
    **{f"efficientnetv1_b{n}": f"EfficientNetB{n}" for n in range(8)},
}
# Trainable parameters at 1,000 classes of the networks that Google published.
EFFICIENTNETS_LITE = {
    "efficientnetlite_b0": 4_652_008,
    "efficientnetlite_b1": 5_416_680,
    "efficientnetlite_b2": 6_092_072,
    "efficientnetlite_b3": 8_197_096,
    "efficientnetlite_b4": 13_006_568,
}


def published_parameters(name, model):
    """Parameters of a backbone as published."""
    import keras_cv

    if name in KERAS_APPLICATIONS:
        build = getattr(keras.applications, KERAS_APPLICATIONS[name])
        reference_model = build(include_top=False, weights=None, input_shape=(64, 64, 3))
        layers = [
            x for x in reference_model.layers if not isinstance(x, keras.layers.Normalization)
        ]
        return sum(layer.count_params() for layer in layers)
    if name in EFFICIENTNETS_LITE:
        moving = sum(math.prod(variable.shape) for variable in model.non_trainable_variables)
        return EFFICIENTNETS_LITE[name] - 1000 * (1280 + 1) + moving
    presets = getattr(keras_cv.models, BACKBONES[name].class_name).presets
    published = presets.get(name, presets.get(f"{name}_backbone"))["metadata"]["params"]
    if name.startswith("mit"):  # These include a classifier of ten classes.
        return published - model.get_layer("logits").count_params()
    return published


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in TINY])
def test_every_backbone_can_be_built(name):
    size = size_of(name) + BACKBONES[name].divisor
    model = build(name, image_size=size)
    images = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype("float32")
    assert np.all(np.isfinite(model(images, training=True)))
    expected = published_parameters(name, model)
    received = model.count_params() - model.get_layer("logits").count_params()
    assert received == expected
