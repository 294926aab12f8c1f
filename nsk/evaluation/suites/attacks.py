"""The suite `attacks`: accuracy on adversarial images of FGSM and PGD."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsk.evaluation import attack_checks, attacks, bootstrap
from nsk.evaluation.attacked_model import AttackedModel
from nsk.evaluation.attacks import PgdSettings
from nsk.evaluation.image_files import Batch
from nsk.evaluation.prediction_files import read_classes, write_classes
from nsk.evaluation.predictor import Predictor
from nsk.evaluation.suites.conditions import (
    ChosenImages,
    ids_of,
    predict_condition,
    write_missing,
)
from nsk.evaluation.suites.suite import SplitImages
from nsk.store.files import atomic_write

# From a batch to the classes predicted with each epsilon, int (n, epsilons).
Attack = Callable[[Batch], np.ndarray]
# Images on which `attack_checks` are made, which take many more predictions than an attack.
CHECKED_IMAGES = 256
VARIANTS = {"fgsm": "cross_entropy", "fgsm_logit": "logit"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the suite.

    Attributes:
        fgsm_epsilons: in units of [0, 1].
        pgd_epsilons: in units of [0, 1].
        pgd_norm: see `attacks.PgdSettings`, as the following.
        pgd_steps: steps from each start.
        pgd_step_size: in units of epsilon.
        pgd_restarts: number of random starts.
        evaluation_images: size of the random subset; 0: all images.
        evaluation_seed: of the subset and of random starts.
    """

    fgsm_epsilons: Sequence[float]
    pgd_epsilons: Sequence[float]
    pgd_norm: str
    pgd_steps: int
    pgd_step_size: float
    pgd_restarts: int
    evaluation_images: int
    evaluation_seed: int

    @property
    def pgd(self) -> PgdSettings:
        """The settings of PGD."""
        return PgdSettings(self.pgd_norm, self.pgd_step_size, self.pgd_steps, self.pgd_restarts)


def evaluate(
    predictor: Predictor, splits: Mapping[str, SplitImages], folder: Path, options: Options
) -> dict[str, Any]:
    """Measures the accuracy on adversarial test images.

    Writes `clean.parquet`, and `fgsm.parquet`, `fgsm_logit.parquet` and `pgd-EPSILON.parquet`: for
    every image its id, true label, and the classes predicted with each epsilon.

    Args:
        predictor: makes the predictions of the model.
        splits: the clean images.
        folder: where files are written.
        options: the settings.

    Returns:
        `clean_accuracy`; `fgsm`, `fgsm_logit` (see `attacks.fgsm_logit`: right before the attack
        and unchanged by it) and `pgd`: dicts of `epsilons`, `accuracy` and 95 % `intervals`;
        `warnings`, a list of reasons not to trust the attacks; `images`; the settings of PGD.
    """
    images = ChosenImages(splits["test"], options.evaluation_images, options.evaluation_seed)
    clean = predict_condition(predictor, lambda: images, folder / "clean.parquet")
    attacker = _Attacker(predictor, options)
    planned = attacker.attacks()
    writers = {
        folder / f"{name}.parquet": functools.partial(_attack_all, images, attack)
        for name, attack in planned.items()
    }
    checks = folder / "checks.json"
    writers[checks] = lambda path: _write_checks(path, attacker, images)
    write_missing("attacks", "attacks", writers)
    predicted = {name: _read(folder / f"{name}.parquet", clean.ids) for name in planned}
    labels = clean.labels[:, np.newaxis]
    unchanged = predicted["fgsm_logit"] == clean.predicted[:, np.newaxis]
    result = {
        "clean_accuracy": float(clean.is_correct.mean()),
        "fgsm": _curve(options.fgsm_epsilons, predicted["fgsm"] == labels),
        # Right before the attack, and unchanged by it.
        "fgsm_logit": _curve(options.fgsm_epsilons, unchanged & clean.is_correct[:, np.newaxis]),
        "images": len(clean.ids),
        "warnings": json.loads(checks.read_text(encoding="utf-8")),
        "seed": options.evaluation_seed,
    }
    if options.pgd_epsilons:
        by_epsilon = [predicted[_pgd_name(epsilon)] for epsilon in options.pgd_epsilons]
        is_correct = np.concatenate(by_epsilon, axis=1) == labels
        result["pgd"] = _curve(options.pgd_epsilons, is_correct)
        result["pgd_settings"] = dataclasses.asdict(options.pgd)
    return result


