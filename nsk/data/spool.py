"""Spools the images of all sources to disk, normalised, so that memory only holds their index."""

import concurrent.futures
import io
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from nsk.config.data import DataConfig
from nsk.data import normalization
from nsk.data.deep_images import DeepImages
from nsk.data.image_index import ImageIndex
from nsk.data.native_output import captured_stderr
from nsk.data.normalization import NormalizedImage
from nsk.data.pools import Pool
from nsk.data.sources.source import SourceImage
from nsk.data.splits import base_pool
from nsk.errors import UserError
from nsk.progress import Progress
from nsk.store.files import num_cores

# Encoded images in memory: as many as take this long, within limits of their number and size, so
# that progress is shown often.
CHUNK_SECONDS = 0.5
MIN_IMAGES_IN_MEMORY, MAX_IMAGES_IN_MEMORY, MAX_BYTES_IN_MEMORY = 16, 256, 2**28
MAX_NAMED_IN_ERROR = 10  # Unreadable images.
MAX_NAMED_IN_COUNTS = 100


def spool_images(
    pools: dict[str, Pool],
    spool: BinaryIO,
    config: DataConfig,
    num_classes: int,
    left_out: Iterable[Pool] = (),
) -> tuple[ImageIndex, dict]:
    """Normalises every image and appends it to the spool.

    Args:
        pools: as `open_pools` returns them.
        spool: a binary file, open for writing and reading.
        config: the limits on images and on the share of unreadable ones.
        num_classes: int.
        left_out: pools of which only the levels of 16-bit images matter, since these images and
            those of `pools` are scaled alike. They are read only if `pools` has 16-bit images.

    Returns:
        `ImageIndex`, and a dict of `reencoded`, `corrupt`, `doubtful`, `significant_bits` and
        `deep_images`, see `ingest`.

    Raises:
        UserError: too many images are unreadable, an id is duplicated, or the scores of an external
            teacher are not valid.
    """
    ids, labels, digests, spans, sides, corrupt, doubtful = [], [], [], [], [], [], []
    rows, groups, external_teacher, reencoded = {}, {}, {}, 0
    deep = DeepImages(config)
    progress = Progress("data/images, reading", _num_images(pools), early=True)
    for name, pool in pools.items():
        start, earlier = len(ids), len(ids) + len(corrupt)
        source_images = pool.source.images(pool.split)
        for image, result, size, message in _normalized(
            source_images, config, lambda done, earlier=earlier: progress.update(earlier + done)
        ):
            id = pool.id_prefix + image.id
            if isinstance(result, ValueError):
                corrupt.append({"id": id, "reason": str(result)})
            else:
                if message:
                    doubtful.append({"id": id, "reason": message})
                spans.append((spool.tell(), len(result.encoded)))
                spool.write(result.encoded)
                if scores := _external_teacher_scores(image, num_classes):
                    external_teacher[len(ids)] = spool.write(scores)
                if image.group:
                    groups[len(ids)] = image.group
                deep.add(len(ids), image.encoded, result.peak, spool)
                ids.append(id)
                labels.append(pool.label(image))
                digests.append(result.digest)
                sides.append(sorted(size))
                reencoded += result.reencoded
        rows[name] = np.arange(start, len(ids))
        _check_unique(ids[start:], name)
    if config.keep_remaining and "unlabeled" in rows:  # Both become unlabelled ones.
        base = base_pool(rows)
        together = np.concatenate([rows[base], rows["unlabeled"]])
        _check_unique([ids[row] for row in together], f"{base} and unlabeled")
    progress.close(len(ids) + len(corrupt))
    _check_corrupt(corrupt, len(ids) + len(corrupt), config.max_corrupt_fraction)
    index = ImageIndex(
        ids,
        np.array(labels, np.int32),
        digests,
        np.array(spans, np.int64).reshape(-1, 2),
        np.array(sides, np.int32).reshape(-1, 2),
        rows,
        groups,
        external_teacher,
    )
    counts = {"reencoded": reencoded, **deep.scale(spool, index, _peaks(left_out, config))}
    for kind, images in (("corrupt", corrupt), ("doubtful", doubtful)):
        counts[kind] = {"count": len(images), "images": images[:MAX_NAMED_IN_COUNTS]}
    return index, counts


