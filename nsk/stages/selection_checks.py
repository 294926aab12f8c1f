"""Checks of a selection before hours are spent on the student that learns from it.

Published selections pass them; docs/pseudo_labels.md compares their figures with the limits here.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from absl import logging

from nsk.config.selection import SelectionConfig
from nsk.config.train import BUDGETS
from nsk.errors import MAX_NAMES, GenerationFailedError, list_names
from nsk.stages.hyperparameters import Hyperparameters, training_hyperparameters
from nsk.stages.runner import StageRunner
from nsk.stages.selection import CLASSES_FILE, name_classes
from nsk.store.folders import StageFolder

# A smaller share of the unlabelled images is few. Published selections keep 11 % or more.
FEW_KEPT = 0.05
# An image that is seen this many times as often as a labelled one is seen far more often. In
# published trainings a pseudo-labelled image is seen at most as often as a labelled one on average,
# and up to twice as often in the smallest classes.
FAR_MORE_OFTEN = 10
# A class takes most of the candidates if it has more than half of them and the odds of being of the
# class are this many times those among the labelled images. Odds, since the share of a class that
# is already common cannot rise much: they rise from 1 to 5 from a half to five sixths.
MOST_ODDS = 5


@dataclasses.dataclass(frozen=True)
class SelectionFigures:
    """What a selection kept, and how its student is trained.

    Attributes:
        generation: number of the student.
        class_names: of all classes.
        scored: number of unlabelled images.
        candidates: int array (num_classes,), images that reach the minimum confidence of the class.
        kept: int array (num_classes,), different images among them that are selected.
        copies: int array (num_classes,), their copies in an epoch.
        thresholds: float array (num_classes,), minimum confidences.
        labeled: int array (num_classes,), labelled images.
        labeled_rows: labelled images in an epoch, with copies.
        settings: the section with the values of the generation that made the selection.
        training: hyperparameters of the student.
        classes_file: the file with all classes, inside the workdir.
    """

    generation: int
    class_names: list[str]
    scored: int
    candidates: np.ndarray
    kept: np.ndarray
    copies: np.ndarray
    thresholds: np.ndarray
    labeled: np.ndarray
    labeled_rows: int
    settings: SelectionConfig
    training: Hyperparameters
    classes_file: str

    @classmethod
    def of(
        cls,
        runner: StageRunner,
        generation: int,
        images: StageFolder,
        scores: StageFolder,
        selected: StageFolder,
    ) -> "SelectionFigures":
        """The figures of finished stages; arguments as for `check_selection`."""
        config, per_class = runner.config, selected.counts["per_class"]
        labeled = np.array(images.counts["per_class"]["labeled"])
        labeled_copies = per_class["labeled_copies"]
        selected_for = 1 if config.chain.select == "once" else generation
        return cls(
            generation=generation,
            class_names=images.counts["class_names"],
            scored=scores.counts["scored"],
            candidates=np.array(per_class["candidates"]),
            kept=np.array(per_class["kept"]),
            copies=np.array(per_class["copies"]),
            thresholds=np.array(per_class["thresholds"]),
            labeled=labeled,
            labeled_rows=int(np.sum(labeled if labeled_copies is None else labeled_copies)),
            settings=config.selection.at(selected_for),
            training=training_hyperparameters(config, generation, images.counts),
            classes_file=f"{selected.name}/{CLASSES_FILE}",
        )

    @property
    def num_kept(self) -> int:
        """Different images that are selected."""
        return int(self.kept.sum())

    @property
    def is_too_small(self) -> bool:
        """Whether fewer images are kept than `--min_kept_fraction` asks for."""
        return self.num_kept < self.settings.min_kept_fraction * self.scored

    def times_seen(self) -> tuple[float, np.ndarray]:
        """How often the training sees a labelled image, and a kept one of each class, on average.

        Returns:
            A number, and a float64 array (num_classes,), 0 for classes without kept images.
        """
        steps, batch_sizes, copies = self.training.num_steps, self.training.batch_sizes, self.copies
        if len(batch_sizes) == 1:  # Drawn from the union.
            per_row = steps * batch_sizes[0] / (self.labeled_rows + copies.sum())
            labeled_rows_seen, per_pseudo_row = per_row * self.labeled_rows, per_row
        else:
            labeled_rows_seen = steps * batch_sizes[0]
            per_pseudo_row = steps * batch_sizes[1] / copies.sum()
        return labeled_rows_seen / self.labeled.sum(), per_pseudo_row * copies / np.maximum(
            1, self.kept
        )


def check_selection(
    runner: StageRunner,
    generation: int,
    images: StageFolder,
    scores: StageFolder,
    selected: StageFolder,
) -> None:
    """Warns of a selection that is unlikely to help its student.

    Args:
        runner: the runner of stages.
        generation: number of the student, 1 or more.
        images: the ingested images.
        scores: the scores of its teacher.
        selected: the selection, from these or an earlier teacher's scores.

    Raises:
        GenerationFailedError: fewer images are kept than `--min_kept_fraction` asks for.
    """
    figures = SelectionFigures.of(runner, generation, images, scores, selected)
    if not figures.training.learns_pseudo_labels:
        return
    for line in describe_problems(figures):
        logging.warning("%s", line)
    if figures.is_too_small:
        raise GenerationFailedError(describe_shortage(figures))


def describe_problems(figures: SelectionFigures) -> Iterator[str]:
    """Yields a line for each reason to doubt a selection, but for `describe_shortage`."""
    if figures.num_kept < FEW_KEPT * figures.scored and not figures.is_too_small:
        yield f"Few images are kept, {_describe_kept(figures)}: {_how_to_keep_more(figures)}."
    yield from _describe_empty_classes(figures)
    yield from _describe_repetition(figures)
    yield from _describe_largest_class(figures)


def describe_shortage(figures: SelectionFigures) -> str:
    """Why too few images are kept to train a student."""
    minimum = figures.settings.min_kept_fraction
    return (
        f"{_describe_kept(figures)}; --min_kept_fraction={minimum:g} asks for "
        f"{int(np.ceil(minimum * figures.scored)):,}: student {figures.generation} cannot gain "
        f"from so few: {_how_to_keep_more(figures)}. A lower --min_kept_fraction trains it "
        "nevertheless."
    )


def _describe_kept(figures):
    num_candidates, share = figures.candidates.sum(), figures.num_kept / figures.scored
    return (
        f"{figures.num_kept:,} of {figures.scored:,} unlabelled images ({100 * share:.2g} %; "
        f"{num_candidates:,} reach the minimum confidence of their class)"
    )


def _how_to_keep_more(figures):
    """The setting that keeps more images: of the filter, or of the policy if it cuts most."""
    settings, num_candidates = figures.settings, int(figures.candidates.sum())
    if num_candidates < 2 * figures.num_kept:
        filters = "--min_confidence" + (" or --target_precision" * bool(settings.target_precision))
        return f"lower {filters}, or train a better teacher"
    if settings.policy == "gap":
        return f"raise --gap_margin={settings.gap_margin}"
    mean = "" if settings.images_per_class else f" (the mean: {_mean_copies(figures):,})"
    return f"raise --images_per_class={settings.images_per_class}{mean}"


def _describe_empty_classes(figures):
    empty, names = np.flatnonzero(figures.candidates == 0), figures.class_names
    if not len(empty):
        return
    named = name_classes(empty, names, figures.thresholds)
    if len(empty) > MAX_NAMES:
        named += f" (all classes: {figures.classes_file})"
    if 2 * len(empty) <= len(names):
        them = "it" if len(empty) == 1 else "them"
        yield (
            f"No image is labelled {named} with the minimum confidence: students see {them} only "
            "with true labels."
        )
        return
    yield (
        f"{len(empty):,} of {len(names):,} classes have no pseudo-labels with the minimum "
        f"confidence: {named}. Student {figures.generation} sees them only with true labels: "
        "lower --min_confidence, or train a better teacher."
    )


def _describe_repetition(figures):
    labeled, seen = figures.times_seen()
    mean, train = np.average(seen, weights=figures.kept), figures.training.train
    student = f"Student {figures.generation} would see"
    budget = next(f"--{name}={getattr(train, name):g}" for name in BUDGETS if getattr(train, name))
    if mean > FAR_MORE_OFTEN * labeled and train.mixing != "union":
        can_keep_more = 2 * figures.num_kept < figures.scored
        more = _how_to_keep_more(figures) if can_keep_more else "give more unlabelled images"
        yield (
            f"{student} each of the {figures.num_kept:,} kept images {_format_times(mean)} on "
            f"average, a labelled one {_format_times(labeled)} (under {budget}): lower "
            f"--ratio={train.ratio:g}, or {more}."
        )
        return
    classes = np.flatnonzero(seen > FAR_MORE_OFTEN * labeled)
    if not len(classes):
        return
    classes = classes[np.argsort(-seen[classes], kind="stable")]
    named = [
        f"{figures.class_names[label]} ({figures.kept[label]:,}, {_format_times(seen[label])})"
        for label in classes
    ]
    yield (
        f"{student} {figures.kept[classes].sum():,} of {figures.num_kept:,} kept images more than "
        f"{FAR_MORE_OFTEN} times as often as a labelled one ({_format_times(labeled)} under "
        f"{budget}), by class (images, times each): {list_names(named)}. "
        f"{_how_to_repeat_less(figures)}."
    )


def _how_to_repeat_less(figures):
    """The setting of the policy that repeats the images of small classes."""
    if figures.settings.policy == "gap":
        return f"Lower --gap_floor={figures.settings.gap_floor}"
    return f"Give an --images_per_class below {_mean_copies(figures):,}"


def _mean_copies(figures):
    """Copies of a class that has any, on average."""
    return round(figures.copies.sum() / np.count_nonzero(figures.copies))


def _describe_largest_class(figures):
    total, num_labeled = figures.candidates.sum(), figures.labeled.sum()
    largest = int(np.argmax(figures.candidates))
    of_class, labeled = figures.candidates[largest], figures.labeled[largest]
    # Cross-multiplied, since there may be no other candidate.
    odds_rise = of_class * (num_labeled - labeled) > MOST_ODDS * labeled * (total - of_class)
    if 2 * of_class <= total or not odds_rise:
        return
    kept, of_labels = figures.kept[largest] / figures.num_kept, labeled / num_labeled
    how = (
        "raise --min_confidence or give --target_precision"
        if figures.settings.policy in ("paper", "labeled_shares")
        else "--policy=paper gives all classes the same number of images"
    )
    yield (
        f"{figures.class_names[largest]!r} takes {of_class / total:.1%} of {total:,} pseudo-labels "
        f"with the minimum confidence and {kept:.1%} of those kept, but {of_labels:.1%} of "
        f"{num_labeled:,} labels: the unlabelled images are not like the labelled ones, or the "
        f"teacher favours the class; {how}."
    )


def _format_times(times):
    """A number of times with three significant digits."""
    return f"{times:,.0f} times" if times >= 99.5 else f"{times:.3g} times"
