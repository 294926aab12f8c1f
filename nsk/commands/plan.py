"""Prints what a run would do, without training: images, steps, cost, memory and disk."""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsk.commands.preparation import prepare
from nsk.errors import list_names
from nsk.units import format_bytes

if TYPE_CHECKING:  # Imported in functions, since it imports TensorFlow.
    from nsk.stages.runner import StageRunner

FLOAT_BYTES = 4
# Of a score's id, key, label and confidence, about; log-probabilities are added to it.
SCORE_BYTES = 64
# Policies whose number of images is that of --images_per_class x classes.
WITH_IMAGES_PER_CLASS = ("paper", "labeled_shares")

WORK_HEADER = ("gen", "role", "model", "parameters", "steps", "batch", "images seen", "epochs")
COST_HEADER = (
    "gen",
    "role",
    "pixels",
    "multiply-adds",
    "activations",
    "step",
    "batches",
    "images per class",
)
COST_LEGEND = (
    "multiply-adds: of a training image; activations, step: memory of a replica, no work space;",
    "batches: main memory of a worker. More: docs/data.md, Planning a run.",
)


def execute(values: Mapping[str, Any]) -> dict | None:
    """Prints the plan of a run; ingests the images unless there are placeholder counts.

    Args:
        values: values of settings by name.

    Returns:
        See `print_plan`; with `--grid` see `plan_sweep`; None for all workers but the chief.
    """
    if values.get("grid"):
        return plan_sweep(values)
    runner = prepare(values)
    from nsk.data import ingest
    from nsk.stages import ingestion, validation

    config, folder = runner.config, None
    if config.command.plan_images:
        counts = ingest.placeholder_counts(*config.command.placeholder_counts)
        lines = [_describe_placeholders(counts)]
    else:
        images = ingestion.ingest_images(runner, logs_summary=False)
        counts, folder = images.counts, images.path
        lines = ingestion.describe_images(runner, images)
    if runner.workers.is_chief:  # Before the warnings of the checks, which are of these images.
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
    validation.check_chain(runner, counts)
    return print_plan(runner, counts, folder) if runner.workers.is_chief else None


def plan_sweep(values: Mapping[str, Any]) -> dict:
    """Prints the plan of a sweep: images, time and disk of its runs, and what they share.

    Args:
        values: values of settings by name, the base of every cell.

    Returns:
        The fields of `nsk.sweep.plan.SweepPlan`.
    """
    from nsk.sweep.grid import read_grid

    cells = read_grid(values["grid"], values.get("seeds", "")).cells(values)
    runner = prepare(cells[0].values)
    from nsk.stages.runner import StageRunner
    from nsk.sweep import plan

    found = plan.make_plan(
        cells, lambda config: StageRunner(config, runner.runtime), runner.runtime
    )
    sys.stdout.write("\n".join(plan.describe(found)) + "\n")
    return dataclasses.asdict(found)


def print_plan(
    runner: "StageRunner", counts: Mapping[str, Any], folder: Path | None
) -> dict[str, Any]:
    """Prints the plan without the lines on images, and returns it.

    Args:
        runner: the runner of stages.
        counts: those of the ingested images, or placeholders.
        folder: where the ingested images are; None for placeholders.

    Returns:
        dict: `images`, `stages` (a dict each) and `disk_bytes`, a dict by purpose, without the
        images for placeholders.
    """
    generations = range(runner.config.num_students + 1)
    rows = [row for number in generations for row in _rows(runner, counts, number)]
    disk = _disk_bytes(runner.config, counts, folder, rows)
    _print(runner, counts, rows, disk)
    return {"images": counts["images"], "stages": rows, "disk_bytes": disk}


def _unlabeled_fraction(config, counts):
    """A line on the unlabelled images if not all are used."""
    fraction, available = config.scoring.unlabeled_fraction, counts["images"]["unlabeled"]
    if fraction < 1 and config.num_students:
        yield (
            f"--unlabeled_fraction={fraction}: about {_num_used(config, counts):,} of "
            f"{available:,} unlabelled images are used."
        )


