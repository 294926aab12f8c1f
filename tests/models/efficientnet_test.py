"""EfficientNets against `keras.applications` and the published numbers."""

import keras
import numpy as np
import pytest

from nsk.models import build_model
from nsk.models.efficientnet import DEVIATION, MEAN, VARIANTS, num_blocks
from nsk.models.layers import StochasticDepth, survival_probabilities

REFERENCE_VARIANTS = [f"b{number}" for number in range(8)]


def build(variant, *, num_classes=10, image_size=32, **arguments):
    return build_model(
        f"efficientnet_{variant}", num_classes=num_classes, image_size=image_size, **arguments
    )


def parameters(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_variables)


def scrambled(weights, seed=0):
    """Weights and statistics as after training, which keep the scale of the activations."""
    random = np.random.default_rng(seed)
    return [
        array * random.uniform(0.8, 1.2, array.shape)
        + (array.ndim == 1) * random.uniform(-0.1, 0.1, array.shape)
        for array in weights
    ]


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(variant, marks=() if variant == "b0" else pytest.mark.slow)
        for variant in REFERENCE_VARIANTS
    ],
)
def test_outputs_equal_those_of_keras_applications(variant):
    """Logits agree to 1e-5 with the same weights; an odd size reveals differences in padding."""
    theirs = getattr(keras.applications, f"EfficientNet{variant.upper()}")(
        weights=None, input_shape=(65, 65, 3), classes=7, classifier_activation=None
    )
    ours = build(variant, num_classes=7, image_size=65)
    assert parameters(ours) == parameters(theirs)
    for layer in ours.layers:
        if layer.weights:
            source = theirs.get_layer("predictions" if layer.name == "logits" else layer.name)
            source.set_weights(scrambled(source.get_weights()))
            layer.set_weights(source.get_weights())
    images = np.random.default_rng(1).uniform(0, 255, (2, 65, 65, 3)).astype("float32")
    images[1, :40] = 0
    # Theirs divides pixels by 255 and subtracts no mean.
    normalised = (images / 255 - MEAN) / DEVIATION
    expected = theirs((255 * normalised).astype("float32"))
    received = ours(images)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(received, expected, atol=1e-5 * largest)
    assert np.abs(expected[0] - expected[1]).max() > 1e-4 * largest  # They depend on the pixels.


@pytest.mark.parametrize(
    ("variant", "expected", "blocks"),
    [
        ("b0", 5_288_548, 16),
        pytest.param("b7", 66_347_960, 55, marks=pytest.mark.slow),
        pytest.param("l0", 140_764_664, 63, marks=pytest.mark.slow),
        pytest.param("l1", 272_630_564, 63, marks=pytest.mark.slow),
        pytest.param("l2", 480_309_308, 88, marks=pytest.mark.slow),
    ],
)
def test_published_sizes(variant, expected, blocks):
    assert num_blocks(variant) == blocks
    assert parameters(build(variant, num_classes=1000)) == expected


def test_survival_probabilities_decay_linearly():
    """Block i of L survives with 1 - 0.2 i / L, if its skip is an identity."""
    model = build("b0", survival_probability=0.8)
    survival = {
        layer.name.removesuffix("_drop"): layer.survival_probability
        for layer in model.layers
        if isinstance(layer, StochasticDepth)
    }
    repeats = zip("1234567", (1, 2, 2, 3, 3, 4, 1), strict=True)
    order = [stage + letter for stage, count in repeats for letter in "abcd"[:count]]
    first = [name for name in order if name.endswith("a")]
    assert set(survival) == {f"block{name}" for name in set(order) - set(first)}
    for index, name in enumerate(order):
        if name not in first:
            assert survival[f"block{name}"] == pytest.approx(1 - 0.2 * index / 16)


def test_survival_probability_of_the_last_block_of_b7():
    assert survival_probabilities(0.8, num_blocks("b7"))[-1] == pytest.approx(0.8036, abs=1e-4)


@pytest.mark.parametrize(("small", "sides"), [("", [8, 4, 2, 2, 1]), ("_small", [16, 16, 8, 8, 4])])
def test_the_variant_for_small_images_has_two_strides_fewer(small, sides):
    model = build(f"b0{small}")
    assert model.name == f"efficientnet_b0{small}"
    for stage, side in zip("23456", sides, strict=True):
        assert model.get_layer(f"block{stage}a_project_conv").output.shape[1] == side
    assert parameters(model) == parameters(build("b0"))


def test_resolutions_and_dropout_rates_of_the_paper():
    assert [variant.train_size for variant in VARIANTS.values()] == [
        *(224, 240, 260, 300, 380, 456, 528, 600, 672),
        *(380, 380, 475),
    ]
    assert [VARIANTS[name].test_size for name in ("b7", "l0", "l2")] == [600, 600, 800]
    assert [VARIANTS[name].dropout_rate for name in ("b0", "b3", "b5", "b6")] == [
        0.2,
        0.3,
        0.4,
        0.5,
    ]
