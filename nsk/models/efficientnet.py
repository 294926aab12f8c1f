"""EfficientNet B0 to B8 and L0 to L2: the networks of the paper, and a variant for small images."""

import dataclasses
import math

import keras

from nsk import noise
from nsk.models.layers import StochasticDepth, survival_probabilities

BATCH_NORM_EPSILON = 1e-3
CHANNEL_DIVISOR = 8
SQUEEZE_SHARE = 0.25  # Of the filters that come into the block.
STEM_FILTERS, HEAD_FILTERS = 32, 1280
# ImageNet's mean and standard deviation of red, green and blue, for pixels in [0, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class BlockStage:
    """Blocks of one kind, one after another; the first one has the strides."""

    kernel_size: int
    repeats: int
    filters: int
    expansion: int
    strides: int


BASE = (
    BlockStage(3, 1, 16, 1, 1),
    BlockStage(3, 2, 24, 6, 2),
    BlockStage(5, 2, 40, 6, 2),
    BlockStage(3, 3, 80, 6, 2),
    BlockStage(5, 3, 112, 6, 1),
    BlockStage(5, 4, 192, 6, 2),
    BlockStage(3, 1, 320, 6, 1),
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a network is scaled, and how the paper trains it.

    Attributes:
        width, depth: factors of filters and of repeats.
        train_size, test_size: sides of the images, pixels.
        dropout_rate: dropout before the classifier.
    """

    width: float
    depth: float
    train_size: int
    test_size: int
    dropout_rate: float


VARIANTS = {
    "b0": Variant(1.0, 1.0, 224, 224, 0.2),
    "b1": Variant(1.0, 1.1, 240, 240, 0.2),
    "b2": Variant(1.1, 1.2, 260, 260, 0.3),
    "b3": Variant(1.2, 1.4, 300, 300, 0.3),
    "b4": Variant(1.4, 1.8, 380, 380, 0.4),
    "b5": Variant(1.6, 2.2, 456, 456, 0.4),
    "b6": Variant(1.8, 2.6, 528, 528, 0.5),
    "b7": Variant(2.0, 3.1, 600, 600, 0.5),
    "b8": Variant(2.2, 3.6, 672, 672, 0.5),
    "l0": Variant(2.8, 3.7, 380, 600, 0.5),
    "l1": Variant(3.9, 3.7, 380, 600, 0.5),
    "l2": Variant(4.3, 5.3, 475, 800, 0.5),
}


def build_efficientnet(
    builder,
    variant,
    *,
    num_classes,
    image_size,
    small_images=False,
    dropout_rate=0.0,
    survival_probability=1.0,
):
    """An EfficientNet: inverted residual blocks with squeeze-and-excitation, and swish.

    Layers are called as in `keras.applications`, whose weights fit by name. Stochastic depth is in
    the blocks whose skip is an identity.

    Args:
        builder: `nsk.models.layers.Builder`.
        variant: a key of `VARIANTS`. At 1,000 classes B0 has 5,288,548 trainable parameters, B7
            66,347,960, L2 480,309,308.
        num_classes: int.
        image_size: int, side of the square images in pixels.
        small_images: bool, for about 32 pixels: the second and third stage keep the size, as in the
            paper's networks for SVHN.
        dropout_rate: float in [0, 1).
        survival_probability: float in (0, 1], see `survival_probabilities`; the paper has 0.8.

    Returns:
        keras.Model from float32 pixels in [0, 255], shape (batch, image_size, image_size, 3), to
        float32 logits, shape (batch, num_classes). Pixels are normalised inside, by ImageNet's mean
        and standard deviation.

    Reference:
        [Tan and Le, 2019](https://arxiv.org/abs/1905.11946); L0 to L2:
        [Xie et al., 2020](https://arxiv.org/abs/1911.04252).
    """
    builder = dataclasses.replace(builder, batch_norm_epsilon=BATCH_NORM_EPSILON)
    scale = VARIANTS[variant]
    survival = iter(survival_probabilities(survival_probability, num_blocks(variant)))
    pixels, features = builder.image_input(
        image_size,
        scale=[1 / (255 * one) for one in DEVIATION],
        offset=[-mean / one for mean, one in zip(MEAN, DEVIATION, strict=True)],
    )
    stem_filters = round_filters(STEM_FILTERS, scale.width)
    features = _conv(builder, features, stem_filters, "stem_conv", kernel_size=3, strides=2)
    features = _norm_swish(builder, features, "stem")
    for number, stage in enumerate(BASE, start=1):
        filters = round_filters(stage.filters, scale.width)
        for repeat in range(round_repeats(stage.repeats, scale.depth)):
            keeps_size = repeat or (small_images and number in (2, 3))
            features = _block(
                builder,
                features,
                filters,
                f"block{number}{chr(ord('a') + repeat)}",
                kernel_size=stage.kernel_size,
                strides=1 if keeps_size else stage.strides,
                expansion=stage.expansion,
                survives=next(survival),
            )
    features = _conv(builder, features, round_filters(HEAD_FILTERS, scale.width), "top_conv")
    features = _norm_swish(builder, features, "top")
    logits = builder.classifier(
        features,
        num_classes,
        dropout_rate,
        keras.initializers.VarianceScaling(
            1 / 3, "fan_out", "uniform", noise.python_seed(builder.seed, "logits")
        ),
    )
    suffix = "_small" if small_images else ""
    return keras.Model(pixels, logits, name=f"efficientnet_{variant}{suffix}")


def build_small_efficientnet(builder, variant, **arguments):
    """An EfficientNet for small images; see `build_efficientnet`."""
    return build_efficientnet(builder, variant, small_images=True, **arguments)


def round_filters(filters, width):
    """Filters times `width`, to the nearest multiple of 8 that is not a tenth less."""
    scaled = filters * width
    rounded = int(scaled + CHANNEL_DIVISOR / 2) // CHANNEL_DIVISOR * CHANNEL_DIVISOR
    rounded = max(CHANNEL_DIVISOR, rounded)
    return rounded if rounded >= 0.9 * scaled else rounded + CHANNEL_DIVISOR


def round_repeats(repeats, depth):
    """Blocks of a stage, rounded up."""
    return math.ceil(depth * repeats)


def num_blocks(variant):
    """Blocks of a network: B7 has 55, L2 88."""
    return sum(round_repeats(stage.repeats, VARIANTS[variant].depth) for stage in BASE)


def _block(builder, inputs, filters, name, *, kernel_size, strides, expansion, survives):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection; and the skip."""
    expanded = inputs.shape[-1] * expansion
    features = inputs
    if expansion > 1:
        features = _conv(builder, features, expanded, f"{name}_expand_conv")
        features = _norm_swish(builder, features, f"{name}_expand")
    features = keras.layers.DepthwiseConv2D(
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        depthwise_initializer=_conv_initializer(builder, f"{name}_dwconv"),
        name=f"{name}_dwconv",
    )(features)
    features = _norm_swish(builder, features, name)
    features = _squeeze_excite(builder, features, int(inputs.shape[-1] * SQUEEZE_SHARE), name)
    features = _conv(builder, features, filters, f"{name}_project_conv")
    features = builder.batch_norm(features, f"{name}_project_bn")
    if strides > 1 or inputs.shape[-1] != filters:
        return features
    features = StochasticDepth(survives, name=f"{name}_drop")(features)
    return keras.layers.Add(name=f"{name}_add")([features, inputs])


def _squeeze_excite(builder, inputs, filters, name):
    """Each channel times a number in (0, 1) that is learned from the means of all channels."""
    means = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_se_squeeze")(inputs)
    hidden = _conv(
        builder, means, max(1, filters), f"{name}_se_reduce", use_bias=True, activation="silu"
    )
    gates = _conv(
        builder,
        hidden,
        inputs.shape[-1],
        f"{name}_se_expand",
        use_bias=True,
        activation="sigmoid",
    )
    return keras.layers.Multiply(name=f"{name}_se_excite")([inputs, gates])


def _conv(builder, inputs, filters, name, *, kernel_size=1, strides=1, **arguments):
    """Convolution with TensorFlow's "same" padding, which the published weights know."""
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        kernel_initializer=_conv_initializer(builder, name),
        name=name,
        **{"use_bias": False, **arguments},
    )(inputs)


def _conv_initializer(builder, name):
    """N(0, sqrt(2 / fan_out)), fan_out being kernel area times output channels."""
    seed = noise.python_seed(builder.seed, name)
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal", seed)


def _norm_swish(builder, inputs, name):
    outputs = builder.batch_norm(inputs, f"{name}_bn")
    return keras.layers.Activation("silu", name=f"{name}_activation")(outputs)
