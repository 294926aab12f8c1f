"""All the noise on a batch of training images, in its order."""

import tensorflow as tf

from nsk import noise
from nsk.data import records
from nsk.data.augment import augment
from nsk.data.crops import random_resized_crop
from nsk.data.mixup import cutmix, mixup


@tf.autograph.experimental.do_not_convert
def perturb(
    images,
    targets,
    key,
    batch_size=None,
    *,
    image_size,
    min_crop_area=0.0,
    mixup_alpha=0.0,
    cutmix_alpha=0.0,
    **settings,
):
    """Decodes where needed, augments every image, then mixes pairs; a part that is off costs none.

    Args:
        images: uint8 (n, image_size, image_size, 3), or encoded: string (n,).
        targets: float32 (n, classes), rows that sum to 1.
        key: int64 (2,), a key of `nsk.noise`.
        batch_size: int, where the images are several batches of as many, one after the other: pairs
            are mixed within each; None: one batch.
        image_size: side of the images, pixels.
        min_crop_area: least share of an encoded image that a random resized crop takes; 0: the
            centre, whole.
        mixup_alpha, cutmix_alpha: of `mixup` and `cutmix`, 0: off. Where both are on, a fair draw
            decides for each batch.
        **settings: of `augment`.

    Returns:
        (images, targets): uint8 (n, image_size, image_size, 3) and float32 (n, classes).
    """
    if images.dtype == tf.string:
        if min_crop_area:
            images = random_resized_crop(images, key, image_size, min_crop_area)
        else:
            images = records.decode_images(images, image_size)
    images = augment(images, key, **settings)
    mixed = []
    if mixup_alpha:
        mixed.append(mixup(images, targets, key, mixup_alpha, batch_size))
    if cutmix_alpha:
        mixed.append(cutmix(images, targets, key, cutmix_alpha, batch_size))
    if len(mixed) < 2:
        return mixed[0] if mixed else (images, targets)
    count = tf.shape(targets)[0]
    batches = tf.range(count) // (count if batch_size is None else batch_size)
    chosen = tf.gather(noise.uniform(noise.named(key, "mix"), [count]) < 0.5, batches)
    return tuple(
        tf.where(tf.reshape(chosen, [-1] + [1] * (one.shape.rank - 1)), one, other)
        for one, other in zip(*mixed, strict=True)
    )