class _Attacker:
    """The attacks of an evaluation on batches of images.

    Args:
        predictor: makes the predictions of the model.
        options: the settings.
    """

    def __init__(self, predictor: Predictor, options: Options):
        self._predictor, self._model = predictor, AttackedModel(predictor)
        self._options = options

    def attacks(self) -> dict[str, Attack]:
        """All attacks, by the names of their files."""
        planned = {
            name: functools.partial(self._predict_fgsm, loss) for name, loss in VARIANTS.items()
        }
        return planned | {
            _pgd_name(epsilon): functools.partial(self._predict_pgd, epsilon)
            for epsilon in self._options.pgd_epsilons
        }

    def _predict_fgsm(self, loss, batch):
        return attacks.fgsm_curve(
            self._model, batch["image"], batch["label"], self._options.fgsm_epsilons, loss=loss
        ).predictions

    def _predict_pgd(self, epsilon, batch):
        adversarial = self._pgd(epsilon, batch)
        return self._predictor.log_probabilities(adversarial).argmax(axis=1, keepdims=True)

    def _pgd(self, epsilon, batch):
        randomness = {"ids": ids_of(batch), "seed": self._options.evaluation_seed}
        pixels, labels = batch["image"], batch["label"]
        return attacks.pgd(self._model, pixels, labels, epsilon, self._options.pgd, **randomness)

    def check(self, batch: Batch) -> list[str]:
        """Warnings; of FGSM, which is weak by design, only those that concern the network."""
        pixels, labels = batch["image"], batch["label"]
        if self._options.pgd_epsilons and self._options.pgd_norm == "inf":
            epsilon = max(self._options.pgd_epsilons)
            return attack_checks.check_attack(
                self._model,
                pixels,
                labels,
                epsilon,
                self._pgd(epsilon, batch),
                ids=ids_of(batch),
                seed=self._options.evaluation_seed,
            )
        curve = attacks.fgsm_curve(self._model, pixels, labels, [0.0])
        return [
            *attack_checks.warn_of_random_outputs(self._model, pixels),
            *attack_checks.warn_of_probabilities(self._model, pixels),
            *attack_checks.warn_of_zero_gradients(curve.has_zero_gradient),
        ]


def _pgd_name(epsilon):
    """Name of the file of PGD with an epsilon, which names it exactly."""
    return f"pgd-{epsilon!r}"


def _attack_all(images: ChosenImages, attack: Attack, path: Path) -> None:
    """Attacks all images and writes their predictions."""
    ids, labels, predicted = [], [], []
    for batch in images:
        ids += ids_of(batch)
        labels.append(batch["label"])
        predicted.append(attack(batch))
    write_classes(path, ids, np.concatenate(labels), np.concatenate(predicted))


def _write_checks(path, attacker, images):
    """Writes the warnings of the checks on the first images."""
    parts, found = [], 0
    for batch in images:
        parts.append(batch)
        found += len(batch["id"])
        if found >= CHECKED_IMAGES:
            break
    first = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    warnings = attacker.check({name: rows[:CHECKED_IMAGES] for name, rows in first.items()})
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(warnings), encoding="utf-8")


def _read(path: Path, ids: list[str]) -> np.ndarray:
    """The predicted classes in the file of an attack on these images, int (n, epsilons)."""
    found, classes = read_classes(path)
    if found != ids:
        raise ValueError(f"{path} has other images than clean.parquet.")
    return classes


def _curve(epsilons: Sequence[float], is_correct: np.ndarray) -> dict[str, list]:
    """Accuracy with each epsilon and its 95 % interval, from bool (n, epsilons)."""
    return {
        "epsilons": list(epsilons),
        "accuracy": is_correct.mean(axis=0).tolist(),
        "intervals": [list(bootstrap.bootstrap_interval(column)) for column in is_correct.T],
    }
