import concurrent.futures
import hashlib
import io
import struct
import subprocess
import sys
import textwrap
import time
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_image

from nsk.data import records
from nsk.evaluation.prediction_files import from_predictions

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
    """A PNG of integers (height, width, channels), written by hand: Pillow cannot write them all.

    Args:
        pixels: levels below 2**bits; 1 channel: gray, 2: and alpha, 3: colour, 4: and alpha.
        bits: of each channel.
        chunks: bytes that come before the pixels.
        interlaced: whether they come in the seven passes of Adam7.
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


def make_scores(top_k, num_images=6, num_classes=12):
    """`Scores`, some of them of a teacher that is sure or all but sure."""
    logits = np.random.default_rng(0).normal(0, 3, (num_images, num_classes))
    logits[0, 4] = 300.0  # Of all others nothing remains.
    logits[1, 7] = 12.0
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = [f"image/{row}" for row in range(num_images)]
    return from_predictions(ids, log_probabilities.astype(np.float32), top_k)


def example_of(scores, row):
    return records.pseudo_example(
        scores.ids[row],
        b"image",
        scores.labels[row],
        scores.confidences[row],
        scores.log_probabilities[row],
        row + 1,
        None if scores.classes is None else scores.classes[row],
        None if scores.remaining is None else scores.remaining[row],
    )


@pytest.mark.parametrize("top_k", [0, 1, 3, 11])
def test_records_of_the_largest_log_probabilities_are_parsed_as_their_scores_say(top_k):
    scores = make_scores(top_k)
    batch = [example_of(scores, row) for row in range(len(scores))]
    dataset = tf.data.Dataset.from_tensors(batch)
    expected = scores.all_log_probabilities(12)
    parsed = next(dataset.map(lambda one: records.parse_pseudo(one, 12, top_k)).as_numpy_iterator())
    assert parsed["log_probabilities"].dtype == np.float32
    np.testing.assert_allclose(parsed["log_probabilities"], expected, rtol=1e-6)
    assert parsed["label"].tolist() == scores.labels.tolist()
    assert parsed["copies"].tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(parsed["confidence"], scores.confidences)

    mixed = [
        one
        for row, pseudo in enumerate(batch)
        for one in (pseudo, records.image_example(f"labelled/{row}", b"other", row))
    ]
    dataset = tf.data.Dataset.from_tensors(mixed)
    parsed = next(
        dataset.map(lambda one: records.parse_examples(one, 12, top_k)).as_numpy_iterator()
    )
    assert parsed["is_pseudo"].tolist() == [True, False] * 6
    np.testing.assert_allclose(parsed["log_probabilities"][::2], expected, rtol=1e-6)
    assert parsed["log_probabilities"].shape == (12, 12)
    assert parsed["label"][::2].tolist() == scores.labels.tolist()
    assert parsed["label"][1::2].tolist() == list(range(6))
    assert parsed["encoded"].tolist() == [b"image", b"other"] * 6


@pytest.mark.parametrize("kind", ["labelled", "pseudo"])
def test_records_of_one_kind_alone_are_parsed_among_those_of_top_k(kind):
    scores = make_scores(3)
    batch = [
        example_of(scores, row) if kind == "pseudo" else records.image_example("a", b"", row)
        for row in range(4)
    ]
    parsed = records.parse_examples(tf.constant(batch), 12, 3)
    assert parsed["is_pseudo"].numpy().tolist() == [kind == "pseudo"] * 4
    assert parsed["log_probabilities"].shape == (4, 12)


def test_records_say_of_which_classes_their_log_probabilities_are():
    features = tf.train.Example.FromString(example_of(make_scores(3), 2)).features.feature
    assert len(features["pseudo/log_probabilities"].bytes_list.value[0]) == 2 * 3
    assert len(features["pseudo/classes"].bytes_list.value[0]) == 4 * 3
    assert len(features["pseudo/remaining_probability"].float_list.value) == 1
    features = tf.train.Example.FromString(example_of(make_scores(0), 2)).features.feature
    assert "pseudo/classes" not in features and "pseudo/remaining_probability" not in features


@pytest.mark.parametrize(("held", "top_k"), [(3, 4), (4, 3), (0, 3)])
def test_records_of_another_top_k_fail(held, top_k):
    scores = make_scores(held)
    batch = tf.constant([example_of(scores, row) for row in range(3)])
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        records.parse_pseudo(batch, 12, top_k)


def test_the_same_image_makes_the_same_bytes_in_every_process():
    """Shards that another process writes anew are the same, whatever the order of its hashes."""
    program = """
        import hashlib
        from nsk.data import records
        row = records.pseudo_example("a/1", b"image", 3, 0.5, [-1.0] * 5, 2, [1, 2, 3, 4, 5], 0.25)
        for one in (row, records.image_example("a/1", b"image", 3)):
            print(hashlib.sha256(one).hexdigest())
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=True, text=True
    ).stdout
    row = records.pseudo_example("a/1", b"image", 3, 0.5, [-1.0] * 5, 2, [1, 2, 3, 4, 5], 0.25)
    ours = (row, records.image_example("a/1", b"image", 3))
    assert found == "".join(f"{hashlib.sha256(one).hexdigest()}\n" for one in ours)


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
def test_decode_image_resizes_the_square_in_the_middle(run):
    ramp = np.tile(np.arange(40, dtype=np.uint8)[:, None, None] * 6, (1, 20, 3))
    small = run(encode(ramp), 10)
    # Rows 10..29 of 40 stay; row r is the mean of two of them, but at the border.
    expected = (2 * np.arange(5, 15) + 0.5) * 6
    np.testing.assert_allclose(small[1:-1, 4, 1], expected[1:-1], atol=0.5)
    np.testing.assert_allclose(small[:, 4, 1], expected, atol=2)
    large = run(encode(np.full((5, 7, 3), 200, np.uint8)), 33)
    np.testing.assert_array_equal(large, np.full((33, 33, 3), 200))


