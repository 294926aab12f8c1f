"""Random crop, flip and cutout of training images, and RandAugment between them, for whole batches.

Everything works on uint8 batches (batch, height, width, 3), eagerly, in `tf.function` and in
`tf.data.Dataset.map`, with any batch size, unknown and zero included. The result is a pure function
of the images and a key of `nsk.noise`. An image's draws depend only on the key and the image's
position in the batch, so a shorter batch draws the same as the first images of a longer one.
"""

import dataclasses
import functools

import tensorflow as tf

from nsk import noise
from nsk.data.image_kernels import cutout
from nsk.data.image_operations import RandAugmentOptions
from nsk.data.image_tensors import checked, flat, gather_pixels, like, sizes
from nsk.data.rand_augment import rand_augment

CROP_MODES = ("constant", "reflect")


@dataclasses.dataclass(frozen=True)
class ImageNoise:
    """All noise on training images, in the order in which it is applied.

    Attributes:
        min_crop_area: smallest share of an encoded image that `random_resized_crop` takes; 0: off,
            the centre is taken whole.
        crop_padding: pixels of `random_crop`; 0: off.
        crop_mode: "constant" or "reflect", the mode of `random_crop`.
        flip: whether `random_flip` is on.
        rand_augment: the options of `rand_augment`. Its `fill` is also that of cutout.
        cutout_side: pixels of `random_cutout`; 0: off.
        mixup_alpha, cutmix_alpha: of `mixup` and `cutmix`; 0: off. If both are on, each batch draws
            one of them with equal probability.
    """

    min_crop_area: float = 0.0
    crop_padding: int = 0
    crop_mode: str = "constant"
    flip: bool = False
    rand_augment: RandAugmentOptions = dataclasses.field(default_factory=RandAugmentOptions)
    cutout_side: int = 0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0


def augment(
    images: tf.Tensor,
    key: tf.Tensor,
    image_noise: ImageNoise,
    magnitude_shares: tf.Tensor | None = None,
) -> tf.Tensor:
    """Crops, flips, applies RandAugment and cuts out, in this order; disabled ones cost nothing.

    Args:
        images: uint8 (batch, height, width, 3).
        key: int64 (2,), a key of `nsk.noise`.
        image_noise: all fields but `min_crop_area` and the alphas are used.
        magnitude_shares: float64 (batch,) or None, see `rand_augment`.

    Returns:
        uint8 tensor of the same shape.
    """
    options = image_noise.rand_augment
    if image_noise.crop_padding:
        images = random_crop(images, key, image_noise.crop_padding, image_noise.crop_mode)
    if image_noise.flip:
        images = random_flip(images, key)
    images = rand_augment(images, key, options, magnitude_shares)
    if image_noise.cutout_side:
        images = random_cutout(images, key, image_noise.cutout_side, options.fill)
    return images


@tf.autograph.experimental.do_not_convert
def random_cutout(images: tf.Tensor, key: tf.Tensor, side: int, fill: int = 128) -> tf.Tensor:
    """Fills a square of each image; its centre is drawn uniformly, so the border may cut it.

    Args:
        images: uint8 (batch, height, width, 3).
        key: int64 (2,), a key of `nsk.noise`.
        side: int, pixels of the square.
        fill: int in 0..255, its gray level.

    Returns:
        uint8 tensor of the same shape.

    Reference:
        [DeVries and Taylor, 2017](https://arxiv.org/abs/1708.04552)
    """
    images = checked(images)
    batch, _, _ = sizes(images)
    centers = noise.for_examples(noise.uniform, noise.named(key, "cutout"), batch, [2])
    return like(cutout(images, tf.fill([batch], side), fill, centers), images)


@tf.autograph.experimental.do_not_convert
def random_crop(
    images: tf.Tensor, key: tf.Tensor, padding: int, mode: str = "constant"
) -> tf.Tensor:
    """Pads each image on all sides and crops it back to its size at a random offset.

    Args:
        images: uint8 (batch, height, width, 3).
        key: int64 (2,), a key of `nsk.noise`.
        padding: int, pixels of padding on each side; offsets are uniform over 0..2 * padding.
        mode: "constant" pads with zeros, "reflect" mirrors without repeating the border pixel, as
            in `numpy.pad`; then `padding` must be smaller than both sides.

    Returns:
        uint8 tensor of the same shape.
    """
    images = checked(images)
    batch, height, width = sizes(images)
    if padding < 0 or mode not in CROP_MODES:
        raise ValueError(
            f"padding={padding}, mode={mode!r}: expected >= 0 and one of {CROP_MODES}."
        )
    if mode == "reflect" and any(
        side is not None and padding >= side for side in images.shape[1:3]
    ):
        raise ValueError(
            f"padding={padding} of {images.shape}: reflection needs less than the sides."
        )
    draw = functools.partial(noise.integers, maxval=2 * padding + 1)
    offsets = noise.for_examples(draw, noise.named(key, "crop"), batch, [2]) - padding
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    if mode == "reflect":
        rows = (height - 1) - tf.abs((height - 1) - tf.abs(rows))
        columns = (width - 1) - tf.abs((width - 1) - tf.abs(columns))
    return gather_pixels(images, rows[:, :, None], columns[:, None, :], fill=0)


@tf.autograph.experimental.do_not_convert
def random_flip(images: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Mirrors each image left to right with probability 1/2.

    Args:
        images: uint8 (batch, height, width, 3).
        key: int64 (2,), a key of `nsk.noise`.

    Returns:
        uint8 tensor of the same shape.
    """
    images = checked(images)
    batch, _, _ = sizes(images)
    is_flipped = noise.for_examples(noise.uniform, noise.named(key, "flip"), batch, [1]) < 0.5
    return like(tf.where(is_flipped, flat(tf.reverse(images, [2])), flat(images)), images)
