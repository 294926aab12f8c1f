"""Plain convolutional networks of five and six layers for small images."""

import keras

from nsk.models.layers import Builder

# (filters, strides) of each 3x3 convolution; the dense layer is the last of the five or six.
CONVOLUTIONS = {
    "convnet5": ((32, 2), (32, 1), (64, 2), (128, 2)),
    "convnet6": ((32, 1), (32, 2), (32, 1), (64, 2), (128, 2)),
}


def build_convnet(
    builder: Builder,
    name: str,
    *,
    num_classes: int,
    image_size: int,
    dropout_rate: float = 0.0,
) -> keras.Model:
    """Builds ConvNet5 or ConvNet6: conv3x3-BatchNorm-ReLU layers, global pooling, dropout, dense.

    There are no residual blocks and so no stochastic depth.

    Args:
        builder: adds the layers.
        name: "convnet5" or "convnet6": 104,042 or 113,322 trainable parameters at ten classes.
        num_classes: number of classes.
        image_size: side of the square images in pixels.
        dropout_rate: rate in [0, 1) of the dropout before the classifier.

    Returns:
        keras.Model from float32 pixels in [0, 255], shape (batch, image_size, image_size, 3), to
        float32 logits, shape (batch, num_classes).
    """
    pixels, features = builder.image_input(image_size)
    for number, (filters, strides) in enumerate(CONVOLUTIONS[name], start=1):
        features = builder.conv_bn_relu(features, filters, f"layer{number}", strides=strides)
    return keras.Model(pixels, builder.classifier(features, num_classes, dropout_rate), name=name)
