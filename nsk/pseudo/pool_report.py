"""What a comparison of the unlabelled images with dev found, in words.

The arguments `compared` are results of `nsk.pseudo.pool_comparison.compare`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nsk.pseudo.pool_comparison import KEPT_DEV

# Share of the images that are unlike dev which a filter must be able to find to be worth it.
MIN_FILTERED = 0.5
# Classes that are named with their shares.
MAX_CLASSES = 3
MEDIAN = 2  # Among `pool_comparison.QUANTILES`.


def describe_pool(compared: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """The figures of the unlabelled images beside those of dev, without a full stop."""
    shares, classes = compared["confidence"]["above_threshold"], compared["classes"]
    precision = compared["confidence"]["dev_precision"]
    correct = "" if precision is None else f", {precision:.1%} of them labelled correctly"
    parts = [
        f"{shares['pool']:.1%} reach the minimum confidence (dev: {shares['dev']:.1%}{correct})",
        f"predicted {_describe_classes(classes, class_names)}",
    ]
    if compared["distance"] is not None:
        quantiles = compared["distance"]["quantiles"]
        parts.append(
            f"median distance to dev in features {quantiles['pool'][MEDIAN]:.3g} (dev: "
            f"{quantiles['dev'][MEDIAN]:.3g})"
        )
    if "unknown" in compared["unlike"]:
        parts.append(
            f"at least an estimated {compared['unknown_share']:.0%} are unlike dev in features "
            f"({compared['unknown_share_above']:.0%} of those that reach the confidence): of no "
            "known class, or dev is of another source"
        )
    return ", ".join(parts)


def _describe_classes(classes, names):
    """The most frequent classes with their shares, and those in dev."""
    pool, dev = (_shares(classes["predicted"][part]) for part in ("pool", "dev"))
    most = sorted(range(len(pool)), key=lambda label: -pool[label])[:MAX_CLASSES]
    shown = ", ".join(f"{names[label]} {pool[label]:.0%}" for label in most)
    return f"{shown} (dev: {', '.join(f'{dev[label]:.0%}' for label in most)})"


def _shares(counts):
    return [count / max(1, sum(counts)) for count in counts]


def _suggest_for_unknown(compared, is_filtered):
    """What to do about images that are unlike dev in features, as a sentence."""
    beyond, images = compared["distance"]["beyond_limit"], compared["images"]
    expected = (1 - KEPT_DEV) * images
    excess = (beyond - expected) / (images - expected)
    if excess < compared["unknown_share"] * MIN_FILTERED:
        return (
            f"Only {beyond / images:.0%} are farther from dev than {KEPT_DEV:.0%} of the dev "
            "images, which is all that --unknown_classes=filter can leave out: most differ a "
            "little, as images of another source do (camera, size, compression); give a dev split "
            "like them."
        )
    if is_filtered:
        return "Better than to filter them, remove images of other classes or sources."
    return (
        f"--unknown_classes=filter leaves out the {beyond:,} images that are farther from dev than "
        f"{KEPT_DEV:.0%} of the dev images; better, remove images of other classes or sources."
    )


def suggest(
    compared: Mapping[str, Any], class_names: Sequence[str], is_filtered: bool = False
) -> str:
    """What may be the cause of the differences, and what to do, as sentences; "" if none.

    Args:
        compared: the result of a comparison.
        class_names: names of all classes.
        is_filtered: whether images far from dev are left out already.
    """
    unlike, sentences = compared["unlike"], []
    if "unknown" in unlike:
        sentences.append(_suggest_for_unknown(compared, is_filtered))
    elif "confidence" in unlike:
        sentences.append(
            "The teacher is less certain of the unlabelled images than of dev: check that they are "
            "of the same kind and have the same pixels (size, colours, source)."
        )
    if "classes" in unlike:
        classes = compared["classes"]
        rare = [
            name
            for name, share, dev in zip(
                class_names, classes["estimated_shares"], classes["dev_shares"], strict=True
            )
            if share < dev / 10
        ]
        listed = f" {len(rare)} of {len(class_names)} classes hardly occur in them;" if rare else ""
        sentences.append(
            f"{classes['shift']:.0%} of the unlabelled images would have to be of another class to "
            f"have dev's shares, or images of other classes look like some of them:{listed} add "
            "images of the rare classes, or give a dev split like these images."
        )
    return " ".join(sentences)


def describe_selection(
    selected: Mapping[str, Any],
    num_scored: int,
    class_names: Sequence[str],
    compared: Mapping[str, Any] | None,
) -> str:
    """What the pseudo-labels of a student were, as a sentence.

    Args:
        selected: the counts of the selection.
        num_scored: number of unlabelled images.
        class_names: names of all classes.
        compared: how the unlabelled images compare with dev; None: unknown.
    """
    kept, per_class = selected["images"], selected["per_class"]["kept"]
    filled = sum(count > 0 for count in per_class)
    largest = max(range(len(per_class)), key=per_class.__getitem__)
    parts = [
        f"Its pseudo-labels are of {kept:,} of {num_scored:,} unlabelled images",
        f"of {filled} of {len(class_names)} classes ({per_class[largest] / max(1, kept):.0%} "
        f"{class_names[largest]})",
    ]
    if compared is not None:
        parts.append(f"of all unlabelled images {describe_pool(compared, class_names)}")
    return "; ".join(parts) + "."
