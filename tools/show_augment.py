"""Draws a PNG sheet of every RandAugment operation at several magnitudes, on your images.

    python -m tools.show_augment --flagfile=flags/quickstart.flags --workdir=runs/quickstart \
        [--png=sheet.png] [--magnitudes=3,9,15,21,30] [--num_images=2] [--generation=1]

Flags are those of `nsk.main` and the four above; `--generation` selects the noise, with 0 for the
teacher. The images are the first labelled ones of the workdir, which are ingested if needed. A row
is an operation, or one of its two directions; below every cell is the amount at its magnitude, and
operations without magnitude have one cell. The last row shows the images with all noise of the
generation's training, drawn again for every column. Without `--png` the sheet is `augment.png` in
the workdir.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import app, flags
from PIL import Image

from nsk import main as nsk_main
from nsk.commands.preparation import prepare
from nsk.data.randaugment_table import BOUNDED_PROFILES, OPERATIONS
from nsk.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

    from nsk.config.noise import NoiseConfig
    from nsk.stages.hyperparameters import Hyperparameters
    from nsk.stages.runner import StageRunner

DEFAULT_NAME = "augment.png"
MIN_CELL_SIDE = 96  # Pixels: smaller images are enlarged by repeating pixels.
MARGIN, TEXT_HEIGHT, FONT_SIZE = 8, 16, 12
LABEL_WIDTH = 120
# TensorFlow is imported in functions: --help and wrong flags should not wait for it.

Row = tuple[str, list[tuple[str, np.ndarray]]]  # Label, and (caption, images) of each cell.


def operation_rows(
    images: np.ndarray, noise_config: NoiseConfig, magnitudes: Sequence[float]
) -> list[Row]:
    """Applies each operation to the images.

    Args:
        images: uint8 (n, height, width, 3).
        noise_config: the section with the values of a generation.
        magnitudes: of the columns.

    Returns:
        list of rows (label, cells); a cell is (caption, images of the shape given). Operations
        without magnitude have one cell.
    """
    from nsk.data.image_operations import RandAugmentOptions, apply_operation, operation_amount

    height, width = images.shape[1:3]
    options = RandAugmentOptions(
        max_level=noise_config.randaugment_max_level,
        profile=noise_config.randaugment_profile,
        translate_share=noise_config.translate_share,
        fill=noise_config.fill,
    )

    def cell(name, magnitude, sign):
        level = magnitude / options.max_level
        amount = operation_amount(name, level, sign, height, width, options)
        augmented = apply_operation(name, images, level, sign, options=options)
        return OPERATIONS[name].caption(float(amount)), augmented.numpy()

    rows = []
    for name in noise_config.operations:
        columns = magnitudes if OPERATIONS[name].amount else magnitudes[:1]
        rows.append((name, [cell(name, magnitude, 1.0) for magnitude in columns]))
        if OPERATIONS[name].is_signed(options.profile):
            rows.append((f"{name} (-)", [cell(name, magnitude, -1.0) for magnitude in magnitudes]))
    return rows


def noise_row(images: tf.Tensor, settings: Hyperparameters, columns: int) -> Row:
    """A row of the images with all of a generation's noise, drawn again for each column."""
    import tensorflow as tf

    from nsk import noise
    from nsk.stages.input_streams import make_perturbation

    perturb = make_perturbation(settings)
    targets = tf.ones([len(images), 1])
    draws = [
        perturb(images, targets, noise.fold_in(settings.noise_key, column))[0].numpy()
        for column in range(columns)
    ]
    return settings.name, [(f"draw {column + 1}", draw) for column, draw in enumerate(draws)]


def check_png(flag: str, path: Path) -> None:
    """Raises UserError unless a PNG file can be written to the path; creates its folder."""
    if path.suffix.lower() != ".png":
        raise UserError(f"{flag}={path}: expected the name of a .png file.")
    if path.is_dir():
        raise UserError(f"{flag}={path} is a folder: give the name of a .png file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{flag}={path}: its folder cannot be created ({error.strerror}): give another name."
        ) from None
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(
            f"{flag}={path} cannot be written: change its folder's rights, or give another name."
        )


def shortened(text: str, width: int, tail: str = "") -> str:
    """Text and tail; the text is cut, ending in "...", if both are wider than `width` pixels."""
    from PIL import ImageFont

    font, shown = ImageFont.load_default(FONT_SIZE), text
    while text and font.getlength(shown + tail) > width:
        text = text[:-1]
        shown = text.rstrip() + "..."
    return shown + tail


