"""Signs that an attack fails for reasons other than a robust network.

A network may resist FGSM and PGD because its outputs are random, because its gradients vanish or
because it returns probabilities. Each check returns warnings, lines of text; an empty list is no
proof of robustness.

References:
    The checks: [Croce and Hein, 2020](https://arxiv.org/abs/2003.01690), AutoAttack.
    [Carlini et al., 2019](https://arxiv.org/abs/1902.06705), On Evaluating Adversarial Robustness.
"""

from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import ArrayLike

from nsk.evaluation import attacks
from nsk.evaluation.attacked_model import (
    MAX_PIXEL,
    AttackedModel,
    Goal,
    as_attacked_model,
    check_ids,
    prepare,
)
from nsk.evaluation.attacks import PgdSettings
from nsk.evaluation.corruptions.random_numbers import RandomNumbers

TOLERANCE = 1e-4  # Of the log-probabilities of two predictions of an image.
DEFAULT_QUERIES = 100
FIRST_WINDOW_SHARE = 0.5  # Of an image's pixels.
GREY = PgdSettings(steps=20, step_size=0.1)


def check_attack(
    model: keras.Model | AttackedModel,
    images: ArrayLike,
    labels: ArrayLike,
    epsilon: float,
    adversarial_images: ArrayLike,
    *,
    ids: Sequence[str] | None = None,
    seed: int = 0,
) -> list[str]:
    """Runs all checks for an untargeted attack with the norm "inf".

    They cost about 100 predictions and 20 to 60 gradients for each image: a few hundred images are
    enough.

    Args:
        model: returns logits.
        images: uint8 or float32 (n, height, width, 3), pixels in [0, 255].
        labels: int (n,).
        epsilon: of the attack, in units of [0, 1].
        adversarial_images: float32, the result of the attack.
        ids: strings (n,), see `attacks.pgd`.
        seed: int.

    Returns:
        Warnings, one line each.
    """
    model = as_attacked_model(model)
    labels = np.asarray(labels)
    curve = attacks.fgsm_curve(model, images, labels, [0.0])
    found = random_search(model, images, labels, epsilon, ids=ids, seed=seed)
    return [
        *warn_of_random_outputs(model, images),
        *warn_of_probabilities(model, images),
        *warn_of_zero_gradients(curve.has_zero_gradient),
        *warn_of_black_box(
            is_correct(model, adversarial_images, labels), is_correct(model, found, labels)
        ),
        *warn_of_grey_images(model, images, labels, ids=ids, seed=seed),
    ]


def is_correct(
    model: keras.Model | AttackedModel, images: ArrayLike, labels: ArrayLike
) -> np.ndarray:
    """Whether images are classified as their labels, bool (n,)."""
    log_probabilities = as_attacked_model(model).log_probabilities(np.asarray(images))
    return log_probabilities.argmax(axis=1) == np.asarray(labels)


def warn_of_random_outputs(model: keras.Model | AttackedModel, images: ArrayLike) -> list[str]:
    """Warns if two predictions of the same images differ.

    Gradients of a random network need to be averaged over many passes (Athalye et al., 2018).
    """
    model = as_attacked_model(model)
    first, second = (model.log_probabilities(np.asarray(images)) for _ in range(2))
    differs = ~np.isclose(first, second, rtol=TOLERANCE, atol=TOLERANCE).all(axis=1)
    if not differs.any():
        return []
    return [
        f"The network is random: two predictions differ for {_count(differs)}. Attacks on it are "
        "too weak, and its accuracy under them too high."
    ]


def warn_of_probabilities(model: keras.Model | AttackedModel, images: ArrayLike) -> list[str]:
    """Warns if the network returns probabilities instead of logits."""
    model = as_attacked_model(model)
    first_batch = np.asarray(images)[next(model.batches(len(images)))]
    outputs = np.asarray(model.model(first_batch.astype(np.float32), training=False), np.float64)
    if outputs.min() < 0 or np.abs(outputs.sum(axis=1) - 1).max() > 0.01:
        return []
    return [
        "The network returns probabilities: attacks expect logits, and its gradients are too "
        "small. Remove its softmax, or append the logarithm."
    ]


def warn_of_zero_gradients(has_zero_gradient: ArrayLike) -> list[str]:
    """Warns of images whose input gradient is exactly 0, which no gradient attack changes.

    Args:
        has_zero_gradient: bool (n,), such as `attacks.AttackCurve.has_zero_gradient`.
    """
    has_zero_gradient = np.asarray(has_zero_gradient, bool)
    if not has_zero_gradient.any():
        return []
    return [
        f"The input gradient of {_count(has_zero_gradient)} is exactly 0: attacks by gradients "
        "cannot change them. A saturated softmax or a function without derivative hides the "
        "gradient; this is no robustness."
    ]


