"""Every flagfile is valid, starts with its command, has no unused value and can be planned."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAGFILES = sorted((ROOT / "flags").rglob("*.flags"))
# Included by other flagfiles, and not recipes of their own.
BASES = [ROOT / "flags/imagenet.flags"]
RECIPES = [path for path in FLAGFILES if path not in BASES]
# Recipes of a teacher only, to test fine-tuning.
WITHOUT_STUDENTS = ["cifar10_fixres"]
# Numbers of labelled images, unlabelled images and classes: tests do not have the data sets.
PLAN_IMAGES = {
    "cifar10": "5000,43000,10",
    "cifar10_fixres": "5000,43000,10",
    "cifar10_small": "5000,43000,10",
    "quickstart": "50,1188,10",
    "svhn": "69257,531131,10",
}
IMAGENET_PLAN_IMAGES = "1271167,300000000,1000"
PROGRAM = """
import sys
from absl import flags
from nsk import main
main.define_flags()
flags.FLAGS(["nsk", "--flagfile=" + sys.argv[1], "--workdir=runs/none"])
config = main.read_config()
print(config.num_students, config.unused_values())
"""


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_flagfile_is_a_valid_configuration(path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    students, unused = done.stdout.strip().split(maxsplit=1)
    assert (int(students) == 0) == (path.stem in WITHOUT_STUDENTS) and unused == "[]"


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda p: p.stem)
def test_a_flagfile_starts_with_its_command(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    opening = "\n".join(comments[:12])
    assert "make quickstart" in opening or f"--flagfile=flags/{path.name}" in opening
    assert "@@" not in path.read_text()


def test_base_flagfiles_are_included_and_name_no_network():
    for path in BASES:
        assert "--models=" not in path.read_text()
        including = f"--flagfile=flags/{path.name}\n"
        assert any(including in recipe.read_text() for recipe in RECIPES)


def plan(path, workdir):
    """Output of the command `plan` for a recipe, given the numbers of images."""
    images = PLAN_IMAGES.get(path.stem, IMAGENET_PLAN_IMAGES)
    flags = [f"--flagfile={path}", f"--workdir={workdir}", f"--plan_images={images}"]
    if path.stem in ("cifar10", "cifar10_small"):  # Otherwise read from the images.
        flags.append("--image_size=32")
    done = subprocess.run(
        [sys.executable, "-m", "nsk.main", "plan", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TFDS_DATA_DIR": str(workdir)},
    )
    assert done.returncode == 0, done.stderr
    assert "None was read" in done.stdout and "Not counted" not in done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_can_be_planned(path, tmp_path):
    plan(path, tmp_path)


def test_the_plan_of_the_smallest_recipe_for_imagenet(tmp_path):
    printed = plan(ROOT / "flags/imagenet_b0.flags", tmp_path)
    teacher, student = (line for line in printed.splitlines() if "efficientnet_b0" in line)
    # 700 epochs of 1,271,167 images in batches of 2,048; a student adds as many pseudo-labels.
    assert "5,288,548" in teacher and "434,481" in teacher and "2048 " in teacher
    assert "2048 + 2048" in student and "labelled 700.0, pseudo ~6.8" in student
    assert "130,000" in printed and "300,000,000 unlabeled" in printed
