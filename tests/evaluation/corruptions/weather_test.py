import cv2
import numpy as np
import pytest
from imagecorruptions import corruptions as peer

from nsk.evaluation.corruptions.random_numbers import RandomNumbers
from nsk.evaluation.corruptions.weather import add_snow, fog, frost, snow, snowflakes
from tests.evaluation.corruptions.motion_test import pixel_by_pixel_blur, reference_zoom
from tests.evaluation.corruptions.photographs import numbers_of, photographs

SNOW = {
    32: [(0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85)],
    64: [(0.15, 0.3, 1.75, 0.55, 10, 4, 0.7)],
    224: [(0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65)],
}
KERNELS = [
    (snow, (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85)),
    (frost, (0.9, 0.4, 0.7)),
    (fog, (0.75, 2.5)),
]


def reference_snow(image, noise, angle, zoom, threshold, radius, sigma, mix):
    side = len(image)
    pixels = np.array(image, dtype=np.float32) / 255.0
    layer = reference_zoom(noise[..., np.newaxis], zoom)
    layer[layer < threshold] = 0
    layer = (np.clip(layer[..., 0], 0, 1) * 255).astype(np.uint8)
    if side == 32:
        layer = pixel_by_pixel_blur(layer, radius, sigma, angle)
    else:
        layer = peer._motion_blur(layer, radius, sigma, angle)
    layer = (np.floor(layer + 0.5) / 255.0)[..., np.newaxis]
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).reshape(side, side, 1)
    pixels = mix * pixels + (1 - mix) * np.maximum(pixels, gray * 1.5 + 0.5)
    return np.uint8(np.clip(pixels + layer + np.rot90(layer, k=2), 0, 1) * 255)


@pytest.mark.parametrize(("side", "row"), [(side, row) for side in SNOW for row in range(2)][:5])
def test_snow_is_the_references(side, row):
    loc, scale, *others = SNOW[side][row % len(SNOW[side])]
    images = photographs(side)
    snowy = snow(images, numbers_of(images), loc, scale, *others)
    numbers = numbers_of(images)
    noise, angles = loc + scale * numbers.normal((side, side)), numbers.uniform(-135, -45)
    rows = (1, 5) if side == 32 else range(6)
    differences = [
        snowy[row] - reference_snow(images[row], noise[row], angles[row], *others).astype(int)
        for row in rows
    ]
    assert np.abs(differences).max() <= 1
    # A layer that is blurred in float32 is now and then rounded to the other level.
    assert np.mean(np.array(differences) != 0) < (1e-6 if side == 32 else 2e-4)


def test_snowflakes_are_thresholded_and_clipped():
    noise = np.array([[[-1.0, 0.3, 0.49], [0.5, 0.7, 3.0]]])
    np.testing.assert_array_equal(snowflakes(noise, 1, 0.5), [[[0, 0, 0], [127, 178, 255]]])


def test_snow_of_perturbations_mixes_in_float64():
    images = photographs(32)
    layer = np.random.default_rng(5).integers(0, 60, (6, 32, 32), np.uint8)
    pixels = images / 255.0
    gray = np.stack([cv2.cvtColor(np.float32(image), cv2.COLOR_RGB2GRAY) for image in pixels])
    flakes = (layer / 255.0)[..., np.newaxis]
    mixed = 0.85 * pixels + (1 - 0.85) * np.maximum(pixels, gray[..., np.newaxis] * 1.5 + 0.5)
    expected = np.uint8(np.clip(mixed + flakes + flakes[:, ::-1, ::-1], 0, 1) * 255)
    changed = add_snow(images, layer, 0.85, np.float64)
    assert np.mean(changed != expected) < 1e-4
    assert np.abs(changed.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("side", "scale"), [(32, 0.2), (64, 0.3), (224, 1)])
def test_frost_is_the_references(side, scale):
    rng = np.random.default_rng(6)
    textures = [
        cv2.blur(rng.integers(0, 256, shape, np.uint8), (5, 5))
        for shape in ((330, 410, 3), (400, 350, 3), (320, 320, 3))
    ]
    images = photographs(side)
    frosted = frost(images, numbers_of(images), 0.75, 0.45, scale, textures)
    draws = numbers_of(images).uniform(0, 1, (3,))
    used = set()
    for row, (image, draw) in enumerate(zip(images, draws, strict=True)):
        index = int(draw[0] * 3)
        used.add(index)
        texture = textures[index]
        if scale != 1:
            texture = cv2.resize(texture, (0, 0), fx=scale, fy=scale)
        top = int(draw[1] * (len(texture) - side))
        left = int(draw[2] * (texture.shape[1] - side))
        crop = texture[top : top + side, left : left + side]
        expected = np.uint8(np.clip(0.75 * image + 0.45 * crop, 0, 255))
        np.testing.assert_array_equal(frosted[row], expected)
    assert len(used) > 1


def test_frost_of_a_texture_of_the_images_size():
    images = photographs(32)
    texture = np.full((32, 32, 3), 100, np.uint8)
    frosted = frost(images, numbers_of(images), 0.5, 0.5, 1, [texture])
    np.testing.assert_array_equal(frosted, np.uint8(images * 0.5 + 50))