def warn_of_black_box(white_box_correct: ArrayLike, black_box_correct: ArrayLike) -> list[str]:
    """Warns if an attack without gradients succeeds where one with gradients fails.

    Args:
        white_box_correct: bool (n,), which images are classified correctly after the attack with
            gradients.
        black_box_correct: the same after the attack without, at the same epsilon.
    """
    white_box_correct = np.asarray(white_box_correct, bool)
    black_box_correct = np.asarray(black_box_correct, bool)
    beaten = white_box_correct & ~black_box_correct
    if not beaten.any():
        return []
    warning = (
        f"A random search without gradients succeeds on {beaten.sum()} of the "
        f"{white_box_correct.sum()} images on which the attack with gradients fails: the robust "
        "accuracy is lower than measured. Try more steps or restarts."
    )
    if black_box_correct.sum() < white_box_correct.sum():
        warning += (
            f" The random search is the stronger attack ({black_box_correct.mean():.2%} against "
            f"{white_box_correct.mean():.2%} accuracy): the gradients are masked."
        )
    return [warning]


def warn_of_grey_images(
    model: keras.Model | AttackedModel,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    ids: Sequence[str] | None = None,
    seed: int = 0,
) -> list[str]:
    """Warns if PGD fails at epsilon 0.5, where it cannot fail for lack of room.

    All images can then be made the same grey image, for which at most one class is right.
    """
    model, labels = as_attacked_model(model), np.asarray(labels)
    adversarial_images = attacks.pgd(model, images, labels, 0.5, GREY, ids=ids, seed=seed)
    accuracy = is_correct(model, adversarial_images, labels).mean()
    largest_class = np.bincount(labels).max() / len(labels)
    if accuracy <= largest_class:
        return []
    return [
        f"The accuracy under PGD at epsilon 0.5 is {accuracy:.2%}, although every image could be "
        f"grey there, and then at most {largest_class:.2%} are right: PGD fails on this network."
    ]


def random_search(
    model: keras.Model | AttackedModel,
    images: ArrayLike,
    labels: ArrayLike,
    epsilon: float,
    *,
    queries: int = DEFAULT_QUERIES,
    ids: Sequence[str] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Black-box attack: random changes of +-epsilon are kept where they bring an error closer.

    A short version of the Square Attack. The first query changes each column of each channel by
    +-epsilon, every other one a random square, which shrinks from half of the image to a pixel. A
    change is kept if it lowers the lead of the label over the best other class, until another class
    leads.

    Args:
        model: returns logits; no gradient is used.
        images: uint8 or float32 (n, height, width, 3), pixels in [0, 255].
        labels: int (n,).
        epsilon: largest change of a value in units of [0, 1].
        queries: predictions of each image.
        ids: strings (n,), see `attacks.pgd`.
        seed: int.

    Returns:
        float32 array of the images' shape, in [0, 255].

    Raises:
        ValueError: an argument has another shape, type or range.

    Reference:
        [Andriushchenko et al., 2019](https://arxiv.org/abs/1912.00049)
    """
    goal = Goal(labels)
    model, images = prepare(model, images, goal, epsilon)
    numbers = RandomNumbers(seed, check_ids(ids, len(images)), "random_search")
    height, width, channels = images.shape[1:]
    stripes = _signs(numbers, (1, width, channels))
    places = numbers.uniform(0, 1, (queries, 2))
    signs = _signs(numbers, (queries, channels))
    best, leads = images.copy(), _leads(model, images, goal.labels)
    for query in range(queries):
        rows = np.flatnonzero(leads >= 0)
        if not len(rows):
            break
        if query == 0:
            changed = images[rows] + MAX_PIXEL * epsilon * stripes[rows]
        else:
            changed = best[rows]
            share = FIRST_WINDOW_SHARE * (1 - query / queries) ** 2
            for points, row in zip(changed, rows, strict=True):
                window = _window(places[row, query], share, height, width)
                points[window] = images[row][window] + MAX_PIXEL * epsilon * signs[row, query]
        changed = np.clip(changed, 0, MAX_PIXEL).astype(np.float32)
        changed_leads = _leads(model, changed, goal.labels[rows])
        is_better = changed_leads < leads[rows]
        best[rows[is_better]] = changed[is_better]
        leads[rows[is_better]] = changed_leads[is_better]
    return best


def _window(place, share, height, width):
    """Slices of a square with a share of an image's pixels, at a place in [0, 1)^2."""
    side = min(max(1, round((share * height * width) ** 0.5)), height, width)
    top, left = int(place[0] * (height - side + 1)), int(place[1] * (width - side + 1))
    return slice(top, top + side), slice(left, left + side)


def _signs(numbers, shape):
    """-1 or 1, float32 (n, *shape)."""
    return 2 * numbers.integers(0, 2, shape).astype(np.float32) - 1


def _leads(model, images, labels):
    """Log-probability of the label minus that of the best other class, (n,)."""
    log_probabilities = model.log_probabilities(images)
    columns = labels[:, np.newaxis]
    label_values = np.take_along_axis(log_probabilities, columns, axis=1)[:, 0]
    np.put_along_axis(log_probabilities, columns, -np.inf, axis=1)
    return label_values - log_probabilities.max(axis=1)


def _count(is_affected):
    return f"{is_affected.sum()} of {len(is_affected)} images"
