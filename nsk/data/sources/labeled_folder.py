"""A folder of image files whose labels are in a table."""

import dataclasses
import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from nsk.config.data import DataConfig
from nsk.data.class_names import normalize_name, sort_names
from nsk.data.content import ContentDigests
from nsk.data.image_folders import FolderFiles, count_suffixes, list_files
from nsk.data.sources.folder import read_image
from nsk.data.sources.folder_layout import TRAINING_SPLITS, read_layout, split_of
from nsk.data.sources.label_table import LabelTable, Row, labels_in, match_rows, read_label_table
from nsk.data.sources.source import SPLITS, SkippedFiles, Source, SourceImage, count_outside
from nsk.errors import UserError, list_names, printable


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a file belongs: split, name of the class ("": unknown), and group ("": none)."""

    split: str
    label: str
    group: str


class LabeledFolderSource(Source):
    """Image files below a folder, with labels from a table; ids are their paths below the folder.

    - The split of an image is that of its row, or that of the folder that it is in (see
      `folder_layout.SPLIT_NAMES`), or else train. A class folder is no split, whatever its name.
    - A label in the table goes before that of a class folder. If the labels are no names of the
      class folders, these are no classes.
    - Images without a label are unlabelled ones, except for those of dev and test, which are not
      used.

    Args:
        root: the folder.
        table: the table.
        max_image_bytes: larger files are read up to one byte more, which marks them as too large.

    Raises:
        UserError: the folder, the table or a split in it is not as expected.
    """

    ids_reveal_labels = True

    def __init__(
        self,
        root: Path,
        table: LabelTable,
        max_image_bytes: int = DataConfig.max_image_bytes,
    ):
        self.root, self._table, self._max_image_bytes = Path(root), table.path, max_image_bytes
        self._columns = table.columns
        if not os.path.isdir(root):
            raise UserError(f"{root} is not a folder: give folder:PATH of one that holds images.")
        self._layout, self._layout_error = None, None
        try:
            self._layout = read_layout(os.fspath(root), needs_classes=False)
        except UserError as error:  # With the table it may be of use all the same.
            self._layout_error = error
        self._listed = FolderFiles()
        for files in self._layout.parts() if self._layout else [list_files(root)]:
            self._listed.update(files)
        self._paths = {self._name(path): path for path in self._listed.images}
        table_rows = read_label_table(table)
        rows, missing = match_rows(table_rows, self._paths, self.root, self._table)
        self._check_missing(missing, len(table_rows), table.max_missing_fraction)
        self._without_label = {}
        self._places = self._place(rows)
        used = [place.split for place in self._places.values() if place.split]
        self.splits = tuple(split for split in SPLITS if split in used)
        self.has_groups = any(place.group for place in self._places.values())
        self._set_classes()
        self.notes = tuple(self._describe(rows, missing))

    def _name(self, path: str) -> str:
        return Path(path).relative_to(self.root).as_posix()

    def _check_missing(self, missing: list[str], count: int, max_fraction: float) -> None:
        if len(missing) > max_fraction * count:
            raise UserError(
                f"--labels={self._table}: {len(missing):,} of {count:,} rows have no image below "
                f"{self.root}, more than --max_corrupt_fraction={max_fraction}: "
                f"{list_names(missing)}. Correct the paths or --path_column, or give the folder "
                "that they are relative to."
            )

    def _place(self, rows: dict[str, Row]) -> dict[str, _Place]:
        """The place of every image."""
        located_classes = self._located_classes()
        folder_classes = self._folder_classes(rows, located_classes)
        known = labels_in(rows) | set(folder_classes.values())
        splits = {
            file: _split_of_path(file, located_classes.get(file), known) for file in self._paths
        }
        has_labeled = "labeled" in splits.values()
        training = "labeled" if has_labeled else "train"
        places = {}
        for file, located in splits.items():
            row = rows.get(file, Row(file, ""))
            label, split = row.label or folder_classes.get(file, ""), self._split_of_row(row)
            if not split:
                split = located or training
                if label and split == "unlabeled":
                    split = training
            if not label and split in TRAINING_SPLITS:
                split = "unlabeled"
            if not label and split in ("dev", "test"):
                self._without_label.setdefault(split, []).append(self._paths[file])
                split = ""
            places[file] = _Place(split, label, row.group)
        return places

    def _split_of_row(self, row: Row) -> str:
        split = split_of(row.split) if row.split else ""
        if split is None:
            raise UserError(
                f"--labels={self._table}: {row.split!r}, of {printable(row.path)}, is not a split: "
                f"expected {', '.join(SPLITS)}."
            )
        return split

    def _located_classes(self) -> dict[str, str]:
        """The name of the class folder of each file that is in one, if the layout is known."""
        classes = self._layout.class_of_files() if self._layout else {}
        return {self._name(path): label for path, label in classes.items()}

    def _folder_classes(self, rows: dict[str, Row], classes: dict[str, str]) -> dict[str, str]:
        """Names of the class folders of the files without a row, as far as folders are classes."""
        if all(file in rows for file in self._paths):
            return {}
        if self._layout_error:
            labelled = (file for file, row in rows.items() if row.label)
            if all(_split_of_path(file) in ("dev", "test") for file in labelled):
                raise self._layout_error
            return {}  # The table has the labels, so the folders need not have them.
        corrected = {row.label for file, row in rows.items() if file in classes and row.label}
        return classes if corrected <= set(classes.values()) else {}

    def _set_classes(self) -> None:
        """Sets `class_names` and `empty_classes`: the classes of training images, and of others."""
        by_split = {}
        for place in self._places.values():
            if place.split and place.label:
                by_split.setdefault(place.split, set()).add(place.label)
        known = set().union(*(by_split.get(split, ()) for split in TRAINING_SPLITS))
        names = set().union(*(by_split.get(split, ()) for split in ("dev", "test")))
        if known and names - known:
            raise UserError(
                f"--labels={self._table}: dev or test have labels that no training image has: "
                f"{list_names(sorted(names - known))}. Correct or remove them."
            )
        # Unlabelled images may be of other classes.
        self._classes = sort_names(known or names, self._table)
        self.class_names = list(map(printable, self._classes)) or None

    def _describe(self, rows: dict[str, Row], missing: list[str]) -> Iterator[str]:
        yield (
            f"Labels of {len(rows):,} images, of {len(labels_in(rows)):,} classes, from "
            f"{self._table}."
        )
        groups = len({row.group for row in rows.values()} - {""})
        if groups:
            alone = sum(not row.group for row in rows.values())
            without = f" (images without a group: {alone:,})" if alone else ""
            yield f"Groups: {groups:,}, from column {self._columns.group}{without}."
        splits = Counter(split_of(row.split) for row in rows.values() if row.split)
        if splits:
            counts = [f"{splits[split]:,} {split}" for split in SPLITS if split in splits]
            yield f"Splits: {list_names(counts)}, from column {self._columns.split}."
        if missing:
            yield f"{len(missing):,} rows of {self._table} have no image: {list_names(missing)}."

    def content(self, digests: ContentDigests) -> dict:
        """Digest of names and content of the images and the table, and of other files' names."""
        files = {name: Path(path) for name, path in self._paths.items()}
        others = map(self._name, self._listed.others)
        table = digests.describe({"labels": self._table})["sha256"]
        return {"labels": table, **digests.describe(files, others, self._max_image_bytes)}

    def skipped_files(self, elsewhere: Collection[str] = ()) -> SkippedFiles:
        """Files that are not images, images of dev and test without a label, and litter."""
        table = os.path.abspath(self._table)
        unsupported = self._listed.unsupported
        others = [
            path
            for path in self._listed.others
            if path not in unsupported and os.path.abspath(path) != table
        ]
        return SkippedFiles(
            others=count_suffixes(others),
            without_label={
                split: count_outside(paths, elsewhere)
                for split, paths in self._without_label.items()
            },
            unsupported=dict(Counter(unsupported.values()).most_common()),
            litter=dict(self._listed.litter.most_common()),
        )

    def count(self, split: str) -> int:
        """Number of image files of a split."""
        return sum(place.split == split for place in self._places.values())

    def images(self, split: str) -> Iterator[SourceImage]:
        """Images of a split in the order of their paths, which are their ids."""
        labels = {name: label for label, name in enumerate(self._classes)}
        for file in sorted(self._places):
            place = self._places[file]
            if place.split == split:
                encoded, unreadable = read_image(self._paths[file], self._max_image_bytes)
                yield SourceImage(
                    printable(file),
                    encoded,
                    labels.get(place.label),
                    unreadable=unreadable,
                    group=place.group,
                )


def _split_of_path(file: str, class_folder: str | None = None, classes: set[str] = frozenset()):
    """The split that the first folder with the name of a split stands for; None: there is none.

    Args:
        file: its path.
        class_folder: name of the folder in it that may be a class; None: there is none.
        classes: names of all classes.
    """
    folders = list(map(normalize_name, file.split("/")[:-1]))
    if class_folder in classes:
        folders.remove(class_folder)
    return next(filter(None, map(split_of, folders)), None)
