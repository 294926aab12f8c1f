"""Decodes image files in batches, as ingestion and training together do, and names broken ones."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from nsk.config.data import DataConfig
from nsk.data.image_folders import NUM_FIRST_BYTES, unsupported_format, why_unsupported
from nsk.data.normalization import ALL_BITS, normalize_image, to_decodable
from nsk.data.sources.folder import read_image
from nsk.store.files import num_cores

MAX_BYTES_IN_MEMORY = 2**28  # Of encoded images of a batch.


@dataclasses.dataclass(frozen=True)
class DecodedFiles:
    """A batch of files.

    Attributes:
        first: index of its first file among all files.
        images: uint8 (n, size, size, 3), of the files without an error.
        errors: for each file, why it could not be decoded; "" if it was.
    """

    first: int
    images: np.ndarray
    errors: list[str]


def decode_in_batches(
    paths: Sequence[str | Path],
    decode: Callable[[tf.Tensor], tf.Tensor],
    batch_size: int,
    max_image_bytes: int = DataConfig.max_image_bytes,
    max_image_pixels: int = DataConfig.max_image_pixels,
    significant_bits: int = ALL_BITS,
) -> Iterator[DecodedFiles]:
    """Reads and decodes files in order, several batches at a time.

    Args:
        paths: of the files.
        decode: TensorFlow function of one JPEG or PNG, such as `decode_image`, to uint8 (size,
            size, 3).
        batch_size: number of files in a batch, at most.
        max_image_bytes: larger files are errors.
        max_image_pixels: larger images are errors.
        significant_bits: of `normalize_image`.
    """
    limits = (max_image_bytes, max_image_pixels, significant_bits)
    batches = _Batches(paths, batch_size, limits)
    signature = (tf.TensorSpec([], tf.int64), tf.TensorSpec([None], tf.string))
    decoded = (
        tf.data.Dataset.from_generator(batches.read, output_signature=signature)
        .map(
            lambda first, encoded: (
                first,
                tf.map_fn(decode, encoded, fn_output_signature=tf.uint8),
            ),
            num_parallel_calls=num_cores(),
        )
        .ignore_errors()  # Of a batch with a broken image: its files are decoded one by one.
        .prefetch(1)
    )
    for first, images in decoded.as_numpy_iterator():
        yield from batches.take_until(first, decode)
        yield DecodedFiles(int(first), images, batches.errors.pop(first)[0])
    yield from batches.take_until(None, decode)


class _Batches:
    """The batches that were read and not yielded.

    Attributes:
        errors: dict from the first file of a batch to (errors, encoded images), in order.
    """

    def __init__(self, paths, batch_size, limits):
        self._paths, self._batch_size, self._limits = paths, batch_size, limits
        self.errors = {}

    def read(self):
        """Yields (index of the first file, encoded images without errors) of each batch."""
        with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
            for first in range(0, len(self._paths), self._batch_size):
                paths = self._paths[first : first + self._batch_size]
                encoded, errors = zip(*pool.map(self._prepare, paths), strict=True)
                encoded = [
                    content for content, error in zip(encoded, errors, strict=True) if not error
                ]
                self.errors[first] = (list(errors), encoded)
                yield first, np.array(encoded, object)

    def _prepare(self, path):
        """A file as a JPEG or PNG that TensorFlow decodes as ingested, and why there is none."""
        if not os.fspath(path):
            return b"", "its path is empty"
        encoded, unreadable = read_image(path, self._limits[0])
        if unreadable:
            return b"", unreadable
        if unsupported := unsupported_format(os.fspath(path), encoded[:NUM_FIRST_BYTES]):
            return b"", why_unsupported(unsupported)
        try:
            return to_decodable(encoded, *self._limits), ""
        except ValueError as error:
            return b"", str(error)

    def take_until(self, first, decode):
        """Yields the batches before `first` (None: all), which have a broken image."""
        for number in list(self.errors):
            if number == first:
                return
            errors, encoded = self.errors.pop(number)
            yield self._decode_one_by_one(number, errors, encoded, decode)

    def _decode_one_by_one(self, first, errors, encoded, decode):
        images, left = [], iter(encoded)
        for row, error in enumerate(errors):
            if error:
                continue
            try:
                plain = normalize_image(next(left), *self._limits).encoded
                images.append(decode(tf.constant(plain)).numpy())
            except ValueError as reason:
                errors[row] = str(reason)
        return DecodedFiles(first, np.stack(images) if images else np.zeros(0, np.uint8), errors)
