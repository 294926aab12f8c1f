"""What a run came to: `summary.json` and the closing table.

This is the only reader of test metrics, and of the sealed file with the truth about unlabelled
images.
"""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from nsk.evaluation.prediction_files import read_table
from nsk.progress import clock
from nsk.report import tensorboard
from nsk.report.text_table import columns
from nsk.store import folders as stage

PACKAGES = ("tensorflow", "keras", "numpy", "tensorflow-datasets")


def report(config, images, chain, best, export, nothing_new):
    """Writes `summary.json`, prints the closing table and returns the summary.

    Args:
        config: `nsk.config.config.Config`.
        images: the ingest `Stage`.
        chain: list of `Generation`s.
        best: index of the best one by dev.
        export: the export `Stage`.
        nothing_new: whether every stage was finished before.
    """
    workdir = config.workdir
    summary = {
        "generations": [
            _describe(index, generation, images) for index, generation in enumerate(chain)
        ],
        "best": {"index": best},
        "export": export.path.relative_to(workdir).as_posix(),
        "num_images": images.counts["images"],
        "left_out": {
            "corrupt": images.counts["corrupt"]["count"],
            "duplicates": sum(images.counts["duplicates_removed"].values()),
        },
        "seed": config.run.seed,
        "environment": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
    }
    stage.write_json_atomically(workdir / "summary.json", summary)
    with stage.naming_disk_errors(workdir / "tensorboard"):
        tensorboard.write_generations(summary, workdir / "tensorboard" / "generations")
    sys.stdout.write(closing_table(summary, workdir))
    if nothing_new:
        sys.stdout.write("Every stage was finished before: nothing was done.\n")
    return summary


def _version(package):
    """Its version; None where it is not installed under this name (tensorflow-cpu, no TFDS)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _describe(index, generation, images):
    counts, trained = generation.model.counts, generation.trained.counts
    made_by = [trained] if generation.trained == generation.model else [trained, counts]
    description = {
        "index": index,
        "role": "student" if index else "teacher",
        "model": counts["model"],
        "parameters": counts["parameters"],
        "image_size": counts["image_size"],
        # None: adopted, trained elsewhere.
        "images_seen": _total(made_by, "images_seen"),
        "seconds": _total(made_by, "seconds"),
        "stage": generation.model.name,
        **{split: generation.evaluation.counts[split] for split in ("dev", "test")},
    }
    if generation.trained != generation.model:
        description["finetuned_from"] = {
            "image_size": trained["image_size"],
            "stage": generation.trained.name,
            "dev_before": counts["dev_before"],
        }
    if generation.pseudo_labels is not None:
        description["pseudo"] = _describe_pseudo_labels(generation, images)
    return description


def _total(counts, name):
    """The sum of a count over stages; None where it is not known."""
    return sum(one[name] for one in counts) if name in counts[0] else None


def _describe_pseudo_labels(generation, images):
    """What a student learned from: counts by class, and how much of it was true."""
    selection = generation.selection.counts
    copies_of_class = np.zeros(len(selection["per_class"]["candidates"]))
    truth, known, correct = read_truth(images), 0, 0
    for path in sorted((generation.scores.path / "unlabeled").glob("*.parquet")):
        copies = read_table(generation.selection.path / path.name)["copies"].to_numpy()
        labels = read_table(path, ["label"])["label"].to_numpy()
        copies_of_class += np.bincount(labels, copies, len(copies_of_class))
        if truth:
            ids = read_table(path, ["id"])["id"].to_pylist()
            kept = [row for row in np.flatnonzero(copies).tolist() if ids[row] in truth]
            known += len(kept)
            correct += sum(truth[ids[row]] == labels[row] for row in kept)
    # With --select=once an earlier teacher chose the images, and this one has labelled them anew.
    chosen_anew = generation.selection.path.parent == generation.scores.path.parent
    return {
        "scored": generation.scores.counts["scored"],
        "temperature": generation.scores.counts["temperature"],
        "kept": selection["images"],
        "copies": selection["copies"],
        "precision": float(correct / known) if known else None,
        "per_class_candidates": selection["per_class"]["candidates"] if chosen_anew else None,
        "per_class_copies": copies_of_class.astype(int).tolist(),
    }


def read_truth(images):
    """{id: true label} of the unlabelled images, as far as it is known."""
    sealed = images.path / "sealed" / "unlabeled_truth.parquet"
    if not sealed.exists():
        return {}
    table = read_table(sealed, ["id", "label"])
    return dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))


def closing_table(summary, workdir):
    """The table that a person reads at the end, as text."""
    header = (
        "gen",
        "role",
        "model",
        "parameters",
        "dev",
        "test",
        "pseudo-labels",
        "precision",
        "time",
    )
    rows = [header]
    for one in summary["generations"]:
        pseudo = one.get("pseudo")
        precision = pseudo and pseudo["precision"]
        rows.append(
            (
                f"{one['index']}" + ("*" if one["index"] == summary["best"]["index"] else ""),
                one["role"],
                one["model"],
                f"{one['parameters']:,}",
                f"{one['dev']['accuracy']:.2%}",
                f"{one['test']['accuracy']:.2%}",
                f"{pseudo['kept']:,}" if pseudo else "-",
                "-" if precision is None else f"{precision:.2%}",
                "-" if one["seconds"] is None else clock(one["seconds"]),
            )
        )
    finetuned = [
        f"Generation {one['index']} was trained at {one['finetuned_from']['image_size']} pixels "
        f"and fine-tuned at {one['image_size']}."
        for one in summary["generations"]
        if "finetuned_from" in one
    ]
    images = summary["num_images"]
    return "\n".join(
        (
            "",
            *columns(rows, left=3),
            "",
            *finetuned,
            f"* best on dev. {images['labeled']:,} labelled, {images['unlabeled']:,} unlabelled, "
            f"{images['dev']:,} dev and {images['test']:,} test images; seed {summary['seed']}. "
            "Test decides nothing.",
            f"Model: {workdir / summary['export'] / 'saved_model'}",
            f"TensorBoard: tensorboard --logdir={workdir / 'tensorboard'}",
            "",
        )
    )