def test_decode_image_resizes_as_pillow_does():
    pixels = np.asarray(photo())  # 40 x 50.
    for size in (7, 33, 90):
        square = photo().crop((5, 0, 45, 40))
        expected = square.resize((size, size), Image.Resampling.BILINEAR)
        received = eagerly(encode(pixels), size)
        np.testing.assert_allclose(received, np.asarray(expected).astype(int), atol=1)


def test_a_thin_image_takes_no_more_memory_than_its_square():
    """Resized whole, it would be 224 x 22,400,000 pixels."""
    thin = eagerly(encode(np.full((1, 100_000, 3), 9, np.uint8)), 224)
    np.testing.assert_array_equal(thin, np.full((224, 224, 3), 9))


@pytest.mark.parametrize("pixels", [np.linspace(0, 1, 12), np.arange(12)])
def test_pixels_without_a_stated_range_are_refused(pixels):
    """Whether 1 is white or nearly black, no one can tell."""
    for kind in (np.float32, np.int32):
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(kind).reshape(3, 4)).save(buffer, "TIFF")
        with pytest.raises(ValueError, match="32-bit pixels have no stated range"):
            records.normalize_image(buffer.getvalue())


def test_decode_image_antialiases():
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::4] = 252
    small = eagerly(encode(stripes), 8)[:, 2:-2]
    assert np.abs(small.astype(int) - 63).max() <= 2


def exif(orientation, kind=3):
    """An EXIF block of one entry; kind 3: uint16."""
    entry = struct.pack("<HHII", records.EXIF_ORIENTATION, kind, 1, orientation)
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
    result = records.normalize_image(encoded)
    assert result.encoded == encoded
    assert not result.reencoded
    assert len(result.digest) == 16
    with Image.open(io.BytesIO(encoded)) as image:
        difference = np.abs(decode(encoded) - np.asarray(image.convert("RGB")).astype(int))
    assert difference.max() <= (0 if encoded.startswith(b"\x89PNG") else JPEG_LEVELS)


def pixels_of(encoded):
    result = records.normalize_image(encoded)
    assert result.reencoded
    with Image.open(io.BytesIO(result.encoded)) as image:
        assert (image.format, image.mode, image.info.get("transparency")) == ("PNG", "RGB", None)
    pixels = decode(result.encoded).astype(int)
    # A plain PNG of the same pixels must have the same digest.
    assert records.normalize_image(png(pixels)).digest == result.digest
    return pixels


# What sets a stored image upright, by its EXIF orientation: where its row 0 and column 0 belong.
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
        stored = np.kron(stored, np.ones((8, 8, 1), np.uint8))  # Blocks of one colour stay.
    options = {
        "PNG": {"exif": exif(orientation)},
        "JPEG": {"exif": exif(orientation), "quality": 98, "subsampling": 0},
        "WEBP": {"exif": exif(orientation), "lossless": True},
        "TIFF": {"tiffinfo": {records.EXIF_ORIENTATION: orientation}},
    }
    pixels = pixels_of(encode(stored, kind, **options[kind]))
    tolerance = 4 if kind == "JPEG" else 0
    np.testing.assert_allclose(pixels, UPRIGHT[orientation](stored), atol=tolerance, rtol=0)


