"""Collects the results of a run in a dict, the content of `summary.json`.

Only this module reads test metrics and the sealed file with the true labels of unlabelled images;
the other modules of `nsk/report` show what it has collected.
"""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from absl import logging

from nsk.config.config import Config
from nsk.data.class_names import read_class_descriptions, words_of
from nsk.decisions import Generation
from nsk.errors import list_names
from nsk.evaluation.class_metrics import measure_classes
from nsk.evaluation.corruptions.frost_textures import PROCEDURAL_FROST_NOTE
from nsk.evaluation.prediction_files import read_table
from nsk.evaluation.suites import named_metrics, relative
from nsk.evaluation.suites.corruptions import PROCEDURAL_FROST
from nsk.store.folders import StageFolder

PACKAGES = ("tensorflow", "keras", "numpy", "tensorflow-datasets")
SPLITS = ("dev", "test")


@dataclasses.dataclass(frozen=True)
class RunResults:
    """The finished stages of a run.

    Attributes:
        images: the ingest stage.
        chain: the generations, the teacher first.
        best: index of the best generation on dev.
        export: the export stage.
        suites: by generation, the stages of further evaluation suites by their names.
        baseline: what errors under corruptions are relative to; None: nothing.
    """

    images: StageFolder
    chain: Sequence[Generation]
    best: int
    export: StageFolder
    suites: Mapping[int, Mapping[str, StageFolder]] = dataclasses.field(default_factory=dict)
    baseline: relative.Baseline | None = None


def collect_summary(config: Config, results: RunResults) -> dict[str, Any]:
    """Collects the results of a finished run.

    Args:
        config: the settings of the run.
        results: its stages.

    Returns:
        dict of JSON values, the content of `summary.json`.
    """
    images = results.images
    generations = [
        _describe_generation(index, generation, images)
        for index, generation in enumerate(results.chain)
    ]
    _add_suites(generations, results)
    names = images.counts["class_names"]
    descriptions = read_class_descriptions(config.data)
    described = {}
    if descriptions:
        words = zip(names, words_of(names, descriptions), strict=True)
        described = {"class_descriptions": {name: text for name, text in words if text}}
    return {
        "generations": generations,
        "best": {"index": results.best},
        "decide_by": config.chain.decide_by,
        "export": results.export.path.relative_to(config.workdir).as_posix(),
        "class_names": names,
        **described,
        "num_images": images.counts["images"],
        **_unlabeled_used(config, results.chain),
        "left_out": {
            "corrupt": images.counts["corrupt"]["count"],
            "duplicates": sum(images.counts["duplicates_removed"].values()),
        },
        "seed": config.run.seed,
        "environment": describe_environment(),
    }


def _unlabeled_used(config, chain):
    """The number of unlabelled images that are used, if it may not be all."""
    scored = [generation.scores.counts["scored"] for generation in chain if generation.scores]
    if config.scoring.unlabeled_fraction == 1 or not scored:
        return {}
    return {"unlabeled_used": scored[0]}


def _add_suites(generations, results):
    """Adds what the suites found: their numbers to the test metrics, all of it as `suites`."""
    baseline = results.baseline
    for index, stages in sorted(results.suites.items()):
        if baseline is None and index == 0 and len(results.suites) > 1:
            counts = {name: stage.counts for name, stage in stages.items()}
            folders = {name: stage.path for name, stage in stages.items()}
            baseline = relative.Baseline(results.chain[0].model.name, counts, folders=folders)
        described = describe_suites(stages, baseline)
        if index - 1 in results.suites:
            earlier = results.suites[index - 1]
            for name, stage in stages.items():
                described[name] |= {
                    f"difference_to_teacher_{key}": value
                    for key, value in relative.paired_differences(
                        name, stage.path, earlier[name].path
                    ).items()
                }
        generations[index]["suites"] = described
        for name, found in described.items():
            generations[index]["test"] |= named_metrics(name, found)


def describe_suites(
    stages: Mapping[str, StageFolder], baseline: relative.Baseline | None
) -> dict[str, Any]:
    """What the suites found, with the values relative to a baseline."""
    described = {}
    for name, stage in stages.items():
        found = {**stage.counts, **relative.compare(name, stage.path, stage.counts, baseline)}
        for note in _notes(found):
            logging.warning("%s: %s", stage.name, note)
        described[name] = found
    return described


def _notes(found):
    """Yields what a reader of a suite's results has to know."""
    yield from filter(None, map(found.get, ("baseline_note", "clean_note", "mce_note")))
    yield from found.get("warnings", ())
    if found.get("missing"):
        yield f"There are no files of {list_names(found['missing'])}."
    if found.get("frost") == PROCEDURAL_FROST:
        yield f"{PROCEDURAL_FROST_NOTE}."
    for name, values in found.get("sets", {}).items():
        if values.get("unreadable"):
            first = values["unreadable_images"][0]
            yield f"{values['unreadable']} images of {name} cannot be read, such as {first}."


