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
    *,
    image_size,
    min_crop_area=0.0,
    mixup_alpha=0.0,
    cutmix_alpha=0.0,
    **settings,
):
    """Decodes where needed, augments every image, then mixes pairs; a part that is off costs none.

    Args:
        images: uint8 (batch, image_size, image_size, 3), or encoded: string (batch,).
        targets: float32 (batch, classes), rows that sum to 1.
        key: int64 (2,), a key of `nsk.noise`.
        image_size: side of the images, pixels.
        min_crop_area: least share of an encoded image that a random resized crop takes; 0: the
            centre, whole.
        mixup_alpha, cutmix_alpha: of `mixup` and `cutmix`, 0: off. Where both are on, a fair draw
            decides for each call.
        **settings: of `augment`.

    Returns:
        (images, targets): uint8 (batch, image_size, image_size, 3) and float32 (batch, classes).
    """
    if images.dtype == tf.string:
        if min_crop_area:
            images = random_resized_crop(images, key, image_size, min_crop_area)
        else:
            images = records.decode_images(images, image_size)
    images = augment(images, key, **settings)
    if mixup_alpha and cutmix_alpha:
        return tf.cond(
            noise.uniform(noise.named(key, "mix"), []) < 0.5,
            lambda: mixup(images, targets, key, mixup_alpha),
            lambda: cutmix(images, targets, key, cutmix_alpha),
        )
    if mixup_alpha:
        return mixup(images, targets, key, mixup_alpha)
    if cutmix_alpha:
        return cutmix(images, targets, key, cutmix_alpha)
    return images, targets
