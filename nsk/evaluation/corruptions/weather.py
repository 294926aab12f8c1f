"""Snow, frost and fog, and the parts of snow.

Images are uint8 (n, height, width, 3); `numbers` holds the random numbers of the n images. Results
are those of the scripts that made CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C, truncated to uint8.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

from collections.abc import Sequence

import numpy as np

from nsk.evaluation.corruptions.chunks import chunks
from nsk.evaluation.corruptions.frost_textures import procedural_textures, resize_texture
from nsk.evaluation.corruptions.motion import blur_along_angle, clipped_zoom
from nsk.evaluation.corruptions.plasma import plasma_map
from nsk.evaluation.corruptions.random_numbers import RandomNumbers

# Weights of red, green and blue in a pixel's luma (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


def snow(  # noqa: PLR0913 (the columns of the table of constants)
    images: np.ndarray,
    numbers: RandomNumbers,
    loc: float,
    scale: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    mix: float,
) -> np.ndarray:
    """Whitens images and adds flakes that fall along an angle from [-135, -45) degrees.

    Args:
        images: uint8 (n, height, width, 3).
        numbers: of the n images; a normal number for each pixel and one uniform are drawn.
        loc: mean of the noise that flakes are made of, where images are in [0, 1].
        scale: standard deviation of that noise.
        zoom: factor by which the noise is enlarged, 1 or more.
        threshold: enlarged noise below it is no flake.
        radius: of the flakes' motion blur, pixels.
        sigma: of the flakes' motion blur, pixels.
        mix: share of the images' own colors, in [0, 1]; the rest is whitened.
    """
    flakes = snowflakes(loc + scale * numbers.normal(images.shape[1:3]), zoom, threshold)
    falling = blur_along_angle(flakes, radius, sigma, numbers.uniform(-135, -45))
    return add_snow(images, falling, mix)


def snowflakes(noise: np.ndarray, zoom: float, threshold: float) -> np.ndarray:
    """Makes flakes, not yet blurred, from noise.

    Args:
        noise: float (n, height, width).
        zoom: factor by which the noise's centre is enlarged, 1 or more.
        threshold: enlarged noise below it becomes 0.

    Returns:
        uint8 (n, height, width); the noise's 1 is 255.
    """
    enlarged = clipped_zoom(noise, zoom)
    enlarged[enlarged < threshold] = 0
    return (enlarged.clip(0, 1) * 255).astype(np.uint8)


def add_snow(
    images: np.ndarray, layer: np.ndarray, mix: float, dtype: type = np.float32
) -> np.ndarray:
    """Mixes images with max(pixel, 1.5 * luma + 0.5), then adds the layer and itself upside down.

    Args:
        images: uint8 (n, height, width, 3).
        layer: uint8 (n, height, width), flakes that are blurred already.
        mix: share of the images' own colors, in [0, 1].
        dtype: precision of the mix, which decides some of the last levels: float32 in the
            reference's corruptions, float64 in its perturbations.

    Returns:
        uint8 of the images' shape.
    """
    exact = np.arange(256) / 255.0
    levels, levels32 = exact.astype(dtype), exact.astype(np.float32)
    snowy = np.empty_like(images)
    for part in chunks(images.shape):
        channels = np.ascontiguousarray(images[part].transpose(3, 0, 1, 2))
        luma = sum(
            np.float64(np.float32(weight)) * levels32[values]
            for weight, values in zip(LUMA, channels, strict=True)
        )
        white = luma.astype(np.float32) * np.float32(1.5) + np.float32(0.5)
        flakes = layer[part] / 255.0
        turned = flakes[:, ::-1, ::-1]
        for channel, values in enumerate(channels):
            pixels = levels[values]
            total = mix * pixels + (1 - mix) * np.maximum(pixels, white) + flakes + turned
            snowy[part, ..., channel] = np.minimum(total, 1, out=total) * 255
    return snowy


def frost(
    images: np.ndarray,
    numbers: RandomNumbers,
    image_weight: float,
    frost_weight: float,
    texture_scale: float,
    textures: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Adds a random part of a random texture to each image.

    Args:
        images: uint8 (n, height, width, 3).
        numbers: of the n images; three uniform numbers are drawn.
        image_weight: factor of the image, in [0, 1].
        frost_weight: factor of the texture, in [0, 1].
        texture_scale: factor by which textures are resized; one that would be smaller than the
            images is resized to fit them, where the reference fails.
        textures: uint8 arrays (height, width, 3), from `frost_textures.read_textures`; None for
            procedural ones, of which results say `frost_textures.PROCEDURAL_FROST_NOTE`.
    """
    textures = procedural_textures() if textures is None else textures
    height, width = images.shape[1:3]
    draws = numbers.uniform(0, 1, (3,))
    choices = (draws[:, 0] * len(textures)).astype(np.int64)
    resized = {}
    for index in set(choices.tolist()):
        least = max(np.divide((height, width), textures[index].shape[:2]))
        resized[index] = resize_texture(textures[index], max(texture_scale, least))
    frosted = np.empty_like(images)
    for row, (choice, image) in enumerate(zip(choices, images, strict=True)):
        texture = resized[choice]
        rows, columns = texture.shape[0] - height, texture.shape[1] - width
        # The reference never draws the last position.
        top, left = (draws[row, 1:] * (max(1, rows), max(1, columns))).astype(np.int64)
        crop = texture[top : top + height, left : left + width]
        total = image_weight * image + frost_weight * crop
        frosted[row] = np.minimum(total, 255, out=total)
    return frosted


def fog(images: np.ndarray, numbers: RandomNumbers, amount: float, decay: float) -> np.ndarray:
    """Adds a plasma map and scales the sum back to the image's maximum.

    Args:
        images: uint8 (n, height, width, 3).
        numbers: of the n images; a uniform number for each point of a map is drawn. Its side is
            the next power of two.
        amount: the map's maximum, where images are in [0, 1].
        decay: of the map; the smaller, the rougher.
    """
    height, width = images.shape[1:3]
    maps = plasma_map(numbers, 1 << (max(height, width) - 1).bit_length(), decay)
    foggy = np.empty_like(images)
    for part in chunks(images.shape):
        pixels = images[part] / 255.0
        brightest = pixels.max(axis=(1, 2, 3), keepdims=True)
        layer = amount * maps[part, :height, :width]
        for channel in range(3):
            pixels[..., channel] += layer
        pixels *= brightest
        pixels /= brightest + amount
        np.clip(pixels, 0, 1, out=pixels)
        pixels *= 255
        foggy[part] = pixels
    return foggy
