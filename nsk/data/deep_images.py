"""16-bit images that use few of their bits, such as 12-bit ones of cameras and scanners.

Files of 16 bits do not say which level is white: a 12-bit image has levels up to 4,095, and looks
nearly black if 65,535 is white. So the bits are found from all images together, whatever their
split, and all of them are scaled alike.
"""

import concurrent.futures
import io
from collections.abc import Collection, Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

from nsk.config.data import DataConfig
from nsk.data.image_index import ImageIndex, read_external_teacher, read_span
from nsk.data.native_output import captured_stderr
from nsk.data.normalization import ALL_BITS, MIN_BITS, normalize_image
from nsk.progress import Progress
from nsk.store.files import num_cores

DARK_BITS = 4  # Images that use so many bits less than others have at most 16 of 256 levels.
MIN_DARK_SHARE = 0.1  # A single dark image may be of a dark scene.
MAX_NAMED = 100


class DeepImages:
    """The 16-bit images of a spool, which are normalised again when all of them are known.

    Args:
        config: the settings.
    """

    def __init__(self, config: DataConfig):
        self._config = config
        self._peaks = {}  # By row: the highest level.
        self._given = {}  # By row: the span of the file as it was given.

    def add(self, row: int, encoded: bytes, peak: int | None, spool: BinaryIO) -> None:
        """Appends an image as it was given to the spool, unless it has 8 bits: no `peak`."""
        if peak is None:
            return
        self._peaks[row] = peak
        if not self._config.significant_bits:
            self._given[row] = spool.tell(), spool.write(encoded)

    def scale(self, spool: BinaryIO, index: ImageIndex, other_peaks: Iterable[int] = ()) -> dict:
        """Normalises all of them by the bits that they and others use.

        Args:
            spool: with the images as they were added, and normalised with 16 bits.
            index: of all images; changed in place.
            other_peaks: the highest levels of images that are not in the spool; not iterated over
                if no bits are to be found.

        Returns:
            dict of `significant_bits` and `deep_images`, see `ingest`.
        """
        if not self._peaks:
            return {"significant_bits": None, "deep_images": None}
        bits, highest = self._config.significant_bits, max(self._peaks.values())
        if not bits:
            highest = max(highest, max(other_peaks, default=0))
            bits = choose_bits([highest])
        if self._given and bits < ALL_BITS:
            self._normalize_again(spool, index, bits)
        summary = summarize(self._peaks, index.ids, bits) | {"highest": highest}
        return {"significant_bits": bits, "deep_images": summary}

    def _normalize_again(self, spool, index, bits):
        """Appends the images to the spool as their bits make them, and changes the index."""
        limits = self._config.max_image_bytes, self._config.max_image_pixels

        def normalize(encoded):
            return normalize_image(encoded, *limits, bits)

        rows, size = list(self._given), 4 * num_cores()
        progress = Progress("16-bit images", len(rows))
        with concurrent.futures.ThreadPoolExecutor(num_cores()) as executor:
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                given = [read_span(spool, *self._given[row]) for row in part]
                with captured_stderr():  # The messages are known from the first time.
                    results = list(executor.map(normalize, given))
                for row, result in zip(part, results, strict=True):
                    scores = read_external_teacher(spool, index, row)
                    offset = spool.seek(0, io.SEEK_END)
                    spool.write(result.encoded + scores)
                    index.spans[row] = offset, len(result.encoded)
                    index.digests[row] = result.digest
                progress.update(start + len(part))
        progress.close()


def choose_bits(peaks: Collection[int]) -> int:
    """The bits that 16-bit images use.

    Args:
        peaks: the highest level of each, up to 65,535.

    Returns:
        8 to 16: the fewest bits that have all levels.
    """
    return max(MIN_BITS, int(max(peaks)).bit_length())


def summarize(peaks: Mapping[int, int], ids: list[str], bits: int) -> dict[str, Any]:
    """Counts of 16-bit images.

    Args:
        peaks: the highest level of each, by row.
        ids: of all rows.
        bits: that they are scaled by.

    Returns:
        dict of `count`, `highest` (level), `clipped` (images with levels that the bits do not have)
        and `dark`: `count`, `highest` and `images` (ids of the first 100) of images that use so few
        bits that they are nearly black, but not quite.
    """
    rows, levels = list(peaks), np.array(list(peaks.values()), np.int64)
    is_dark = (levels > 0) & (levels < 2 ** (bits - DARK_BITS))
    dark = sorted(ids[rows[position]] for position in np.flatnonzero(is_dark))
    return {
        "count": len(levels),
        "highest": int(levels.max(initial=0)),
        "clipped": int((levels >= 2**bits).sum()),
        "dark": {
            "count": len(dark),
            "highest": int(levels[is_dark].max(initial=0)),
            "images": dark[:MAX_NAMED],
        },
    }


def describe(counts: Mapping[str, Any], bits: int) -> str:
    """What `summarize` returned as a line of text."""
    line = f"16-bit images: {counts['count']:,}, levels up to {counts['highest']:,}: "
    if bits == ALL_BITS:
        line += "65,535 is white."
    else:
        line += f"they use {bits} bits, and {2**bits - 1:,} is white (--significant_bits)."
    if counts["clipped"]:
        line += f" {counts['clipped']:,} of them have higher levels, which are white, too."
    return line


def warning(counts: Mapping[str, Any], bits: int) -> str:
    """A line about images that look nearly black, since others use more bits; "": there are few."""
    dark = counts["dark"]
    if dark["count"] < max(1, MIN_DARK_SHARE * counts["count"]):
        return ""
    named = ", ".join(dark["images"][:3]) + (", ..." if dark["count"] > 3 else "")
    used = choose_bits([dark["highest"]])
    return (
        f"{dark['count']:,} of {counts['count']:,} 16-bit images look nearly black: their levels "
        f"are at most {dark['highest']:,} ({named}), but others reach {counts['highest']:,}, so "
        f"{2**bits - 1:,} is white. Give images of one range, or --significant_bits={used} if "
        f"{2**used - 1:,} is white in all of them."
    )
