"""The sheet shows the operations and the noise of training on the run's images."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nsk.commands.preparation import prepare
from nsk.config.config import Config
from nsk.data import image_operations
from nsk.data.image_operations import RandAugmentOptions
from nsk.data.randaugment_table import OPERATIONS, all_operations
from nsk.errors import UserError
from tools import show_augment

SIGNED = sum(operation.is_signed("increasing") for operation in OPERATIONS.values())


def settings(workdir, **values):
    return {
        "workdir": str(workdir),
        "num_labeled": 50,
        "num_dev": 100,
        "models": ["convnet5"] * 2,
        "train_steps": ["2"],
        **values,
    }


def noises(**values):
    return Config.from_values(settings("unused", **values)).noise.at(1)


def photographs(count=3, height=12, width=12):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def test_every_operation_has_a_row_and_two_if_it_is_signed():
    rows = show_augment.operation_rows(photographs(), noises(), [3.0, 30.0])
    labels = [label for label, _ in rows]
    assert tuple(label for label in labels if "(-)" not in label) == all_operations("increasing")
    assert len(labels) == 16 + SIGNED and SIGNED >= 9
    # What has no magnitude is shown once.
    single = {label for label, cells in rows if len(cells) == 1}
    assert single == {"auto_contrast", "equalize", "invert"}
    assert all(len(cells) == 2 for label, cells in rows if label not in single)


def test_cells_and_captions_agree_with_training():
    images = photographs()
    values = noises(randaugment_max_level=20.0, fill=7, translate_share=0.25)
    rows = dict(show_augment.operation_rows(images, values, [5.0, 20.0]))
    caption, made = rows["rotate (-)"][1]
    assert caption == "-30 degrees"
    expected = image_operations.apply_operation(
        "rotate", images, 1.0, -1.0, options=RandAugmentOptions(fill=7)
    )
    np.testing.assert_array_equal(made, expected)
    caption, made = rows["translate_x"][0]
    assert caption == "+0.8 pixels"  # A quarter of the strength of a quarter of 12 pixels.
    assert rows["color"][1][0] == "x 1.90" and rows["color (-)"][1][0] == "x 0.10"
    assert rows["posterize"][1][0] == "4 bits" and rows["cutout"][1][0] == "4 pixels"
    reference = noises(randaugment_profile="reference", randaugment_max_level=10.0)
    rows = dict(show_augment.operation_rows(images, reference, [5.0]))
    assert "color (-)" not in rows and rows["color"][0][0] == "x 1.00"
    rows = dict(show_augment.operation_rows(images, noises(randaugment_profile="linear"), [27.0]))
    assert rows["posterize"][0][0] == "3 bits" and rows["cutout"][0][0] == "36 pixels"
    assert np.all(rows["cutout"][0][1] == [125, 123, 114])  # 36 pixels cover all 12.
    np.testing.assert_array_equal(rows["identity"][0][1], images)


def test_a_sheet_has_every_cell_enlarged_beside_its_label():
    images = photographs(2, 40, 40)
    cells = [("first", images), ("second", 255 - images)]
    sheet = np.asarray(show_augment.draw_sheet("title", ["a", "b"], [("label", cells)] * 2))
    scale = 3  # 120 pixels: the first multiple of 40 that is 96 or more.
    wide = np.concatenate(list(images), axis=1).repeat(scale, axis=0).repeat(scale, axis=1)
    top, left = show_augment.MARGIN + 2 * show_augment.TEXT_HEIGHT, show_augment.LABEL_WIDTH
    height, width = wide.shape[:2]
    np.testing.assert_array_equal(sheet[top:, left:][:height, :width], wide)
    right = left + width + show_augment.MARGIN
    np.testing.assert_array_equal(sheet[top:, right:][:height, :width], 255 - wide)
    assert (sheet[top : top + height, :left] < 255).any()  # The label,
    assert (sheet[top + height :, left:][: show_augment.TEXT_HEIGHT] < 255).any()  # the caption.


def test_the_sheet_of_a_run_shows_its_images_and_a_generations_noise(tmp_path):
    """For a teacher without noise the last row has the original images."""
    noise = {"randaugment_num_ops": ["0", "2"], "crop_padding": ["0", "1"]}
    runner = prepare(settings(tmp_path, image_size=[96], **noise))
    sheets = [
        np.asarray(show_augment.make_sheet(runner, [9.0, 30.0], 2, generation))
        for generation in (0, 1)
    ]
    top, left = show_augment.MARGIN + 2 * show_augment.TEXT_HEIGHT, show_augment.LABEL_WIDTH
    step = 96 + show_augment.TEXT_HEIGHT + show_augment.MARGIN
    num_rows = 16 + SIGNED + 2
    assert sheets[0].shape[0] == top + num_rows * step + show_augment.MARGIN

    def cell(sheet, row, column):
        x = left + column * (192 + show_augment.MARGIN)
        return sheet[top + row * step :, x:][:96, :192]

    images, last = cell(sheets[0], 0, 0), num_rows - 1
    assert len(np.unique(images)) > 5
    for column in (0, 1):
        np.testing.assert_array_equal(cell(sheets[0], last, column), images)
    draws = [cell(sheets[1], last, column) for column in (0, 1)]
    assert np.any(draws[0] != images) and np.any(draws[0] != draws[1])
    again = np.asarray(show_augment.make_sheet(runner, [9.0, 30.0], 2, 1))
    np.testing.assert_array_equal(again, sheets[1])


@pytest.mark.parametrize(
    ("magnitudes", "generation", "message"),
    [
        ([31.0], 1, r"--magnitudes=31.0: expected .* at most --randaugment_max_level=30.0"),
        ([-1.0], 1, "--magnitudes=-1.0"),
        ([], 2, "--generation=2: the chain has generations 0 to 1"),
    ],
)
def test_invalid_magnitudes_and_generations_are_refused(tmp_path, magnitudes, generation, message):
    with pytest.raises(UserError, match=message):
        show_augment.make_sheet(prepare(settings(tmp_path)), magnitudes, 1, generation)


def test_the_command_writes_a_png_and_refuses_invalid_flags(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [
                *(sys.executable, "-m", "tools.show_augment"),
                *("--flagfile=flags/quickstart.flags", f"--workdir={tmp_path / 'run'}"),
                *arguments,
            ],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            check=False,
        )

    (tmp_path / "folder.png").mkdir()
    for wrong in (
        "--magnitudes=3,x",
        "--png=sheet.jpg",
        f"--png={tmp_path}/folder.png",
        "--num_images=0",
    ):
        finished = run(wrong)
        assert finished.returncode == 2 and len(finished.stderr.splitlines()) == 1
        assert wrong.split("=")[0].strip("-") in finished.stderr
    finished = run("--models=convnet5", "--magnitudes=3")
    assert finished.returncode == 0, finished.stderr  # A chain without students.
    assert finished.stdout.startswith(f"{tmp_path}/run/augment.png: ")
    assert (tmp_path / "run/augment.png").is_file()
    finished = run(f"--png={tmp_path}/new/sheet.png", "--magnitudes=3,9", "--num_images=3")
    assert finished.returncode == 0, finished.stderr
    with Image.open(tmp_path / "new/sheet.png") as sheet:
        assert f"{sheet.width} x {sheet.height} pixels" in finished.stdout
