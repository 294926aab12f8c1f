"""Images of every format and kind, with Pillow, NumPy and PNGs written by hand as oracles."""

import concurrent.futures
import io
import struct
import time
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_image

from nsk.data import normalization
from nsk.data.plain_decoding import decode_plain

JPEG_LEVELS = 6  # TensorFlow decodes with a faster cosine transform than Pillow.


def asymmetric(height=6, width=10, seed=0):
    """uint8 RGB noise: every flip, rotation or change of channels shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def encode(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


# First row, first column, and the steps between rows and columns of each pass of Adam7.
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1))  # fmt: skip


def png(pixels, bits=8, chunks=b"", interlaced=False):
    """A PNG of integers (height, width, channels), written without Pillow, which lacks some kinds.

    Args:
        pixels: levels below 2**bits; 1 channel: gray, 2: and alpha, 3: colour, 4: and alpha.
        bits: of each channel.
        chunks: bytes that come before the pixels.
        interlaced: whether they are in the seven passes of Adam7.
    """

    def row_bytes(row):
        return b"\0" + np.packbits(row.reshape(-1, 1) >> np.arange(bits)[::-1] & 1).tobytes()

    height, width, channels = pixels.shape
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [pixels[top::down, left::right] for top, left, down, right in passes]
    rows = b"".join(row_bytes(row) for part in parts if part.size for row in part)
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlaced)
    chunks = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def levels(*shape, bits):
    return np.random.default_rng(1).integers(0, 2**bits, shape)


def decode(encoded):
    return decode_plain(tf.constant(encoded)).numpy()


@pytest.mark.parametrize("pixels", [np.linspace(0, 1, 12), np.arange(12)])
def test_pixels_without_a_defined_range_are_refused(pixels):
    """1 may be white or nearly black."""
    for kind in (np.float32, np.int32):
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(kind).reshape(3, 4)).save(buffer, "TIFF")
        with pytest.raises(ValueError, match="32-bit pixels have no defined range"):
            normalization.normalize_image(buffer.getvalue())


def exif(orientation, kind=3):
    """An EXIF block of one entry; kind 3: uint16."""
    entry = struct.pack("<HHII", normalization.EXIF_ORIENTATION, kind, 1, orientation)
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)


def photo(mode="RGB"):
    return Image.fromarray(load_sample_image("flower.jpg")[200:240, 300:350]).convert(mode)


def multi_picture():
    return encode(photo(), "MPO", save_all=True, append_images=[photo().rotate(180)])


GAMMA = chunk(b"gAMA", struct.pack(">I", 100_000))
PLAIN = {
    "jpeg": encode(photo(), "JPEG", quality=90),
    "whole-chroma": encode(photo(), "JPEG", subsampling=0),
    "rgb-jpeg": encode(photo(), "JPEG", keep_rgb=True),
    "progressive": encode(photo(), "JPEG", progressive=True),
    "gray-jpeg": encode(photo("L"), "JPEG"),
    "gray-progressive": encode(photo("L"), "JPEG", progressive=True),
    "upright-jpeg": encode(photo(), "JPEG", exif=exif(1)),
    "orientation-0": encode(photo(), "JPEG", exif=exif(0)),
    "orientation-9": encode(photo(), "JPEG", exif=exif(9)),
    "broken-exif": encode(photo(), "JPEG", exif=exif(6)[:12]),
    "multi-picture": multi_picture(),
    "png": encode(photo()),
    "gray-png": encode(photo("L")),
    "interlaced": png(asymmetric(13, 11), interlaced=True),
    "gray-interlaced": png(asymmetric(3, 2)[..., :1], interlaced=True),
    "gamma": png(asymmetric(), chunks=GAMMA),
    "broken-png-exif": png(asymmetric(), chunks=chunk(b"eXIf", b"none")),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", PLAIN)
def test_plain_images_keep_their_bytes(name):
    encoded = PLAIN[name]
    result = normalization.normalize_image(encoded)
    assert result.encoded == encoded
    assert not result.reencoded
    assert len(result.digest) == 16
    with Image.open(io.BytesIO(encoded)) as image:
        difference = np.abs(decode(encoded) - np.asarray(image.convert("RGB")).astype(int))
    assert difference.max() <= (0 if encoded.startswith(b"\x89PNG") else JPEG_LEVELS)


def pixels_of(encoded):
    result = normalization.normalize_image(encoded)
    assert result.reencoded
    with Image.open(io.BytesIO(result.encoded)) as image:
        assert (image.format, image.mode, image.info.get("transparency")) == ("PNG", "RGB", None)
    pixels = decode(result.encoded).astype(int)
    # A plain PNG with the same pixels must have the same digest.
    assert normalization.normalize_image(png(pixels)).digest == result.digest
    return pixels


# Makes a stored image upright, by its EXIF orientation: the edges of its row 0 and column 0.
UPRIGHT = {
    2: lambda stored: stored[:, ::-1],  # top, right
    3: lambda stored: stored[::-1, ::-1],  # bottom, right
    4: lambda stored: stored[::-1],  # bottom, left
    5: lambda stored: stored.transpose(1, 0, 2),  # left, top
    6: lambda stored: stored[::-1].transpose(1, 0, 2),  # right, top
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied(kind, orientation):
    stored = asymmetric()
    if kind == "JPEG":
        stored = np.kron(stored, np.ones((8, 8, 1), np.uint8))  # JPEG keeps blocks of one colour.
    options = {
        "PNG": {"exif": exif(orientation)},
        "JPEG": {"exif": exif(orientation), "quality": 98, "subsampling": 0},
        "WEBP": {"exif": exif(orientation), "lossless": True},
        "TIFF": {"tiffinfo": {normalization.EXIF_ORIENTATION: orientation}},
    }
    pixels = pixels_of(encode(stored, kind, **options[kind]))
    tolerance = 4 if kind == "JPEG" else 0
    np.testing.assert_allclose(pixels, UPRIGHT[orientation](stored), atol=tolerance, rtol=0)


def test_transparent_and_16_bit_images_are_rotated_too():
    deep = levels(3, 5, 3, bits=16)
    pixels = pixels_of(png(deep, 16, chunk(b"eXIf", exif(6)[6:])))
    np.testing.assert_array_equal(pixels, UPRIGHT[6](np.round(deep / 257)))


def on_white(colors, alpha):
    """Composites colours and alpha in [0, 1]; float array of levels."""
    return 255 * (colors * alpha + 1 - alpha)


@pytest.mark.parametrize("interlaced", [False, True])
def test_16_bits_become_8_by_rounding(interlaced):
    deep = np.array([[0, 128, 129, 257, 32767], [32896, 65535, 65406, 65407, 1000]])[..., None]
    pixels = pixels_of(png(deep, 16, interlaced=interlaced))
    np.testing.assert_array_equal(pixels, np.repeat(np.round(deep / 257), 3, axis=2))
    deep = levels(4, 5, 3, bits=16)
    pixels = pixels_of(png(deep, 16, GAMMA, interlaced))
    np.testing.assert_array_equal(pixels, np.round(deep / 257))


def scaled(deep, bits):
    return np.minimum(np.round(deep * 255.0 / (2**bits - 1)), 255)


@pytest.mark.parametrize("bits", [1, 8, 10, 12, 15, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_levels_are_scaled_by_the_bits_that_they_use(kind, bits):
    deep = levels(20, 15, bits=bits).astype(np.uint16)
    deep[:2, 0] = 2**bits - 1, min(2**bits + 77, 65535)  # The last one is white, too.
    encoded = encode(Image.fromarray(deep), kind)
    result = normalization.normalize_image(encoded, significant_bits=bits)
    assert result.peak == deep.max()
    expected = np.repeat(scaled(deep, bits)[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(result.encoded), expected)


def test_16_bit_colours_are_scaled_and_their_alpha_is_not():
    deep = levels(6, 7, 4, bits=12)
    deep[..., 3] = 65535
    result = normalization.normalize_image(png(deep, 16), significant_bits=12)
    assert result.peak == deep[..., :3].max()
    np.testing.assert_array_equal(decode(result.encoded), scaled(deep[..., :3], 12))


def packed_12_bit_tiff(deep):
    """A TIFF that says that its samples have 12 bits; of an even width."""
    first, second = deep[:, ::2], deep[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2)
    data = packed.astype(np.uint8).tobytes()
    height, width = deep.shape
    entries = [(256, 4, width), (257, 4, height), (258, 3, 12), (259, 3, 1), (262, 3, 1),
               (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data))]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHII", tag, kind, 1, value)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


@pytest.mark.parametrize("bits", [8, 16])
def test_levels_of_files_that_state_their_range_have_it(bits):
    """The bits that other files use are not theirs."""
    deep = levels(4, 6, bits=12) // 2
    tiff = packed_12_bit_tiff(deep)
    header = b"P5 6 4 4095\n"
    pgm = header + deep.astype(">u2").tobytes()
    transparent = png(levels(4, 6, 1, bits=8), 8, chunk(b"tRNS", b"\0\0"))
    for encoded in (tiff, pgm):
        result = normalization.normalize_image(encoded, significant_bits=bits)
        assert result.peak is None
        pixels = decode(result.encoded)[..., 0]
        np.testing.assert_allclose(pixels, deep * 255 / 4095, atol=0.51)
    result = normalization.normalize_image(transparent, significant_bits=bits)
    assert result.peak is None
    assert result == normalization.normalize_image(transparent)


@pytest.mark.parametrize(("bits", "is_doubtful"), [(12, True), (16, False)])
def test_16_bit_colours_of_a_tiff_that_lost_their_levels_are_doubtful(bits, is_doubtful):
    """Pillow keeps the upper 8 bits."""
    deep = levels(5, 4, 3, bits=bits).astype("<u2")
    data, shape = deep.tobytes(), deep.shape
    entries = [(256, 4, 1, shape[1]), (257, 4, 1, shape[0]), (258, 3, 3, 8), (259, 3, 1, 1),
               (262, 3, 1, 2), (273, 4, 1, 16), (277, 3, 1, 3), (278, 4, 1, shape[0]),
               (279, 4, 1, len(data))]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = b"II*\0" + struct.pack("<I", 16 + len(data)) + struct.pack("<4H", 16, 16, 16, 0)
    result = normalization.normalize_image(start + data + directory + bytes(4))
    assert ("make it a PNG" in result.doubt) == is_doubtful
    np.testing.assert_array_equal(decode(result.encoded), deep >> 8)


@pytest.mark.parametrize("kind", ["TIFF", "PPM"])
def test_16_bits_of_other_formats_become_8(kind):
    deep = levels(4, 5, bits=16).astype(np.uint16)
    pixels = pixels_of(encode(Image.fromarray(deep), kind))
    np.testing.assert_array_equal(pixels[..., 1], np.round(deep / 257))


@pytest.mark.parametrize("channels", [2, 4])
def test_16_bit_alpha_is_composited_on_white(channels):
    deep = levels(6, 7, channels, bits=16) / 65535
    pixels = pixels_of(png(np.round(deep * 65535).astype(int), 16))
    expected = on_white(deep[..., :-1], deep[..., -1:])
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=1.5)


@pytest.mark.parametrize(("bits", "channels"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 3),
                                                (16, 3)])  # fmt: skip
def test_the_transparent_level_becomes_white(bits, channels):
    given = levels(5, 7, channels, bits=bits)
    key = given[2, 3]
    if bits > 4:  # Differs from the transparent level in the last bit.
        given[0, 0] = key ^ 1
    expected = np.repeat(np.round(given / (2**bits - 1) * 255), 3 // channels, axis=2)
    expected[np.all(given == key, axis=2)] = 255
    transparent = chunk(b"tRNS", struct.pack(f">{channels}H", *key))
    np.testing.assert_array_equal(pixels_of(png(given, bits, transparent)), expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_gray_levels_are_scaled_to_8_bits(bits):
    given = levels(3, 9, 1, bits=bits)
    expected = np.repeat(given * 255 // (2**bits - 1), 3, axis=2)
    np.testing.assert_array_equal(pixels_of(png(given, bits)), expected)


@pytest.mark.parametrize("kind", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(kind):
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


def test_transparent_palette_colours_become_white():
    image = Image.fromarray(asymmetric()).quantize(16)
    expected = np.array(image.convert("RGB"))
    expected[np.asarray(image) == 3] = 255
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(pixels_of(encode(image, kind, transparency=3)), expected)


def test_palette_colours_may_be_partly_transparent():
    image = Image.fromarray(asymmetric()).quantize(16)
    alpha = np.arange(16, dtype=np.uint8) * 17
    expected = on_white(
        np.asarray(image.convert("RGB")) / 255, alpha[np.asarray(image), None] / 255
    )
    pixels = pixels_of(encode(image, transparency=alpha.tobytes()))
    np.testing.assert_allclose(pixels, expected, atol=1)


def test_alpha_of_colours_missing_from_the_palette_is_ignored():
    image = Image.fromarray(asymmetric()).quantize(2)
    before, pixels = encode(image, bits=1).split(b"PLTE", 1)
    palette, data = pixels[:10], pixels[10:]
    encoded = before + b"PLTE" + palette + chunk(b"tRNS", bytes([255, 255, 0])) + data
    np.testing.assert_array_equal(pixels_of(encoded), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["BMP", "PNG"])
def test_1_bit_images_are_expanded(kind):
    bits = asymmetric()[..., 0] > 127
    expected = np.repeat(bits[..., None] * 255, 3, axis=2)
    np.testing.assert_array_equal(pixels_of(encode(Image.fromarray(bits), kind)), expected)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_kept(kind):
    frames = [Image.fromarray(asymmetric(seed=seed)).quantize(200) for seed in range(3)]
    if kind != "GIF":
        frames = [frame.convert("RGB") for frame in frames]
    options = {"lossless": True} if kind == "WEBP" else {}
    encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(pixels_of(encoded), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_images_of_a_single_pixel_are_kept(kind):
    encoded = normalization.normalize_image(encode(asymmetric(1, 1), kind)).encoded
    np.testing.assert_allclose(decode(encoded), asymmetric(1, 1), atol=JPEG_LEVELS)


def inks(black):
    """Four planes of ink, uint8, and the resulting RGB levels."""
    c, m, y = np.moveaxis(np.kron(asymmetric(3, 4), np.ones((16, 16, 1))), 2, 0)
    k = np.full_like(c, black)
    rgb = np.stack([(255 - ink) * (255 - k) / 255 for ink in (c, m, y)], axis=2)
    return [plane.astype(np.uint8) for plane in (c, m, y, k)], rgb


def four_planes(planes):
    """A JPEG of four planes as Adobe writes them: inverted, with a marker for it."""
    merged = Image.merge("CMYK", [Image.fromarray(plane) for plane in planes])
    return encode(merged, "JPEG", quality=98, subsampling=0)


@pytest.mark.parametrize("black", [0, 90])
def test_inverted_cmyk_becomes_rgb(black):
    planes, expected = inks(black)
    np.testing.assert_allclose(pixels_of(four_planes(planes)), expected, atol=4)


@pytest.mark.parametrize("black", [0, 90])
def test_ycck_becomes_rgb(black):
    (c, m, y, k), expected = inks(black)
    # The same planes, with the first three stored as luma and chroma.
    stored = Image.fromarray(np.stack([c, m, y], axis=2)).convert("YCbCr")
    encoded = four_planes([*(255 - np.moveaxis(np.asarray(stored), 2, 0)), k])
    adobe = encoded.index(b"Adobe")
    encoded = encoded[: adobe + 11] + b"\2" + encoded[adobe + 12 :]  # The transform: YCCK.
    np.testing.assert_allclose(pixels_of(encoded), expected, atol=8)


def test_digests_are_equal_if_and_only_if_pixels_are():
    pixels = asymmetric()
    digest = normalization.normalize_image(encode(pixels)).digest
    assert normalization.normalize_image(encode(pixels, compress_level=0)).digest == digest
    assert normalization.normalize_image(encode(pixels, "BMP")).digest == digest
    gray = np.repeat(pixels[..., :1], 3, axis=2)
    gray_digest = normalization.normalize_image(encode(gray)).digest
    assert normalization.normalize_image(encode(pixels[..., 0])).digest == gray_digest
    # The same bytes in another shape are a different image.
    assert normalization.normalize_image(encode(pixels.reshape(10, 6, 3))).digest != digest
    pixels[3, 3, 1] ^= 1
    assert normalization.normalize_image(encode(pixels)).digest != digest


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF"])
def test_truncated_images_are_refused_with_a_reason(kind):
    encoded = encode(asymmetric(40, 40), kind)
    with pytest.raises(ValueError, match=r"\w+: \w+") as refusal:
        normalization.normalize_image(encoded[: len(encoded) // 2])
    assert "\n" not in str(refusal.value)


def icon_with_a_larger_image_inside():
    inside = encode(asymmetric(60, 70))
    entry = bytes([16, 16, 0, 0]) + struct.pack("<HHII", 1, 32, len(inside), 22)
    return b"\0\0\1\0\1\0" + entry + inside


OTHER_BYTES = {
    "nothing": b"",
    "text": b"not an image",
    "png-signature": b"\x89PNG\r\n\x1a\n",
    "jpeg-signature": b"\xff\xd8\xff",
    "icon": icon_with_a_larger_image_inside(),
    "postscript": encode(asymmetric(), "EPS"),  # Pillow would run Ghostscript.
}


@pytest.mark.parametrize("name", OTHER_BYTES)
def test_other_bytes_are_refused(name):
    with pytest.raises(ValueError, match=r"^cannot identify the image: expected JPEG, PNG, "):
        normalization.normalize_image(OTHER_BYTES[name])


def test_images_that_pillow_accepts_and_tensorflow_does_not_are_reencoded():
    pixels = asymmetric()
    encoded = encode(pixels)[:-14]  # Without the last chunk and a part of the checksum before it.
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(encoded)
    np.testing.assert_array_equal(pixels_of(encoded), pixels)


def test_images_that_tensorflow_cannot_decode_are_refused():
    wide = np.zeros((1, 1_000_001, 1), np.uint8)
    with pytest.raises(ValueError, match="TensorFlow cannot decode"):
        normalization.normalize_image(png(wide))


def test_large_files_are_refused():
    encoded = encode(asymmetric())
    assert not normalization.normalize_image(encoded, max_bytes=len(encoded)).reencoded
    with pytest.raises(ValueError, match=r"^it has more bytes than --max_image_bytes=1499$"):
        normalization.normalize_image(encoded.ljust(1500), max_bytes=1499)


def png_with_header(height, width):
    """A 1-bit PNG with more pixels in its header than in its data."""
    whole = png(np.zeros((1, 1, 1), int), 1)
    header = struct.pack(">II", width, height) + whole[24:29]
    return whole[:8] + chunk(b"IHDR", header) + whole[33:]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "JPEG", "WEBP"])
def test_images_of_many_pixels_are_refused(kind):
    encoded = encode(asymmetric(), kind)  # 6 x 10 pixels.
    assert normalization.normalize_image(encoded, max_pixels=60).encoded
    with pytest.raises(ValueError, match=r"^10 x 6 pixels are more than --max_image_pixels=59$"):
        normalization.normalize_image(encoded, max_pixels=59)


# Pillow warns above 89,478,485 pixels and refuses twice as many.
@pytest.mark.parametrize("side", [9_500, 12_000, 20_000])
def test_pillows_own_limit_does_not_apply(side):
    refused = rf"^{side:,} x {side:,} pixels are more than --max_image_pixels=9000000$"
    with pytest.raises(ValueError, match=refused):
        normalization.normalize_image(png_with_header(side, side), max_pixels=9_000_000)
    with pytest.raises(ValueError, match="truncated"):
        normalization.normalize_image(png_with_header(side, side), max_pixels=side * side)


def test_the_limits_are_the_settings_by_default():
    with pytest.raises(ValueError, match=r"^10,001 x 10,000 pixels .*_pixels=100000000$"):
        normalization.normalize_image(png_with_header(10_000, 10_001))
    with pytest.raises(ValueError, match=r"_bytes=67108864$"):
        normalization.normalize_image(bytes(2**26 + 1))


def test_the_pixels_decoded_at_the_same_time_are_limited(monkeypatch):
    large, small = encode(asymmetric(30, 30)), encode(asymmetric(10, 10))
    monkeypatch.setattr(normalization, "_pixel_budget", normalization._Budget(1000))
    decoding, totals = [], []

    def slow(content):
        decoding.append(900 if content == large else 100)
        totals.append(sum(decoding))
        time.sleep(0.01)
        decoding.remove(900 if content == large else 100)

    monkeypatch.setattr(normalization, "_digest", slow)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(
            pool.map(normalization.normalize_image, [large, small, small, large, small, large] * 4)
        )
    assert len(totals) == 24 and max(totals) <= 1000
    # An image above the limit is decoded alone.
    assert not normalization.normalize_image(encode(asymmetric(40, 40))).reencoded
    with normalization._pixel_budget.acquire(1000):
        pass
