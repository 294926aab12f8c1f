"""Writes corrupted test images as files, in the layout of CIFAR-10-C or ImageNet-C."""

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging

from nsk.commands.preparation import NO_TRAINING, prepare, require_output
from nsk.config.config import Config
from nsk.errors import UserError, list_names
from nsk.store.disk_errors import naming_disk_errors
from nsk.store.files import UNFINISHED, atomic_write, remove_unfinished
from nsk.store.locks import lock_folder

if TYPE_CHECKING:  # Imported in functions, since they import TensorFlow.
    from nsk.evaluation.suites.conditions import ChosenImages
    from nsk.stages.runner import StageRunner
    from nsk.store.folders import StageFolder

INGESTED, IDS, SETTINGS = "ingested", "ids.txt", "settings.json"


def execute(values: Mapping[str, Any]) -> dict | None:
    """Writes the test images of `--dataset` with all chosen corruptions.

    Args:
        values: values of settings by name.

    Returns:
        The content of `settings.json`; None for all workers but the chief.

    Raises:
        UserError: settings, data or the folder do not allow it.
    """
    output = require_output("corrupt", values)
    _read_settings(output)  # Before anything is written to a folder that is not of this command.
    given = {**values, **NO_TRAINING, "workdir": str(output / INGESTED)}
    # The settings of corruptions are those of the suite.
    runner = prepare({**given, "suites": "corruptions"}, _check)
    from nsk.stages import ingestion

    images = ingestion.ingest_test_images(runner)
    if not runner.workers.is_chief:
        return None
    with lock_folder(output / INGESTED / "corrupt"), naming_disk_errors(output):
        return _write(runner, images, output)


def _check(config: Config):
    """UserError if a setting is of evaluations alone."""
    if config.evaluation.corruption_files:
        raise UserError(
            "--corruption_files is what evaluate reads: leave it out, corrupt writes to --output."
        )


def _write(runner: "StageRunner", images: "StageFolder", output: Path) -> dict:
    """Writes the ids, the labels and a file or folder for each corruption."""
    from nsk.evaluation import corruption_files, corruptions
    from nsk.evaluation.suites.corruptions import corrupted_batches, names_of
    from nsk.progress import Progress

    settings = runner.config.evaluation.parsed()
    chosen, side = _choose_images(runner, images)
    textures = settings["frost_textures"]
    textures = corruptions.read_textures(textures) if textures else None
    written = _describe(runner.config, images, side)
    ids, labels = _ids_and_labels(chosen)
    _claim(output, written)
    remove_unfinished(output)
    _write_text(output / IDS, "".join(f"{id}\n" for id in ids))
    if settings["layout"] == "npy":
        corruption_files.write_labels(output, labels)
    options = {
        "seed": settings["evaluation_seed"],
        "constants": settings["corruption_constants"],
        "textures": textures,
    }
    names = names_of(settings["corruptions"])
    progress = Progress("corrupt", len(names), "corruptions")
    for index, name in enumerate(names):
        batches = [
            functools.partial(corrupted_batches, chosen, name, severity, **options)
            for severity in corruptions.SEVERITIES
        ]
        if settings["layout"] == "npy":
            pixels = ((batch["image"] for batch in make()) for make in batches)
            corruption_files.write_npy_files(output, name, pixels, len(ids), (side, side))
        else:
            for severity, make in zip(corruptions.SEVERITIES, batches, strict=True):
                labelled = ((batch["label"], batch["image"]) for batch in make())
                corruption_files.write_image_folders(
                    output, name, severity, labelled, images.counts["class_names"]
                )
        progress.update(index + 1)
    progress.close()
    logging.info("%d images in %s.", len(ids), output)
    return written


def _choose_images(runner: "StageRunner", images: "StageFolder") -> tuple["ChosenImages", int]:
    """The test images as squares, and their side in pixels."""
    from nsk.data import pipeline
    from nsk.data.evaluation_decoding import Crop, decode_with_crop
    from nsk.evaluation.suites.conditions import ChosenImages
    from nsk.evaluation.suites.suite import SplitImages
    from nsk.stages.runner import shard_set

    config = runner.config
    side = config.chain.image_size.at(0) or images.counts["image_side"]
    if not side:
        raise UserError(
            f"The images of --dataset={config.data.dataset} have different sizes: give "
            "--image_size, the side of the corrupted ones."
        )
    settings = config.evaluation
    interpolation = "bilinear" if settings.interpolation == "auto" else settings.interpolation
    crop = Crop(
        side, settings.crop_fraction or 1.0, interpolation, rule=config.chain.training_resize_mode
    )
    batches = pipeline.clean_batches(
        shard_set(images, "test"),
        side,
        config.run.eval_batch_size,
        decode=functools.partial(decode_with_crop, crop=crop),
    )
    subset = (settings.evaluation_images, settings.evaluation_seed)
    return ChosenImages(SplitImages("test", batches), *subset), side


def _describe(config: Config, images: "StageFolder", side: int) -> dict:
    """All that the corrupted images depend on."""
    from nsk.data.content import ContentDigests
    from nsk.evaluation.corruptions import choose_constants

    settings = config.evaluation.parsed()
    textures, frost = settings["frost_textures"], "procedural"
    if textures:
        frost = ContentDigests().describe({path.name: path for path in Path(textures).iterdir()})
    names = ("layout", "evaluation_images", "evaluation_seed", "crop_fraction", "interpolation")
    return {
        "images": images.part("test").fingerprint,
        "image_size": side,
        "resize_mode": config.chain.training_resize_mode,
        "constants": choose_constants((side, side), settings["corruption_constants"]),
        "frost": frost,
        **{name: settings[name] for name in names},
    }


def _claim(output: Path, written: dict) -> None:
    """Records the settings of a folder; UserError if it has images with other ones."""
    found = _read_settings(output)
    if found is None:
        _write_text(output / SETTINGS, json.dumps(written, indent=2) + "\n")
        return
    for name, value in written.items():
        if found.get(name) != value:
            raise UserError(
                f"{output} was written with {name}={found.get(name)}, not {value}: give "
                "another folder as --output, or the same settings to go on."
            )


def _read_settings(output: Path) -> dict | None:
    """The settings that a folder was written with; None: nothing was written to it yet.

    Raises:
        UserError: the folder holds other files, or its settings cannot be read.
    """
    path = output / SETTINGS
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}): give a new folder as --output."
            ) from None
        if not isinstance(found, dict) or "constants" not in found:
            raise UserError(f"{path} was not written by corrupt: give a new folder as --output.")
        return found
    try:
        names = os.listdir(output) if output.exists() else []
    except OSError as error:
        raise UserError(
            f"{output} is not a folder that can be listed ({error.strerror}): give a new folder as "
            "--output."
        ) from None
    others = sorted(name for name in names if name != INGESTED and not _is_unfinished(name))
    if others:
        raise UserError(
            f"{output} holds {list_names(others)}, not written by corrupt: give a new folder as "
            "--output."
        )
    return None


def _is_unfinished(name: str) -> bool:
    """Whether a file is left of settings that were about to be written."""
    return name.startswith(f"{SETTINGS}.") and name.endswith(UNFINISHED)


def _ids_and_labels(chosen: "ChosenImages") -> tuple[list[str], list[int]]:
    from nsk.evaluation.suites.conditions import ids_of

    ids, labels = [], []
    for batch in chosen:
        ids += ids_of(batch)
        labels += batch["label"].tolist()
    return ids, labels


def _write_text(path, text):
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
