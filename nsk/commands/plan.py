"""What a run would do, without training: images, steps, cost and memory of stages, and disk."""

import functools
import sys

from nsk import models
from nsk.data import ingest, pipeline
from nsk.models import blocks
from nsk.models.cost import cost_of
from nsk.report.text_table import columns
from nsk.stages import training as train_stage
from nsk.training import rematerialization

FLOAT_BYTES = 4
# Of a score's id, key, label and confidence, about; log-probabilities come on top.
SCORE_BYTES = 64
UNITS = ("MiB", "GiB", "TiB", "PiB")

WORK_HEADER = ("gen", "role", "model", "parameters", "steps", "batch", "images seen", "epochs")
COST_HEADER = (
    "gen",
    "role",
    "pixels",
    "multiply-adds",
    "activations",
    "batches",
    "images per class",
)
COST_LEGEND = (
    "multiply-adds: of a training image, forward and backward. activations: what a replica keeps",
    "of a step's images, or of a part of them, for the backward pass; weights, gradients and work",
    "space come on top. batches: images that a worker makes and holds ahead, in main memory; the",
    "work space of the noise, most with mixup and CutMix, and images of --cache=memory, or three",
    "windows of --shuffle_mebibytes for each stream, come on top.",
)


def plan(stages, images):
    """Prints the plan and returns it.

    Args:
        stages: `nsk.stages.all_stages.Stages`.
        images: the ingest `Stage`, or the `ingest.StatedImages` that stand for it.

    Returns:
        dict: `images`, `stages` (a dict each) and `disk_bytes`, a dict by what it is for, without
        the images where they are only stated.
    """
    generations = range(stages.config.num_students + 1)
    rows = [row for number in generations for row in _rows(stages, images, number)]
    disk = _disk_bytes(stages.config.pseudo, images, rows)
    lines = [
        *_images(images),
        *columns([WORK_HEADER, *map(_work_cells, rows)], left=3),
        "",
        *columns([COST_HEADER, *map(_cost_cells, rows)], left=2),
        *COST_LEGEND,
        *_not_counted(rows),
        f"Devices: {stages.strategy.num_replicas_in_sync}. Disk, at most about, in "
        f"{stages.workdir}: {_told(disk)}. "
        "Nothing was trained.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return {"images": images.counts["images"], "stages": rows, "disk_bytes": disk}


def _images(images):
    if images.path:
        return ingest.describe(images.counts)
    labeled, unlabeled = (images.counts["images"][split] for split in ("labeled", "unlabeled"))
    return [
        f"Images, as --plan_images says: {labeled:,} labeled, {unlabeled:,} unlabeled; "
        f"{images.counts['num_classes']:,} classes. None was read."
    ]


def _rows(stages, images, generation):
    """A generation's stages of training: a dict each."""
    if generation == 0 and stages.config.run.teacher:
        adopted = f"adopted from {stages.config.run.teacher}"
        return [{"index": 0, "role": "teacher", "model": adopted}]
    role = "student" if generation else "teacher"
    rows = [_row(stages, images, role, stages.training_settings(generation, images))]
    finetuning = stages.finetune_settings(generation, images)
    if finetuning:
        rows.append(_row(stages, images, "finetune", finetuning))
    return [{"index": generation, **row} for row in rows]


def _row(stages, images, role, settings):
    """One stage of training."""
    counts, train, pseudo = images.counts, settings["train"], stages.config.pseudo
    sizes = train_stage.stream_batch_sizes(train, with_pseudo=role == "student")
    steps = train_stage.num_training_steps(train, counts["images"]["labeled"], sum(sizes))
    parameters, cost = _network(
        settings["architecture"],
        settings.get("frozen_blocks", 0),
        train["rematerialize"],
        num_classes=counts["num_classes"],
        image_size=settings["image_size"],
        **settings["model"],
    )
    parts = stages.strategy.num_replicas_in_sync * train["accumulation_steps"]
    return {
        "role": role,
        "model": settings["architecture"],
        "parameters": parameters,
        "steps": steps,
        "batch_sizes": list(sizes),
        "images_seen": steps * sum(sizes),
        "epochs": _epochs(pseudo, counts, role, steps, sizes),
        "image_size": settings["image_size"],
        "multiply_adds": cost.training,
        "activation_bytes": cost.activation_bytes * sum(sizes) // parts,
        "batch_bytes": pipeline.bytes_of_batches(
            sizes, settings["image_size"], stages.workers.share, train_stage.mixes(settings)
        ),
        "unknown_layers": cost.unknown,
        "images_per_class": _images_per_class(pseudo) if role == "student" else None,
    }


@functools.cache
def _network(name, frozen_blocks, rematerialize, **settings):
    """(parameters, `Cost`) of a network, which may take seconds to build."""
    model = models.build_model(name, **settings)
    parameters = train_stage.trainable_parameters(model)
    for layer in blocks.shallow_layers(model, frozen_blocks):
        layer.trainable = False
    recomputed = rematerialize and blocks.block_names(model)
    segments = rematerialization.segments(model) if recomputed else ()
    return parameters, cost_of(model, segments)


def _epochs(pseudo, counts, role, steps, sizes):
    """Epochs over each stream, rounded; as if all unlabelled images were kept, each once, where the
    settings do not say how many will be."""
    num_labeled, num_pseudo = counts["images"]["labeled"], counts["images"]["unlabeled"]
    if pseudo.policy == "paper" and pseudo.images_per_class:
        num_pseudo = pseudo.images_per_class * counts["num_classes"]
    if role != "student":
        images = {"labelled": num_labeled}
    elif len(sizes) == 1:
        images = {"labelled and pseudo-labelled": num_labeled + num_pseudo}
    else:
        images = {"labelled": num_labeled, "pseudo": num_pseudo}
    return {
        name: round(steps * size / number, 2)
        for (name, number), size in zip(images.items(), sizes, strict=True)
    }


def _images_per_class(pseudo):
    """Images of each class that a selection makes or at least asks for; None: any number."""
    if pseudo.policy == "paper":
        return pseudo.images_per_class or "mean"
    return pseudo.gap_floor if pseudo.policy == "gap" else None


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
        _size(row["activation_bytes"]),
        _size(row["batch_bytes"]),
        f"{per_class:,}" if isinstance(per_class, int) else per_class or "-",
    )


