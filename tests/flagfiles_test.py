"""Every flagfile is valid, opens with its command, has no value without effect and has a plan."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GRIDS = sorted((ROOT / "flags").rglob("*.toml"))
FLAGFILES = sorted((ROOT / "flags").rglob("*.flags"))
# Included by other flagfiles, and not a recipe by themselves.
BASES = [ROOT / "flags/imagenet.flags"]
RECIPES = [path for path in FLAGFILES if path not in BASES]
# A single network, to study fine-tuning.
WITHOUT_STUDENTS = ["cifar10_fixres"]
# Labelled images, unlabelled images and classes of data sets that are not available to tests.
PLAN_IMAGES = {
    "cifar10": "5000,43000,10",
    "cifar10_fixres": "5000,43000,10",
    "cifar10_small": "5000,43000,10",
    "digits": "50,1188,10",
    "quickstart": "50,1188,10",
    "svhn": "69257,531131,10",
}
IMAGENET_PLAN_IMAGES = "1271167,300000000,1000"
# One process reads all recipes: {path: [number of students, warnings]}.
PROGRAM = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from nsk import main
from nsk.config.config import Config
main.define_flags()
received = {}
for path in sys.argv[1:]:
    with flagsaver.flagsaver():
        flags.FLAGS(["nsk", "--flagfile=" + path, "--workdir=runs/none"])
        config = Config.from_values(main.flag_values())
    received[path] = [config.num_students, config.unused_settings()]
print(json.dumps(received))
"""
# The same for grids, given as GRID=FLAGFILE: {grid: {cell: [names of settings, warnings]}}.
GRID_PROGRAM = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from nsk import main
from nsk.sweep.grid import read_grid
main.define_flags()
received = {}
for argument in sys.argv[1:]:
    path, _, base = argument.partition("=")
    with flagsaver.flagsaver():
        flags.FLAGS(["nsk", "--flagfile=" + base, "--workdir=runs/none"])
        grid = read_grid(path)
        received[path] = {
            cell.name: [list(grid.changes[cell.name]), cell.config.unused_settings()]
            for cell in grid.cells(main.flag_values())
        }
print(json.dumps(received))
"""


@pytest.fixture(scope="module")
def configurations():
    command = [sys.executable, "-c", PROGRAM, *map(str, RECIPES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_flagfile_is_a_configuration_without_warnings(configurations, path):
    num_students, warnings = configurations[str(path)]
    assert (num_students == 0) == (path.stem in WITHOUT_STUDENTS)
    assert warnings == []


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_a_flagfile_opens_with_its_command(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    opening = "\n".join(comments[:12])
    assert "make quickstart" in opening or f"--flagfile={path.relative_to(ROOT)}" in opening
    assert "@@" not in path.read_text()


def test_bases_are_included_and_name_no_network():
    for path in BASES:
        assert "--models=" not in path.read_text()
        including = f"--flagfile=flags/{path.name}\n"
        assert any(including in recipe.read_text() for recipe in RECIPES)


def plan(path, workdir):
    """Output of the command plan for a recipe, with placeholder counts of images."""
    counts = PLAN_IMAGES.get(path.stem, IMAGENET_PLAN_IMAGES)
    flags = [f"--flagfile={path}", f"--workdir={workdir}", f"--plan_images={counts}"]
    if path.stem in ("cifar10", "cifar10_small"):  # Otherwise found by reading the images.
        flags.append("--image_size=32")
    done = subprocess.run(
        [sys.executable, "-m", "nsk.main", "plan", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TFDS_DATA_DIR": str(workdir)},
    )
    assert done.returncode == 0, done.stderr
    assert "No image was read" in done.stdout and "Not counted" not in done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_a_plan(path, tmp_path):
    plan(path, tmp_path)


def test_the_plan_of_the_smallest_recipe_for_imagenet(tmp_path):
    printed = plan(ROOT / "flags/imagenet_b0.flags", tmp_path)
    teacher, student = (line for line in printed.splitlines() if "efficientnet_b0" in line)
    # 700 epochs of 1,271,167 images in batches of 2,048; the student sees as many pseudo-labelled.
    assert "5,288,548" in teacher and "434,481" in teacher and "2048 " in teacher
    assert "2048 + 2048" in student and "labelled 700.0, pseudo ~6.8" in student
    assert "130,000" in printed and "300,000,000 unlabeled" in printed


def command_of(grid):
    """The command in the comment at the beginning of a grid."""
    comment = grid.read_text().partition("\n\n")[0]
    return re.search(r"python -m nsk\.main sweep (.*)", comment)[1]


@pytest.fixture(scope="module")
def cells():
    bases = [re.search(r"--flagfile=(\S+)", command_of(grid))[1] for grid in GRIDS]
    pairs = [f"{grid}={base}" for grid, base in zip(GRIDS, bases, strict=True)]
    command = [sys.executable, "-c", GRID_PROGRAM, *pairs]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda path: path.stem)
def test_a_grid_is_valid_with_the_base_of_its_command(cells, grid):
    """No cell changes a setting that has no effect in it."""
    relative = grid.relative_to(ROOT).as_posix()
    assert f"--grid={relative} --workdir=runs/" in command_of(grid)
    assert len(cells[str(grid)]) > 1 or "generations" in grid.read_text()
    for names, warnings in cells[str(grid)].values():
        for name in names:
            assert not any(warning.startswith(f"--{name}=") for warning in warnings)
