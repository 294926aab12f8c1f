"""Noise on images that a teacher labels, an ablation: a function of each image's id alone."""

import dataclasses

import numpy as np
import tensorflow as tf

from nsk import noise
from nsk.data.augment import ImageNoise
from nsk.data.perturb import perturb
from nsk.hashing import stable_keys


@dataclasses.dataclass(frozen=True)
class LabelNoise:
    """Noise whose draws depend on a key and the image's id: not on batches, shards or workers.

    Attributes:
        key: int64 (2,), a key of `nsk.noise`.
        image_noise: `ImageNoise` without mixup and CutMix, which would mix images.
    """

    key: np.ndarray
    image_noise: ImageNoise

    def __post_init__(self):
        if self.image_noise.mixup_alpha or self.image_noise.cutmix_alpha:
            raise ValueError("mixup_alpha and cutmix_alpha: expected 0, images have labels alone.")

    @tf.autograph.experimental.do_not_convert
    def keys(self, ids: tf.Tensor) -> tf.Tensor:
        """The keys of images: int64 (n, 2) of string (n,)."""
        numbers = tf.numpy_function(_hash, [ids], tf.int64, stateful=False)
        return noise.example_keys(self.key, tf.ensure_shape(numbers, [None]))

    @tf.autograph.experimental.do_not_convert
    def apply(
        self, encoded: tf.Tensor, keys: tf.Tensor, image_size: int, resize_mode: str = "crop"
    ) -> tf.Tensor:
        """Decodes and augments images.

        Args:
            encoded: string (n,).
            keys: int64 (n, 2), of `keys`.
            image_size: side of the images, pixels.
            resize_mode: see `decoding.decode_image`.

        Returns:
            uint8 tensor (n, image_size, image_size, 3).
        """
        images, _ = perturb(
            encoded,
            tf.zeros([tf.shape(encoded)[0], 1]),
            keys,
            image_size=image_size,
            image_noise=self.image_noise,
            resize_mode=resize_mode,
        )
        return images


def _hash(ids):
    """int64 array (n,) of byte strings (n,)."""
    return stable_keys(ids.tolist()).view(np.int64)
