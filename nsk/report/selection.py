"""What a selection keeps, for a person: class by class, with what dev says of it."""

import sys

from nsk.report.table import columns

COLUMNS = (
    "thresholds",
    "candidates",
    "kept",
    "copies",
    "lowest_confidence",
    "dev_kept",
    "dev_correct",
)


def report(images, scores, selected):
    """Prints the table of a selection; nothing in it comes from test or from hidden labels.

    Args:
        images, scores, selected: the `Stage`s.

    Returns:
        dict: the selection's counts.
    """
    class_names, counts = images.counts["class_names"], selected.counts
    of_classes = counts["per_class"]
    header = ("class", "threshold", "candidates", "kept", "copies", "lowest", "dev kept", "right")
    rows = [header]
    for index, name in enumerate(class_names):
        one = {
            key: values[index] for key, values in of_classes.items() if key != "starved" and values
        }
        rows.append(
            (
                name,
                f"{one['thresholds']:.4g}",
                f"{one['candidates']:,}",
                f"{one['kept']:,}",
                f"{one['copies']:,}",
                "-" if one["lowest_confidence"] is None else f"{one['lowest_confidence']:.4g}",
                f"{one['dev_kept']:,}",
                share(one["dev_correct"], one["dev_kept"]),
            )
        )
    dev_kept, dev_correct = sum(of_classes["dev_kept"]), sum(of_classes["dev_correct"])
    rows.append(
        (
            "all",
            "",
            f"{sum(of_classes['candidates']):,}",
            f"{counts['images']:,}",
            f"{counts['copies']:,}",
            "",
            f"{dev_kept:,}",
            share(dev_correct, dev_kept),
        )
    )
    temperature = scores.counts["temperature"]
    fits = f"The temperature that fits dev best is {temperature:.3f}. " if temperature else ""
    sys.stdout.write(
        "\n".join(
            (
                "",
                *columns(rows, left=1),
                "",
                f"Of {scores.counts['scored']:,} unlabelled images. Dev kept: of "
                f"{images.counts['images']['dev']:,} dev images, those that reach their "
                "threshold; right: so many of them are what the teacher says. "
                f"{fits}Nothing was trained.",
                f"Selection: {selected.path}",
                "",
            )
        )
    )
    return counts


def share(part, whole):
    """A share in percent; "-" of nothing."""
    return f"{part / whole:.2%}" if whole else "-"
