"""16-bit images that use few of their bits, such as 12-bit ones of cameras and scanners.

Files of 16 bits do not say which level is white: a 12-bit image has levels up to 4,095, and looks
nearly black if 65,535 is white. So the bits are found from all images together, whatever their
split, and all of them are scaled alike.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from nsk.data.normalization import ALL_BITS, MIN_BITS

DARK_BITS = 4  # Images that use so many bits less than others have at most 16 of 256 levels.
MIN_DARK_SHARE = 0.1  # A single dark image may be of a dark scene.
MAX_NAMED = 100


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
