"""Layers that the networks share: noise, BatchNorm, shortcut, ensemble, and common sequences."""

import dataclasses
import math
from typing import Any

import keras
import tensorflow as tf

from nsk import noise


@keras.saving.register_keras_serializable(package="nsk")
class StochasticDepth(keras.layers.Layer):
    """Drops the residual branch of whole samples at random during training.

    Each sample's branch is kept with `survival_probability` and then divided by it, so that the
    expectation equals that at inference, where the layer is the identity. Draws come from
    `nsk.noise` under this layer's name. A frozen layer (`trainable` is False) runs in inference
    mode, like Keras' BatchNormalization.

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

    def __init__(self, survival_probability: float, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 < survival_probability <= 1:
            raise ValueError(
                f"survival_probability={survival_probability}: expected above 0 and at most 1."
            )
        self.survival_probability = float(survival_probability)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Drops and scales samples in training, the identity otherwise."""
        if not training or not self.trainable or self.survival_probability == 1:
            return inputs
        draws = noise.example_uniform(self.name, tf.shape(inputs)[0])
        scale = _keep_scale(draws, self.survival_probability, inputs.dtype)
        return inputs * tf.reshape(scale, [-1] + [1] * (inputs.shape.rank - 1))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "survival_probability": self.survival_probability}


def stochastic_depth_names(model: keras.Model) -> list[str]:
    """Names of a network's layers that drop samples during training."""
    return [
        layer.name
        for layer in model.layers
        if isinstance(layer, StochasticDepth) and layer.trainable and layer.survival_probability < 1
    ]


@keras.saving.register_keras_serializable(package="nsk")
class Dropout(keras.layers.Layer):
    """Sets random elements to 0 during training and divides the others by `1 - rate`.

    Unlike `keras.layers.Dropout` it draws from `nsk.noise` under this layer's name: the replicas of
    a `tf.distribute` strategy draw different masks, and a resumed run draws those of an
    uninterrupted one. A frozen layer (`trainable` is False) drops nothing.

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

    def __init__(self, rate: float, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate}: expected at least 0 and below 1.")
        self.rate = float(rate)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Drops and scales elements in training, the identity otherwise."""
        if not training or not self.trainable or self.rate == 0:
            return inputs
        batch_size, *shape = keras.ops.shape(inputs)
        draws = noise.example_uniform(self.name, batch_size, shape)
        return inputs * _keep_scale(draws, 1 - self.rate, inputs.dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "rate": self.rate}


def _keep_scale(draws, keep_probability, dtype):
    """1 / keep_probability where a draw keeps, 0 where it drops.

    Draws are compared in float32: bfloat16 has 256 steps in [0, 1) and would shift the probability.
    """
    return tf.cast(tf.where(draws < keep_probability, 1 / keep_probability, 0.0), dtype)


@keras.saving.register_keras_serializable(package="nsk")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' BatchNormalization, whose training steps on the CPU run one fused operation.

    Keras computes it by some ten operations, each of which reads and writes the whole tensor; the
    fused operation has its gradient, and TensorFlow fuses it with a ReLU behind it. Results differ
    by rounding only. Arguments, weights and inference are those of Keras, and so is all of training
    where the fused operation does not apply: on other devices (where XLA fuses), if statistics are
    synchronized, in float64, and for inputs that are not images with the channels last. On the CPU
    XLA compiles the fused operation to less exact variances: 2e-4 if a mean is 100 deviations.
    """

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Normalises images; arguments as for Keras' layer."""
        if not (training and self.trainable and mask is None and self._is_fusible(inputs)):
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=tf.cast(inputs, tf.float32),
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=[],
            variance=[],
            epsilon=self.epsilon,
            is_training=True,
        )
        # The operation returns the variance with divisor n - 1, but Keras averages that with n.
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
        variance *= (count - 1) / count
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(average * self.momentum + value * (1 - self.momentum))
        return tf.cast(outputs, self.compute_dtype)

    def _is_fusible(self, inputs):
        """Whether the fused operation computes the same as Keras in training."""
        is_image = inputs.shape.rank == 4 and self.axis in (-1, 3)
        is_float32 = self.variable_dtype == "float32" and inputs.dtype != tf.float64
        is_plain = self.scale and self.center and not self.renorm and not self.synchronized
        return is_image and is_float32 and is_plain and _is_on_cpu()


