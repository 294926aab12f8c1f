"""Numbers of images per class as text."""

from collections.abc import Mapping, Sequence

import numpy as np

from nsk.errors import MAX_NAMES, list_names


def describe_classes(
    class_names: Sequence[str], per_class: Mapping[str, Sequence[int]]
) -> list[str]:
    """Lines with the classes and their images in each split.

    Args:
        class_names: of all classes.
        per_class: dict from a split to the number of images of each class.

    Returns:
        A line with the first ten classes and, if there are more, the smallest and largest; and a
        line for each split that lacks classes.
    """
    rows = zip(class_names, *per_class.values(), strict=True)
    shown = [f"{name}: {'/'.join(f'{count:,}' for count in counts)}" for name, *counts in rows]
    line = f"Classes ({'/'.join(per_class)} images): {list_names(shown)}"
    if len(class_names) > MAX_NAMES:
        ranges = [_range(split, class_names, counts) for split, counts in per_class.items()]
        line += f". Per class {'; '.join(ranges)}"
    lines = [line + "."]
    for split, counts in per_class.items():
        missing = [name for name, count in zip(class_names, counts, strict=True) if not count]
        if missing:
            lines.append(f"Without {split} images: {list_names(missing)}.")
    return lines


def _range(split, class_names, counts):
    smallest, largest = int(np.argmin(counts)), int(np.argmax(counts))
    if counts[smallest] == counts[largest]:
        return f"{counts[smallest]:,} {split}"
    return (
        f"{counts[smallest]:,} ({class_names[smallest]}) to {counts[largest]:,} "
        f"({class_names[largest]}) {split}"
    )
