"""What a selection keeps, for a person: class by class, with what dev says of it."""

import sys

from nsk.report.text_table import columns

DEV = (("dev kept", "dev_kept", "dev_correct"),)
CUT = (("before cut", "dev_before_cut", "dev_before_cut_correct"),)


def report(images, scores, selected):
    """Prints the table of a selection; nothing in it comes from test or from hidden labels.

    Args:
        images, scores, selected: the `Stage`s.

    Returns:
        dict: the selection's counts.
    """
    counts = selected.counts
    of_classes = counts["per_class"]
    knows_dev = scores.counts["temperature"] is not None
    is_cut = (
        knows_dev
        and of_classes.get("dev_before_cut", of_classes["dev_kept"]) != (of_classes["dev_kept"])
    )
    pairs = (DEV if knows_dev else ()) + (CUT if is_cut else ())
    header = ["class", "threshold", "candidates", "kept", "copies", "lowest"]
    all_classes = [
        "all",
        "",
        f"{sum(of_classes['candidates']):,}",
        f"{counts['images']:,}",
        f"{counts['copies']:,}",
        "",
    ]
    rows = [header]
    for index, name in enumerate(images.counts["class_names"]):
        lowest = of_classes["lowest_confidence"][index]
        rows.append(
            [
                name,
                f"{of_classes['thresholds'][index]:.4g}",
                *(f"{of_classes[one][index]:,}" for one in ("candidates", "kept", "copies")),
                "-" if lowest is None else f"{lowest:.4g}",
            ]
        )
    rows.append(all_classes)
    for title, whole, part in pairs:
        header += [title, "right"]
        wholes, parts = ([*of_classes[one], sum(of_classes[one])] for one in (whole, part))
        for row, one, right in zip(rows[1:], wholes, parts, strict=True):
            row += [f"{one:,}", share(right, one)]
    lines = ("", *columns(rows, left=1), "", " ".join(remarks(images, scores, is_cut)))
    sys.stdout.write("\n".join((*lines, f"Selection: {selected.path}", "")))
    return counts


def remarks(images, scores, is_cut):
    """What stands below the table: a list of sentences."""
    said = [f"Of {scores.counts['scored']:,} unlabelled images."]
    temperature = scores.counts["temperature"]
    if temperature is None:
        said.append("What the records' teacher says of dev is not known.")
    else:
        said.append(
            f"Dev kept: of {images.counts['images']['dev']:,} dev images, those that reach their "
            "threshold; right: so many of them are what the teacher says."
        )
        if is_cut:
            said.append("Before cut: those that reach the lowest confidence, too.")
        said.append(f"The temperature that fits dev best is {temperature:.3f}.")
    return [*said, "Nothing was trained."]


def share(part, whole):
    """A share in percent; "-" of nothing."""
    return f"{part / whole:.2%}" if whole else "-"
