"""Sources of images: each defines its classes and yields encoded images; see `source.Source`."""

import os
from collections.abc import Mapping
from pathlib import Path

from nsk.config.data import DataConfig
from nsk.data.content import ContentDigests
from nsk.data.sources.digits import DigitsSource
from nsk.data.sources.folder import FolderSource
from nsk.data.sources.label_table import Columns, LabelTable
from nsk.data.sources.labeled_folder import LabeledFolderSource
from nsk.data.sources.source import Source
from nsk.data.sources.tfds import TfdsSource
from nsk.data.sources.tfrecord import DEFAULT_KEYS, RecordKeys, TfrecordSource
from nsk.errors import UserError


def open_source(
    name: str,
    train_split: str = "train",
    test_split: str = "test",
    max_image_bytes: int = DataConfig.max_image_bytes,
    first_label: int = 0,
    unlabeled_split: str = "",
    record_keys: RecordKeys = DEFAULT_KEYS,
    labels: LabelTable | None = None,
) -> Source:
    """Opens a source by its name on the command line.

    Args:
        name: digits, tfds:NAME[/config], folder:PATH or tfrecord:PATTERN.
        train_split: the TFDS split to train on; the default one may be missing.
        test_split: the TFDS split to test on; the default one may be missing.
        max_image_bytes: of larger files only one byte more is read.
        first_label: the label of the first class in TFRecord files.
        unlabeled_split: the TFDS split of unlabelled images; "": the one called unlabeled.
        record_keys: keys in the records of TFRecord files.
        labels: labels of the images of a folder; None: its folders are classes.

    Raises:
        UserError: the source is missing or its layout is not as expected.
    """
    kind, _, location = name.partition(":")
    if name == "digits":
        return DigitsSource()
    if kind == "tfds":
        return TfdsSource(location, train_split, test_split, unlabeled_split)
    if kind == "folder" and labels is not None:
        return LabeledFolderSource(Path(os.path.expanduser(location)), labels, max_image_bytes)
    if kind == "folder":
        return FolderSource(Path(os.path.expanduser(location)), max_image_bytes)
    if kind == "tfrecord":
        return TfrecordSource(location, first_label, max_image_bytes, record_keys)
    raise ValueError(
        f"{name!r} is not a source: expected digits, tfds:NAME, folder:PATH or tfrecord:PATTERN."
    )


def open_sources(config: DataConfig) -> dict[str, Source]:
    """Opens the sources that the settings name.

    Returns:
        dict from dataset, test_dataset and unlabeled_dataset, as far as they are not empty, to the
        source.

    Raises:
        UserError: see `open_source`.
    """
    # --train_split and --test_split only apply to --dataset.
    common = {
        "max_image_bytes": config.max_image_bytes,
        "first_label": config.first_label,
        "record_keys": RecordKeys(config.image_key, config.label_key, config.id_key),
    }
    labels = None
    if config.labels:
        columns = Columns(
            config.path_column, config.label_column, config.split_column, config.group_column
        )
        path = Path(os.path.expanduser(config.labels))
        labels = LabelTable(path, columns, config.max_corrupt_fraction)
    opened = {}
    if config.dataset:
        opened["dataset"] = open_source(
            config.dataset, config.train_split, config.test_split, labels=labels, **common
        )
    split = {"unlabeled_split": config.unlabeled_split}
    for flag, given in (("test_dataset", {}), ("unlabeled_dataset", split)):
        if name := getattr(config, flag):
            try:
                opened[flag] = open_source(name, **common, **given)
            except UserError as error:
                raise UserError(f"--{flag}={name}: {error}") from None
    return opened


def content(
    config: DataConfig, digests: ContentDigests, opened: Mapping[str, Source] | None = None
) -> dict[str, dict]:
    """What the sources hold, to detect that images were added, removed or replaced.

    Args:
        config: the settings of the data.
        digests: describes files.
        opened: what `open_sources` returned; None: they are opened, for what they hold now.

    Returns:
        JSON-like dict from dataset, test_dataset, unlabeled_dataset and class_names, if used, to
        the kind of the source and its `content()`. It does not depend on where files are.

    Raises:
        UserError: see `open_source`.
    """
    found = {
        flag: {"source": getattr(config, flag).partition(":")[0], **source.content(digests)}
        for flag, source in (opened or open_sources(config)).items()
    }
    if config.class_names:
        found["class_names"] = digests.describe({"": Path(os.path.expanduser(config.class_names))})
    return found
