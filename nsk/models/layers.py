"""The layers that the networks share: noise, the padded shortcut and the usual blocks."""

import dataclasses

import keras
import tensorflow as tf

from nsk import noise


@keras.saving.register_keras_serializable(package="nsk")
class StochasticDepth(keras.layers.Layer):
    """Drops the residual branch of whole samples at random during training.

    Each sample's branch is kept with `survival_probability` and then divided by it, so that the
    expectation stays what it is at inference, where the layer is the identity. The draws come from
    `nsk.noise` under this layer's name. A frozen layer (`trainable` is False) is at inference, as
    Keras' BatchNormalization is.

    Args:
        survival_probability: float in (0, 1]; 1 turns the layer off at no cost.

    Call arguments:
        inputs: the residual branch, before it is added to the shortcut.
        training: bool, whether to drop.

    Input shape:
        `(batch, ...)`, any rank from 1.

    Output shape:
        The input's; the dtype is the layer's compute dtype.

    Reference:
        [Huang et al., 2016](https://arxiv.org/abs/1603.09382); the scaling in training is that of
        the EfficientNet code.
    """

    def __init__(self, survival_probability, **kwargs):
        super().__init__(**kwargs)
        if not 0 < survival_probability <= 1:
            raise ValueError(
                f"survival_probability={survival_probability}: expected above 0 and at most 1."
            )
        self.survival_probability = float(survival_probability)

    def call(self, inputs, training=False):
        if not training or not self.trainable or self.survival_probability == 1:
            return inputs
        draws = noise.example_uniform(self.name, tf.shape(inputs)[0])
        scale = _keep_scale(draws, self.survival_probability, inputs.dtype)
        return inputs * tf.reshape(scale, [-1] + [1] * (inputs.shape.rank - 1))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "survival_probability": self.survival_probability}


def stochastic_depth_names(model):
    """Names of a network's layers that drop samples when it trains: a list."""
    return [
        layer.name
        for layer in model.layers
        if isinstance(layer, StochasticDepth) and layer.trainable and layer.survival_probability < 1
    ]


