"""All noise on a batch of training images, in order."""

import tensorflow as tf

from nsk import noise
from nsk.data.augment import ImageNoise, augment
from nsk.data.crops import random_resized_crop
from nsk.data.decoding import decode_images
from nsk.data.mixup import cutmix, mixup


@tf.autograph.experimental.do_not_convert
def perturb(
    images: tf.Tensor,
    targets: tf.Tensor,
    key: tf.Tensor,
    batch_size: int | None = None,
    first_step: int | tf.Tensor | None = None,
    *,
    image_size: int,
    image_noise: ImageNoise,
    resize_mode: str = "crop",
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes if needed, augments every image, then mixes pairs; disabled noise costs nothing.

    Args:
        images: uint8 (n, image_size, image_size, 3), or encoded: string (n,).
        targets: float32 (n, ..., classes), probabilities, or these times the image's weight.
        key: int64 (2,), a key of `nsk.noise`.
        batch_size: int, if the images are several batches of this size, one after the other: pairs
            are mixed within each; None: one batch.
        first_step: number of the training step of the first batch, an int or int64 scalar tensor;
            None: noise that grows has its full strength.
        image_size: side of the images, pixels.
        image_noise: `ImageNoise`.
        resize_mode: how encoded images become squares, see `decoding.decode_image`.

    Returns:
        (images, targets): uint8 (n, image_size, image_size, 3), and as `targets`.
    """
    if images.dtype == tf.string:
        if image_noise.min_crop_area:
            images = random_resized_crop(
                images, key, image_size, image_noise.min_crop_area, resize_mode=resize_mode
            )
        else:
            images = decode_images(images, image_size, resize_mode=resize_mode)
    shares, options = None, image_noise.rand_augment
    if first_step is not None and options.grows:
        count = tf.shape(targets)[0]
        shares = _shares_of_training(first_step, options.growth_steps, count, batch_size)
    images = augment(images, key, image_noise, shares)
    mixed = []
    if image_noise.mixup_alpha:
        mixed.append(mixup(images, targets, key, image_noise.mixup_alpha, batch_size))
    if image_noise.cutmix_alpha:
        mixed.append(cutmix(images, targets, key, image_noise.cutmix_alpha, batch_size))
    if len(mixed) < 2:
        return mixed[0] if mixed else (images, targets)
    count = tf.shape(targets)[0]
    batches = tf.range(count) // (count if batch_size is None else batch_size)
    uses_mixup = tf.gather(noise.uniform(noise.named(key, "mix"), [count]) < 0.5, batches)
    return tuple(
        tf.where(
            tf.reshape(uses_mixup, [-1] + [1] * (by_mixup.shape.rank - 1)), by_mixup, by_cutmix
        )
        for by_mixup, by_cutmix in zip(*mixed, strict=True)
    )


def _shares_of_training(first_step, num_steps, count, batch_size):
    """From 0 for images of the first step to 1 for those of the last: float64 (count,)."""
    batches = tf.range(count) // (count if batch_size is None else batch_size)
    steps = tf.cast(first_step, tf.float64) + tf.cast(batches, tf.float64)
    # The noise of a single step has its full strength. A block may end after the last step.
    shares = steps / (num_steps - 1) if num_steps > 1 else tf.ones_like(steps)
    return tf.minimum(shares, 1.0)