def _is_on_cpu():
    """Whether the CPU is the only kind of device."""
    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())


@keras.saving.register_keras_serializable(package="nsk")
class PaddedShortcut(keras.layers.Layer):
    """A shortcut without weights: keeps every `strides`-th pixel and pads channels with zeros.

    Args:
        filters: int, channels of the output; half of the zero channels come before the input's.
        strides: int, distance in pixels between those that are kept.

    Call arguments:
        inputs: the block's input.

    Input shape:
        `(batch, height, width, channels)`, channels at most `filters`.

    Output shape:
        `(batch, ceil(height / strides), ceil(width / strides), filters)`

    Reference:
        [He et al., 2015](https://arxiv.org/abs/1512.03385), option A.
    """

    def __init__(self, filters: int, strides: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Subsamples the pixels and pads their channels."""
        missing = self.filters - inputs.shape[-1]
        if self.strides > 1 and _is_on_cpu():  # Means of one pixel: slices with strides are slow.
            pixels = tf.nn.avg_pool2d(inputs, 1, self.strides, "SAME")
        else:
            pixels = inputs[:, :: self.strides, :: self.strides]
        return tf.pad(pixels, [[0, 0], [0, 0], [0, 0], [missing // 2, missing - missing // 2]])

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "filters": self.filters, "strides": self.strides}


@keras.saving.register_keras_serializable(package="nsk")
class LogMeanProbability(keras.layers.Layer):
    """The logarithms of the mean of several networks' probabilities, from their logits.

    They are logits of the mean: their softmax is the mean itself. Only logarithms are computed, so
    that no probability is too small.

    Call arguments:
        inputs: list of the networks' logits.

    Input shape:
        List of `(batch, classes)`, all alike.

    Output shape:
        `(batch, classes)`, float32.
    """

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Averages the probabilities."""
        logits = tf.stack([tf.cast(tensor, tf.float32) for tensor in inputs])
        return tf.reduce_logsumexp(tf.nn.log_softmax(logits), axis=0) - math.log(len(inputs))

    def compute_output_shape(self, input_shape: list[tuple]) -> tuple:
        """The shape of one network's logits."""
        return input_shape[0]


def survival_probabilities(last: float, num_blocks: int) -> list[float]:
    """Survival probability of each residual block, which falls linearly from 1 at the first block.

    Block i = 0..L-1 survives with probability 1 - (1 - last) * i / L, as in the official code.
    Block L-1 is thus above `last`: with 0.8, 0.8036 for the last of EfficientNet-B7's 55 blocks.

    Args:
        last: in (0, 1], the value at i = L.
        num_blocks: L.

    Returns:
        List of L probabilities.

    Raises:
        ValueError: `last` is outside of (0, 1].

    Reference:
        The linear decay of [Huang et al., 2016](https://arxiv.org/abs/1603.09382).
    """
    if not 0 < last <= 1:
        raise ValueError(f"last={last}: expected a survival probability above 0 and at most 1.")
    return [1 - (1 - last) * index / num_blocks for index in range(num_blocks)]


@dataclasses.dataclass(frozen=True)
class Builder:
    """Adds the layers that the networks have in common.

    Layer names are explicit, since weights, noise and checkpoints refer to them. Initial weights
    are a pure function of (seed, layer name).

    Attributes:
        seed: seed of the initial weights.
        batch_norm_momentum: in [0, 1), momentum of BatchNorm's moving statistics.
        synchronized: whether BatchNorm computes its statistics over all replicas. On one device
            this only costs time: steps are 20% slower.
        batch_norm_epsilon: added to variances.
    """

    seed: int = 0
    batch_norm_momentum: float = 0.9
    synchronized: bool = False
    batch_norm_epsilon: float = 1e-5

    def image_input(
        self,
        image_size: int,
        scale: float | list[float] = 1 / 127.5,
        offset: float | list[float] = -1.0,
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """The input of a network and its normalised pixels.

        Args:
            image_size: side of the square images in pixels.
            scale: factor of the pixels, one float or one for each of the three channels.
            offset: added to the scaled pixels, in the same form; by default both map to [-1, 1].

        Returns:
            (pixels in [0, 255], normalised pixels): float32, (batch, image_size, image_size, 3).
        """
        pixels = keras.Input((image_size, image_size, 3), dtype="float32", name="pixels")
        # float32 also under mixed precision: bfloat16 would round augmented pixels to integers.
        rescale = keras.layers.Rescaling(scale, offset=offset, dtype="float32", name="rescale")
        return pixels, rescale(pixels)

    def conv(
        self,
        inputs: keras.KerasTensor,
        filters: int,
        name: str,
        *,
        kernel_size: int = 3,
        strides: int = 1,
    ) -> keras.KerasTensor:
        """Convolution without bias (a BatchNorm follows) that divides the size by `strides`.

        TensorFlow's "same" padding centres the window of a strided convolution one pixel off the
        pixel that a strided shortcut takes, but only for even sizes. Explicit padding centres both
        on the same pixel.
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

    def batch_norm(self, inputs: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """BatchNorm with this builder's momentum and epsilon."""
        return BatchNormalization(
            momentum=self.batch_norm_momentum,
            epsilon=self.batch_norm_epsilon,
            synchronized=self.synchronized,
            name=name,
        )(inputs)

    def conv_bn(
        self, inputs: keras.KerasTensor, filters: int, name: str, **conv_arguments: Any
    ) -> keras.KerasTensor:
        """Convolution and BatchNorm; `conv_arguments` are those of `conv`."""
        outputs = self.conv(inputs, filters, f"{name}_conv", **conv_arguments)
        return self.batch_norm(outputs, f"{name}_bn")

    def conv_bn_relu(
        self, inputs: keras.KerasTensor, filters: int, name: str, **conv_arguments: Any
    ) -> keras.KerasTensor:
        """Convolution, BatchNorm and ReLU; `conv_arguments` are those of `conv`."""
        outputs = self.conv_bn(inputs, filters, name, **conv_arguments)
        return keras.layers.ReLU(name=f"{name}_relu")(outputs)

    def bn_relu(self, inputs: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """BatchNorm and ReLU."""
        outputs = self.batch_norm(inputs, f"{name}_bn")
        return keras.layers.ReLU(name=f"{name}_relu")(outputs)

    def add_relu(
        self, branch: keras.KerasTensor, shortcut: keras.KerasTensor, name: str
    ) -> keras.KerasTensor:
        """Sum of a residual branch and its shortcut, and ReLU."""
        outputs = keras.layers.Add(name=f"{name}_add")([branch, shortcut])
        return keras.layers.ReLU(name=f"{name}_relu")(outputs)

    def classifier(
        self,
        features: keras.KerasTensor,
        num_classes: int,
        dropout_rate: float,
        initializer: keras.initializers.Initializer | None = None,
    ) -> keras.KerasTensor:
        """Global average pooling, dropout and the dense layer.

        Args:
            features: (batch, height, width, channels).
            num_classes: number of classes.
            dropout_rate: in [0, 1).
            initializer: of the dense layer's kernel; None: Glorot uniform.

        Returns:
            float32 logits, (batch, num_classes).
        """
        # Pooled features and logits are float32, as the weights, also under mixed precision.
        dtype = keras.config.dtype_policy().variable_dtype
        features = keras.layers.GlobalAveragePooling2D(dtype=dtype, name="pool")(features)
        features = Dropout(dropout_rate, dtype=dtype, name="dropout")(features)
        initializer = initializer or keras.initializers.GlorotUniform(
            noise.python_seed(self.seed, "logits")
        )
        return keras.layers.Dense(
            num_classes, kernel_initializer=initializer, dtype="float32", name="logits"
        )(features)
