"""Pools: which split of which source the images of each role are taken from."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from nsk.config.data import DataConfig
from nsk.data import sources
from nsk.data.class_names import normalize_name, read_class_names
from nsk.data.sources.source import Source, SourceImage
from nsk.data.splits import base_pool, check_number, check_splits_are_given
from nsk.errors import UserError, list_names

UNLABELED_PREFIX = "unlabeled_dataset/"


@dataclasses.dataclass(frozen=True)
class Pool:
    """A split of a source.

    Attributes:
        source: the source.
        split: one of its splits.
        has_same_classes: whether its labels are of the classes of --dataset.
        classes: int array, the class of --dataset for each class of the source; None: the same.
        id_prefix: what the ids of its images start with, before those of the source.
        flag: the setting that names the source.
    """

    source: Source
    split: str
    has_same_classes: bool = True
    classes: np.ndarray | None = None
    id_prefix: str = ""
    flag: str = "dataset"

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
    names, classes = _order_classes(config, source)
    if len(names) < 2:
        raise UserError(f"--dataset={config.dataset} has only one class, {names[0]!r}: give two.")
    if for_training:
        _check_empty_classes(config, source, names, classes)
    pools = {split: Pool(source, split, classes=classes) for split in source.splits}
    if config.test_dataset:
        test_source = opened["test_dataset"]
        split = _first_available_split(test_source, "test", "train", "labeled", "dev")
        classes_of_test = _match_classes(config, test_source, names)
        pools["test"] = Pool(test_source, split, classes=classes_of_test, flag="test_dataset")
    if config.unlabeled_dataset:
        unlabeled_source = opened["unlabeled_dataset"]
        # Unlabelled images may be of other classes, but then their labels have no meaning here.
        is_same = _normalized(unlabeled_source) == _normalized(source)
        split = _first_available_split(unlabeled_source, "unlabeled", "train", "labeled")
        # The remaining images of --dataset may have the same ids.
        prefix = UNLABELED_PREFIX if config.keep_remaining else ""
        pools["unlabeled"] = Pool(
            unlabeled_source, split, is_same, classes, prefix, "unlabeled_dataset"
        )
    if for_training and "train" not in pools and "labeled" not in pools:
        raise UserError(
            f"--dataset={config.dataset} has only {', '.join(source.splits)}: it needs class "
            "folders, or a labeled folder with class folders, or a --train_split."
        )
    return pools, names


def open_test_pool(
    config: DataConfig, model_classes: Sequence[str] | None = None
) -> tuple[dict[str, Pool], list[str]]:
    """Opens `test_dataset` alone.

    Args:
        config: the settings of the data.
        model_classes: names of the classes that the images are of, all or some; None: those of the
            images.

    Returns:
        dict from test to its `Pool`, and the class names.

    Raises:
        UserError: the images have no labels, or other classes.
    """
    source = sources.open_sources(config)["test_dataset"]
    split = _first_available_split(source, "test", "train", "labeled", "dev")
    names = list(model_classes or source.class_names or ())
    classes = _match_classes(config, source, names, "the model")
    return {"test": Pool(source, split, classes=classes, flag="test_dataset")}, names


def check_counts(config: DataConfig, opened: Mapping[str, Source]) -> None:
    """Checks that there can be a dev and a labelled split, before any image is read.

    Args:
        config: the settings of the data.
        opened: what `sources.open_sources` returned.

    Raises:
        UserError: no number or share of images is given for a split that the source lacks, or more
            images than there are.
    """
    source = opened["dataset"]
    if not {"train", "labeled"} & set(source.splits):
        return
    base = base_pool(source.splits)
    check_splits_are_given(config, source.splits)
    available = source.count(base)
    if available is None:
        return
    if "test" not in source.splits and not config.test_dataset:
        available -= round(config.test_fraction * available)
    for split, number in (("dev", config.num_dev), ("labeled", config.num_labeled)):
        own = source.count(split) if split in source.splits and split != base else None
        if own is not None:
            check_number(number, own, split)
        else:
            check_number(number, available, split)
            available -= number


def count_unused_splits(pools: Mapping[str, Pool]) -> dict[str, int]:
    """Number of images of each split of a source that no pool is taken from.

    Args:
        pools: what `open_pools` returned.

    Returns:
        dict from words, such as `test of --dataset`, to the number.
    """
    sources_by_flag = {pool.flag: pool.source for pool in pools.values()}
    used = {(pool.flag, pool.split) for pool in pools.values()}
    counts = {}
    for flag, source in sources_by_flag.items():
        for split in source.splits:
            if (flag, split) not in used:
                number = source.count(split)
                if number is None:
                    number = sum(1 for _ in source.images(split))
                counts[f"{split} of --{flag}"] = number
    return counts


def _order_classes(config: DataConfig, source: Source) -> tuple[list[str], np.ndarray | None]:
    """The names of the classes in order, and the class of each class of --dataset; None: the same.

    Sources without names number their classes: a file gives the names of the numbers.
    """
    if not config.class_names:
        return source.class_names, None
    names = read_class_names(Path(config.class_names).expanduser())
    found = _normalized(source)
    if _are_numbers_of(found, names):
        return names, None
    unknown = [name for name in found if name not in names]
    if unknown:
        raise UserError(
            f"--class_names={config.class_names} lacks {list_names(unknown)}, of "
            f"--dataset={config.dataset}: give the names of all classes, one per line."
        )
    return names, np.array([names.index(name) for name in found], np.int64)


def _are_numbers_of(found: list[str], names: list[str]) -> bool:
    """Whether a source without names numbers the classes that have these names."""
    is_unnamed = found == [str(number) for number in range(len(found))]
    return is_unnamed and len(found) <= len(names) and not set(found) & set(names)


def _check_empty_classes(
    config: DataConfig, source: Source, names: list[str], classes: np.ndarray | None
) -> None:
    """UserError if there are classes without any image to train on."""
    used = set(range(len(source.class_names)) if classes is None else classes.tolist())
    unused = [name for index, name in enumerate(names) if index not in used]
    empty = [
        f"{name} ({instead})" if instead else name for name, instead in source.empty_classes.items()
    ]
    if empty or unused:
        raise UserError(
            f"--dataset={config.dataset} has classes without images to train on: "
            f"{list_names([*empty, *unused])}: fill them, or remove their folders "
            "or names."
        )


def _match_classes(
    config: DataConfig, source: Source, names: list[str], owner: str = ""
) -> np.ndarray | None:
    """The class among `names` for each class of --test_dataset, by name; None if they are equal.

    `owner` has the names; "": --dataset.
    """
    test_names = _normalized(source)
    if test_names == list(map(normalize_name, names)):
        return None
    if (config.class_names or owner) and test_names and _are_numbers_of(test_names, names):
        return None
    indices = {normalize_name(name): index for index, name in enumerate(names)}
    # A class without images that --dataset does not have is no class.
    empty = set(map(normalize_name, source.empty_classes))
    unknown = [name for name in test_names or () if name not in indices and name not in empty]
    if test_names is None:
        raise UserError(f"--test_dataset={config.test_dataset} has no labels: {source.label_hint}.")
    if unknown:
        raise UserError(
            f"--test_dataset={config.test_dataset} has the classes {list_names(test_names)} but "
            f"{owner or f'--dataset={config.dataset}'} has {list_names(names)}: they must be "
            "equal, or some of them."
        )
    logging.info(
        "--test_dataset: its classes are matched by name with those of %s.", owner or "--dataset"
    )
    return np.array([indices.get(name, -1) for name in test_names], np.int64)


def _normalized(source: Source) -> list[str] | None:
    """The names of the classes in Unicode's normal form C."""
    return source.class_names and list(map(normalize_name, source.class_names))


def _first_available_split(source: Source, *preferred: str) -> str:
    return next((split for split in preferred if split in source.splits), source.splits[0])
