"""Normalises images at ingest: every image becomes an 8-bit RGB or grayscale JPEG or PNG.

This is done once, with Pillow, since `tf.io.decode_image` ignores EXIF rotation and garbles or
refuses several formats.
"""

import contextlib
import dataclasses
import hashlib
import io
import struct
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from nsk.config.data import DataConfig
from nsk.data.image_folders import NUM_FIRST_BYTES, unsupported_format, why_unsupported
from nsk.data.plain_decoding import decode_plain

# Formats that state in their header how many pixels will be decoded. Of Pillow's other formats some
# hold images larger than stated (ICO) or start another program (EPS).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "PPM")

# Pixels that all threads decode at the same time; a pixel may temporarily take 30 bytes.
MAX_CONCURRENT_PIXELS = 2**28

EXIF_ORIENTATION = 0x0112
BITS_PER_SAMPLE, TILE_WIDTH, TILE_LENGTH = 258, 322, 323  # Tags of a TIFF.
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_BIT_DEPTH = 24  # Position of this byte in a PNG.
# 16-bit files may use fewer bits. Those that use at most 8 are 8-bit images: a dark one stays dark.
ALL_BITS, MIN_BITS = 16, 8
DARK_LEVEL = 16  # Of 8 bits: images whose levels are all below it look black.
UPRIGHT_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# `normalize_image` has its own limit. Pillow warns and refuses at a different limit, which can only
# be removed for the whole process: silencing a warning is not thread-safe.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of damaged metadata, of one file in each place of its code. Pixels are what counts.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclasses.dataclass(frozen=True)
class NormalizedImage:
    """An image that can be stored in a record.

    Attributes:
        encoded: an 8-bit RGB or grayscale JPEG or PNG.
        digest: 16 bytes, equal for images with equal RGB pixels.
        reencoded: whether `encoded` differs from the input.
        peak: the highest level of 16-bit pixels, up to 65,535, if the file does not say which level
            is white; None: it does, or has 8 bits.
        doubt: why the image may not look as intended; "": it does.
    """

    encoded: bytes
    digest: bytes
    reencoded: bool
    peak: int | None = None
    doubt: str = ""


def normalize_image(
    encoded: bytes,
    max_bytes: int = DataConfig.max_image_bytes,
    max_pixels: int = DataConfig.max_image_pixels,
    significant_bits: int = ALL_BITS,
) -> NormalizedImage:
    """Keeps a plain JPEG or PNG as it is and converts every other image to an RGB PNG.

    EXIF rotation is applied, transparency is composited on white, 16 bits become 8, palettes, CMYK
    and 1-bit images become RGB, and of an animation the first frame is kept. Gamma and colour
    profiles are not applied.

    Args:
        encoded: bytes of an image in one of `FORMATS`.
        max_bytes: the largest size of `encoded`.
        max_pixels: the largest height * width, read from the header: larger images are not decoded.
        significant_bits: 1 to 16, bits that 16-bit pixels use: `2**bits - 1` becomes 255, and
            higher levels, too.

    Returns:
        A `NormalizedImage`.

    Raises:
        ValueError: the image cannot be decoded or is too large; the message gives the reason.
    """
    with _opened(encoded, max_bytes, max_pixels) as image:
        # Pillow accepts what TensorFlow refuses, such as a PNG without its last bytes. So
        # TensorFlow decodes every image here, rather than fail on one during training.
        if _is_plain(image, encoded):
            with contextlib.suppress(tf.errors.InvalidArgumentError):
                return NormalizedImage(encoded, _digest(encoded), reencoded=False)
        depth = _Depth(significant_bits)
        encoded = _to_png(image, encoded, depth)
        return NormalizedImage(encoded, _digest(encoded), True, depth.peak, _doubt(image))


