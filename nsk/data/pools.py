"""Pools: which split of which source the images of each role are taken from."""

import dataclasses

from nsk.config.data import DataConfig
from nsk.data import sources
from nsk.data.sources.source import Source
from nsk.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pool:
    """A split of a source.

    Attributes:
        source: the source.
        split: one of its splits.
        has_same_classes: whether its labels are of the same classes as those of --dataset.
    """

    source: Source
    split: str
    has_same_classes: bool = True


def open_pools(config: DataConfig, for_training: bool = True) -> tuple[dict[str, Pool], list[str]]:
    """Opens the sources and decides what each of their splits is used for.

    Args:
        config: the settings of the data.
        for_training: whether images to train on are needed.

    Returns:
        dict from train, labeled, dev, test or unlabeled to its `Pool`, and the class names.

    Raises:
        UserError: the sources do not fit together, or --dataset has too few classes.
    """
    opened = sources.open_sources(config)
    source = opened["dataset"]
    if source.class_names is None:
        raise UserError(f"--dataset={config.dataset} has no labels: {source.label_hint}.")
    if len(source.class_names) < 2:
        raise UserError(
            f"--dataset={config.dataset} has only one class, {source.class_names[0]!r}: give two."
        )
    pools = {split: Pool(source, split) for split in source.splits}
    if config.test_dataset:
        test_source = opened["test_dataset"]
        if test_source.class_names != source.class_names:
            raise UserError(
                f"--test_dataset={config.test_dataset} has the classes "
                f"{_abbreviate(test_source.class_names)} but --dataset={config.dataset} has "
                f"{_abbreviate(source.class_names)}: they must be equal."
            )
        split = _first_available_split(test_source, "test", "train", "labeled", "dev")
        pools["test"] = Pool(test_source, split)
    if config.unlabeled_dataset:
        unlabeled_source = opened["unlabeled_dataset"]
        # Unlabelled images may be of other classes, but then their labels have no meaning here.
        is_same = unlabeled_source.class_names == source.class_names
        split = _first_available_split(unlabeled_source, "unlabeled", "train", "labeled")
        pools["unlabeled"] = Pool(unlabeled_source, split, is_same)
    if for_training and "train" not in pools and "labeled" not in pools:
        raise UserError(
            f"--dataset={config.dataset} has only {', '.join(source.splits)}: it needs class "
            "folders, or a labeled folder with class folders, or a --train_split."
        )
    return pools, source.class_names


def _first_available_split(source: Source, *preferred: str) -> str:
    return next((split for split in preferred if split in source.splits), source.splits[0])


def _abbreviate(names: list[str] | None) -> str:
    if names is None:
        return "(none)"
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")
