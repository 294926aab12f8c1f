"""A PNG sheet of every RandAugment operation at several magnitudes, on images of your data set.

    python -m tools.show_augment --flagfile=flags/quickstart.flags --workdir=runs/quickstart \
        [--output=augment.png] [--magnitudes=3,9,15,21,30] [--num_images=2] [--generation=1]

Flags are those of `nsk.main`, and the first three above; `--generation` says whose noise is shown,
0 being the teacher. The images are the first labelled ones of the
workdir, which are ingested where they are not there yet. A row is an operation, or one of its two
directions; under every cell stands what its magnitude means. The last rows show the images as the
generation trains on them, all of its noise included, drawn anew in every column.
"""

import functools
import os
import pathlib

from absl import app, flags

from nsk import main as nsk_main
from nsk.errors import UserError

LEAST_CELL_SIDE = 96  # Pixels: smaller images are enlarged, their pixels staying squares.
MARGIN, TEXT_HEIGHT, FONT_SIZE = 8, 16, 12
LABEL_WIDTH = 120
UNITS = {
    "rotate": "{:+.0f} degrees",
    "shear_x": "{:+.2f} per pixel",
    "shear_y": "{:+.2f} per pixel",
    "translate_x": "{:+.1f} pixels",
    "translate_y": "{:+.1f} pixels",
    "posterize": "{:.0f} bits",
    "solarize": "from {:.0f}",
    "solarize_add": "+{:.0f} below 128",
    "cutout": "{:.0f} pixels",
    "color": "x {:.2f}",
    "contrast": "x {:.2f}",
    "brightness": "x {:.2f}",
    "sharpness": "x {:.2f}",
}
# No TensorFlow up here: --help and wrong flags should not wait for it.


def operation_rows(images, noises, magnitudes):
    """What each operation makes of the images.

    Args:
        images: uint8 (n, height, width, 3).
        noises: dict of the RandAugment settings of a generation, see `nsk.config.config`.
        magnitudes: floats.

    Returns:
        list of rows (label, cells); a cell is (caption, images as given).
    """
    from nsk.data.image_operations import apply_operation, operation_amount

    height, width = images.shape[1:3]
    profile, share = noises["randaugment_profile"], noises["translate_share"]
    rows = []
    for name in noises["randaugment_operations"]:
        cells = {}
        for sign in (1.0, -1.0):
            for magnitude in magnitudes:
                level = magnitude / noises["randaugment_max_level"]
                amount = operation_amount(name, level, sign, height, width, profile, share)
                options = {"profile": profile, "translate_share": share, "fill": noises["fill"]}
                made = apply_operation(name, images, level, sign, **options).numpy()
                caption = UNITS.get(name, "").format(float(amount))
                cells.setdefault(sign, []).append((caption, made))
        rows.append((name, cells[1.0]))
        captions = [[caption for caption, _ in of_sign] for of_sign in cells.values()]
        if captions[0] != captions[1]:
            rows.append((f"{name} (-)", cells[-1.0]))
    return rows


def noise_row(images, training, columns):
    """The images with all of a generation's noise, drawn anew for each column; one row."""
    import tensorflow as tf

    from nsk import noise
    from nsk.stages import training as train_stage

    perturb = train_stage.make_perturbation(training)
    targets = tf.ones([len(images), 1])
    stage_key = noise.key(training["seed"], training["name"])
    draws = [
        perturb(images, targets, noise.fold_in(stage_key, column))[0].numpy()
        for column in range(columns)
    ]
    return training["name"], [(f"draw {column + 1}", one) for column, one in enumerate(draws)]


def check_png(flag, path):
    """UserError unless a PNG file can be written there; makes its folder."""
    if path.suffix.lower() != ".png":
        raise UserError(f"{flag}={path}: expected the name of a .png file.")
    if path.is_dir():
        raise UserError(f"{flag}={path} is a folder: give the name of a .png file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{flag}={path}: its folder cannot be made ({error.strerror}): give another name."
        ) from None
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(
            f"{flag}={path} cannot be written: change its folder's rights, or give another name."
        )


def fitted(text, width, tail=""):
    """Text and tail; the text ends with "..." where both would be wider than so many pixels."""
    from PIL import ImageFont

    font, shown = ImageFont.load_default(FONT_SIZE), text
    while text and font.getlength(shown + tail) > width:
        text = text[:-1]
        shown = text.rstrip() + "..."
    return shown + tail


