"""The suite `attacks`: accuracy on adversarial images of FGSM and PGD."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nsk.evaluation import attack_checks, attacks, robustness
from nsk.evaluation.attacked_model import AttackedModel
from nsk.evaluation.attacks import PgdSettings
from nsk.evaluation.prediction_files import read_table
from nsk.evaluation.predictor import Predictor
from nsk.evaluation.suites.conditions import Batch, ChosenImages, predict_condition
from nsk.evaluation.suites.suite import SplitImages
from nsk.progress import Progress
from nsk.store.files import atomic_write

# From a batch to the classes predicted with each epsilon, int (n, epsilons).
Attack = Callable[[Batch], np.ndarray]
# Images on which `attack_checks` are made, which take many more predictions than an attack.
CHECKED_IMAGES = 256
VARIANTS = {"fgsm": "cross_entropy", "fgsm_logit": "logit"}


def evaluate(  # noqa: PLR0913 (keyword arguments only)
    predictor: Predictor,
    splits: Mapping[str, SplitImages],
    folder: Path,
    *,
    fgsm_epsilons: Sequence[float],
    pgd_epsilons: Sequence[float],
    pgd_norm: str,
    pgd_steps: int,
    pgd_step_size: float,
    pgd_restarts: int,
    evaluation_images: int,
    evaluation_seed: int,
) -> dict[str, Any]:
    """Measures the accuracy on adversarial test images.

    Writes `clean.parquet`, and `fgsm.parquet`, `fgsm_logit.parquet` and `pgd-EPSILON.parquet`: for
    every image its id, true label, and the classes predicted with each epsilon.

    Args:
        predictor: makes the predictions of the model.
        splits: the clean images.
        folder: where files are written.
        fgsm_epsilons: in units of [0, 1].
        pgd_epsilons: in units of [0, 1].
        pgd_norm: see `attacks.PgdSettings`, as the following.
        pgd_steps: steps from each start.
        pgd_step_size: in units of epsilon.
        pgd_restarts: number of random starts.
        evaluation_images: size of the random subset; 0: all images.
        evaluation_seed: of the subset and of random starts.

    Returns:
        `clean_accuracy`; `fgsm`, `fgsm_logit` (see `attacks.fgsm_logit`: right before the attack
        and unchanged by it) and `pgd`: dicts of `epsilons`, `accuracy` and 95 % `intervals`;
        `warnings`, a list of reasons not to trust the attacks; `images`; the settings of PGD.
    """
    images = ChosenImages(splits["test"], evaluation_images, evaluation_seed)
    clean = predict_condition(predictor, lambda: images, folder / "clean.parquet")
    model = AttackedModel(predictor)
    settings = PgdSettings(pgd_norm, pgd_step_size, pgd_steps, pgd_restarts)

    def fgsm(loss):
        return lambda batch: (
            attacks.fgsm_curve(
                model, batch["image"], batch["label"], fgsm_epsilons, loss=loss
            ).predictions
        )

    def pgd_images(batch, epsilon):
        return attacks.pgd(
            model,
            batch["image"],
            batch["label"],
            epsilon,
            settings,
            ids=_ids(batch),
            seed=evaluation_seed,
        )

    def pgd(epsilon):
        return lambda batch: predictor.log_probabilities(pgd_images(batch, epsilon)).argmax(
            axis=1, keepdims=True
        )

    def check(batch):
        """Warnings; of FGSM, which is weak by design, only those that concern the network."""
        pixels, labels, ids = batch["image"], batch["label"], _ids(batch)
        if pgd_epsilons and pgd_norm == "inf":
            epsilon = max(pgd_epsilons)
            found = pgd_images(batch, epsilon)
            return attack_checks.check_attack(
                model, pixels, labels, epsilon, found, ids=ids, seed=evaluation_seed
            )
        curve = attacks.fgsm_curve(model, pixels, labels, [0.0])
        return [
            *attack_checks.warn_of_random_outputs(model, pixels),
            *attack_checks.warn_of_probabilities(model, pixels),
            *attack_checks.warn_of_zero_gradients(curve.has_zero_gradient),
        ]

    planned: dict[str, Attack] = {name: fgsm(loss) for name, loss in VARIANTS.items()}
    planned |= {f"pgd-{epsilon!r}": pgd(epsilon) for epsilon in pgd_epsilons}
    progress = Progress("attacks", len(planned), "attacks")
    for index, (name, attack) in enumerate(planned.items()):
        if not (path := folder / f"{name}.parquet").exists():
            _write(path, images, attack)
        progress.update(index + 1)
    progress.close()
    checks = folder / "checks.json"
    if not checks.exists():
        warnings = check(_first_images(images, CHECKED_IMAGES))
        with atomic_write(checks) as unfinished:
            unfinished.write_text(json.dumps(warnings), encoding="utf-8")
    predicted = {name: _read(folder / f"{name}.parquet", clean.ids) for name in planned}
    labels = clean.labels[:, np.newaxis]
    unchanged = predicted["fgsm_logit"] == clean.predicted[:, np.newaxis]
    pgd_predicted = [predicted[f"pgd-{epsilon!r}"] for epsilon in pgd_epsilons]
    result = {
        "clean_accuracy": float(clean.is_correct.mean()),
        "fgsm": _curve(fgsm_epsilons, predicted["fgsm"] == labels),
        # Right before the attack, and unchanged by it.
        "fgsm_logit": _curve(fgsm_epsilons, unchanged & clean.is_correct[:, np.newaxis]),
        "images": len(clean.ids),
        "warnings": json.loads(checks.read_text(encoding="utf-8")),
        "seed": evaluation_seed,
    }
    if not pgd_epsilons:
        return result
    return result | {
        "pgd": _curve(pgd_epsilons, np.concatenate(pgd_predicted, axis=1) == labels),
        "pgd_settings": {
            "norm": pgd_norm,
            "steps": pgd_steps,
            "step_size": pgd_step_size,
            "restarts": pgd_restarts,
        },
    }


def _ids(batch: Batch) -> list[str]:
    return [image_id.decode() for image_id in batch["id"]]


def _first_images(images: ChosenImages, count: int) -> Batch:
    """The first images, in one batch."""
    parts, found = [], 0
    for batch in images:
        parts.append(batch)
        found += len(batch["id"])
        if found >= count:
            break
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def _write(path: Path, images: ChosenImages, attack: Attack) -> None:
    """Attacks all images and writes their predictions."""
    ids, labels, predicted = [], [], []
    for batch in images:
        ids += _ids(batch)
        labels.append(batch["label"])
        predicted.append(attack(batch).astype(np.int32))
    classes = np.concatenate(predicted)
    table = {
        "id": pa.array(ids, pa.string()),
        "truth": pa.array(np.concatenate(labels), pa.int32()),
        "labels": pa.FixedSizeListArray.from_arrays(pa.array(classes.ravel()), classes.shape[1]),
    }
    with atomic_write(path) as unfinished:
        pq.write_table(pa.table(table), unfinished, compression="zstd")


def _read(path: Path, ids: list[str]) -> np.ndarray:
    """The predicted classes in the file of an attack on these images, int (n, epsilons)."""
    table = read_table(path, ["id", "labels"])
    if table["id"].to_pylist() != ids:
        raise ValueError(f"{path} has other images than clean.parquet.")
    column = table["labels"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(ids), -1)


def _curve(epsilons: Sequence[float], is_correct: np.ndarray) -> dict[str, list]:
    """Accuracy with each epsilon and its 95 % interval, from bool (n, epsilons)."""
    return {
        "epsilons": list(epsilons),
        "accuracy": is_correct.mean(axis=0).tolist(),
        "intervals": [list(robustness.bootstrap_interval(column)) for column in is_correct.T],
    }
