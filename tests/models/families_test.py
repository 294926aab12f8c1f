"""Properties that every family of networks has, and building networks by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk import noise
from nsk.errors import UserError
from nsk.models import build_model, check_name, model_names
from nsk.models.layers import Dropout, StochasticDepth

# Only the small EfficientNet: the others differ from it by the numbers in a table.
each_model = pytest.mark.parametrize(
    "name", [name for name in model_names() if not name.startswith(("efficientnet_", "wrn28_10"))]
)
each_family = pytest.mark.parametrize(
    "name",
    [
        "convnet6",
        "resnet6",
        "resnet9",
        "resnet14",
        "wrn10_2",
        "imagenet_resnet18",
        "efficientnet_b0_small",
    ],
)
STOCHASTIC_DEPTHS = {
    "resnet14": 6,
    "wrn10_2": 3,
    "imagenet_resnet18": 8,
    "efficientnet_b0_small": 9,
}
IMAGENET_NORMALIZED = ("efficientnet_b0_small",)


def min_size(name):
    """The smallest image size, at which the last feature map is one pixel."""
    if name.startswith(("resnet14", "wrn")):
        return 4
    return 32 if name.startswith("imagenet") else 8


def pixels(name, image_size=None, n=4):
    side = image_size or max(8, min_size(name))
    return np.random.default_rng(0).uniform(0, 255, (n, side, side, 3)).astype("float32")


def build(name, *, num_classes=10, image_size=None, **arguments):
    side = image_size or max(8, min_size(name))
    return build_model(name, num_classes=num_classes, image_size=side, **arguments)


@each_model
def test_input_pixels_and_output_logits(name):
    model = build(name, num_classes=7)
    assert model.name == name
    side = max(8, min_size(name))
    assert model.input.shape == (None, side, side, 3) and model.input.dtype == "float32"
    logits = model(pixels(name))
    assert logits.shape == (4, 7) and logits.dtype == tf.float32
    assert np.all(np.isfinite(logits)) and len(np.unique(logits)) == 28


@each_family
def test_names_do_not_depend_on_what_was_built_before(name):
    first, second = build(name), build(name)
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    assert [weight.path for weight in first.weights] == [weight.path for weight in second.weights]
    assert len({weight.path for weight in first.weights}) == len(first.weights)


@each_family
def test_initial_weights_depend_on_seed_and_layer_name_alone(name):
    first = build(name, seed=3).get_weights()
    keras.utils.set_random_seed(1)
    again = build(name, seed=3, dropout_rate=0.5, synchronized=True).get_weights()
    different_seed = build(name, seed=4).get_weights()
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(first, different_seed, strict=True):
        assert a.ndim == 1 or np.any(a != b)


def test_layers_of_equal_shape_have_different_he_normal_weights():
    model = build("resnet20")
    kernels = [model.get_layer(f"stage3_block{i}_2_conv").get_weights()[0] for i in (1, 2, 3)]
    assert np.any(kernels[0] != kernels[1]) and np.any(kernels[1] != kernels[2])
    assert np.std(kernels) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)


@each_family
def test_normalisation_is_inside_and_differentiable(name):
    model = build(name)
    images = tf.constant(pixels(name))
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(model(images)[:, 0])
    gradient = tape.gradient(loss, images)
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)
    scaled = keras.Model(model.input, model.get_layer("rescale").output)(
        np.full((1, *model.input_shape[1:]), [0, 127.5, 255], np.float32)
    )
    expected = np.array([-1, 0, 1])
    if name in IMAGENET_NORMALIZED:
        expected = (np.array([0, 0.5, 1]) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(scaled[0, 0, 0], expected, atol=1e-6)


@each_family
def test_noise_and_batch_norm_settings_reach_the_layers(name):
    model = build(name, dropout_rate=0.3, survival_probability=0.5, batch_norm_momentum=0.8)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    epsilon = 1e-3 if name.startswith("efficientnet") else 1e-5
    assert {(x.momentum, x.epsilon, x.synchronized) for x in norms} == {(0.8, epsilon, False)}
    assert [x.rate for x in model.layers if isinstance(x, Dropout)] == [0.3]
    depths = [x.survival_probability for x in model.layers if isinstance(x, StochasticDepth)]
    assert len(depths) == STOCHASTIC_DEPTHS.get(name, 0)
    model = build(name, synchronized=True)
    assert all(x.synchronized for x in model.layers if hasattr(x, "synchronized"))


@each_family
def test_mixed_precision_keeps_pixels_weights_and_logits_in_float32(name):
    model = build(name, dropout_rate=0.5, survival_probability=0.5, precision="bf16")
    assert keras.config.dtype_policy().name == "float32"  # Not changed for other models.
    assert model.get_layer("rescale").output.dtype == "float32"
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert "bfloat16" in {x.compute_dtype for x in model.layers}
    images = pixels(name)
    expected = build(name)(images)
    np.testing.assert_allclose(model(images), expected, atol=0.05 * np.abs(expected).max())
    logits = model(images, training=True)
    assert logits.dtype == tf.float32 and np.all(np.isfinite(logits))


# NumPy 2 warns of the way in which Keras 3.15 reads variables.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@each_family
def test_saved_model_gives_equal_outputs(name, precision, tmp_path):
    model = build(name, dropout_rate=0.5, survival_probability=0.5, precision=precision)
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.uniform(0, 0.1, w.shape) for w in model.get_weights()])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    images = pixels(name)
    np.testing.assert_array_equal(loaded(images), model(images))
    with noise.scope(noise.key(0), tf.range(4), 4):
        np.testing.assert_array_equal(loaded(images, training=True), model(images, training=True))


def test_one_fit_step():
    model = build("resnet20", dropout_rate=0.5, survival_probability=0.5)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.get_weights()
    history = model.fit(pixels("resnet20", n=16), np.arange(16) % 10, batch_size=16, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert all(np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("name", ["resnet8", "resnet14", "resnet44"])
def test_resnets_of_any_depth_6n_plus_2(name):
    model = build(name)
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    assert model.name == name and len(convolutions) + 1 == int(name[6:])


@pytest.mark.parametrize(
    "name",
    [
        "",
        "resnet",
        "resnet2",
        "resnet7",
        "resnet021",
        "ResNet20",
        "convnet7",
        "wrn28",
        "wrn28_0",
        "wrn27_2",
        "wrn4_2",
        "imagenet_resnet50",
        "efficientnet_b9",
        "efficientnet_l3",
        "efficientnet_l2_big",
    ],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match="unknown network") as error:
        build(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


def test_error_lists_all_networks_if_no_name_is_similar():
    with pytest.raises(
        UserError, match=r"unknown network 'zzz': expected convnet5, .*N = 6n \+ 2, .*kerascv:NAME"
    ):
        check_name("zzz")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("efficientnet-b0", "efficientnet_b0, "),
        ("ResNet20", "resnet20"),
        ("resnet18", "imagenet_resnet18, kerascv:resnet18, "),
        ("resnet101", "kerascv:resnet101"),
        ("efficientnetv2_s", "kerascv:efficientnetv2_s"),
    ],
)
def test_error_for_an_unknown_name_suggests_similar_names(name, expected):
    with pytest.raises(UserError, match=rf" \(similar: .*{expected}"):
        check_name(name)


def test_deep_networks_can_be_built_deep_in_the_call_stack():
    """EfficientNet-L2 alone takes almost the 1,000 calls of Python's default recursion limit."""

    def build_at_depth(depth):
        return build_at_depth(depth - 1) if depth else build("resnet110", image_size=4)

    assert build_at_depth(900).output_shape == (None, 10)


@each_family
def test_images_too_small_for_the_strides_are_refused(name):
    side = min_size(name)
    assert build(name, image_size=side)(pixels(name, side)).shape == (4, 10)
    with pytest.raises(UserError, match=f"--image_size={side - 1} .* at least {side}"):
        build(name, image_size=side - 1)
    assert build(name, image_size=side).get_layer("pool").input.shape[1] == 1


def test_invalid_noise_settings_are_refused():
    with pytest.raises(ValueError, match="rate=1"):
        build("convnet5", dropout_rate=1)
    with pytest.raises(ValueError, match="last=0"):
        build("resnet20", survival_probability=0)