def _peaks(pools: Iterable[Pool], config: DataConfig) -> Iterator[int]:
    """Yields the highest level of each 16-bit image in pools."""
    for pool in pools:
        progress = Progress(f"levels of {pool.split} images", pool.source.count(pool.split))
        images = pool.source.images(pool.split)
        for _, result, *_ in _normalized(images, config, progress.update):
            peak = getattr(result, "peak", None)
            if peak is not None:
                yield peak
        progress.close()


def _num_images(pools: dict[str, Pool]) -> int | None:
    """Number of images that the pools have; None if it is not known before they are read."""
    counts = [pool.source.count(pool.split) for pool in pools.values()]
    return None if None in counts else sum(counts)


def _external_teacher_scores(image: SourceImage, num_classes: int) -> bytes:
    try:
        return image.external_teacher_log_probabilities(num_classes)
    except ValueError as error:
        raise UserError(f"{image.id}: {error}: give records of these classes.") from None


def _normalized(
    source_images: Iterable[SourceImage], config: DataConfig, update: Callable[[int], None]
) -> Iterator[tuple[SourceImage, NormalizedImage | ValueError, tuple[int, ...], str]]:
    """Yields each image, its normalised form, width and height, and the decoders' messages.

    Of an image that cannot be decoded there are a ValueError and no size. `update` is called with
    the number of images so far, several images at a time.
    """
    done = 0

    def normalize(image):
        if image.unreadable:
            return ValueError(image.unreadable), ()
        try:
            normalized = normalization.normalize_image(
                image.encoded,
                config.max_image_bytes,
                config.max_image_pixels,
                config.significant_bits or normalization.ALL_BITS,
            )
        except ValueError as error:
            return error, ()
        with Image.open(io.BytesIO(normalized.encoded)) as opened:  # Only reads the header.
            return normalized, opened.size

    # Decoding releases Python's lock, so threads speed it up for images of the size of photographs.
    with concurrent.futures.ThreadPoolExecutor(num_cores()) as executor:
        for chunk in _chunks(source_images):
            with captured_stderr() as lines:
                results = list(executor.map(normalize, chunk))
            messages = _messages(normalize, chunk) if lines else [""] * len(chunk)
            done += len(chunk)
            update(done)
            for image, (result, size), message in zip(chunk, results, messages, strict=True):
                yield image, result, size, message or getattr(result, "doubt", "")


def _messages(normalize: Callable, chunk: list[SourceImage]) -> list[str]:
    """The first line that decoders print for each image; "" for none."""
    messages = []
    for image in chunk:
        with captured_stderr() as lines:
            normalize(image)
        messages.append(lines[0] if lines else "")
    return messages


def _chunks(source_images: Iterable[SourceImage]) -> Iterator[list[SourceImage]]:
    chunk, size, limit, started = [], 0, MIN_IMAGES_IN_MEMORY, time.monotonic()
    for image in source_images:
        chunk.append(image)
        size += len(image.encoded)
        if len(chunk) >= limit or size >= MAX_BYTES_IN_MEMORY:
            yield chunk  # Until the next one is asked for, it is normalised.
            seconds = time.monotonic() - started
            limit = round(limit * CHUNK_SECONDS / max(seconds, CHUNK_SECONDS / 2))
            limit = min(max(limit, MIN_IMAGES_IN_MEMORY), MAX_IMAGES_IN_MEMORY)
            chunk, size, started = [], 0, time.monotonic()
    yield chunk


def _check_unique(ids: list[str], pool: str) -> None:
    if len(set(ids)) < len(ids):
        duplicate = next(id for id, next_id in itertools.pairwise(sorted(ids)) if id == next_id)
        raise UserError(
            f"The id {duplicate!r} is duplicated in {pool}: ids must be unique, rename one."
        )


def _check_corrupt(corrupt: list[dict], total: int, max_fraction: float) -> None:
    if len(corrupt) > max_fraction * total:
        named = "; ".join(
            f"{image['id']} ({image['reason']})" for image in corrupt[:MAX_NAMED_IN_ERROR]
        )
        if len(corrupt) > MAX_NAMED_IN_ERROR:
            named += f"; and {len(corrupt) - MAX_NAMED_IN_ERROR} more"
        raise UserError(
            f"{len(corrupt)} of {total} images cannot be decoded, more than --max_corrupt_fraction="
            f"{max_fraction}: {named}. Repair or remove them, or raise the flag."
        )