def test_transparent_and_deep_images_are_turned_too():
    deep = levels(3, 5, 3, bits=16)
    pixels = pixels_of(png(deep, 16, chunk(b"eXIf", exif(6)[6:])))
    np.testing.assert_array_equal(pixels, UPRIGHT[6](np.round(deep / 257)))


def on_white(colors, alpha):
    """Both as shares in [0, 1]; float array of levels."""
    return 255 * (colors * alpha + 1 - alpha)


@pytest.mark.parametrize("interlaced", [False, True])
def test_16_bits_become_8_by_rounding(interlaced):
    deep = np.array([[0, 128, 129, 257, 32767], [32896, 65535, 65406, 65407, 1000]])[..., None]
    pixels = pixels_of(png(deep, 16, interlaced=interlaced))
    np.testing.assert_array_equal(pixels, np.repeat(np.round(deep / 257), 3, axis=2))
    deep = levels(4, 5, 3, bits=16)
    pixels = pixels_of(png(deep, 16, GAMMA, interlaced))
    np.testing.assert_array_equal(pixels, np.round(deep / 257))


@pytest.mark.parametrize("kind", ["TIFF", "PPM"])
def test_16_bits_of_other_formats_become_8(kind):
    deep = levels(4, 5, bits=16).astype(np.uint16)
    pixels = pixels_of(encode(Image.fromarray(deep), kind))
    np.testing.assert_array_equal(pixels[..., 1], np.round(deep / 257))


@pytest.mark.parametrize("channels", [2, 4])
def test_16_bit_alpha_is_laid_on_white(channels):
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
def test_few_gray_levels_are_spread_over_8_bits(bits):
    given = levels(3, 9, 1, bits=bits)
    expected = np.repeat(given * 255 // (2**bits - 1), 3, axis=2)
    np.testing.assert_array_equal(pixels_of(png(given, bits)), expected)


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


def test_transparent_palette_colours_become_white():
    image = Image.fromarray(asymmetric()).quantize(16)
    expected = np.array(image.convert("RGB"))
    expected[np.asarray(image) == 3] = 255
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(pixels_of(encode(image, kind, transparency=3)), expected)


def test_palette_colours_may_be_transparent_in_part():
    image = Image.fromarray(asymmetric()).quantize(16)
    alpha = np.arange(16, dtype=np.uint8) * 17
    expected = on_white(
        np.asarray(image.convert("RGB")) / 255, alpha[np.asarray(image), None] / 255
    )
    pixels = pixels_of(encode(image, transparency=alpha.tobytes()))
    np.testing.assert_allclose(pixels, expected, atol=1)


def test_alpha_of_colours_that_a_palette_has_not_is_ignored():
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
def test_the_first_frame_of_an_animation_stays(kind):
    frames = [Image.fromarray(asymmetric(seed=seed)).quantize(200) for seed in range(3)]
    if kind != "GIF":
        frames = [frame.convert("RGB") for frame in frames]
    options = {"lossless": True} if kind == "WEBP" else {}
    encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(pixels_of(encoded), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_one_pixel_is_an_image(kind):
    encoded = records.normalize_image(encode(asymmetric(1, 1), kind)).encoded
    np.testing.assert_allclose(decode(encoded), asymmetric(1, 1), atol=JPEG_LEVELS)


def inks(black):
    """Four planes of ink, uint8, and the RGB levels that they leave."""
    c, m, y = np.moveaxis(np.kron(asymmetric(3, 4), np.ones((16, 16, 1))), 2, 0)
    k = np.full_like(c, black)
    rgb = np.stack([(255 - ink) * (255 - k) / 255 for ink in (c, m, y)], axis=2)
    return [plane.astype(np.uint8) for plane in (c, m, y, k)], rgb


def four_planes(planes):
    """A JPEG of four planes as Adobe writes them: inverted, with a marker that tells."""
    merged = Image.merge("CMYK", [Image.fromarray(plane) for plane in planes])
    return encode(merged, "JPEG", quality=98, subsampling=0)


@pytest.mark.parametrize("black", [0, 90])
def test_inverted_cmyk_becomes_rgb(black):
    planes, expected = inks(black)
    np.testing.assert_allclose(pixels_of(four_planes(planes)), expected, atol=4)


@pytest.mark.parametrize("black", [0, 90])
def test_ycck_becomes_rgb(black):
    (c, m, y, k), expected = inks(black)
    # The same planes, of which the first three are stored as luma and chroma.
    stored = Image.fromarray(np.stack([c, m, y], axis=2)).convert("YCbCr")
    encoded = four_planes([*(255 - np.moveaxis(np.asarray(stored), 2, 0)), k])
    adobe = encoded.index(b"Adobe")
    encoded = encoded[: adobe + 11] + b"\2" + encoded[adobe + 12 :]  # The transform: YCCK.
    np.testing.assert_allclose(pixels_of(encoded), expected, atol=8)


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


def icon_with_a_larger_image_inside():
    inside = encode(asymmetric(60, 70))
    entry = bytes([16, 16, 0, 0]) + struct.pack("<HHII", 1, 32, len(inside), 22)
    return b"\0\0\1\0\1\0" + entry + inside


OTHER_BYTES = {
    "nothing": b"",
    "text": b"no image at all",
    "png-signature": b"\x89PNG\r\n\x1a\n",
    "jpeg-signature": b"\xff\xd8\xff",
    "icon": icon_with_a_larger_image_inside(),
    "postscript": encode(asymmetric(), "EPS"),  # Which Pillow hands to Ghostscript.
}


@pytest.mark.parametrize("name", OTHER_BYTES)
def test_other_bytes_are_refused(name):
    with pytest.raises(ValueError, match=r"^cannot identify the image: expected JPEG, PNG, "):
        records.normalize_image(OTHER_BYTES[name])


def test_what_pillow_forgives_and_tensorflow_does_not_is_encoded_anew():
    pixels = asymmetric()
    encoded = encode(pixels)[:-14]  # Neither the last chunk nor all of the checksum before it.
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(encoded)
    np.testing.assert_array_equal(pixels_of(encoded), pixels)


def test_what_tensorflow_cannot_decode_is_refused():
    wide = np.zeros((1, 1_000_001, 1), np.uint8)
    with pytest.raises(ValueError, match="TensorFlow cannot decode"):
        records.normalize_image(png(wide))


def test_large_files_are_refused():
    encoded = encode(asymmetric())
    assert not records.normalize_image(encoded, max_bytes=len(encoded)).reencoded
    with pytest.raises(ValueError, match=r"^it has more bytes than --max_image_bytes=1499$"):
        records.normalize_image(encoded.ljust(1500), max_bytes=1499)


def announce(height, width):
    """A PNG of 1 bit whose header promises more pixels than follow."""
    whole = png(np.zeros((1, 1, 1), int), 1)
    header = struct.pack(">II", width, height) + whole[24:29]
    return whole[:8] + chunk(b"IHDR", header) + whole[33:]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "JPEG", "WEBP"])
