"""Grids: what cells they have, and what is refused."""

import pytest

from nsk.errors import UserError
from nsk.sweep.grid import folder_name, read_grid

BASE = {"train_images": ["1000"], "workdir": "runs/a", "seed": 7}
GRID = """
title = "Targets"
seeds = [3, 1]
compare_with = "soft, mixup"
[flags]
ratio = 2
[cells.hard]
pseudo_label = "hard"
[cells.soft]
temperature = 2
[axes.mixup]
"no mixup" = {}
mixup = { mixup_alpha = [0, 1], nesterov = true }
"""


def read(tmp_path, text, seeds=""):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return read_grid(str(path), seeds)


def test_cells_are_all_combinations_by_seed(tmp_path):
    grid = read(tmp_path, GRID)
    assert grid.names == ["hard, no mixup", "hard, mixup", "soft, no mixup", "soft, mixup"]
    assert (grid.title, grid.compare_with, grid.baseline) == (
        "Targets",
        "soft, mixup",
        "hard, no mixup",
    )
    cells = grid.cells(BASE)
    assert [cell.seed for cell in cells] == [3] * 4 + [1] * 4
    assert [cell.name for cell in cells] == grid.names * 2
    config = cells[3].config
    assert (config.run.seed, config.targets.temperature, config.train.nesterov) == (3, 2.0, True)
    assert config.noise.mixup_alpha == (0.0, 1.0) and config.train.ratio == (2.0,)
    assert cells[0].config.targets.pseudo_label == "hard"
    assert cells[3].run_name == "cells/soft_mixup/seed-3"
    assert len({cell.run_name for cell in cells}) == 8


def test_seeds_can_be_given(tmp_path):
    assert read(tmp_path, GRID, "5").seeds == (5,)
    assert read(tmp_path, GRID, "0, 2").seeds == (0, 2)
    assert read(tmp_path, "[cells.a]").seeds == (0,)


def test_names_of_folders_are_plain():
    assert folder_name("T = 4, “soft”/x..") == "t_=_4_soft_x"
    assert folder_name("über") == folder_name("U\u0308ber") == "über"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cells = 3", "cells is not a table"),
        ("[cells]", "cells is not a table of cells"),
        ("title = 'a'", "it has no cells"),
        ("[cells.a]\n[axes.b]", "b is not a table of cells"),
        ("[cells.a]\nnosuch = 1", "a: nosuch is not a setting"),
        ("[cells.a]\nseed = 1", "a: seed cannot differ between cells"),
        ("[cells.a]\nworkdir = 'x'", "workdir cannot differ"),
        ("[cells.a]\ngrid = 'x'", "grid cannot differ"),
        ("[cells.a]\nsuites = 'clean'", "suites cannot differ"),
        ("[cells.a]\ntemperature = true", "temperature=True has the wrong type: expected float"),
        ("[cells.a]\nseedling = 1", "not a setting"),
        ("[cells.a]\nnesterov = 1", "nesterov=1 has the wrong type: expected bool"),
        ("[cells.a]\nnum_labeled = 1.5", "wrong type: expected int"),
        ("[cells]\na = 1", "a is 1: expected a table of settings"),
        ("[cells.a]\n[cells.A]", "'A' has no name of its own beside 'a'"),
        ("[cells.'!']", "has no name of its own"),
        ("seeds = []\n[cells.a]", "seeds=\\[\\]: expected whole numbers"),
        ("seeds = [1, 1]\n[cells.a]", "expected different numbers"),
        ("seeds = [-1]\n[cells.a]", "expected whole numbers"),
        ("compare_with = 'b'\n[cells.a]", "compare_with='b' is not a cell: expected one of 'a'"),
        ("baseline = 'b'\n[cells.a]", "baseline='b' is not a cell"),
        ("generations = 'first'\n[cells.a]", "generations='first': expected last, best, all"),
        (
            "pseudo_label = 'hard'\n[cells.a]",
            "has pseudo_label: expected only title, .*\\[flags\\]",
        ),
        ("[cells.a", "is not a TOML file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value) and "grid.toml" in str(error.value)


def test_missing_files_and_seeds_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_grid(str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match="seeds='a'"):
        read(tmp_path, GRID, "a")


def test_lists_can_keep_values_of_the_base(tmp_path):
    text = "[cells.a]\ndropout_rate = ['base', 0, 'base']\nmodels = 'base,resnet9'"
    base = {**BASE, "dropout_rate": ["0.1", "0.2"], "models": ["resnet20"] * 3}
    (cell,) = read(tmp_path, text).cells(base)
    assert cell.config.model.dropout_rate == (0.1, 0.0, 0.2)
    assert cell.config.chain.models == ("resnet20", "resnet9")
    (cell,) = read(tmp_path, text).cells(BASE)
    assert cell.config.model.dropout_rate == (0.0, 0.0, 0.5)  # The defaults are 0 and 0.5.


def test_values_are_checked_when_cells_are_made(tmp_path):
    grid = read(tmp_path, "[cells.a]\n[cells.bad]\ndropout_rate = 3")
    with pytest.raises(UserError, match=r"Cell 'bad': --dropout_rate=3\.0 is too large"):
        grid.cells(BASE)
    grid = read(tmp_path, "[cells.a]\n[cells.same]\npseudo_label = 'soft'")
    with pytest.raises(UserError, match="'a' and 'same' have the same settings"):
        grid.cells(BASE)
