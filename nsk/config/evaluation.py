"""Evaluation of models beyond clean accuracy: suites, and the settings of each."""

import dataclasses
import math
import os
import re
from typing import Any

from nsk.config.fields import Condition, Section, setting, used_values
from nsk.errors import UserError

SUITES = ("calibration", "corruptions", "perturbations", "attacks", "natural")
COMMAND_SUITES = ("clean", *SUITES)
BENCHMARK, ALL = "benchmark", "all"  # The 15 corruptions of the benchmark, or all 19.
MAX_EPSILON = 1.0
# The names in `nsk.evaluation.corruptions` and `nsk.evaluation.perturbations`.
CORRUPTION_NAMES = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    *("speckle_noise", "gaussian_blur", "spatter", "saturate"),
)
PERTURBATION_NAMES = (
    *("gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "snow", "brightness"),
    *("translate", "rotate", "tilt", "scale"),
)


def split_list(text: str) -> tuple[str, ...]:
    """The parts of a comma list, without surrounding spaces."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _with_suite(name):
    return Condition(
        f"the suite {name}",
        lambda values: name in split_list(f"{values['evaluate']},{values['suites']}"),
    )


IN_RUN = Condition("--evaluate", lambda values: bool(values["evaluate"]))
CORRUPTIONS, PERTURBATIONS, ATTACKS, NATURAL = map(_with_suite, SUITES[1:])
WITH_PGD = Condition(
    "--pgd_epsilons", lambda values: ATTACKS.holds(values) and bool(values["pgd_epsilons"])
)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Section):
    """Evaluation of models: suites, and the settings of each."""

    evaluate: str = setting(
        "",
        f"Suites that a run adds to its closing report, a list of {', '.join(SUITES)}; they decide "
        "nothing.",
        commands=("run",),
        changes_results=False,
    )
    evaluate_models: str = setting(
        "best",
        "Which models --evaluate evaluates: best: the exported one | all: every generation.",
        choices=("best", "all"),
        used_if=IN_RUN,
        commands=("run",),
        changes_results=False,
    )
    suites: str = setting(
        "clean",
        f"Command evaluate: a list of {', '.join(COMMAND_SUITES)}.",
        commands=("evaluate",),
        changes_results=False,
    )
    model: str = setting(
        "",
        "Commands evaluate and predict: a .keras or .h5 file, the folder of a SavedModel or of a "
        "finished stage, or the name of a network with --weights.",
        commands=("evaluate", "predict"),
        changes_results=False,
    )
    weights: str = setting(
        "",
        "Commands evaluate and predict: weights of the network named by --model: a .keras or .h5 "
        "file, or an official TensorFlow 1 checkpoint.",
        commands=("evaluate", "predict"),
        changes_results=False,
    )
    pixels: str = setting(
        "",
        "Commands evaluate and predict: scale of the pixels that a whole model expects: 255: 0 to "
        "255 | unit: 0 to 1 | symmetric: -1 to 1 | imagenet: normalised by the mean and standard "
        "deviation of ImageNet | caffe: BGR without the mean of ImageNet; empty: 255, if the model "
        "scales them.",
        choices=("", "255", "unit", "symmetric", "imagenet", "caffe"),
        commands=("evaluate", "predict"),
        changes_results=False,
    )
    output: str = setting(
        "",
        "Commands evaluate and corrupt: folder of the results; command predict: the .csv or "
        ".parquet file of the predictions.",
        commands=("evaluate", "corrupt", "predict"),
        changes_results=False,
    )
    layout: str = setting(
        "npy",
        "Command corrupt: npy: an array for each corruption, as in CIFAR-10-C | folders: JPEG "
        "files in class folders, as in ImageNet-C.",
        choices=("npy", "folders"),
        commands=("corrupt",),
        changes_results=False,
    )
    baseline: str = setting(
        "",
        "What mCE, relative mCE and mFR are relative to: the evaluation.json of another model | "
        "alexnet: the published values, for ImageNet; empty: these metrics are left out; in a run "
        "with --evaluate_models=all, the first generation.",
        commands=("run", "evaluate"),
        changes_results=False,
    )
    crop_fraction: float = setting(
        0.0,
        "Commands evaluate, corrupt and predict: share of the shorter side that the central square "
        "keeps; 0: that of the published weights, or 1.",
        minimum=0.0,
        maximum=1.0,
        commands=("evaluate", "corrupt", "predict"),
        changes_results=False,
    )
    interpolation: str = setting(
        "auto",
        "Commands evaluate, corrupt and predict: how images are resized; auto: as for the "
        "published weights, else bilinear.",
        choices=("auto", "bilinear", "bicubic"),
        commands=("evaluate", "corrupt", "predict"),
        changes_results=False,
    )
    evaluation_seed: int = setting(
        0,
        "Seed of corruptions, perturbations, random starts of attacks, and of --evaluation_images; "
        "it does not depend on --seed, so that models of different runs see the same images.",
        minimum=0,
    )
    evaluation_images: int = setting(
        0,
        "Corruptions, perturbations and attacks: a random subset of this many test images, the "
        "same for every model; 0: all.",
        minimum=0,
        used_if=CORRUPTIONS | PERTURBATIONS | ATTACKS,
    )
    corruptions: str = setting(
        BENCHMARK,
        f"{BENCHMARK}: the 15 corruptions of the benchmark | {ALL}: the 4 extra ones, too | a list "
        "of their names; command corrupt: those that are written.",
        used_if=CORRUPTIONS,
    )
    corruption_constants: str = setting(
        "auto",
        "Severities as in cifar: CIFAR-10-C (32 pixels) | tiny: Tiny-ImageNet-C (64) | imagenet: "
        "ImageNet-C (224) | auto: by the side of the images.",
        choices=("auto", "cifar", "tiny", "imagenet"),
        used_if=CORRUPTIONS | PERTURBATIONS,
    )
    corruption_files: str = setting(
        "",
        "Folder of a published set in the layout of CIFAR-10-C (.npy) or ImageNet-C (JPEG); empty: "
        "the test images are corrupted during the evaluation.",
        used_if=CORRUPTIONS,
    )
    frost_textures: str = setting(
        "",
        "Folder of photographs of frost for the corruption frost; empty: a procedural texture.",
        used_if=CORRUPTIONS,
    )
    perturbations: str = setting(
        ALL, f"{ALL}: the ten perturbation sets | a list of their names.", used_if=PERTURBATIONS
    )
    perturbation_files: str = setting(
        "",
        "Folder of a published set in the layout of CIFAR-10-P (.npy) or ImageNet-P (MP4); empty: "
        "the test images are perturbed during the evaluation.",
        used_if=PERTURBATIONS,
    )
    fgsm_epsilons: str = setting(
        "0,0.01,0.02,0.03,0.04,0.05,0.06,0.07,0.08,0.09,0.1",
        "FGSM: list of the largest changes of a pixel, in units of [0, 1].",
        used_if=ATTACKS,
    )
    pgd_epsilons: str = setting(
        "", "PGD: list of epsilons, in units of [0, 1]; empty: no PGD.", used_if=ATTACKS
    )
    pgd_norm: str = setting(
        "inf",
        "Norm of PGD's change of an image: inf: the largest change of a pixel | 2: Euclidean.",
        choices=("inf", "2"),
        used_if=WITH_PGD,
    )
    pgd_steps: int = setting(40, "PGD: steps along the gradient.", minimum=1, used_if=WITH_PGD)
    pgd_step_size: float = setting(
        0.1 / 3, "PGD: size of a step, in units of epsilon.", minimum=1e-6, used_if=WITH_PGD
    )
    pgd_restarts: int = setting(1, "PGD: number of random starts.", minimum=1, used_if=WITH_PGD)
    natural_sets: str = setting(
        "",
        "Other test sets, a list of NAME=PATH or PATH: folders of class folders (all or some of "
        "the classes), the folder of CIFAR-10.1's .npy files, or a JSON file of label sets of the "
        "test images, such as ReaL's real.json.",
        used_if=NATURAL,
    )

    def __post_init__(self):
        super().__post_init__()
        _check_names("evaluate", self.evaluate, SUITES)
        _check_names("suites", self.suites, COMMAND_SUITES)
        _check_names("corruptions", self.corruptions, (BENCHMARK, ALL, *CORRUPTION_NAMES))
        _check_names("perturbations", self.perturbations, (ALL, *PERTURBATION_NAMES))
        _check_epsilons("fgsm_epsilons", self.fgsm_epsilons, MAX_EPSILON)
        limit = MAX_EPSILON if self.pgd_norm == "inf" else math.inf
        _check_epsilons("pgd_epsilons", self.pgd_epsilons, limit)
        for name in ("corruptions", "perturbations", "fgsm_epsilons"):
            if not split_list(getattr(self, name)):
                raise UserError(f"--{name} is empty: give at least one value, or leave it out.")
        _check_natural_sets(self.natural_sets)
        if NATURAL.holds(self.values()) and not self.natural_sets:
            raise UserError("The suite natural needs --natural_sets=NAME=PATH,...: give one.")

    def parsed(self) -> dict[str, Any]:
        """All values by name, lists as tuples, paths with `~` expanded."""
        values = self.values()
        for name in ("corruptions", "perturbations"):
            values[name] = split_list(values[name])
        for name in ("fgsm_epsilons", "pgd_epsilons"):
            values[name] = tuple(map(float, split_list(values[name])))
        for name in ("corruption_files", "frost_textures", "perturbation_files"):
            values[name] = os.path.expanduser(values[name])
        values["natural_sets"] = dict(map(_name_and_path, split_list(values["natural_sets"])))
        return values

    def used_paths(self) -> list[tuple[str, str]]:
        """(name of the setting, path) of the files and folders that the suites read."""
        parsed, used = self.parsed(), used_values([self])
        single = ("corruption_files", "frost_textures", "perturbation_files")
        paths = [(name, parsed[name]) for name in single if used.get(name)]
        if "natural_sets" in used:
            paths += [("natural_sets", path) for path in parsed["natural_sets"].values()]
        return paths


def _name_and_path(text):
    """(name, path) of NAME=PATH or PATH; the name is then that of the folder."""
    name, separator, path = text.rpartition("=")
    path = os.path.expanduser(path)
    return (name if separator else os.path.basename(os.path.normpath(path))), path


def _check_natural_sets(value):
    """UserError if two test sets have the same name, or one is that of another file."""
    names = [name for name, _ in map(_name_and_path, split_list(value))]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"--natural_sets={value}: two sets are named {name!r}: give NAME=PATH for each."
            )
        if not re.fullmatch(r"\w[\w.+ -]*", name) or name == "clean":
            raise UserError(
                f"--natural_sets={value}: {name!r} cannot be the name of a set: give NAME=PATH, "
                "with a name of letters and digits that is not clean."
            )


def _check_names(flag, value, known):
    """UserError if a name in a comma list is unknown."""
    for name in split_list(value):
        if name not in known:
            raise UserError(
                f"--{flag}={value}: {name!r} is not known: expected a list of {', '.join(known)}."
            )


def _check_epsilons(flag, value, maximum):
    """UserError if a value in a comma list is no number, out of range, or given twice."""
    seen = set()
    for text in split_list(value):
        try:
            epsilon = float(text)
        except ValueError:
            epsilon = -1.0
        if not 0 <= epsilon <= maximum or math.isinf(epsilon):
            limit = f"from 0 to {maximum:g}" if maximum < math.inf else "of at least 0"
            raise UserError(
                f"--{flag}={value}: {text!r} is not a number {limit}: pixels have the range "
                "[0, 1] here, so 8 of 255 levels are 0.0314."
            )
        if epsilon in seen:
            raise UserError(f"--{flag}={value}: {text} is given twice: leave one out.")
        seen.add(epsilon)
