"""What a sweep costs, and what its cells share, before anything is trained."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from nsk import models
from nsk.config.config import Config
from nsk.config.fields import used_values
from nsk.distributed.runtime import Runtime
from nsk.report.text_table import align_columns
from nsk.stages import ingestion, validation
from nsk.stages.hyperparameters import Hyperparameters, network_trainings
from nsk.stages.runner import StageRunner
from nsk.store.folders import StageFolder
from nsk.sweep import speed
from nsk.sweep.grid import Cell
from nsk.sweep.speed import Speed
from nsk.units import format_bytes, format_duration

# Seconds of a run beside its trainings and predictions: Python, TensorFlow, files and the export.
RUN_SECONDS = 10.0
# Predictions, or as many forward and backward passes, of each test image by each suite.
SUITE_PREDICTIONS = {
    "calibration": 2,
    "corruptions": 5 * 19,
    "perturbations": 287,
    "attacks": 3 * 22,
    "natural": 1,
}
FLOAT_BYTES = 4
SCORE_BYTES = 64  # Of a score's id, key, label and confidence.
DEVICES = ("here", "H200")
# Initial weights that are those of another training of the run.
FROM_MODEL = ("teacher", "pretrained", "trained")


@dataclasses.dataclass(frozen=True)
class Work:
    """A part of a run that others may share.

    Attributes:
        identity: text that is equal for the same work.
        kind: train | predict.
        images: images seen.
        seconds: estimated time by device.
        bytes: on disk.
    """

    identity: str
    kind: str
    images: int
    seconds: Mapping[str, float]
    bytes: float


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """The cost of a sweep.

    Attributes:
        rows: for each cell with its first seed: (name, networks, training images, of these shared
            with earlier cells, seconds by device of what is not shared).
        runs: number of runs.
        images: training images of all runs.
        images_without_sharing: the same if every run trained everything.
        seconds: of all runs, by device.
        bytes: on disk, at most.
    """

    rows: Sequence[tuple[str, str, int, int, Mapping[str, float]]]
    runs: int
    images: int
    images_without_sharing: int
    seconds: Mapping[str, float]
    bytes: float


def make_plan(
    cells: Sequence[Cell], make_runner: Callable[[Config], StageRunner], runtime: Runtime
) -> SweepPlan:
    """Plans a sweep; ingests images and measures networks.

    Args:
        cells: all runs; those with other seeds than the first are taken to cost the same.
        make_runner: makes the runner of a configuration.
        runtime: devices, on which networks are measured.

    Raises:
        UserError: settings of a cell do not allow its run.
    """
    first = [cell for cell in cells if cell.seed == cells[0].seed]
    ingested = {}
    planned = []
    for cell in first:
        for name in cell.config.chain.models:
            models.check_name(name)
        runner = make_runner(cell.config)
        key = json.dumps([used_values([cell.config.data]), cell.config.split_seed])
        if key not in ingested:
            ingested[key] = ingestion.ingest_images(runner, logs_summary=not ingested)
        validation.check_chain(runner, ingested[key].counts)
        planned.append((cell, key, ingested[key]))
    speeds = _Speeds(runtime)
    for cell, _, images in planned:
        for settings in trainings(cell.config, images.counts):
            speeds.add(settings, images)
    speeds.measure()
    return _sum_up(cells, planned, speeds)


def _sum_up(cells, planned, speeds):
    repeats = len(cells) // len(planned)
    done, rows, total_bytes = set(), [], 0.0
    seconds, images, all_images = dict.fromkeys(DEVICES, 0.0), 0, 0
    for cell, key, stage in planned:
        own = dict.fromkeys(DEVICES, RUN_SECONDS)
        own_images = own_shared = 0
        for work in works(cell.config, key, stage.counts, speeds):
            trained = work.images if work.kind == "train" else 0
            own_images += trained
            if work.identity in done:
                own_shared += trained
                continue
            done.add(work.identity)
            total_bytes += work.bytes
            for device in DEVICES:
                own[device] += work.seconds[device]
        networks = " ".join(cell.config.chain.models)
        rows.append((cell.name, networks, own_images, own_shared, own))
        all_images += own_images
        images += own_images - own_shared
        for device in DEVICES:
            seconds[device] += own[device]
    return SweepPlan(
        rows=rows,
        runs=len(cells),
        images=repeats * images,
        images_without_sharing=repeats * all_images,
        seconds={device: repeats * value for device, value in seconds.items()},
        bytes=repeats * total_bytes,
    )


def trainings(config: Config, counts: Mapping[str, Any]) -> Iterator[Hyperparameters]:
    """The trainings and fine-tunings of a run, in order."""
    for generation in config.trained_generations:
        for member in config.members(generation):
            yield from network_trainings(config, generation, counts, member)


def works(
    config: Config, images_key: str, counts: Mapping[str, Any], speeds: "_Speeds"
) -> Iterator[Work]:
    """The parts of a run, each with all that its result depends on as its identity.

    Args:
        config: the run's settings.
        images_key: identity of its images.
        counts: those of the ingested images.
        speeds: of its networks.
    """
    sizes, teacher, last = counts["images"], f"{images_key} {config.chain.teacher}", None
    for generation in range(config.num_students + 1):
        labels = []
        if generation and last is not None:
            labels = list(_labels(config, generation, teacher, last, counts, speeds))
            yield from labels
        if generation not in config.trained_generations:
            continue
        selected = used_values([config.selection.at(generation)])
        inputs = [images_key, selected, [work.identity for work in labels]]
        networks = []
        for member in config.members(generation):
            model = teacher
            for settings in network_trainings(config, generation, counts, member):
                initial = model if settings.init_from in FROM_MODEL else ""
                model = _identity(inputs if generation else images_key, initial, settings)
                yield speeds.training(model, settings, counts)
                last = settings
            networks.append(model)
        teacher = networks[0] if len(networks) == 1 else _identity(networks)
        predicted = len(networks) * (sizes["dev"] + sizes["test"])
        yield speeds.predictions(f"{teacher} evaluation", last, predicted, 0)
        if config.evaluation.evaluate_models == "all" or generation == config.num_students:
            yield from _suites(config, teacher, last, sizes["test"], speeds)


def _labels(config, generation, teacher, network, counts, speeds):
    """Yields the predictions of a teacher for its student."""
    sizes, classes = counts["images"], counts["num_classes"]
    views = 2 if config.scoring.score_views == "mirror" else 1
    views *= len(config.members(generation - 1))
    scoring = used_values([config.scoring])
    if config.learns_unlabeled(generation):
        used = round(config.scoring.unlabeled_fraction * sizes["unlabeled"])
        number = views * (used + sizes["dev"])
        stored = used * (SCORE_BYTES + 2 * classes)
        identity = _identity("scores", teacher, scoring)
        if config.scoring.label_with_noise:
            student = [config.noise.at(generation), config.model.at(generation)]
            identity = _identity("scores", teacher, scoring, generation, used_values(student))
        yield speeds.predictions(identity, network, number, stored)
    if config.targets.at(generation).distillation_alpha:
        stored = sizes["labeled"] * 2 * classes
        identity = _identity("labeled", teacher, scoring)
        yield speeds.predictions(identity, network, views * sizes["labeled"], stored)


def _suites(config, model, settings, num_test, speeds):
    parsed = config.evaluation.parsed()
    number = min(num_test, parsed["evaluation_images"] or num_test)
    for suite, predictions in SUITE_PREDICTIONS.items():
        if suite not in config.evaluation.evaluate.split(","):
            continue
        if suite == "attacks":
            predictions += 3 * len(parsed["pgd_epsilons"]) * parsed["pgd_steps"]
        yield speeds.predictions(f"{model} {suite}", settings, number * predictions, 0)


def _identity(*parts):
    """Text that is equal for equal parts, which are JSON values or hyperparameters."""
    return json.dumps(parts, sort_keys=True, default=lambda settings: settings.for_fingerprint())


class _Speeds:
    """Speeds of the networks of a sweep, each kind of work measured once."""

    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        self._waiting, self._measured = {}, {}

    def add(self, settings: Hyperparameters, images: StageFolder) -> None:
        """Remembers a training that is to be measured."""
        self._waiting.setdefault(speed.work_key(settings), (settings, images))

    def measure(self) -> None:
        """Measures what was added."""
        started = time.monotonic()
        for number, (key, (settings, images)) in enumerate(self._waiting.items()):
            logging.info(
                "Measuring %s at %d pixels (%d of %d)",
                settings.architecture,
                settings.image_size,
                number + 1,
                len(self._waiting),
            )
            self._measured[key] = {
                "here": speed.measure(settings, images, self._runtime),
                "H200": speed.estimate_h200(settings, images.counts["num_classes"]),
            }
        seconds = time.monotonic() - started
        logging.info("Measured %d kinds of training in %.0f s", len(self._waiting), seconds)

    def of(self, settings: Hyperparameters) -> dict[str, Speed]:
        """The speeds of a training that was measured, by device."""
        return self._measured[speed.work_key(settings)]

    def training(self, identity: str, settings: Hyperparameters, counts: Mapping[str, Any]) -> Work:
        """A training as work."""
        num_dev = counts["images"]["dev"]
        seen = settings.num_steps * sum(settings.batch_sizes)
        evaluated = num_dev * min(settings.train.evaluations, settings.num_steps)
        seconds = {name: s.training(seen, evaluated) for name, s in self.of(settings).items()}
        parameters = speed.num_parameters(settings, counts["num_classes"])
        return Work(identity, "train", seen, seconds, 2 * FLOAT_BYTES * parameters)

    def predictions(
        self, identity: str, settings: Hyperparameters, images: int, size: float
    ) -> Work:
        """Predictions of the network of a training as work, which writes `size` bytes."""
        seconds = {name: images * s.predict_seconds for name, s in self.of(settings).items()}
        return Work(identity, "predict", images, seconds, size)


def describe(plan: SweepPlan) -> list[str]:
    """The plan in lines of text."""
    rows = [("cell", "networks", "images", "shared", "here", "H200")]
    rows += [
        (name, networks, f"{images:,}", f"{shared:,}", *map(format_duration, seconds.values()))
        for name, networks, images, shared, seconds in plan.rows
    ]
    here, h200 = (format_duration(plan.seconds[device]) for device in DEVICES)
    return [
        *align_columns(rows, left=2),
        "images: of all trainings of a run. shared: those of trainings that an earlier run has "
        "done, with the same seed. here: on this machine, as measured. H200: on one H200 with XLA, "
        "estimated from multiply-adds; input is not included.",
        f"{plan.runs} runs: {plan.images:,} training images ({plan.images_without_sharing:,} if "
        f"they shared nothing), about {here} here or {h200} on an H200, and at most about "
        f"{format_bytes(plan.bytes)} on disk beside the images. Nothing was trained.",
    ]
