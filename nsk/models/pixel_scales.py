"""What models expect of pixels: functions from pixels in [0, 255] to other scales.

Networks of this project, and EfficientNet, ConvNeXt, MobileNetV3 and RegNet of
`keras.applications`, take pixels in [0, 255]. Other models were trained with a scale of their own:

    255        [0, 255]
    unit       [0, 1], as models of TensorFlow Hub
    symmetric  [-1, 1], as Inception, MobileNet and ResNetV2 of `keras.applications`
    imagenet   ImageNet's mean 0 and standard deviation 1, as models of torchvision and DenseNet
    caffe      blue, green and red without their means, as ResNet and VGG of `keras.applications`
"""

from collections.abc import Callable

import tensorflow as tf

from nsk.models.efficientnet import DEVIATION, MEAN

# Mean of blue, green and red of ImageNet's training images, for pixels in [0, 255].
CAFFE_MEAN = (103.939, 116.779, 123.68)

# Functions of float32 pixels (n, height, width, 3) in [0, 255].
PIXEL_SCALES: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "255": lambda pixels: pixels,
    "unit": lambda pixels: pixels / 255,
    "symmetric": lambda pixels: pixels / 127.5 - 1,
    "imagenet": lambda pixels: (pixels / 255 - MEAN) / DEVIATION,
    "caffe": lambda pixels: tf.reverse(pixels, axis=[-1]) - CAFFE_MEAN,
}