def to_decodable(
    encoded: bytes,
    max_bytes: int = DataConfig.max_image_bytes,
    max_pixels: int = DataConfig.max_image_pixels,
    significant_bits: int = ALL_BITS,
) -> bytes:
    """Like `normalize_image`, but a plain image is not decoded, so that it may be broken.

    Returns:
        The encoded image.

    Raises:
        ValueError: see `normalize_image`.
    """
    with _opened(encoded, max_bytes, max_pixels) as image:
        if _is_plain(image, encoded):
            return encoded
        return _to_png(image, encoded, _Depth(significant_bits))


def _to_png(image: Image.Image, encoded: bytes, depth: "_Depth") -> bytes:
    buffer = io.BytesIO()
    _to_rgb(image, encoded, depth).save(buffer, "PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def _opened(encoded: bytes, max_bytes: int, max_pixels: int) -> Iterator[Image.Image]:
    """Yields an image whose header was read; all errors become a ValueError of one line."""
    if len(encoded) > max_bytes:
        raise ValueError(f"it has more bytes than --max_image_bytes={max_bytes}")
    if unsupported := unsupported_format("", encoded[:NUM_FIRST_BYTES]):
        raise ValueError(why_unsupported(unsupported))
    with _one_line_errors():
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    with image:
        with _one_line_errors():
            decoded_sizes = _decoded_sizes(image)
        for width, height in decoded_sizes:
            if width * height > max_pixels:
                raise ValueError(
                    f"{width:,} x {height:,} pixels are more than --max_image_pixels={max_pixels}"
                )
        if image.mode == "F" or (image.format == "TIFF" and image.mode == "I"):
            raise ValueError("its 32-bit pixels have no defined range: make it 8- or 16-bit")
        width, height = image.size
        with _one_line_errors(), _pixel_budget.acquire(width * height):
            yield image


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turns any error of decoding an image into a ValueError with a message of one line."""
    try:
        yield
    except UnidentifiedImageError:  # Its message contains a memory address.
        raise ValueError(f"cannot identify the image: expected {', '.join(FORMATS)}") from None
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            "TensorFlow cannot decode the image, nor Pillow's conversion of it"
        ) from error
    except Exception as error:  # Pillow's plugins raise nearly anything on broken data.
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error


def _decoded_sizes(image: Image.Image) -> list[tuple[int, int]]:
    """(width, height) of the image and of a TIFF's tiles, which are decoded whole."""
    sizes = [image.size]
    if image.format == "TIFF":
        sizes.append(tuple(int(image.tag_v2.get(tag, 0)) for tag in (TILE_WIDTH, TILE_LENGTH)))
    return sizes


class _Budget:
    """An amount shared by threads: `acquire` waits until enough of it is free."""

    def __init__(self, amount: int):
        self._amount = self._free = amount
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def acquire(self, amount: int) -> Iterator[None]:
        amount = min(amount, self._amount)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


_pixel_budget = _Budget(MAX_CONCURRENT_PIXELS)


def _digest(encoded: bytes) -> bytes:
    pixels = decode_plain(tf.constant(encoded)).numpy()
    height, width, _ = pixels.shape
    digest = hashlib.sha256(struct.pack(">II", height, width))
    digest.update(pixels)
    return digest.digest()[:16]


def _is_plain(image: Image.Image, encoded: bytes) -> bool:
    if image.mode not in ("RGB", "L") or _upright_transpose(image) is not None:
        return False
    if image.format == "PNG":
        is_deep = _png_bit_depth(encoded) != 8
        return not (is_deep or image.is_animated or "transparency" in image.info)
    # An MPO is a JPEG followed by others, such as a preview: JPEG readers decode the first.
    return image.format in ("JPEG", "MPO")


def _png_bit_depth(encoded: bytes) -> int:
    # Pillow does not expose it: it converts 16-bit colours to 8 bits.
    return encoded[PNG_BIT_DEPTH]


def _upright_transpose(image: Image.Image) -> Image.Transpose | None:
    """The transposition that makes an image upright, from its EXIF header; None if it is."""
    try:
        return UPRIGHT_TRANSPOSE.get(image.getexif().get(EXIF_ORIENTATION))
    except Exception:  # Viewers show an image with a broken header, too.
        return None


class _Depth:
    """Makes 8 bits of 16.

    Attributes:
        peak: as of `NormalizedImage`.

    Args:
        significant_bits: as for `normalize_image`.
    """

    def __init__(self, significant_bits: int):
        self._bits = significant_bits
        self.peak = None

    def to_8_bits(self, levels: np.ndarray, declared_bits: int | None) -> np.ndarray:
        """Levels as uint8; `declared_bits`: see `_declared_bits`."""
        if declared_bits is None:
            self.peak = max(self.peak or 0, int(levels.max()))
        white = 2 ** (declared_bits or self._bits) - 1
        narrow = np.empty(levels.shape, np.uint8)
        # Row by row, to save memory on large images.
        for narrow_row, row in zip(narrow, levels, strict=True):
            # Rounded to the nearest.
            narrow_row[:] = (np.clip(row, 0, white).astype(np.int32) * 255 + white // 2) // white
        return narrow


def _to_rgb(image: Image.Image, encoded: bytes, depth: _Depth) -> Image.Image:
    declared_bits = _declared_bits(image, encoded)
    image.load()
    transpose = _upright_transpose(image)  # After loading, which rotates a TIFF.
    if (
        image.format == "PNG"
        and image.mode != "P"
        and (_png_bit_depth(encoded) == 16 or "transparency" in image.info)
    ):
        # Pillow truncates 16-bit colours and compares the transparent one with the wrong levels.
        with contextlib.suppress(tf.errors.InvalidArgumentError):
            levels = tf.io.decode_png(encoded, channels=4, dtype=tf.uint16)
            colors, alpha = np.split(levels.numpy(), [3], axis=2)
            colors = depth.to_8_bits(colors, declared_bits)
            # Alpha is decoded as all opaque where there is none.
            alpha = depth.to_8_bits(alpha, ALL_BITS)
            image = Image.fromarray(np.concatenate([colors, alpha], axis=2))
            del levels, colors, alpha
    if image.mode.startswith("I"):
        image = Image.fromarray(depth.to_8_bits(np.asarray(image), declared_bits))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("RGB")
    return image if transpose is None else image.transpose(transpose)


def _declared_bits(image: Image.Image, encoded: bytes) -> int | None:
    """Bits of 16-bit pixels that the file says to use; None: it has no such pixels, or says none.

    Decoders scale the levels of files with fewer bits to 16, but for those of a TIFF.
    """
    if image.format == "PNG":
        return None if _png_bit_depth(encoded) == ALL_BITS else ALL_BITS
    if image.format == "PPM" and image.tile[0][0] == "ppm":  # Scaled from its own maximum.
        return ALL_BITS
    bits = _tiff_bits(image)
    return bits if bits < ALL_BITS else None


def _tiff_bits(image: Image.Image) -> int:
    """Bits of a TIFF's samples; of other formats 16."""
    if image.format != "TIFF":
        return ALL_BITS
    bits = image.tag_v2.get(BITS_PER_SAMPLE, 1)
    return max(bits) if isinstance(bits, tuple) else bits


def _doubt(image: Image.Image) -> str:
    """Why a decoded image may not look as intended; "": it does.

    Of 16-bit colours in a TIFF Pillow keeps the upper 8 bits.
    """
    if image.format != "TIFF" or image.mode not in ("RGB", "RGBA") or _tiff_bits(image) != ALL_BITS:
        return ""
    brightest = max(high for _, high in image.getextrema()[:3])
    if brightest >= DARK_LEVEL:
        return ""
    return (
        f"its 16-bit colours use at most 12 bits, of which {brightest + 1} levels remain: make it "
        "a PNG"
    )
