"""Arrays of images and labels in .npy files, and batches of decoded image files."""

import collections
import concurrent.futures
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nsk.errors import UserError
from nsk.evaluation.class_folders import ImageFile
from nsk.store.files import num_cores

IMAGES_LAYOUT, LABELS_LAYOUT = "uint8 (images, height, width, 3)", "integers (images,)"
MAX_IMAGE_BYTES = 64 * 2**20  # Larger files are unreadable.

Batch = dict[str, np.ndarray]
# Function of an encoded image that returns uint8 (side, side, 3), or raises a ValueError with the
# reason why it cannot be decoded.
Decode = Callable[[bytes], np.ndarray]


def open_array(path: str | Path, layout: str) -> np.ndarray:
    """Opens a .npy file without reading it into memory.

    Args:
        path: the file.
        layout: what it should hold, for messages.

    Returns:
        Read-only memory-mapped array.

    Raises:
        UserError: there is no such file, or it is not one array.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: expected a .npy file, {layout}.") from None
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is not a readable .npy file ({reason}): download it again."
        ) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise UserError(f"{path} is an archive of arrays: expected one array, {layout}.")
    return array


def open_images(path: str | Path) -> np.ndarray:
    """Opens a .npy file of images, see `open_array`: uint8 (images, height, width, 3).

    Raises:
        UserError: it is not such a file.
    """
    array = open_array(path, IMAGES_LAYOUT)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or not array.size:
        raise UserError(
            f"{path} holds {array.dtype} {array.shape}: expected {IMAGES_LAYOUT}. Is it a file of "
            "images?"
        )
    return array


def read_labels(path: str | Path, num_classes: int | None = None) -> np.ndarray:
    """Reads a .npy file of labels.

    Args:
        path: the file.
        num_classes: labels are in [0, num_classes); None: any that are not negative.

    Returns:
        int64 array (images,).

    Raises:
        UserError: it is not such a file, or a label is out of range.
    """
    array = open_array(path, LABELS_LAYOUT)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or not array.size:
        raise UserError(f"{path} holds {array.dtype} {array.shape}: expected {LABELS_LAYOUT}.")
    labels = array.astype(np.int64)
    largest = np.iinfo(np.int32).max if num_classes is None else num_classes - 1
    is_wrong = (labels < 0) | (labels > largest)
    if is_wrong.any():
        row = int(is_wrong.argmax())
        raise UserError(
            f"{path}: the label of row {row} is {labels[row]}: expected 0 to {largest}. Do the "
            "labels belong to the classes of --dataset?"
        )
    return labels


def array_batches(
    ids: Sequence[str],
    labels: np.ndarray,
    images: np.ndarray,
    batch_size: int,
    decode: Decode | None = None,
) -> Iterator[Batch]:
    """Batches of images in an array.

    Args:
        ids: n strings.
        labels: int (n,).
        images: uint8 (n, height, width, 3).
        batch_size: largest number of images in a batch.
        decode: function of the images as PNG files; None: the images are kept as they are.

    Yields:
        dicts `id` bytes (batch,), `label` int64 (batch,) and `image` uint8 (batch, height, width,
        3).
    """
    with concurrent.futures.ThreadPoolExecutor(num_cores()) as executor:
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            pixels = np.array(images[part])
            if decode is not None:
                decoded = executor.map(lambda image: decode(encode_png(image)), pixels)
                pixels = np.stack(list(decoded))
            yield make_batch(ids[part], labels[part], pixels)


def make_batch(ids: Sequence[str], labels: Iterable[int], images: np.ndarray) -> Batch:
    """A batch, see `array_batches`."""
    encoded = np.array([id.encode() for id in ids])
    return {"id": encoded, "label": np.array(labels, np.int64), "image": images}


def encode_png(image: np.ndarray) -> bytes:
    """An image, uint8 (height, width, 3), as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_files(
    files: Sequence[ImageFile], decode: Decode, batch_size: int
) -> Iterator[list[tuple[ImageFile, np.ndarray | str]]]:
    """Decodes image files in threads, a batch ahead.

    Args:
        files: the images.
        decode: decodes one of them.
        batch_size: largest number of images in a batch.

    Yields:
        for each batch (file, uint8 (height, width, 3), or the reason why it is unreadable).
    """

    def read(file):
        try:
            return file, decode(_read_file(file.path))
        except OSError as error:
            return file, error.strerror or str(error)
        except ValueError as error:
            return file, " ".join(str(error).split())

    with concurrent.futures.ThreadPoolExecutor(num_cores()) as executor:
        waiting = collections.deque()
        for start in range(0, len(files), batch_size):
            waiting.append(executor.map(read, files[start : start + batch_size]))
            if len(waiting) > 1:
                yield list(waiting.popleft())
        while waiting:
            yield list(waiting.popleft())


def _read_file(path):
    """The bytes of an image file; ValueError or OSError if it cannot be one."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("a link to a folder, not a file")
    if not stat.S_ISREG(status.st_mode):  # Opening a pipe would block until somebody writes to it.
        raise ValueError("a pipe, device or socket, not a file")
    if status.st_size > MAX_IMAGE_BYTES:
        raise ValueError(f"{status.st_size:,} bytes: expected at most {MAX_IMAGE_BYTES:,}")
    return path.read_bytes()
