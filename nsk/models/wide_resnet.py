"""Wide ResNets for small images: the standard of semi-supervised learning."""

import keras

from nsk.models.layers import StochasticDepth, survival_probabilities

# (filters before widening, strides) of the three stages.
STAGES = ((16, 1), (32, 2), (64, 2))


def build_wide_resnet(
    builder, depth, width, *, num_classes, image_size, dropout_rate=0.0, survival_probability=1.0
):
    """WRN-n-k: three stages of (n - 4) / 6 pre-activation blocks, k times as wide.

    A block is BN-ReLU-conv3x3-BN-ReLU-conv3x3. Where the number of filters changes, the shortcut is
    a 1x1 convolution of what the first BN-ReLU returns, and there is no stochastic depth.

    Args:
        builder: `nsk.models.layers.Builder`.
        depth: int, n = 6m + 4 with m of 1 or more.
        width: int, k of 1 or more. At ten classes WRN-28-2 has 1,467,610 trainable parameters,
            WRN-28-10 36,479,194.
        num_classes: int.
        image_size: int, side of the square images in pixels.
        dropout_rate: float in [0, 1).
        survival_probability: float in (0, 1], see `survival_probabilities`.

    Returns:
        keras.Model from float32 pixels in [0, 255], shape (batch, image_size, image_size, 3), to
        float32 logits, shape (batch, num_classes).

    Raises:
        ValueError: `depth` or `width` is not as above.

    Reference:
        [Zagoruyko and Komodakis, 2016](https://arxiv.org/abs/1605.07146).
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth={depth}: expected 6m + 4 with m of 1 or more.")
    if width < 1:
        raise ValueError(f"width={width}: expected at least 1.")
    blocks_per_stage = depth // 6
    survival = survival_probabilities(survival_probability, 3 * blocks_per_stage)
    pixels, features = builder.image_input(image_size)
    features = builder.conv(features, STAGES[0][0], "stem_conv")
    for index, survives in enumerate(survival):
        stage, position = divmod(index, blocks_per_stage)
        name = f"stage{stage + 1}_block{position + 1}"
        filters, strides = STAGES[stage][0] * width, 1 if position else STAGES[stage][1]
        before = features
        features = builder.bn_relu(features, f"{name}_1")
        if before.shape[-1] != filters:
            before = builder.conv(
                features, filters, f"{name}_shortcut_conv", kernel_size=1, strides=strides
            )
            survives = 1.0
        branch = builder.conv(features, filters, f"{name}_1_conv", strides=strides)
        branch = builder.bn_relu(branch, f"{name}_2")
        branch = builder.conv(branch, filters, f"{name}_2_conv")
        branch = StochasticDepth(survives, name=f"{name}_depth")(branch)
        features = keras.layers.Add(name=f"{name}_add")([branch, before])
    features = builder.bn_relu(features, "final")
    logits = builder.classifier(features, num_classes, dropout_rate)
    return keras.Model(pixels, logits, name=f"wrn{depth}_{width}")