def describe_environment() -> dict[str, str | None]:
    """The versions of Python and of the packages that results depend on."""
    versions = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **versions}


def _version(package):
    """Version of a package; None if it is not installed under this name (tensorflow-cpu, say)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _describe_generation(index, generation, images):
    counts, networks = generation.model.counts, generation.networks
    is_finetuned = networks[0].trained != networks[0].model
    stages = [network.trained for network in networks]
    stages += [network.model for network in networks if is_finetuned]
    stages += filter(None, [generation.pretrained])
    stage_counts = [stage.counts for stage in stages]
    description = {
        "index": index,
        "role": "student" if index else "teacher",
        "model": counts["model"],
        "parameters": counts["parameters"],
        "image_size": counts["image_size"],
        # None: adopted, trained elsewhere.
        "images_seen": _total(stage_counts, "images_seen"),
        "seconds": _total(stage_counts, "seconds"),
        "stage": generation.model.name,
        **{split: _describe_split(generation.evaluation, split, images) for split in SPLITS},
    }
    if generation.pretrained is not None:
        description["pretrained"] = {
            "stage": generation.pretrained.name,
            "images_seen": generation.pretrained.counts["images_seen"],
            "dev": generation.trained.counts["dev_before"],
        }
    if is_finetuned:
        description["finetuned_from"] = {
            "image_size": generation.trained.counts["image_size"],
            "stage": generation.trained.name,
            "dev_before": networks[0].model.counts["dev_before"],
        }
    if generation.members:
        description["members"] = [
            {"stage": network.model.name, "dev": network.model.counts["dev"]}
            for network in networks
        ]
    if generation.pseudo_labels is not None:
        description["pseudo"] = _describe_pseudo_labels(generation, images)
    return description


def _describe_split(evaluation, split, images):
    """Metrics of a split, and as `per_class` lists in the order of the classes."""
    predictions = read_table(evaluation.path / f"{split}.parquet", ["truth", "label"])
    truth, labels = (predictions[name].to_numpy() for name in ("truth", "label"))
    classes = measure_classes(truth, labels, len(images.counts["class_names"]))
    return {
        **evaluation.counts[split],
        "per_class": {
            "images": classes.images.tolist(),
            "recall": _without_nan(classes.recall),
            "precision": _without_nan(classes.precision),
        },
    }


def _without_nan(values):
    """A list of floats, None where a value is not defined."""
    return [None if np.isnan(value) else float(value) for value in values]


def _total(stage_counts, name):
    """The sum of a count over stages; None if it is unknown."""
    return sum(counts[name] for counts in stage_counts) if name in stage_counts[0] else None


def _describe_pseudo_labels(generation, images):
    """Counts of a student's pseudo-labels, and their precision."""
    selection = generation.selection.counts
    copies_per_class = np.zeros(len(selection["per_class"]["candidates"]))
    truth, num_known, num_correct = read_truth(images), 0, 0
    for path in sorted((generation.scores.path / "unlabeled").glob("*.parquet")):
        copies = read_table(generation.selection.path / path.name)["copies"].to_numpy()
        labels = read_table(path, ["label"])["label"].to_numpy()
        copies_per_class += np.bincount(labels, copies, len(copies_per_class))
        if truth:
            ids = read_table(path, ["id"])["id"].to_pylist()
            kept = [row for row in np.flatnonzero(copies).tolist() if ids[row] in truth]
            num_known += len(kept)
            num_correct += sum(truth[ids[row]] == labels[row] for row in kept)
    # With --select=once the images were selected by an earlier teacher, and relabelled by this one.
    is_own_selection = generation.selection.path.parent == generation.scores.path.parent
    return {
        "scored": generation.scores.counts["scored"],
        "temperature": generation.scores.counts["temperature"],
        "kept": selection["images"],
        "copies": selection["copies"],
        "precision": float(num_correct / num_known) if num_known else None,
        "per_class_candidates": selection["per_class"]["candidates"] if is_own_selection else None,
        "per_class_copies": copies_per_class.astype(int).tolist(),
        **_describe_comparison(generation.comparison),
    }


def _describe_comparison(comparison):
    """How the unlabelled images compared with dev; {} if they were not compared."""
    if comparison is None:
        return {}
    counts = comparison.counts
    return {"unlike_dev": counts["unlike"], "unknown_share": counts["unknown_share"]}


def read_truth(images: StageFolder) -> dict[str, int]:
    """{id: true label} of the unlabelled images of an ingest stage, as far as it is known."""
    sealed = images.path / "sealed" / "unlabeled_truth.parquet"
    if not sealed.exists():
        return {}
    table = read_table(sealed, ["id", "label"])
    return dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))