@keras.saving.register_keras_serializable(package="nsk")
class Dropout(keras.layers.Layer):
    """Sets single elements to 0 during training and divides the others by `1 - rate`.

    Unlike `keras.layers.Dropout` it draws from `nsk.noise` under this layer's name: the replicas of
    a `tf.distribute` strategy draw different masks, and a resumed run draws those of the
    undisturbed one. A frozen layer (`trainable` is False) drops nothing.

    Args:
        rate: float in [0, 1), the share of elements that is dropped; 0 turns the layer off at no
            cost.

    Call arguments:
        inputs: tensor.
        training: bool, whether to drop.

    Input shape:
        `(batch, ...)`, any rank from 1.

    Output shape:
        The input's; the dtype is the layer's compute dtype.

    Reference:
        [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html)
    """

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate}: expected at least 0 and below 1.")
        self.rate = float(rate)

    def call(self, inputs, training=False):
        if not training or not self.trainable or self.rate == 0:
            return inputs
        batch_size, *shape = keras.ops.shape(inputs)
        draws = noise.example_uniform(self.name, batch_size, shape)
        return inputs * _keep_scale(draws, 1 - self.rate, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


def _keep_scale(draws, keep_probability, dtype):
    """1 / keep_probability where a draw keeps, 0 where it drops.

    Draws are compared in float32: bfloat16 has 256 steps in [0, 1) and would shift the probability.
    """
    return tf.cast(tf.where(draws < keep_probability, 1 / keep_probability, 0.0), dtype)


@keras.saving.register_keras_serializable(package="nsk")
class PaddedShortcut(keras.layers.Layer):
    """A shortcut without weights: every `strides`-th pixel, zero channels on both sides.

    Args:
        filters: int, channels of the output; half of the new ones stand before the old ones.
        strides: int, distance of the pixels taken.

    Call arguments:
        inputs: the block's input.

    Input shape:
        `(batch, height, width, channels)`, channels at most `filters`.

    Output shape:
        `(batch, ceil(height / strides), ceil(width / strides), filters)`

    Reference:
        [He et al., 2015](https://arxiv.org/abs/1512.03385), option A.
    """

    def __init__(self, filters, strides, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides

    def call(self, inputs):
        missing = self.filters - inputs.shape[-1]
        pixels = inputs[:, :: self.strides, :: self.strides]
        return tf.pad(pixels, [[0, 0], [0, 0], [0, 0], [missing // 2, missing - missing // 2]])

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "strides": self.strides}


def survival_probabilities(last, num_blocks):
    """Survival probability of each residual block, falling linearly from 1 at the first.

    Block i = 0..L-1 survives with 1 - (1 - last) * i / L, as in the official code. `last` is what a
    block number L would have: with 0.8, EfficientNet-B7's last of 55 blocks survives with 0.8036.

    Args:
        last: float in (0, 1], where the line ends.
        num_blocks: int, L.

    Returns:
        list of L floats.

    Raises:
        ValueError: `last` is outside of (0, 1].
    """
    if not 0 < last <= 1:
        raise ValueError(f"last={last}: expected a survival probability above 0 and at most 1.")
    return [1 - (1 - last) * index / num_blocks for index in range(num_blocks)]


@dataclasses.dataclass(frozen=True)
class Builder:
    """Adds the layers that all networks here are made of.

    Names are explicit, since weights, noise and checkpoints go by them, and initial weights are a
    pure function of (seed, layer name).

    Attributes:
        seed: int, of the initial weights.
        batch_norm_momentum: float in [0, 1), of BatchNorm's moving statistics.
        batch_norm_epsilon: float, what is added to a variance.
        synchronized: bool, whether BatchNorm takes its statistics over all replicas. On one device
            it changes nothing but the speed: 20% slower.
    """

    seed: int = 0
    batch_norm_momentum: float = 0.9
    synchronized: bool = False
    batch_norm_epsilon: float = 1e-5

    def image_input(self, image_size, scale=1 / 127.5, offset=-1.0):
        """Returns (input tensor of pixels in [0, 255], scale x pixels + offset).

        Scale and offset are floats, to [-1, 1] by default, or lists of one for each of the three
        channels.
        """
        pixels = keras.Input((image_size, image_size, 3), dtype="float32", name="pixels")
        # In float32 under mixed precision too: bfloat16 would round augmented pixels to integers.
        rescale = keras.layers.Rescaling(scale, offset=offset, dtype="float32", name="rescale")
        return pixels, rescale(pixels)

    def conv(self, inputs, filters, name, *, kernel_size=3, strides=1):
        """Convolution without bias (a BatchNorm follows it) that keeps or divides the size.

        TensorFlow's "same" padding puts the window of a strided convolution one pixel off the pixel
        that a strided shortcut takes, and that for even sizes alone. Padding by hand centres both
        on the same.
        """
        if strides > 1 and kernel_size > 1:
            pad = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")
            inputs, padding = pad(inputs), "valid"
        else:
            padding = "same"
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            use_bias=False,
            kernel_initializer=keras.initializers.HeNormal(noise.python_seed(self.seed, name)),
            name=name,
        )(inputs)

    def batch_norm(self, inputs, name):
        return keras.layers.BatchNormalization(
            momentum=self.batch_norm_momentum,
            epsilon=self.batch_norm_epsilon,
            synchronized=self.synchronized,
            name=name,
        )(inputs)

    def conv_bn(self, inputs, filters, name, **conv_arguments):
        outputs = self.conv(inputs, filters, f"{name}_conv", **conv_arguments)
        return self.batch_norm(outputs, f"{name}_bn")

    def conv_bn_relu(self, inputs, filters, name, **conv_arguments):
        outputs = self.conv_bn(inputs, filters, name, **conv_arguments)
        return keras.layers.ReLU(name=f"{name}_relu")(outputs)

    def bn_relu(self, inputs, name):
        outputs = self.batch_norm(inputs, f"{name}_bn")
        return keras.layers.ReLU(name=f"{name}_relu")(outputs)

    def add_relu(self, branch, shortcut, name):
        outputs = keras.layers.Add(name=f"{name}_add")([branch, shortcut])
        return keras.layers.ReLU(name=f"{name}_relu")(outputs)

    def classifier(self, features, num_classes, dropout_rate, initializer=None):
        """Global average pooling, dropout and the dense layer; returns float32 logits.

        The dense layer begins as Glorot's uniform one, or by the `initializer` that is given.
        """
        # Means and logits are float32 under mixed precision, too, as the weights are.
        dtype = keras.config.dtype_policy().variable_dtype
        features = keras.layers.GlobalAveragePooling2D(dtype=dtype, name="pool")(features)
        features = Dropout(dropout_rate, dtype=dtype, name="dropout")(features)
        initializer = initializer or keras.initializers.GlorotUniform(
            noise.python_seed(self.seed, "logits")
        )
        return keras.layers.Dense(
            num_classes, kernel_initializer=initializer, dtype="float32", name="logits"
        )(features)