@pytest.mark.parametrize(("height", "width"), [(40, 32), (33, 70), (128, 128)])
def test_frost_enlarges_textures_that_are_smaller_than_the_images(height, width):
    texture = np.random.default_rng(7).integers(0, 256, (30, 60, 3), np.uint8)
    images = np.zeros((3, height, width, 3), np.uint8)
    frosted = frost(images, numbers_of(images), 1, 1, 0.5, [texture])
    scale = max(height / 30, width / 60)
    large = cv2.resize(texture, (round(60 * scale), round(30 * scale))).astype(int)
    draws = numbers_of(images).uniform(0, 1, (3,))
    for (_, down, right), changed in zip(draws, frosted, strict=True):
        top, left = int(down * (len(large) - height)), int(right * (large.shape[1] - width))
        expected = large[top : top + height, left : left + width]
        assert np.abs(changed - expected).max() <= 1


def test_frost_draws_all_textures_and_positions():
    images = np.zeros((2000, 4, 4, 3), np.uint8)
    texture = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8, 1).repeat(3, axis=2)
    frosted = frost(images, numbers_of(images), 1, 1, 1, [texture, texture + 100])
    corners, counts = np.unique(frosted[:, 0, 0, 0], return_counts=True)
    expected = {row * 8 + column + add for row in (0, 1) for column in range(4) for add in (0, 100)}
    assert set(corners.tolist()) == expected
    assert counts.min() > 2000 / 16 * 0.7


class OneStream:
    """Replaces `np.random` in the peer: `uniform` takes the next of given numbers in [-1, 1)."""

    def __init__(self, values):
        self.values, self.used = values, 0

    def uniform(self, low, high, shape):
        count = int(np.prod(shape))
        values = self.values[self.used : self.used + count]
        self.used += count
        return low + (high - low) * (values.reshape(shape) + 1) / 2


@pytest.mark.parametrize("shape", [(32, 32, 0.2, 3), (64, 64, 2, 1.75), (224, 224, 2.5, 1.5)])
def test_fog_is_that_of_imagecorruptions(shape, monkeypatch):
    """Its plasma is float32, and amount and decay are those of ImageNet; so is the formula."""
    *size, amount, decay = shape
    side = 2 ** int(np.ceil(np.log2(max(size))))
    images = photographs(size[0])[:, : size[0], : size[1]]
    images[1] //= 3
    foggy = fog(images, numbers_of(images), amount, decay)
    noise = numbers_of(images).uniform(-1, 1, (side**2 - 1,))
    for row, image in enumerate(images):
        stream = OneStream(noise[row])
        monkeypatch.setattr(peer.np, "random", stream)
        plasma = peer.plasma_fractal(side, decay)
        monkeypatch.undo()
        assert stream.used == side**2 - 1
        pixels = image / 255.0
        brightest = pixels.max()
        pixels = pixels + amount * plasma[: size[0], : size[1], np.newaxis]
        expected = np.uint8(np.clip(pixels * brightest / (brightest + amount), 0, 1) * 255)
        assert np.abs(foggy[row].astype(int) - expected).max() <= 1
        assert np.mean(foggy[row] != expected) < 1e-3


def test_fog_of_a_black_image_is_black():
    images = np.zeros((1, 32, 32, 3), np.uint8)
    assert not fog(images, numbers_of(images), 1, 2).any()


@pytest.mark.parametrize("severity", [1, 3])
def test_brightness_of_snow_and_fog_agrees_with_imagecorruptions(severity):
    """Over random numbers of its own, at 224 pixels, where its constants are the published ones."""
    image = photographs(224)[0]
    images = np.repeat(image[np.newaxis], 16, axis=0)
    parameters = {
        "snow": {1: (0.1, 0.3, 3, 0.5, 10, 4, 0.8), 3: (0.55, 0.3, 4, 0.9, 12, 8, 0.7)},
        "fog": {1: (1.5, 2), 3: (2.5, 1.7)},
    }
    state = np.random.get_state()
    np.random.seed(7)
    for kernel, peers in ((snow, peer.snow), (fog, peer.fog)):
        ours = kernel(images, numbers_of(images), *parameters[kernel.__name__][severity])
        theirs = np.stack([peers(image, severity) for _ in range(16)])
        for statistic in (np.mean, np.std):
            values = [statistic(batch, axis=(1, 2, 3)) for batch in (ours, theirs)]
            error = np.hypot(values[0].std(), values[1].std()) / 16**0.5
            assert abs(values[0].mean() - values[1].mean()) < 4 * error + 1
    np.random.set_state(state)


@pytest.mark.parametrize(("kernel", "parameters"), KERNELS)
@pytest.mark.parametrize("shape", [(0, 32, 32, 3), (1, 8, 8, 3), (2, 20, 33, 3), (3, 1, 1, 3)])
def test_any_number_and_size_of_images(kernel, parameters, shape):
    images = np.random.default_rng(8).integers(0, 256, shape, np.uint8)
    before = images.copy()
    changed = kernel(images, numbers_of(images), *parameters)
    assert changed.shape == shape
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(("kernel", "parameters"), KERNELS)
@pytest.mark.parametrize("side", [32, 224])
def test_an_image_does_not_depend_on_its_batch(kernel, parameters, side):
    images = photographs(side)
    whole = kernel(images, numbers_of(images), *parameters)
    for start, stop in ((0, 1), (1, 3), (3, 6)):
        names = [f"image {index}" for index in range(start, stop)]
        part = kernel(images[start:stop], RandomNumbers(3, names, "test"), *parameters)
        np.testing.assert_array_equal(part, whole[start:stop])
