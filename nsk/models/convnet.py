"""Plain convolutional networks of five and six layers for small images."""

import keras

# (filters, strides) of each 3x3 convolution; the dense layer is the fifth or sixth.
CONVOLUTIONS = {
    "convnet5": ((32, 2), (32, 1), (64, 2), (128, 2)),
    "convnet6": ((32, 1), (32, 2), (32, 1), (64, 2), (128, 2)),
}


def build_convnet(builder, name, *, num_classes, image_size, dropout_rate=0.0):
    """ConvNet5 or ConvNet6: conv3x3-BatchNorm-ReLU layers, global pooling, dropout, dense.

    Without residual blocks there is no stochastic depth.

    Args:
        builder: `nsk.models.layers.Builder`.
        name: "convnet5" or "convnet6": 104,042 or 113,322 trainable parameters at ten classes.
        num_classes: int.
        image_size: int, side of the square images in pixels.
        dropout_rate: float in [0, 1).

    Returns:
        keras.Model from float32 pixels in [0, 255], shape (batch, image_size, image_size, 3), to
        float32 logits, shape (batch, num_classes).
    """
    pixels, features = builder.image_input(image_size)
    for number, (filters, strides) in enumerate(CONVOLUTIONS[name], start=1):
        features = builder.conv_bn_relu(features, filters, f"layer{number}", strides=strides)
    return keras.Model(pixels, builder.classifier(features, num_classes, dropout_rate), name=name)
