"""Plain-text tables."""

from collections.abc import Sequence


def align_columns(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Formats rows as lines of text with aligned columns.

    Args:
        rows: cells of each row, the header first.
        left: number of columns that are aligned to the left; the others are to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
