"""The report of a selection: a table on the terminal, and all classes in a CSV file."""

import csv
import dataclasses
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nsk.data.class_names import with_descriptions, words_of
from nsk.report.text_table import align_columns
from nsk.store.disk_errors import naming_disk_errors
from nsk.store.files import atomic_write
from nsk.store.folders import StageFolder

# Columns of the table: title, and the counts of dev images kept and of correct ones.
DEV_COLUMNS = ("dev kept", "dev_kept", "dev_correct")
DEV_CUT_COLUMNS = ("before cut", "dev_before_cut", "dev_before_cut_correct")
MAX_EMPTY_CLASSES = 10  # Of which nothing is kept, in the table on the terminal.


@dataclasses.dataclass(frozen=True)
class Selection:
    """A selection and what it is of.

    Attributes:
        images: the ingest stage.
        scores: the scoring stage.
        selected: the selection stage.
        descriptions: words for names of classes.
    """

    images: StageFolder
    scores: StageFolder
    selected: StageFolder
    descriptions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def class_names(self) -> Sequence[str]:
        """Names of all classes."""
        return self.images.counts["class_names"]

    @property
    def per_class(self) -> Mapping[str, Sequence]:
        """Counts of all classes, see `stages.selection.select_images`."""
        return self.selected.counts["per_class"]

    @property
    def order(self) -> list[int]:
        """All classes, those of which most images are kept first."""
        kept = self.per_class["kept"]
        return sorted(range(len(kept)), key=lambda label: (-kept[label], label))

    @property
    def dev_columns(self) -> list[tuple[str, str, str]]:
        """The columns on dev that there is anything to show in."""
        if self.scores.counts["temperature"] is None:  # Dev was not scored.
            return []
        shows_cut = self.per_class["dev_before_cut"] != self.per_class["dev_kept"]
        return [DEV_COLUMNS, DEV_CUT_COLUMNS] if shows_cut else [DEV_COLUMNS]


def report_selection(selection: Selection) -> dict[str, Any]:
    """Prints the table of a selection, and writes the CSV file of all classes beside its folder.

    Returns:
        the selection's counts.
    """
    selected = selection.selected
    path = selected.path.with_name(f"classes-{selected.fingerprint}.csv")
    with naming_disk_errors(path.parent):
        _write_csv(path, selection)
    sys.stdout.write(selection_table(selection, path))
    return selected.counts


def selection_table(selection: Selection, path: Path) -> str:
    """What a selection keeps of each class, and the precision on dev; no test or hidden labels.

    Args:
        selection: the selection.
        path: of the file with all classes.
    """
    counts, per_class = selection.selected.counts, selection.per_class
    names = with_descriptions(selection.class_names, selection.descriptions)
    kept = [label for label in selection.order if per_class["kept"][label]]
    empty = selection.order[len(kept) :]
    shown = kept + empty[:MAX_EMPTY_CLASSES]
    rows = [["class", "threshold", "candidates", "kept", "copies", "lowest"]]
    for label in shown:
        lowest = per_class["lowest_confidence"][label]
        rows.append(
            [
                names[label],
                f"{per_class['thresholds'][label]:.4g}",
                *(f"{per_class[count][label]:,}" for count in ("candidates", "kept", "copies")),
                "-" if lowest is None else f"{lowest:.4g}",
            ]
        )
    totals = (sum(per_class["candidates"]), counts["images"], counts["copies"])
    rows.append(["all", "", *(f"{total:,}" for total in totals), ""])
    for column in selection.dev_columns:
        _add_dev_columns(rows, per_class, shown, *column)
    hidden = len(empty) - MAX_EMPTY_CLASSES
    lines = (
        "",
        *align_columns(rows, left=1),
        *([f"and {hidden:,} more classes of which nothing is kept."] if hidden > 0 else []),
        "",
        " ".join(_remarks(selection)),
        f"Selection: {selection.selected.path}",
        f"All classes: {path}",
        "",
    )
    return "\n".join(lines)


def _add_dev_columns(rows, per_class, shown, title, kept, correct):
    """Adds two columns: dev images kept of each class and of all, and the share of correct ones."""
    rows[0] += [title, "correct"]
    counts = (
        [*(per_class[name][label] for label in shown), sum(per_class[name])]
        for name in (kept, correct)
    )
    for row, num_kept, num_correct in zip(rows[1:], *counts, strict=True):
        row += [f"{num_kept:,}", f"{num_correct / num_kept:.2%}" if num_kept else "-"]


def _remarks(selection: Selection) -> Iterator[str]:
    """Yields the sentences below the table."""
    scored, temperature = (selection.scores.counts[name] for name in ("scored", "temperature"))
    yield f"{scored:,} unlabelled images were scored."
    if temperature is None:
        yield "The external teacher's predictions of dev are not known."
    else:
        yield (
            f"Dev kept: of {selection.images.counts['images']['dev']:,} dev images, those that "
            "reach their threshold; correct: the share of them that the teacher classifies "
            "correctly."
        )
        if DEV_CUT_COLUMNS in selection.dev_columns:
            yield "Before cut: those that also reach the lowest confidence selected."
        yield f"Temperature fitted on dev: {temperature:.3f}."
    yield "Nothing was trained."


def _write_csv(path: Path, selection: Selection) -> None:
    """Writes a row for each class, in the order of the table."""
    columns = {"class": selection.class_names}
    if selection.descriptions:
        columns["description"] = words_of(selection.class_names, selection.descriptions)
    columns |= {
        "threshold": selection.per_class["thresholds"],
        **{name: selection.per_class[name] for name in ("candidates", "kept", "copies")},
        "lowest_confidence": selection.per_class["lowest_confidence"],
    }
    for _, *names in selection.dev_columns:
        columns |= {name: selection.per_class[name] for name in names}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for label in selection.order:
        writer.writerow([_csv_cell(values[label]) for values in columns.values()])
    with atomic_write(path) as unfinished:
        unfinished.write_text(text.getvalue(), encoding="utf-8")


def _csv_cell(value):
    """Numbers that are stored as float32 have no more digits than that."""
    return f"{value:.7g}" if isinstance(value, float) else value