def _print(runner, counts, rows, disk):
    from nsk.report.text_table import align_columns

    lines = [
        *_unlabeled_fraction(runner.config, counts),
        *align_columns([WORK_HEADER, *map(_work_cells, rows)], left=3),
        "",
        *align_columns([COST_HEADER, *map(_cost_cells, rows)], left=2),
        *COST_LEGEND,
        *_not_counted(rows),
        f"Devices: {_describe_devices(runner.runtime.strategy)}. Disk in {runner.workdir}, at "
        f"most about {_describe_disk(disk)}. Nothing was trained.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _describe_devices(strategy):
    """The number of replicas' devices, and the memory of each."""
    from nsk.distributed.compilation import device_type
    from nsk.distributed.device_memory import replica_bytes

    memory = replica_bytes(strategy)
    each = f" with {format_bytes(memory)} each" if memory else ""
    return f"{strategy.num_replicas_in_sync} {device_type(strategy)}{each}"


def _describe_placeholders(counts):
    labeled, unlabeled = (counts["images"][split] for split in ("labeled", "unlabeled"))
    return (
        f"Placeholder counts of --plan_images: {labeled:,} labeled, {unlabeled:,} unlabeled; "
        f"{counts['num_classes']:,} classes. No image was read."
    )


def _rows(runner, counts, generation):
    """A generation's stages of training: a dict each."""
    from nsk.stages.hyperparameters import network_trainings

    config = runner.config
    if generation not in config.trained_generations:
        adopted = f"adopted from {config.chain.teacher}"
        return [{"index": 0, "role": "teacher", "model": adopted}]
    return [
        {"index": generation, **_row(runner, counts, _role(generation, settings), settings)}
        for member in config.members(generation)
        for settings in network_trainings(config, generation, counts, member)
    ]


def _role(generation, settings):
    """What a training is for."""
    if settings.finetune:
        return "finetune"
    if settings.is_pretraining:
        return "pretraining"
    return "student" if generation else "teacher"


def _row(runner, counts, role, settings):
    """One stage of training."""
    from nsk.data import batch_blocks
    from nsk.training.step_memory import StepMemory

    train, sizes, steps = settings.train, settings.batch_sizes, settings.num_steps
    parameters, cost = _network(
        settings.architecture,
        settings.frozen_blocks,
        train.rematerialize,
        num_classes=counts["num_classes"],
        image_size=settings.image_size,
        **settings.model.values(),
    )
    memory = StepMemory.of(cost, sizes, train, runner.runtime.strategy.num_replicas_in_sync)
    selection = runner.config.selection
    return {
        "role": role,
        "model": settings.architecture,
        "parameters": parameters,
        "steps": steps,
        "batch_sizes": list(sizes),
        "images_seen": steps * sum(sizes),
        "epochs": _epochs(runner.config, counts, settings),
        "image_size": settings.image_size,
        "multiply_adds": cost.training,
        "activation_bytes": memory.activation_bytes,
        "step_bytes": memory.bytes,
        "batch_bytes": batch_blocks.bytes_of_batches(
            sizes, settings.image_size, runner.workers.share, settings.mixes_images
        ),
        "unknown_layers": cost.unknown,
        "images_per_class": (
            _images_per_class(selection) if settings.learns_pseudo_labels else None
        ),
    }


@functools.cache
def _network(name, frozen_blocks, rematerialize, **settings):
    """(parameters, `Cost`) of a network, which may take seconds to build."""
    from nsk import models
    from nsk.stages.training import trainable_parameters, training_cost

    model = models.build_model(name, **settings)
    parameters = trainable_parameters(model)
    return parameters, training_cost(model, frozen_blocks, rematerialize)


def _num_used(config, counts):
    """Number of unlabelled images that are used, about."""
    return round(config.scoring.unlabeled_fraction * counts["images"]["unlabeled"])


def _epochs(config, counts, settings):
    """Epochs over each stream, rounded.

    Every unlabelled image that is used is assumed to be kept once, unless the settings give a
    number of images.
    """
    selection, num_labeled = config.selection, counts["images"]["labeled"]
    num_pseudo = max(1, _num_used(config, counts))
    if selection.policy in WITH_IMAGES_PER_CLASS and selection.images_per_class:
        num_pseudo = selection.images_per_class * counts["num_classes"]
    sizes = settings.batch_sizes
    if not settings.learns_pseudo_labels:
        images = {"labelled": num_labeled}
    elif settings.is_pretraining:
        images = {"pseudo": num_pseudo}
    elif len(sizes) == 1:
        images = {"labelled and pseudo-labelled": num_labeled + num_pseudo}
    else:
        images = {"labelled": num_labeled, "pseudo": num_pseudo}
    return {
        name: round(settings.num_steps * size / number, 2)
        for (name, number), size in zip(images.items(), sizes, strict=True)
    }


def _images_per_class(selection):
    """Images per class, or their minimum, after a selection; None: any number."""
    if selection.policy in WITH_IMAGES_PER_CLASS:
        return selection.images_per_class or "mean"
    return selection.gap_floor if selection.policy == "gap" else None


def _work_cells(row):
    start = (str(row["index"]), row["role"], row["model"])
    if "steps" not in row:
        return start + ("-",) * (len(WORK_HEADER) - len(start))
    return (
        *start,
        f"{row['parameters']:,}",
        f"{row['steps']:,}",
        " + ".join(map(str, row["batch_sizes"])),
        f"{row['images_seen']:,}",
        ", ".join(
            f"{name} {'~' if 'pseudo' in name else ''}{value:,.1f}"
            for name, value in row["epochs"].items()
        ),
    )


def _cost_cells(row):
    start = (str(row["index"]), row["role"])
    if "steps" not in row:
        return start + ("-",) * (len(COST_HEADER) - len(start))
    per_class = row["images_per_class"]
    return (
        *start,
        str(row["image_size"]),
        f"{row['multiply_adds'] / 1e9:,.3f} G",
        format_bytes(row["activation_bytes"]),
        format_bytes(row["step_bytes"]),
        format_bytes(row["batch_bytes"]),
        f"{per_class:,}" if isinstance(per_class, int) else per_class or "-",
    )


def _not_counted(rows):
    """A line for each network with layers whose cost is unknown."""
    unknown = {row["model"]: row["unknown_layers"] for row in rows if row.get("unknown_layers")}
    return [
        f"Not counted in the cost of {model}: "
        + list_names([f"{number} layers {kind}" for kind, number in kinds.items()])
        for model, kinds in unknown.items()
    ]


def _disk_bytes(config, counts, folder, rows):
    """Upper estimate of all files of the run, a dict by purpose."""
    selection, students = config.selection, sum(row["role"] == "student" for row in rows)
    predicted = counts["images"]["dev"] + counts["images"]["test"]
    unlabeled = _num_used(config, counts)
    num_stored = config.scoring.num_stored_classes(counts["num_classes"])
    # float16, and the class as int32 if not all classes are stored.
    log_probabilities = 6 * num_stored if num_stored else 2 * counts["num_classes"]
    evaluations = sum(row["role"] in ("teacher", "student") for row in rows)
    parameters = [row.get("parameters", 0) for row in rows]
    disk = {
        # The model of each network, its export and its SavedModel.
        "models": sum(parameters) * FLOAT_BYTES * 3,
        # Two of the largest network and one that is being written, each with weights, up to two
        # optimizer slots, and the average.
        "checkpoints": max(parameters) * FLOAT_BYTES * 3 * 4,
        # One more than there are students: an unfinished stage has files, too.
        "scores": (students + 1) * unlabeled * (SCORE_BYTES + log_probabilities)
        + evaluations * predicted * (SCORE_BYTES + 2 * counts["num_classes"]),
    }
    if folder is None:
        return disk
    # An image with several copies is stored in as many shards, once in each.
    per_class = selection.gap_floor if selection.policy == "gap" else 0
    if selection.policy in WITH_IMAGES_PER_CLASS:
        per_class = selection.images_per_class
    repeated = per_class * counts["num_classes"] / max(1, unlabeled)
    used = config.scoring.unlabeled_fraction * _bytes_below(folder / "unlabeled")
    shards = students * used * max(1, repeated)
    disk = {"images": _bytes_below(folder), "pseudo-label shards": shards, **disk}
    distilled = sum(
        config.targets.at(number).distillation_alpha > 0
        for number in range(1, config.num_students + 1)
    )
    if distilled:
        labeled = counts["images"]["labeled"] * log_probabilities
        disk["scored labelled shards"] = distilled * (_bytes_below(folder / "labeled") + labeled)
    return disk


def _describe_disk(disk):
    """Bytes on disk by purpose, in words."""
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in disk.items())
    without = "" if "images" in disk else "; without images and pseudo-label shards"
    return f"{format_bytes(sum(disk.values()))} ({parts}){without}"


def _bytes_below(folder):
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
