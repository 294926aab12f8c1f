"""Pools: which split of which source the images of each role are taken from."""

import dataclasses

import numpy as np
from absl import logging

from nsk.config.data import DataConfig
from nsk.data import sources
from nsk.data.class_names import normalize_name
from nsk.data.sources.source import Source, SourceImage
from nsk.errors import UserError, list_names


@dataclasses.dataclass(frozen=True)
class Pool:
    """A split of a source.

    Attributes:
        source: the source.
        split: one of its splits.
        has_same_classes: whether its labels are of the classes of --dataset.
        classes: int array, the class of --dataset for each class of the source; None: the same.
    """

    source: Source
    split: str
    has_same_classes: bool = True
    classes: np.ndarray | None = None

    def label(self, image: SourceImage) -> int:
        """The class of an image of this pool, an index of the classes of --dataset; -1: unknown."""
        if image.label is None or not self.has_same_classes:
            return -1
        return image.label if self.classes is None else int(self.classes[image.label])


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
    if for_training and source.empty_classes:
        raise UserError(
            f"--dataset={config.dataset} has classes without images to train on: "
            f"{list_names(source.empty_classes)}: fill or remove their folders."
        )
    pools = {split: Pool(source, split) for split in source.splits}
    if config.test_dataset:
        test_source = opened["test_dataset"]
        split = _first_available_split(test_source, "test", "train", "labeled", "dev")
        pools["test"] = Pool(test_source, split, classes=_match_classes(config, opened))
    if config.unlabeled_dataset:
        unlabeled_source = opened["unlabeled_dataset"]
        # Unlabelled images may be of other classes, but then their labels have no meaning here.
        is_same = _normalized(unlabeled_source) == _normalized(source)
        split = _first_available_split(unlabeled_source, "unlabeled", "train", "labeled")
        pools["unlabeled"] = Pool(unlabeled_source, split, is_same)
    if for_training and "train" not in pools and "labeled" not in pools:
        raise UserError(
            f"--dataset={config.dataset} has only {', '.join(source.splits)}: it needs class "
            "folders, or a labeled folder with class folders, or a --train_split."
        )
    for flag, opened_source in opened.items():
        for note in opened_source.notes:
            logging.info("--%s: %s", flag, note)
    return pools, source.class_names


def _match_classes(config: DataConfig, opened: dict[str, Source]) -> np.ndarray | None:
    """The class of --dataset for each class of --test_dataset, by name; None if they are equal."""
    names, test_names = _normalized(opened["dataset"]), _normalized(opened["test_dataset"])
    if test_names == names:
        return None
    indices = {name: index for index, name in enumerate(names)}
    # A class without images that --dataset does not have is no class.
    empty = set(map(normalize_name, opened["test_dataset"].empty_classes))
    unknown = [name for name in test_names or () if name not in indices and name not in empty]
    if test_names is None or unknown:
        raise UserError(
            f"--test_dataset={config.test_dataset} has the classes {_abbreviate(test_names)} but "
            f"--dataset={config.dataset} has {_abbreviate(names)}: they must be equal, or some of "
            "them."
        )
    present = set(test_names) - empty
    logging.info(
        "--test_dataset: it has images of %d of the %d classes, none of %s.",
        len(present & set(names)),
        len(names),
        list_names([name for name in names if name not in present]),
    )
    return np.array([indices.get(name, -1) for name in test_names], np.int64)


def _normalized(source: Source) -> list[str] | None:
    """The names of the classes in Unicode's normal form C."""
    return source.class_names and list(map(normalize_name, source.class_names))


def _first_available_split(source: Source, *preferred: str) -> str:
    return next((split for split in preferred if split in source.splits), source.splits[0])


def _abbreviate(names: list[str] | None) -> str:
    if names is None:
        return "(none)"
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")
