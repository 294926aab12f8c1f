import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nsk.data import records


def asymmetric(height=6, width=10, seed=0):
    """uint8 RGB noise: every flip, rotation or change of channels shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def encode(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png16(pixels):
    """A PNG of uint16 pixels (height, width, 1 or 3); Pillow cannot write 16-bit colours."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def decode(encoded):
    return tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()


def test_image_records_come_back_and_a_missing_label_is_minus_one():
    batch = [records.image_example("a/é.png", b"one", 3), records.image_example("b", b"two")]
    parsed = records.parse_images(tf.constant(batch))
    assert [one.decode() for one in parsed["id"].numpy()] == ["a/é.png", "b"]
    assert parsed["encoded"].numpy().tolist() == [b"one", b"two"]
    assert parsed["label"].numpy().tolist() == [3, -1]
    features = tf.train.Example.FromString(batch[1]).features.feature
    assert sorted(features) == ["id", "image/encoded"]


def test_pseudo_records_come_back_through_float16():
    log_probabilities = np.log(np.array([[0.7, 0.2, 0.1], [1e-6, 0.5, 0.5]], np.float32))
    batch = [
        records.pseudo_example(
            f"{row}", b"image", row, 0.25 + row / 2, log_probabilities[row], row + 4
        )
        for row in range(2)
    ]
    # In a pipeline, since that is where it runs.
    dataset = tf.data.Dataset.from_tensors(batch).map(lambda one: records.parse_pseudo(one, 3))
    parsed = next(dataset.as_numpy_iterator())
    assert parsed["label"].tolist() == [0, 1]
    assert parsed["confidence"].tolist() == [0.25, 0.75]
    assert parsed["copies"].tolist() == [4, 5]
    assert parsed["log_probabilities"].dtype == np.float32
    np.testing.assert_array_equal(
        parsed["log_probabilities"], log_probabilities.astype(np.float16).astype(np.float32)
    )
    features = tf.train.Example.FromString(batch[0]).features.feature
    assert len(features["pseudo/log_probabilities"].bytes_list.value[0]) == 2 * 3


def test_pseudo_records_of_another_number_of_classes_fail():
    batch = [records.pseudo_example("a", b"", 0, 1.0, np.zeros(4, np.float16), 1)] * 3
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        records.parse_pseudo(tf.constant(batch), 6)


def eagerly(encoded, image_size):
    return records.decode_image(tf.constant(encoded), image_size).numpy()


def in_map(encoded, image_size):
    dataset = tf.data.Dataset.from_tensors(encoded)
    dataset = dataset.map(lambda one: records.decode_image(one, image_size))
    assert dataset.element_spec.shape == (image_size, image_size, 3)
    assert dataset.element_spec.dtype == tf.uint8
    return next(dataset.as_numpy_iterator())


@pytest.mark.parametrize("run", [eagerly, in_map])
def test_decode_image_leaves_pixels_that_fit(run):
    pixels = asymmetric(12, 12)
    np.testing.assert_array_equal(run(encode(pixels), 12), pixels)
    gray = run(encode(pixels[..., 0]), 12)
    np.testing.assert_array_equal(gray, np.repeat(pixels[..., :1], 3, axis=2))


@pytest.mark.parametrize("run", [eagerly, in_map])
def test_decode_image_crops_the_centre_of_the_longer_side(run):
    pixels = asymmetric(8, 14)
    np.testing.assert_array_equal(run(encode(pixels), 8), pixels[:, 3:11])
    upright = pixels.transpose(1, 0, 2)
    np.testing.assert_array_equal(run(encode(upright), 8), upright[3:11])


@pytest.mark.parametrize("run", [eagerly, in_map])
def test_decode_image_resizes_the_shorter_side(run):
    ramp = np.tile(np.arange(40, dtype=np.uint8)[:, None, None] * 6, (1, 20, 3))
    small = run(encode(ramp), 10)
    # 40 x 20 becomes 20 x 10, of which rows 5..14 stay; row r is the mean of rows 2r and 2r + 1.
    expected = (2 * np.arange(5, 15) + 0.5) * 6
    np.testing.assert_allclose(small[:, 4, 1], expected, atol=0.5)
    large = run(encode(np.full((5, 7, 3), 200, np.uint8)), 33)
    np.testing.assert_array_equal(large, np.full((33, 33, 3), 200))


def test_decode_image_antialiases():
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::4] = 252
    small = eagerly(encode(stripes), 8)[:, 2:-2]
    assert np.abs(small.astype(int) - 63).max() <= 2


@pytest.mark.parametrize(
    "encoded",
    [
        encode(asymmetric(), "JPEG", quality=90),
        encode(asymmetric(), "JPEG", progressive=True),
        encode(Image.fromarray(asymmetric()).convert("L"), "JPEG"),
        encode(asymmetric()),
        encode(asymmetric()[..., 0]),
        encode(asymmetric(), "JPEG", exif=Image.Exif()),
    ],
    ids=["jpeg", "progressive", "gray-jpeg", "png", "gray-png", "jpeg-exif"],
)
def test_plain_images_keep_their_bytes(encoded):
    result = records.normalize_image(encoded)
    assert result.encoded == encoded
    assert not result.reencoded
    assert len(result.digest) == 16


def rotated_exif(orientation):
    exif = Image.Exif()
    exif[records.EXIF_ORIENTATION] = orientation
    return exif


