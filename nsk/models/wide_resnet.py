"""Wide ResNets for small images: the standard networks of semi-supervised learning."""

import keras

from nsk.models.layers import Builder, StochasticDepth, survival_probabilities

# (filters before widening, strides) of the three stages.
STAGES = ((16, 1), (32, 2), (64, 2))


def build_wide_resnet(
    builder: Builder,
    depth: int,
    width: int,
    *,
    num_classes: int,
    image_size: int,
    dropout_rate: float = 0.0,
    survival_probability: float = 1.0,
) -> keras.Model:
    """Builds WRN-n-k: three stages of (n - 4) / 6 pre-activation blocks, k times as wide.

    A block is BN-ReLU-conv3x3-BN-ReLU-conv3x3. A block that changes the number of filters has no
    stochastic depth, and its shortcut is a 1x1 convolution of the output of its first BN-ReLU.

    Args:
        builder: adds the layers.
        depth: n = 6m + 4 with m of 1 or more.
        width: k of 1 or more. At ten classes WRN-28-2 has 1,467,610 trainable parameters,
            WRN-28-10 36,479,194.
        num_classes: number of classes.
        image_size: side of the square images in pixels.
        dropout_rate: rate in [0, 1) of the dropout before the classifier.
        survival_probability: in (0, 1], see `survival_probabilities`.

    Returns:
        keras.Model from float32 pixels in [0, 255], shape (batch, image_size, image_size, 3), to
        float32 logits, shape (batch, num_classes).

    Raises:
        ValueError: `depth` is not 6m + 4 or `width` is less than 1.

    Reference:
        [Zagoruyko and Komodakis, 2016](https://arxiv.org/abs/1605.07146).
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth={depth}: expected 6m + 4 with m >= 1.")
    if width < 1:
        raise ValueError(f"width={width}: expected at least 1.")
    blocks_per_stage = depth // 6
    survival = survival_probabilities(survival_probability, 3 * blocks_per_stage)
    pixels, features = builder.image_input(image_size)
    features = builder.conv(features, STAGES[0][0], "stem_conv")
    for index, block_survival in enumerate(survival):
        stage, position = divmod(index, blocks_per_stage)
        name = f"stage{stage + 1}_block{position + 1}"
        filters, strides = STAGES[stage][0] * width, 1 if position else STAGES[stage][1]
        shortcut = features
        features = builder.bn_relu(features, f"{name}_1")
        if shortcut.shape[-1] != filters:
            shortcut = builder.conv(
                features, filters, f"{name}_shortcut_conv", kernel_size=1, strides=strides
            )
            block_survival = 1.0
        branch = builder.conv(features, filters, f"{name}_1_conv", strides=strides)
        branch = builder.bn_relu(branch, f"{name}_2")
        branch = builder.conv(branch, filters, f"{name}_2_conv")
        branch = StochasticDepth(block_survival, name=f"{name}_depth")(branch)
        features = keras.layers.Add(name=f"{name}_add")([branch, shortcut])
    features = builder.bn_relu(features, "final")
    logits = builder.classifier(features, num_classes, dropout_rate)
    return keras.Model(pixels, logits, name=f"wrn{depth}_{width}")