def draw_sheet(title: str, header: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Draws labelled rows of cells; texts that are too long are cut.

    Args:
        title: the first line.
        header: texts above the columns.
        rows: as of `operation_rows`.
    """
    from PIL import ImageDraw, ImageFont

    _, side, width, _ = rows[0][1][0][1].shape
    scale = max(1, -(-MIN_CELL_SIDE // side))
    num_images = len(rows[0][1][0][1])
    cell_width = num_images * width * scale
    step_x, step_y = cell_width + MARGIN, side * scale + TEXT_HEIGHT + MARGIN
    top = MARGIN + 2 * TEXT_HEIGHT
    sheet = Image.new(
        "RGB",
        (LABEL_WIDTH + len(header) * step_x + MARGIN, top + len(rows) * step_y + MARGIN),
        "white",
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)

    def write(place, text, width):
        pen.text(place, shortened(text, width), fill="black", font=font)

    write((MARGIN, MARGIN), title, sheet.width - 2 * MARGIN)
    for column, text in enumerate(header):
        write((LABEL_WIDTH + column * step_x, MARGIN + TEXT_HEIGHT), text, cell_width)
    for row, (label, cells) in enumerate(rows):
        y = top + row * step_y
        write((MARGIN, y), label, LABEL_WIDTH - MARGIN)
        for column, (caption, images) in enumerate(cells):
            x = LABEL_WIDTH + column * step_x
            pixels = np.concatenate(list(images), axis=1)
            enlarged = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
            sheet.paste(Image.fromarray(enlarged), (x, y))
            write((x, y + side * scale), caption, cell_width)
    return sheet


def make_sheet(
    runner: StageRunner, magnitudes: Sequence[float] = (), num_images: int = 2, generation: int = 1
) -> Image.Image:
    """Draws the sheet of a run's images.

    Args:
        runner: the runner of stages.
        magnitudes: of the columns; (): five up to --randaugment_max_level.
        num_images: >= 1, number of images in a cell.
        generation: with the settings to show; 0 is the teacher.

    Raises:
        UserError: there is no such generation, or a magnitude is not allowed.
    """
    from nsk.data import records
    from nsk.data.decoding import decode_images
    from nsk.stages.hyperparameters import training_hyperparameters
    from nsk.stages.ingestion import ingest_images
    from nsk.stages.runner import shard_set

    config = runner.config
    if generation not in config.trained_generations:
        first = config.trained_generations[0]
        raise UserError(
            f"--generation={generation}: the chain has generations {first} to "
            f"{config.num_students}; 0 is the teacher."
        )
    images = ingest_images(runner)
    settings = training_hyperparameters(config, generation, images.counts)
    noise_config = settings.noise
    max_level = noise_config.randaugment_max_level
    magnitudes = magnitudes or [max_level * share for share in (0.1, 0.3, 0.5, 0.7, 1.0)]
    profile = noise_config.randaugment_profile
    largest = max_level if profile in BOUNDED_PROFILES else float("inf")
    if not all(0 <= magnitude <= largest for magnitude in magnitudes):
        raise UserError(
            f"--magnitudes={','.join(map(str, magnitudes))}: expected numbers >= 0, and with "
            f"--randaugment_profile={' or '.join(BOUNDED_PROFILES)} at most "
            f"--randaugment_max_level={max_level}."
        )
    labeled = shard_set(images, "labeled")
    (serialized,) = labeled.read().batch(num_images).take(1)
    encoded = records.parse_images(serialized)["encoded"]
    decoded = decode_images(encoded, settings.image_size, resize_mode=settings.resize_mode)
    rows = operation_rows(decoded.numpy(), noise_config, magnitudes)
    rows.insert(0, ("original", [("", decoded.numpy())]))
    inputs = encoded if noise_config.min_crop_area else decoded
    rows.append(noise_row(inputs, settings, len(magnitudes)))
    title = (
        f"{config.data.dataset}, {settings.image_size} pixels; profile {profile}; "
        f"{settings.name} draws {noise_config.randaugment_num_ops} operations of magnitude "
        f"{noise_config.randaugment_magnitude}"
    )
    return draw_sheet(title, [f"{magnitude:g} of {max_level:g}" for magnitude in magnitudes], rows)


def show(argv: list[str]) -> int:
    """Runs the command: writes the sheet that the flags describe."""
    if argv[1:]:
        raise UserError(f"Received {' '.join(argv[1:])!r}: settings are given as --name=value.")
    given = flags.FLAGS
    try:
        magnitudes = [float(magnitude) for magnitude in given.magnitudes]
    except ValueError:
        raise UserError(
            f"--magnitudes={','.join(given.magnitudes)}: expected numbers such as 3,9,15."
        ) from None
    values = nsk_main.flag_values()
    if given.png:
        output = Path(given.png).expanduser()
        check_png("--png", output)
    runner = prepare(values)
    if not given.png:
        output = runner.workdir / DEFAULT_NAME
        check_png("--png", output)
    generation = given.generation
    if not given["generation"].present:  # Without students, the teacher is shown.
        generation = min(generation, runner.config.num_students)
    sheet = make_sheet(runner, magnitudes, given.num_images, generation)
    sheet.save(output)
    print(f"{output}: {sheet.width} x {sheet.height} pixels")
    return nsk_main.OK


if __name__ == "__main__":
    nsk_main.define_flags()
    flags.DEFINE_string("png", "", f"The PNG file to write; empty: {DEFAULT_NAME} in the workdir.")
    flags.DEFINE_list("magnitudes", [], "Magnitudes of the columns; none: five up to the largest.")
    flags.DEFINE_integer("num_images", 2, "Images in a cell, side by side.", lower_bound=1)
    app.run(functools.partial(nsk_main.run_main, main=show), flags_parser=nsk_main.parse_flags)
