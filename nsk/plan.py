"""What a run would do, without training: images, steps and epochs of every stage, and disk."""

import sys

from nsk import models, train_stage
from nsk.data import ingest
from nsk.report.table import columns

FLOAT_BYTES = 4
# Of a score's id, key, label and confidence, about; log-probabilities come on top.
SCORE_BYTES = 64


def plan(stages, images):
    """Prints the plan and returns it.

    Args:
        stages: `nsk.stages.Stages`.
        images: the ingest `Stage`. The images are ingested, since a plan counts them.

    Returns:
        dict: `images`, `stages` (a dict each) and `disk_bytes`.
    """
    counts = images.counts
    rows = [_describe(stages, images, g) for g in range(stages.config.num_students + 1)]
    disk = _disk_bytes(stages.config.pseudo, images, rows)
    header = ("gen", "role", "model", "parameters", "steps", "batch", "images seen", "epochs")
    table = [header, *(_as_text(row) for row in rows)]
    sys.stdout.write(
        "\n".join(
            (
                *ingest.describe(counts),
                *columns(table, left=3),
                f"Image size: {stages.image_size(0, images)}. "
                f"Devices: {stages.strategy.num_replicas_in_sync}. Disk: at most about "
                f"{disk / 2**20:,.0f} MiB in {stages.workdir}. Nothing was trained.",
                "",
            )
        )
    )
    return {"images": counts["images"], "stages": rows, "disk_bytes": disk}


def _describe(stages, images, generation):
    """One training stage; pseudo-label epochs are as if all unlabelled images were kept once."""
    config, counts = stages.config, images.counts
    if generation == 0 and config.run.teacher:
        return {"index": 0, "role": "teacher", "model": f"adopted from {config.run.teacher}"}
    settings = stages.training_settings(generation, images)
    train = settings["train"]
    sizes = train_stage.stream_batch_sizes(train, with_pseudo=generation > 0)
    steps = train_stage.num_training_steps(train, counts["images"]["labeled"], sum(sizes))
    labeled, pseudo = counts["images"]["labeled"], counts["images"]["unlabeled"]
    if config.pseudo.policy == "paper" and config.pseudo.images_per_class:
        pseudo = config.pseudo.images_per_class * counts["num_classes"]
    if generation == 0:
        epochs = {"labelled": steps * sizes[0] / labeled}
    elif len(sizes) == 1:
        epochs = {"labelled and pseudo-labelled": steps * sizes[0] / (labeled + pseudo)}
    else:
        epochs = {"labelled": steps * sizes[0] / labeled, "pseudo": steps * sizes[1] / pseudo}
    model = models.build_model(
        settings["architecture"],
        num_classes=counts["num_classes"],
        image_size=settings["image_size"],
        **settings["model"],
    )
    return {
        "index": generation,
        "role": "student" if generation else "teacher",
        "model": settings["architecture"],
        "parameters": train_stage.trainable_parameters(model),
        "steps": steps,
        "batch_sizes": list(sizes),
        "images_seen": steps * sum(sizes),
        "epochs": {name: round(value, 2) for name, value in epochs.items()},
    }


def _as_text(row):
    if "steps" not in row:
        return (str(row["index"]), row["role"], row["model"], "-", "-", "-", "-", "-")
    return (
        str(row["index"]),
        row["role"],
        row["model"],
        f"{row['parameters']:,}",
        f"{row['steps']:,}",
        " + ".join(map(str, row["batch_sizes"])),
        f"{row['images_seen']:,}",
        ", ".join(
            f"{name} {'~' if 'pseudo' in name else ''}{value:,.1f}"
            for name, value in row["epochs"].items()
        ),
    )


def _disk_bytes(pseudo, images, rows):
    """Upper estimate of all that the run leaves, the ingested images included."""
    counts = images.counts
    # A class that is repeated up to a size stands so often in the shards, in one shard once.
    per_class = {"paper": pseudo.images_per_class, "gap": pseudo.gap_floor, "none": 0}
    rows_in_epoch = per_class[pseudo.policy] * counts["num_classes"]
    repeated = rows_in_epoch / max(1, counts["images"]["unlabeled"])
    ingested = sum(file.stat().st_size for file in images.path.rglob("*") if file.is_file())
    unlabeled = sum(
        file.stat().st_size for file in (images.path / "unlabeled").iterdir() if file.is_file()
    )
    num_stored = pseudo.stored_classes(counts["num_classes"])
    # float16, and int32 of which class each is where not all are stored.
    log_probabilities = 6 * num_stored if num_stored else 2 * counts["num_classes"]
    predicted = counts["images"]["dev"] + counts["images"]["test"]
    total = ingested
    # Checkpoints of the largest network: two, and one that is being written, each of weights, up to
    # two numbers of the optimizer for each, and their average.
    total += max(row.get("parameters", 0) for row in rows) * FLOAT_BYTES * 3 * 4
    for row in rows:
        total += predicted * (SCORE_BYTES + 2 * counts["num_classes"])
        total += row.get("parameters", 0) * FLOAT_BYTES * 3  # Model, export and SavedModel.
        if row["index"]:
            total += counts["images"]["unlabeled"] * 2 * (SCORE_BYTES + log_probabilities)
            total += unlabeled * max(1, repeated)
    return total