def test_images_of_many_pixels_are_refused(kind):
    encoded = encode(asymmetric(), kind)  # 6 x 10 pixels.
    assert records.normalize_image(encoded, max_pixels=60).encoded
    with pytest.raises(ValueError, match=r"^10 x 6 pixels are more than --max_image_pixels=59$"):
        records.normalize_image(encoded, max_pixels=59)


# Pillow warns above 89,478,485 pixels and refuses twice as many.
@pytest.mark.parametrize("side", [9_500, 12_000, 20_000])
def test_pillows_own_limit_does_not_count(side):
    refused = rf"^{side:,} x {side:,} pixels are more than --max_image_pixels=9000000$"
    with pytest.raises(ValueError, match=refused):
        records.normalize_image(announce(side, side), max_pixels=9_000_000)
    with pytest.raises(ValueError, match="truncated"):
        records.normalize_image(announce(side, side), max_pixels=side * side)


def test_the_limits_are_the_settings_by_default():
    with pytest.raises(ValueError, match=r"^10,001 x 10,000 pixels .*_pixels=100000000$"):
        records.normalize_image(announce(10_000, 10_001))
    with pytest.raises(ValueError, match=r"_bytes=67108864$"):
        records.normalize_image(bytes(2**26 + 1))


def test_few_large_images_are_decoded_at_the_same_time(monkeypatch):
    large, small = encode(asymmetric(30, 30)), encode(asymmetric(10, 10))
    monkeypatch.setattr(records, "_pixels_at_once", records._Shared(1000))
    decoding, most = [], []

    def slow(content):
        decoding.append(900 if content == large else 100)
        most.append(sum(decoding))
        time.sleep(0.01)
        decoding.remove(900 if content == large else 100)

    monkeypatch.setattr(records, "_digest", slow)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(records.normalize_image, [large, small, small, large, small, large] * 4))
    assert len(most) == 24 and max(most) <= 1000
    # One that is larger than all together comes alone.
    assert not records.normalize_image(encode(asymmetric(40, 40))).reencoded
    with records._pixels_at_once.taken(1000):
        pass