def draw_sheet(title, header, rows):
    """A Pillow image of labelled rows of cells; what is too long is cut.

    Args:
        title: the first line.
        header: texts above the columns.
        rows: list of (label, cells) as of `operation_rows`.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    _, side, width, _ = rows[0][1][0][1].shape
    scale = max(1, -(-LEAST_CELL_SIDE // side))
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
        pen.text(place, fitted(text, width), fill="black", font=font)

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


def make_sheet(config, magnitudes=(), num_images=2, generation=1):
    """The sheet of a run's images; a Pillow image.

    Args:
        config: `nsk.config.config.Config`.
        magnitudes: floats; (): five up to --randaugment_max_level.
        num_images: int >= 1, how many images are shown side by side.
        generation: int, whose settings are shown.

    Raises:
        UserError: there is no such generation, or a magnitude is not allowed.
    """
    from nsk.data import records
    from nsk.stages.all_stages import Stages, shard_set

    first = 1 if config.run.teacher else 0
    if not first <= generation <= config.num_students:
        raise UserError(
            f"--generation={generation}: the chain has generations {first} to "
            f"{config.num_students}; 0 is the teacher."
        )
    stages = Stages(config)
    images = stages.ingest()
    training = stages.training_settings(generation, images)
    noises = training["noise"]
    strongest = noises["randaugment_max_level"]
    magnitudes = magnitudes or [strongest * share for share in (0.1, 0.3, 0.5, 0.7, 1.0)]
    largest = strongest if noises["randaugment_profile"] == "increasing" else float("inf")
    if not all(0 <= one <= largest for one in magnitudes):
        raise UserError(
            f"--magnitudes={','.join(map(str, magnitudes))}: expected numbers from 0 on, and under "
            f"--randaugment_profile=increasing at most --randaugment_max_level={strongest}."
        )
    labeled = shard_set(images, "labeled")
    (serialized,) = labeled.read().batch(num_images).take(1)
    encoded = records.parse_images(serialized)["encoded"]
    shown = records.decode_images(encoded, training["image_size"])
    kept = encoded if noises["min_crop_area"] else shown
    rows = operation_rows(shown.numpy(), noises, magnitudes)
    columns = len(magnitudes)
    rows.insert(0, ("as they are", [("", shown.numpy())]))
    rows.append(noise_row(kept, training, columns))
    title = (
        f"{config.data.dataset}, {training['image_size']} pixels; profile "
        f"{noises['randaugment_profile']}; {training['name']} draws "
        f"{noises['randaugment_num_ops']} operations of magnitude {noises['randaugment_magnitude']}"
    )
    return draw_sheet(title, [f"{one:g} of {strongest:g}" for one in magnitudes], rows)


def show(argv):
    """The command: what `make_sheet` makes of the flags, as a file."""
    if argv[1:]:
        raise UserError(f"Received {' '.join(argv[1:])!r}: settings are given as --name=value.")
    given = flags.FLAGS
    output = pathlib.Path(given.output).expanduser()
    try:
        magnitudes = [float(one) for one in given.magnitudes]
    except ValueError:
        raise UserError(
            f"--magnitudes={','.join(given.magnitudes)}: expected numbers, as 3,9,15."
        ) from None
    check_png("--output", output)
    config = nsk_main.read_config()
    nsk_main.prepare(config)
    generation = given.generation
    if not given["generation"].present:
        generation = min(generation, config.num_students)  # A teacher alone is shown itself.
    sheet = make_sheet(config, magnitudes, given.num_images, generation)
    sheet.save(output)
    print(f"{output}: {sheet.width} x {sheet.height} pixels")
    return nsk_main.OK


if __name__ == "__main__":
    nsk_main.define_flags()
    flags.DEFINE_string("output", "augment.png", "The PNG file to write.")
    flags.DEFINE_list("magnitudes", [], "Magnitudes of the columns; none: five up to the largest.")
    flags.DEFINE_integer("num_images", 2, "Images that are shown side by side.", lower_bound=1)
    app.run(functools.partial(nsk_main.run_main, main=show), flags_parser=nsk_main.parse_flags)
