"""Tables of a sweep: what they show, and their files."""

import csv
import html.parser
import math

from nsk.sweep import tables
from nsk.sweep.grid import Cell, Grid
from nsk.sweep.results import Estimate, Result, Row

GRID = Grid("A <b> | c", (0, 1), "a|b", "a|b", "last", {"a|b": {}, "c": {}})
ROWS = [
    Row("a|b", {"test_accuracy": Estimate(0.5, math.nan, 1), "kept": Estimate(1234, 5, 2)}, {}, 1),
    Row(
        "c",
        {"test_accuracy": Estimate(0.6, 0.0123, 2)},
        {"test_accuracy": Estimate(-0.1, 0.002, 2)},
        2,
    ),
]
PSEUDO = {"per_class_copies": [3, 4], "per_class_candidates": None, "kept": 7}
RESULTS = [
    Result(Cell("a|b", 0, {}), 0, False, {"role": "teacher"}, {"test_accuracy": 0.5}),
    Result(Cell("a|b", 0, {}), 1, True, {"pseudo": PSEUDO, "model": "resnet9"}, {"kept": 7}),
]


def test_cells_have_means_margins_and_differences():
    assert tables.cells_of(GRID, ROWS) == [
        ["", "test, %", "pseudo-labels", "seeds", "test, % - a|b"],
        ["a|b", "50.00", "1,234 ± 5", "1", "-"],
        ["c", "60.00 ± 1.23", "-", "2", "-10.00 ± 0.20"],
    ]


def test_files_hold_the_table_the_runs_and_the_classes(tmp_path):
    paths = tables.write_tables(tmp_path, GRID, ROWS, RESULTS, ["A note & more."])
    assert sorted(path.name for path in paths) == sorted(p.name for p in tmp_path.iterdir())
    markdown = (tmp_path / tables.MARKDOWN).read_text()
    lines = markdown.splitlines()
    assert lines[2].replace("\\|", "").count("|") == lines[3].count("|") == 6
    assert "| a\\|b | 50.00 | 1,234 ± 5 | 1 | - |" in lines and "- A note & more." in lines

    class Parser(html.parser.HTMLParser):
        tags, text = [], []

        def handle_starttag(self, tag, attributes):
            self.tags.append(tag)

        def handle_data(self, data):
            self.text.append(data)

    parser = Parser()
    parser.feed((tmp_path / tables.HTML).read_text())
    assert parser.tags.count("tr") == 3 and parser.tags.count("td") == 10 and "b" not in parser.tags
    assert "60.00 ± 1.23" in parser.text and "A note & more." in parser.text

    with open(tmp_path / tables.RUNS, newline="") as file:
        teacher, student = csv.DictReader(file)
    assert (teacher["cell"], teacher["test_accuracy"], teacher["kept"]) == ("a|b", "0.5", "")
    assert (student["is_best"], student["model"], student["kept"]) == ("True", "resnet9", "7")
    with open(tmp_path / tables.CLASSES, newline="") as file:
        classes = list(csv.DictReader(file))
    assert [(row["class"], row["copies"], row["over_threshold"]) for row in classes] == [
        ("0", "3", ""),
        ("1", "4", ""),
    ]


def test_a_table_without_results_is_a_header(tmp_path):
    assert tables.cells_of(GRID, []) == [["", "seeds"]]
    tables.write_tables(tmp_path, GRID, [], [], [])
