"""Where images come from and how they are split."""

import dataclasses

from nsk.config.fields import Condition, Section, setting, starts_with
from nsk.errors import UserError

SOURCES = ("dataset", "unlabeled_dataset", "test_dataset")
PATHS = (*SOURCES, "labels", "class_names")  # Of these settings, the content of the files counts.
WITHOUT_TEST_DATASET = Condition("no --test_dataset", lambda values: not values["test_dataset"])
WITH_TFDS = starts_with("dataset", "tfds:")
WITH_FOLDER = starts_with("dataset", "folder:")
WITH_LABELS = Condition("--labels", lambda values: WITH_FOLDER.holds(values) and values["labels"])
# A setting of the command predict, which no stage depends on.
WITH_IMAGES = Condition("--images", lambda values: bool(values.get("images")))
WITH_TFRECORDS = (
    starts_with("dataset", "tfrecord:")
    | starts_with("unlabeled_dataset", "tfrecord:")
    | starts_with("test_dataset", "tfrecord:")
)


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Where images come from and how they are split."""

    dataset: str = setting(
        "digits",
        "Source of images: digits (bundled with scikit-learn) | tfds:NAME[/config] | "
        "folder:PATH (CLASS/*.jpg, or train/CLASS/*.jpg, val/CLASS/*.jpg and so on) | "
        "tfrecord:PATTERN.",
    )
    unlabeled_dataset: str = setting(
        "",
        "Another source of unlabelled images; empty: the remaining images of --dataset.",
    )
    test_dataset: str = setting(
        "", "Another source of test images; empty: the test split of --dataset."
    )
    train_split: str = setting(
        "train", "TFDS split of --dataset for training images.", used_if=WITH_TFDS
    )
    test_split: str = setting("test", "TFDS split of --dataset for test images.", used_if=WITH_TFDS)
    unlabeled_split: str = setting(
        "",
        "TFDS split of --unlabeled_dataset for unlabelled images; empty: the split named "
        "unlabeled, else train.",
        used_if=starts_with("unlabeled_dataset", "tfds:"),
    )
    first_label: int = setting(
        0,
        "Label of the first class in tfrecord: sources (ImageNet's official records: 1).",
        minimum=0,
        used_if=WITH_TFRECORDS,
    )
    labels: str = setting(
        "",
        "Table of labels of the images of --dataset=folder:PATH: a CSV or Parquet file with a path "
        "and a label in each row, and perhaps a split and a group; empty: class folders.",
        used_if=WITH_FOLDER,
    )
    path_column: str = setting(
        "path",
        "--labels, and a table of --images: column of the path, or of the name of a file.",
        used_if=WITH_LABELS | WITH_IMAGES,
    )
    label_column: str = setting("label", "--labels: column of the label.", used_if=WITH_LABELS)
    split_column: str = setting(
        "split",
        "--labels: column, if there is one, of the split: train, labeled, dev, test or unlabeled.",
        used_if=WITH_LABELS,
    )
    group_column: str = setting(
        "group",
        "--labels: column, if there is one, of the group, such as a patient or a video: images of "
        "one group never are in two splits.",
        used_if=WITH_LABELS,
    )
    class_names: str = setting(
        "",
        "File with the names of the classes, one per line, in the order of their labels; empty: "
        "sorted, or as the source has them.",
    )
    class_descriptions: str = setting(
        "",
        "File with words for the names of classes, to be shown beside them in tables and reports: "
        "lines such as 'n01440764 tench, Tinca tinca', with a tab or a space behind the name.",
        changes_results=False,
    )
    keep_remaining: bool = setting(
        False,
        "Use the remaining images of --dataset as unlabelled ones beside those of "
        "--unlabeled_dataset, or of an unlabelled split of --dataset, not only in their absence.",
    )
    image_key: str = setting(
        "image/encoded",
        "Key of the encoded image in the records of tfrecord: sources.",
        used_if=WITH_TFRECORDS,
    )
    label_key: str = setting(
        "image/class/label",
        "Key of the label, an integer, in the records of tfrecord: sources.",
        used_if=WITH_TFRECORDS,
    )
    id_key: str = setting(
        "id",
        "Key of the id in the records of tfrecord: sources; a record without one is named after "
        "its file and position.",
        used_if=WITH_TFRECORDS,
    )
    num_labeled: int = setting(
        0,
        "Labelled training images, balanced over the classes; 0: see --labeled_fraction.",
        minimum=0,
    )
    labeled_fraction: float = setting(
        0.0,
        "Labelled share of the training images (all but test; dev images count among them), "
        "instead of --num_labeled; 1: all that are not dev images.",
        minimum=0.0,
        maximum=1.0,
    )
    num_dev: int = setting(
        0, "Labelled images held out of training for decisions; 0: see --dev_fraction.", minimum=0
    )
    dev_fraction: float = setting(
        0.0,
        "Held-out share of the training images (all but test), instead of --num_dev.",
        minimum=0.0,
        maximum=0.9,
    )
    test_fraction: float = setting(
        0.2,
        "Share of the images held out as test split, if the source has no test split. The same "
        "images for every seed.",
        minimum=0.01,
        maximum=0.9,
        used_if=WITHOUT_TEST_DATASET,
    )
    split_seed: int = setting(
        -1, "Seed of the random choice of labelled and dev images; -1: --seed.", minimum=-1
    )
    conflicting_labels: str = setting(
        "keep",
        "Labelled images with the same pixels under several labels; they are counted and named. "
        "keep: all stay | drop: all are left out | majority: only the most frequent label of these "
        "pixels stays. Images of a given test split are never left out.",
        choices=("keep", "drop", "majority"),
    )
    significant_bits: int = setting(
        0,
        "Bits that 16-bit images use: the highest level of these bits becomes white; 0: the fewest "
        "that have the levels of all 16-bit images, of every split, and at least 8.",
        minimum=0,
        maximum=16,
    )
    images_per_shard: int = setting(
        4096, "Maximum number of images in a TFRecord shard of ingested images.", minimum=1
    )
    shard_mebibytes: int = setting(
        16,
        "Size of a full TFRecord shard, MiB: a small fraction of --shuffle_mebibytes, so that a "
        "shuffle window spans many shards.",
        minimum=1,
    )
    max_corrupt_fraction: float = setting(
        0.01,
        "Largest share of unreadable images that is accepted.",
        minimum=0.0,
        maximum=1.0,
    )
    max_image_bytes: int = setting(
        64 * 2**20, "Largest encoded image, bytes; larger images count as unreadable.", minimum=1
    )
    max_image_pixels: int = setting(
        100_000_000,
        "Largest image, pixels; larger images count as unreadable and are not decoded.",
        minimum=1,
    )

    @property
    def has_test_alone(self) -> bool:
        """Whether an evaluation needs `test_dataset` alone: no `dataset` is given, and no dev."""
        return bool(
            self.test_dataset
            and self.dataset == type(self).dataset
            and not (self.num_dev or self.dev_fraction)
        )

    def __post_init__(self):
        super().__post_init__()
        for count, fraction in (("num_labeled", "labeled_fraction"), ("num_dev", "dev_fraction")):
            if getattr(self, count) and getattr(self, fraction):
                raise UserError(
                    f"--{count}={getattr(self, count)} and --{fraction}={getattr(self, fraction)} "
                    "were both given: give one of them."
                )
        for name in SOURCES:
            source = getattr(self, name)
            kind, _, rest = source.partition(":")
            known = source in ("", "digits") or (kind in ("tfds", "folder", "tfrecord") and rest)
            if not known or (name == "dataset" and not source):
                raise UserError(
                    f"--{name}={source!r} is not a data source: expected digits, tfds:NAME, "
                    "folder:PATH or tfrecord:PATTERN."
                )
