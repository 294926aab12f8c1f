"""Decoding with TensorFlow alone: what ingestion makes of the same file with Pillow."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from nsk.data.normalization import EXIF_ORIENTATION, normalize_image
from nsk.data.upright_decoding import decode_upright

# Largest difference allowed, levels of 255; where nothing is said, there is none.
TOLERANCE = {"jpeg cmyk": 1, "png rgba": 1, "png la": 1}


@pytest.fixture(scope="module")
def decode():
    return tf.function(decode_upright, input_signature=[tf.TensorSpec([], tf.string)])


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation, endian="MM", tag_type=3):
    """EXIF data with a maker and an orientation, as a short (3) or long (4) number."""
    value = struct.pack("<H" if endian == "II" else ">H", orientation) + bytes(2)
    if tag_type == 4:
        value = struct.pack("<I" if endian == "II" else ">I", orientation)
    order = "<" if endian == "II" else ">"
    entries = struct.pack(order + "HHI", 0x010F, 2, 4) + b"abc\0"
    entries += struct.pack(order + "HHI", EXIF_ORIENTATION, tag_type, 1) + value
    header = endian.encode() + struct.pack(order + "HI", 42, 8)
    return b"Exif\0\0" + header + struct.pack(order + "H", 2) + entries + bytes(4)


def files():
    """Encoded images by name."""
    random = np.random.default_rng(0)
    image = Image.fromarray(load_sample_images().images[0][100:149, 200:262])
    found = {}
    for orientation in range(1, 9):
        for endian in ("II", "MM"):
            data = exif(orientation, endian, 3 + orientation % 2)
            found[f"jpeg {orientation} {endian}"] = encode(image, "JPEG", exif=data)
        found[f"png {orientation}"] = encode(image, "PNG", exif=exif(orientation))
    for subsampling in range(3):
        options = {"subsampling": subsampling, "quality": 75}
        found[f"jpeg subsampling {subsampling}"] = encode(image, "JPEG", **options)
    found["jpeg progressive"] = encode(image, "JPEG", progressive=True)
    found["jpeg comment"] = encode(image, "JPEG", comment=b"x" * 1000, exif=exif(6))
    rgba = np.dstack([np.asarray(image), random.integers(0, 256, (49, 62), dtype=np.uint8)])
    by_mode = {
        "rgba": Image.fromarray(rgba),
        "la": Image.fromarray(rgba).convert("LA"),
        "gray": image.convert("L"),
        "1 bit": image.convert("1"),
        "16 bits gray": Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 200 + 77),
    }
    found |= {f"png {name}": encode(picture, "PNG") for name, picture in by_mode.items()}
    found["jpeg gray"] = encode(by_mode["gray"], "JPEG")
    found["jpeg cmyk"] = encode(image.convert("CMYK"), "JPEG")
    for bits in (1, 2, 4, 8):
        palette = image.quantize(2**bits if bits < 8 else 99)
        found[f"png palette {bits} bits"] = encode(palette, "PNG", bits=bits)
        transparent = encode(palette, "PNG", bits=bits, transparency=0)
        found[f"png palette {bits} bits, transparent"] = transparent
    found["png transparent colour"] = encode(image, "PNG", transparency=image.getpixel((5, 5)))
    for channels in (3, 4):
        levels = random.integers(0, 65536, (9, 7, channels)).astype(np.uint16)
        found[f"png 16 bits, {channels}"] = tf.io.encode_png(levels).numpy()
    return found | {"gif": encode(image, "GIF"), "bmp": encode(image, "BMP")}


FILES = files()


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_decoded_as_it_is_ingested(decode, name):
    plain = normalize_image(FILES[name]).encoded
    expected = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB")).astype(int)
    decoded = decode(FILES[name]).numpy()
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected).max() <= TOLERANCE.get(name, 0)


@pytest.mark.parametrize("bits", [9, 12])
def test_16_bits_are_scaled_by_the_bits_that_they_use(bits):
    random = np.random.default_rng(0)
    colours = random.integers(0, 2**bits + 30, (9, 7, 3)).astype(np.uint16)
    alpha = random.integers(0, 65536, (9, 7, 1)).astype(np.uint16)
    for levels in (colours, np.concatenate([colours, alpha], axis=2)):
        encoded = tf.io.encode_png(levels).numpy()
        plain = normalize_image(encoded, significant_bits=bits).encoded
        expected = np.asarray(Image.open(io.BytesIO(plain))).astype(int)
        received = tf.function(decode_upright)(tf.constant(encoded), bits).numpy()
        assert np.abs(received - expected).max() <= (1 if levels.shape[2] == 4 else 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damaged_exif_data_are_ignored(decode, kind):
    image = Image.new("RGB", (6, 4), (200, 100, 50))
    good = exif(6)
    for damaged in (
        good[:14],  # Ends with the header.
        good[:6] + b"XX" + good[8:],
        good[:10] + b"\xff\xff\xff\xff" + good[14:],  # The directory is far outside.
        good[:14] + b"\xff\xff" + good[16:],  # Many entries.
        good[:-8] + b"\0\x09\0\0" + good[-4:],  # Orientation 9.
    ):
        encoded = encode(image, kind, exif=damaged)
        assert decode(encoded).shape in ((4, 6, 3), (6, 4, 3))


def test_cut_and_random_files_are_errors_and_nothing_worse(decode):
    random = np.random.default_rng(0)
    for name in ("jpeg 6 II", "png 6", "png rgba", "png palette 2 bits"):
        encoded = FILES[name]
        for length in random.integers(0, len(encoded) // 2, 20):
            with pytest.raises(tf.errors.InvalidArgumentError):
                decode(encoded[:length])
        for _ in range(20):
            damaged = bytearray(encoded)
            for position in random.integers(0, len(encoded), 8):
                damaged[position] = random.integers(256)
            try:
                decode(bytes(damaged))
            except tf.errors.InvalidArgumentError:
                continue