def _not_counted(rows):
    """A line for each network that has layers whose cost is not known."""
    unknown = {row["model"]: row["unknown_layers"] for row in rows if row.get("unknown_layers")}
    return [
        f"Not counted of {model}, so that it costs more: "
        + ", ".join(f"{number} layers {kind}" for kind, number in kinds.items())
        for model, kinds in unknown.items()
    ]


def _disk_bytes(pseudo, images, rows):
    """Upper estimate of all that the run leaves, a dict by what it is for."""
    counts, students = images.counts, sum(row["role"] == "student" for row in rows)
    predicted = counts["images"]["dev"] + counts["images"]["test"]
    unlabeled = counts["images"]["unlabeled"]
    num_stored = pseudo.stored_classes(counts["num_classes"])
    # float16, and int32 of which class each is where not all are stored.
    log_probabilities = 6 * num_stored if num_stored else 2 * counts["num_classes"]
    evaluations = sum(row["role"] != "finetune" for row in rows)
    parameters = [row.get("parameters", 0) for row in rows]
    disk = {
        # Of each network the model, its export and its SavedModel.
        "models": sum(parameters) * FLOAT_BYTES * 3,
        # Two of the largest network and one that is being written, each of weights, up to two
        # numbers of the optimizer for each, and their average.
        "checkpoints": max(parameters) * FLOAT_BYTES * 3 * 4,
        # Once more than there are students: a stage that is unfinished has its parts, too.
        "scores": (students + 1) * unlabeled * (SCORE_BYTES + log_probabilities)
        + evaluations * predicted * (SCORE_BYTES + 2 * counts["num_classes"]),
    }
    if images.path is None:
        return disk
    # A class that is repeated up to a size stands so often in the shards, in one shard once.
    per_class = {"paper": pseudo.images_per_class, "gap": pseudo.gap_floor, "none": 0}
    repeated = per_class[pseudo.policy] * counts["num_classes"] / max(1, unlabeled)
    shards = students * _bytes_below(images.path / "unlabeled") * max(1, repeated)
    return {"images": _bytes_below(images.path), "pseudo-label shards": shards, **disk}


def _told(disk):
    """Disk by what it is for, in words."""
    parts = ", ".join(f"{name} {_size(size)}" for name, size in disk.items())
    without = "" if "images" in disk else "; images and pseudo-label shards come on top"
    return f"{_size(sum(disk.values()))} ({parts}){without}"


def _size(number_of_bytes):
    """Bytes as 0.3 MiB, 12 MiB or 3.4 TiB."""
    size, units = number_of_bytes / 2**20, list(UNITS)
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 10 else f"{size:.1f} {units[0]}"


def _bytes_below(folder):
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
