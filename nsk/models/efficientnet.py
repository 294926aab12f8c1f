"""EfficientNet B0 to B8 and L0 to L2, as published, and variants for small images."""

import dataclasses
import math

import keras

from nsk import noise
from nsk.models.layers import Builder, StochasticDepth, survival_probabilities

BATCH_NORM_EPSILON = 1e-3
CHANNEL_DIVISOR = 8
SQUEEZE_RATIO = 0.25  # Of the block's input filters.
STEM_FILTERS, HEAD_FILTERS = 32, 1280
# ImageNet's mean and standard deviation of red, green and blue, for pixels in [0, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class BlockStage:
    """Consecutive blocks of one kind, as a row of the paper's table 1.

    Attributes:
        kernel_size: side of the depthwise convolution's kernel in pixels.
        repeats: number of blocks before scaling.
        filters: output filters before scaling.
        expansion: factor of the filters within a block.
        strides: strides of the first block; the others have 1.
    """

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
    """Scale of a network, and settings of its training in the paper.

    Attributes:
        width: factor of the filters.
        depth: factor of the repeats.
        train_size: side of the training images in pixels.
        test_size: side of the test images in pixels.
        dropout_rate: rate in [0, 1) of the dropout before the classifier.
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
    builder: Builder,
    variant: str,
    *,
    num_classes: int,
    image_size: int,
    small_images: bool = False,
    dropout_rate: float = 0.0,
    survival_probability: float = 1.0,
) -> keras.Model:
    """Builds an EfficientNet: inverted residual blocks with squeeze-and-excitation, and swish.

    Layers have the names that they have in `keras.applications`, so that its weights match by name.
    Blocks with an identity skip have stochastic depth.

    Args:
        builder: adds the layers; its BatchNorm epsilon is replaced by 0.001.
        variant: a key of `VARIANTS`. At 1,000 classes B0 has 5,288,548 trainable parameters, B7
            66,347,960, L2 480,309,308.
        num_classes: number of classes.
        image_size: side of the square images in pixels.
        small_images: whether images have about 32 pixels: the second and third stage then have
            strides of 1, as in the Noisy Student paper's networks for SVHN.
        dropout_rate: rate in [0, 1) of the dropout before the classifier.
        survival_probability: in (0, 1], see `survival_probabilities`; 0.8 in the paper.

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
    survival = survival_probabilities(survival_probability, num_blocks(variant))
    pixels, features = builder.image_input(
        image_size,
        scale=[1 / (255 * deviation) for deviation in DEVIATION],
        offset=[-mean / deviation for mean, deviation in zip(MEAN, DEVIATION, strict=True)],
    )
    stem_filters = round_filters(STEM_FILTERS, scale.width)
    features = _conv(builder, features, stem_filters, "stem_conv", kernel_size=3, strides=2)
    features = _norm_swish(builder, features, "stem")
    features = _blocks(builder, features, scale, small_images, survival)
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


def _blocks(builder, features, scale, small_images, survival):
    """All stages of blocks; `survival` has the probability of each block."""
    survival = iter(survival)
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
                block_survival=next(survival),
            )
    return features


def build_small_efficientnet(builder: Builder, variant: str, **arguments) -> keras.Model:
    """Builds an EfficientNet for small images; see `build_efficientnet`."""
    return build_efficientnet(builder, variant, small_images=True, **arguments)


def round_filters(filters: int, width: float) -> int:
    """Scales filters by `width` to the nearest multiple of 8 of at least 90% of the product."""
    scaled = filters * width
    rounded = int(scaled + CHANNEL_DIVISOR / 2) // CHANNEL_DIVISOR * CHANNEL_DIVISOR
    rounded = max(CHANNEL_DIVISOR, rounded)
    return rounded if rounded >= 0.9 * scaled else rounded + CHANNEL_DIVISOR


def round_repeats(repeats: int, depth: float) -> int:
    """Scales the number of blocks of a stage by `depth`, rounded up."""
    return math.ceil(depth * repeats)


def num_blocks(variant: str) -> int:
    """Number of blocks of a network: 55 for B7, 88 for L2."""
    return sum(round_repeats(stage.repeats, VARIANTS[variant].depth) for stage in BASE)


def _block(builder, inputs, filters, name, *, kernel_size, strides, expansion, block_survival):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection and skip."""
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
    features = _squeeze_excite(builder, features, int(inputs.shape[-1] * SQUEEZE_RATIO), name)
    features = _conv(builder, features, filters, f"{name}_project_conv")
    features = builder.batch_norm(features, f"{name}_project_bn")
    if strides > 1 or inputs.shape[-1] != filters:
        return features
    features = StochasticDepth(block_survival, name=f"{name}_drop")(features)
    return keras.layers.Add(name=f"{name}_add")([features, inputs])


def _squeeze_excite(builder, inputs, filters, name):
    """Scales each channel by a gate in (0, 1), computed from the means of all channels."""
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
    """Convolution with TensorFlow's "same" padding, with which published weights were trained."""
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
    """Normal with standard deviation sqrt(2 / fan_out), fan_out = kernel area x output channels."""
    seed = noise.python_seed(builder.seed, name)
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal", seed)


def _norm_swish(builder, inputs, name):
    outputs = builder.batch_norm(inputs, f"{name}_bn")
    return keras.layers.Activation("silu", name=f"{name}_activation")(outputs)