def pixels_of(encoded):
    result = records.normalize_image(encoded)
    assert result.reencoded
    with Image.open(io.BytesIO(result.encoded)) as image:
        assert (image.format, image.mode, image.info.get("transparency")) == ("PNG", "RGB", None)
    pixels = decode(result.encoded)
    # A plain PNG of the same pixels must have the same digest.
    assert records.normalize_image(encode(pixels)).digest == result.digest
    return pixels


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_rotation_is_applied(kind):
    flat = np.zeros((16, 32, 3), np.uint8)
    flat[:, :16] = 250  # Left half white; JPEG keeps that well enough.
    encoded = encode(flat, kind, exif=rotated_exif(6))  # 6: to be turned clockwise.
    pixels = pixels_of(encoded)
    np.testing.assert_allclose(pixels, np.rot90(flat, -1), atol=6)


def test_16_bits_become_8_by_rounding():
    levels = np.array([[0, 128, 129, 257, 32767], [32896, 65535, 65406, 65407, 1000]], np.uint16)
    pixels = pixels_of(png16(levels[..., None]))
    np.testing.assert_array_equal(pixels[..., 0], np.round(levels / 257))
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_16_bit_colours_become_8_bit_ones():
    levels = np.random.default_rng(1).integers(0, 65536, (4, 5, 3)).astype(np.uint16)
    pixels = pixels_of(png16(levels))
    np.testing.assert_allclose(pixels, levels / 257, atol=1)


@pytest.mark.parametrize("kind", ["RGBA", "LA"])
def test_alpha_is_laid_on_white(kind):
    image = Image.fromarray(asymmetric()).convert("RGB" if kind == "RGBA" else "L")
    rgb = np.asarray(image.convert("RGB")).astype(int)
    alpha = np.zeros(rgb.shape[:2], np.uint8)
    alpha[:, 3:] = 255
    alpha[:, 6:] = 128
    image.putalpha(Image.fromarray(alpha))
    weight = alpha[..., None] / 255
    np.testing.assert_allclose(pixels_of(encode(image)), rgb * weight + 255 * (1 - weight), atol=1)


def test_palettes_are_expanded():
    image = Image.fromarray(asymmetric()).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    for kind in ("PNG", "BMP", "GIF"):
        np.testing.assert_array_equal(pixels_of(encode(image, kind)), expected)


def test_transparent_colours_become_white():
    image = Image.fromarray(asymmetric()).quantize(16)
    expected = np.array(image.convert("RGB"))
    expected[np.asarray(image) == 3] = 255
    np.testing.assert_array_equal(pixels_of(encode(image, transparency=3)), expected)
    key = asymmetric()
    expected = key.copy()
    expected[0, 0] = 255
    encoded = encode(key, transparency=tuple(key[0, 0].tolist()))
    np.testing.assert_array_equal(pixels_of(encoded), expected)


@pytest.mark.parametrize("kind", ["BMP", "PNG"])
def test_1_bit_images_are_expanded(kind):
    bits = asymmetric()[..., 0] > 127
    expected = np.repeat(bits[..., None] * 255, 3, axis=2)
    np.testing.assert_array_equal(pixels_of(encode(Image.fromarray(bits), kind)), expected)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_the_first_frame_of_an_animation_stays(kind):
    frames = [Image.fromarray(asymmetric(seed=seed)).quantize(200) for seed in range(3)]
    if kind == "PNG":
        frames = [frame.convert("RGB") for frame in frames]
    encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels_of(encoded), np.asarray(frames[0].convert("RGB")))


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (16, 16), (0, 200, 30, 20))
    pixels = pixels_of(encode(image, "JPEG", quality=95))
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_allclose(pixels, expected, atol=3)


def test_equal_pixels_have_equal_digests_and_others_have_not():
    pixels = asymmetric()
    digest = records.normalize_image(encode(pixels)).digest
    assert records.normalize_image(encode(pixels, compress_level=0)).digest == digest
    assert records.normalize_image(encode(pixels, "BMP")).digest == digest
    gray = np.repeat(pixels[..., :1], 3, axis=2)
    gray_digest = records.normalize_image(encode(gray)).digest
    assert records.normalize_image(encode(pixels[..., 0])).digest == gray_digest
    # The same bytes in another shape are another image.
    assert records.normalize_image(encode(pixels.reshape(10, 6, 3))).digest != digest
    pixels[3, 3, 1] ^= 1
    assert records.normalize_image(encode(pixels)).digest != digest


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF"])
def test_truncated_images_are_refused_with_a_reason(kind):
    encoded = encode(asymmetric(40, 40), kind)
    with pytest.raises(ValueError, match=r"\w+: \w+") as refusal:
        records.normalize_image(encoded[: len(encoded) // 2])
    assert "\n" not in str(refusal.value)


def test_other_bytes_are_refused():
    for encoded in (b"", b"no image at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        with pytest.raises(ValueError, match=r"Error"):
            records.normalize_image(encoded)


def test_what_pillow_forgives_and_tensorflow_does_not_is_encoded_anew():
    pixels = asymmetric()
    encoded = encode(pixels)[:-14]  # Neither the last chunk nor all of the checksum before it.
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(encoded)
    np.testing.assert_array_equal(pixels_of(encoded), pixels)


def test_decompression_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 59)
    with pytest.raises(ValueError, match=r"60|Bomb"):
        records.normalize_image(encode(asymmetric()))  # 6 x 10 pixels.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match="Bomb"):
        records.normalize_image(encode(asymmetric()))
