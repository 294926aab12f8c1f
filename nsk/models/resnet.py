"""Residual networks of basic blocks.

The 6n+2 family, ResNet9 and ResNet6 are for small images, ResNet-18, 26 and 34 for images of about
224 pixels.
"""

import keras

from nsk.models.layers import Builder, PaddedShortcut, StochasticDepth, survival_probabilities

# (filters, strides) of the three stages.
STAGES_6N2 = ((16, 1), (32, 2), (64, 2))
STAGES_SMALL = ((32, 1), (64, 2), (128, 2))
STAGES_IMAGENET = ((64, 1), (128, 2), (256, 2), (512, 2))
# Blocks in each stage.
BLOCKS_IMAGENET = {18: (2, 2, 2, 2), 26: (3, 3, 3, 3), 34: (3, 4, 6, 3)}


def build_resnet6n2(
    builder: Builder,
    depth: int,
    *,
    num_classes: int,
    image_size: int,
    dropout_rate: float = 0.0,
    survival_probability: float = 1.0,
) -> keras.Model:
    """Builds ResNet-20, 26, 32, 38, ...: three stages of n = (depth - 2) / 6 basic blocks.

    The stem is a bare 3x3 convolution; its BatchNorm and ReLU come before the pooling instead. The
    shortcut into a new stage takes every second pixel and pads the channels with zeros, so every
    skip is an identity and every block has stochastic depth.

    Args:
        builder: adds the layers.
        depth: 6n + 2. At ten classes 20, 26, 32 and 38 have 269,818, 367,034, 464,250 and
            561,466 trainable parameters.
        num_classes: number of classes.
        image_size: side of the square images in pixels.
        dropout_rate: rate in [0, 1) of the dropout before the classifier.
        survival_probability: in (0, 1], see `survival_probabilities`.

    Returns:
        keras.Model from float32 pixels in [0, 255], shape (batch, image_size, image_size, 3), to
        float32 logits, shape (batch, num_classes).

    Raises:
        ValueError: `depth` is not 6n + 2 with n of 1 or more.

    Reference:
        [He et al., 2015](https://arxiv.org/abs/1512.03385), section 4.2.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth={depth}: expected 6n + 2 with n >= 1.")
    blocks_per_stage = depth // 6
    survival = survival_probabilities(survival_probability, 3 * blocks_per_stage)
    pixels, features = builder.image_input(image_size)
    features = builder.conv(features, 16, "stem_conv")
    for index, block_survival in enumerate(survival):
        stage, position = divmod(index, blocks_per_stage)
        name = f"stage{stage + 1}_block{position + 1}"
        filters, strides = STAGES_6N2[stage]
        shortcut = features
        if position > 0:
            strides = 1
        elif strides > 1:
            shortcut = PaddedShortcut(filters, strides, name=f"{name}_shortcut")(features)
        branch = _basic_branch(builder, features, filters, strides, name)
        branch = StochasticDepth(block_survival, name=f"{name}_depth")(branch)
        features = builder.add_relu(branch, shortcut, name)
    features = builder.bn_relu(features, "final")
    logits = builder.classifier(features, num_classes, dropout_rate)
    return keras.Model(pixels, logits, name=f"resnet{depth}")


def build_imagenet_resnet(
    builder: Builder,
    depth: int,
    *,
    num_classes: int,
    image_size: int,
    dropout_rate: float = 0.0,
    survival_probability: float = 1.0,
) -> keras.Model:
    """Builds ResNet-18, 26 or 34 for images of about 224 pixels: four stages of basic blocks.

    The stem is a 7x7 convolution and a max pooling that each halve the size. The first block of the
    second, third and fourth stage has a projection shortcut (1x1 convolution and BatchNorm) and no
    stochastic depth.

    Args:
        builder: adds the layers.
        depth: 18, 26 or 34: at 1,000 classes 11,689,512, 17,960,232 or 21,797,672 trainable
            parameters.
        num_classes: number of classes.
        image_size: side of the square images in pixels.
        dropout_rate: rate in [0, 1) of the dropout before the classifier.
        survival_probability: in (0, 1], see `survival_probabilities`.

    Returns:
        keras.Model from float32 pixels in [0, 255], shape (batch, image_size, image_size, 3), to
        float32 logits, shape (batch, num_classes).

    Reference:
        [He et al., 2015](https://arxiv.org/abs/1512.03385), table 1.
    """
    blocks = BLOCKS_IMAGENET[depth]
    survival = iter(survival_probabilities(survival_probability, sum(blocks)))
    pixels, features = builder.image_input(image_size)
    features = builder.conv_bn_relu(features, 64, "stem", kernel_size=7, strides=2)
    # Outputs of a ReLU are not negative, so padding with zeros does not change a maximum.
    features = keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(features)
    features = keras.layers.MaxPooling2D(3, 2, name="stem_pool")(features)
    for stage, (filters, first_strides) in enumerate(STAGES_IMAGENET, start=1):
        for block in range(blocks[stage - 1]):
            name, block_survival = f"stage{stage}_block{block + 1}", next(survival)
            strides, shortcut = 1 if block else first_strides, features
            if strides > 1:
                block_survival = 1.0
                shortcut = builder.conv_bn(
                    features, filters, f"{name}_shortcut", kernel_size=1, strides=strides
                )
            branch = _basic_branch(builder, features, filters, strides, name)
            branch = StochasticDepth(block_survival, name=f"{name}_depth")(branch)
            features = builder.add_relu(branch, shortcut, name)
    logits = builder.classifier(features, num_classes, dropout_rate)
    return keras.Model(pixels, logits, name=f"imagenet_resnet{depth}")


def build_resnet9(
    builder: Builder, *, num_classes: int, image_size: int, dropout_rate: float = 0.0
) -> keras.Model:
    """Builds ResNet9: two convolutions and three basic blocks.

    It has 317,930 trainable parameters at ten classes. The second and third block have a projection
    shortcut (1x1 convolution and BatchNorm). Only the first block has an identity shortcut, and the
    first block's survival probability is always 1: so there is no stochastic depth. Arguments and
    result are those of `build_resnet6n2`.
    """
    pixels, features = _small_stem(builder, image_size)
    for index, (filters, strides) in enumerate(STAGES_SMALL):
        name = f"block{index + 1}"
        branch = _basic_branch(builder, features, filters, strides, name)
        shortcut = features
        if strides > 1:
            shortcut = builder.conv_bn(
                features, filters, f"{name}_shortcut", kernel_size=1, strides=strides
            )
        features = builder.add_relu(branch, shortcut, name)
    logits = builder.classifier(features, num_classes, dropout_rate)
    return keras.Model(pixels, logits, name="resnet9")


def build_resnet6(
    builder: Builder, *, num_classes: int, image_size: int, dropout_rate: float = 0.0
) -> keras.Model:
    """Builds ResNet6: two convolutions and three sums of two parallel convolutions.

    It has 215,146 trainable parameters at ten classes. Each sum is
    ReLU(BN(conv3x3(x)) + BN(conv3x3(x))): no path is an identity, so there is no stochastic depth.
    Arguments and result are those of `build_resnet6n2`.
    """
    pixels, features = _small_stem(builder, image_size)
    for index, (filters, strides) in enumerate(STAGES_SMALL):
        name = f"block{index + 1}"
        left = builder.conv_bn(features, filters, f"{name}_left", strides=strides)
        right = builder.conv_bn(features, filters, f"{name}_right", strides=strides)
        features = builder.add_relu(left, right, name)
    logits = builder.classifier(features, num_classes, dropout_rate)
    return keras.Model(pixels, logits, name="resnet6")


def _small_stem(builder, image_size):
    pixels, features = builder.image_input(image_size)
    features = builder.conv_bn_relu(features, 32, "stem1")
    return pixels, builder.conv_bn_relu(features, 32, "stem2", strides=2)


def _basic_branch(builder, inputs, filters, strides, name):
    """conv3x3-BN-ReLU-conv3x3-BN: the residual branch of a basic block."""
    branch = builder.conv_bn_relu(inputs, filters, f"{name}_1", strides=strides)
    return builder.conv_bn(branch, filters, f"{name}_2")
