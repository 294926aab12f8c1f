"""Tables for a terminal."""


def columns(rows, left):
    """Lines of text in aligned columns.

    Args:
        rows: list of tuples of strings, the header first.
        left: how many columns are aligned to the left; the others are to the right.

    Returns:
        list of strings.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
