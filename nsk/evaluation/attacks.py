"""Adversarial images: FGSM and PGD.

Images are float32 or uint8 (n, height, width, 3) with pixels in [0, 255], as the networks take
them. Epsilons are in units of [0, 1], as published: 0.01 is 2.55 of 255 levels. For the norm "inf"
epsilon bounds the change of each value, for "2" the Euclidean length of the change of all values of
an image. Adversarial images are float32 in [0, 255], neither rounded nor truncated to integers.

An attack changes images so that they are no longer classified as their labels. It needs the labels:
to attack the network's own predictions, pass them as labels. With `targets`, it changes images so
that they are classified as these classes instead.

The loss is the cross-entropy, in float32, of logits. Models whose outputs are log-probabilities are
attacked in the same way, since these are logits, too; those that return probabilities need a
wrapper that takes the logarithm. The noise of the network is off, and no image depends on the
others of its batch, up to the float errors of the network.

References:
    FGSM: [Goodfellow et al., 2014](https://arxiv.org/abs/1412.6572).
    PGD: [Madry et al., 2017](https://arxiv.org/abs/1706.06083).
"""

import dataclasses
import functools
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from nsk.evaluation.attack_steps import step, uniform_in_ball
from nsk.evaluation.attacked_model import LOSSES, MAX_PIXEL, AttackedModel, Goal, check_ids, prepare
from nsk.evaluation.corruptions.random_numbers import RandomNumbers

EPSILONS = tuple(step / 100 for step in range(11))
NORMS = ("inf", "2")


def fgsm(
    model: keras.Model | AttackedModel,
    images: ArrayLike,
    labels: ArrayLike,
    epsilon: float,
    *,
    targets: ArrayLike | None = None,
) -> np.ndarray:
    """Fast gradient sign method: one step of the size epsilon that increases the loss.

    x' = clip(x + epsilon sign(gradient of the cross-entropy of the label)); with targets, the step
    decreases the cross-entropy of the target. Where the gradient is 0, nothing changes.

    Args:
        model: returns logits.
        images: uint8 or float32 (n, height, width, 3), pixels in [0, 255].
        labels: int (n,).
        epsilon: largest change of a value in units of [0, 1].
        targets: int (n,), none the label of its image; None: any class except the label.

    Returns:
        float32 array of the images' shape, in [0, 255].

    Raises:
        ValueError: an argument has another shape, type or range.
    """
    return _fgsm(model, images, Goal(labels, targets), epsilon, "cross_entropy")


def fgsm_logit(
    model: keras.Model | AttackedModel, images: ArrayLike, labels: ArrayLike, epsilon: float
) -> np.ndarray:
    """FGSM with another loss: the negative logit of the label instead of the cross-entropy.

    It is what results from PyTorch's `nll_loss` on logits, without softmax: the logits of other
    classes do not matter. Only comparisons with results of this variant need it; they count an
    image as right if it is right before the attack and its prediction is unchanged, see
    `AttackCurve.correct_before_and_unchanged`.

    Args and result are those of `fgsm`.
    """
    return _fgsm(model, images, Goal(labels), epsilon, "logit")


def _fgsm(model, images, goal, epsilon, loss):
    model, images = prepare(model, images, goal, epsilon)
    parts = []
    for rows in model.batches(len(images)):
        clean = tf.constant(images[rows])
        gradients = goal.ascend(model, clean, rows, loss)[0]
        parts.append(step(clean, clean, gradients, epsilon, epsilon, "inf").numpy())
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class AttackCurve:
    """Predictions of n attacked images at E epsilons.

    Attributes:
        epsilons: floats (E,), in units of [0, 1].
        labels: int32 (n,).
        clean_predictions: int32 (n,), classes predicted before the attack.
        predictions: int32 (n, E), predicted classes.
        label_log_probabilities: float32 (n, E), natural logarithms.
        has_zero_gradient: bool (n,), whether the gradient of the clean image is exactly 0, so that
            no epsilon changes it; see `attack_checks.warn_of_zero_gradients`.
    """

    epsilons: tuple[float, ...]
    labels: np.ndarray
    clean_predictions: np.ndarray
    predictions: np.ndarray
    label_log_probabilities: np.ndarray
    has_zero_gradient: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Whether the label is predicted after the attack, bool (n, E)."""
        return self.predictions == self.labels[:, np.newaxis]

    @property
    def correct_before_and_unchanged(self) -> np.ndarray:
        """Whether the label is predicted before and after the attack, bool (n, E).

        An image that is wrong before stays wrong, even if the attack happens to correct it.
        """
        was_correct = self.clean_predictions == self.labels
        is_unchanged = self.predictions == self.clean_predictions[:, np.newaxis]
        return was_correct[:, np.newaxis] & is_unchanged


def fgsm_curve(
    model: keras.Model | AttackedModel,
    images: ArrayLike,
    labels: ArrayLike,
    epsilons: Sequence[float] = EPSILONS,
    *,
    loss: str = "cross_entropy",
    targets: ArrayLike | None = None,
) -> AttackCurve:
    """Predictions under FGSM at several epsilons, from a single gradient of each image.

    At epsilon 0 they are the predictions of the images as they are. They need not fall with
    epsilon: a long step may overshoot.

    Args:
        model: returns logits.
        images: uint8 or float32 (n, height, width, 3), pixels in [0, 255].
        labels: int (n,).
        epsilons: largest changes of a value, in units of [0, 1].
        loss: "cross_entropy", see `fgsm`, or "logit", see `fgsm_logit`.
        targets: see `fgsm`.

    Raises:
        ValueError: an argument has another shape, type or range.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: expected one of {', '.join(LOSSES)}.")
    if not len(epsilons):
        raise ValueError("epsilons: expected at least one.")
    goal = Goal(labels, targets)
    for epsilon in (min(epsilons), max(epsilons)):
        model, images = prepare(model, images, goal, epsilon)
    parts = [
        _curve_of_batch(model, tf.constant(images[rows]), goal, rows, epsilons, loss)
        for rows in model.batches(len(images))
    ]
    clean_predictions, predictions, log_probabilities, is_zero = map(
        np.concatenate, zip(*parts, strict=True)
    )
    return AttackCurve(
        tuple(epsilons), goal.labels, clean_predictions, predictions, log_probabilities, is_zero
    )


def _curve_of_batch(model, clean, goal, rows, epsilons, loss):
    gradients = goal.ascend(model, clean, rows, loss)[0]
    is_zero = ~tf.reduce_any(gradients != 0, axis=[1, 2, 3])
    results = {0.0: model.log_probabilities(clean)}
    for epsilon in epsilons:
        if epsilon not in results:
            adversarial = step(clean, clean, gradients, epsilon, epsilon, "inf")
            results[epsilon] = model.log_probabilities(adversarial)
    curve = np.stack([results[epsilon] for epsilon in epsilons], axis=1)
    classes = goal.labels[rows, np.newaxis, np.newaxis]
    return (
        results[0.0].argmax(axis=1).astype(np.int32),
        curve.argmax(axis=2).astype(np.int32),
        np.take_along_axis(curve, classes, axis=2)[..., 0],
        is_zero.numpy(),
    )


@dataclasses.dataclass(frozen=True)
class PgdSettings:
    """How PGD searches.

    Attributes:
        norm: "inf" or "2", of the change of an image.
        step_size: in units of epsilon.
        steps: steps from each start.
        restarts: number of random starts.
        random_start: whether starts are random; False: one start from the image itself.
        every_point: whether every point of the search counts: the image itself, FGSM's point (for
            the norm 2, the same with the gradient's direction instead of its sign) and the points
            of all steps, and FGSM's point is one more start, the first. So PGD succeeds wherever
            FGSM does. False: only the last point of each start counts, as in other libraries.

    The default values of `step_size`, `steps` and `random_start` are those of Foolbox.
    """

    norm: str = "inf"
    step_size: float = 0.1 / 3
    steps: int = 40
    restarts: int = 1
    random_start: bool = True
    every_point: bool = True

    def __post_init__(self):
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r}: expected one of {', '.join(NORMS)}.")
        if not 0 < self.step_size < np.inf:
            raise ValueError(f"step_size={self.step_size}: expected a positive number.")
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 or more.")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"restarts={self.restarts}: starts that are not random are all alike.")


def pgd(
    model: keras.Model | AttackedModel,
    images: ArrayLike,
    labels: ArrayLike,
    epsilon: float,
    settings: PgdSettings = PgdSettings(),
    *,
    ids: Sequence[str] | None = None,
    seed: int = 0,
    targets: ArrayLike | None = None,
) -> np.ndarray:
    """Projected gradient descent: steps that increase the loss within a ball around the image.

    Each step is as FGSM's, or, for the norm 2, along the gradient; the result is projected to the
    ball with the radius epsilon around the image, then clipped to [0, 255]. Random starts are
    uniform in the ball, and clipped. An image's result is its first point with a success (another
    prediction than the label, or the target), which ends its search; without success, the point of
    the highest loss of the label (the lowest of the target).

    Args:
        model: returns logits.
        images: uint8 or float32 (n, height, width, 3), pixels in [0, 255]. They, and the result,
            are in memory at once.
        labels: int (n,).
        epsilon: radius of the ball in units of [0, 1]: the largest change of a value, or the length
            of the change of all values.
        settings: how to search.
        ids: strings (n,); random starts are a function of (seed, id). None: 0, 1, ..., so that they
            depend on the position of the image.
        seed: int.
        targets: int (n,), none the label of its image; None: any class except the label.

    Returns:
        float32 array of the images' shape, in [0, 255].

    Raises:
        ValueError: an argument has another shape, type or range.

    References:
        [Madry et al., 2017](https://arxiv.org/abs/1706.06083);
        [Foolbox](https://doi.org/10.21105/joss.02607)
    """
    goal = Goal(labels, targets)
    model, images = prepare(model, images, goal, epsilon, settings.norm)
    ids = check_ids(ids, len(images))
    search = _Search(model, images, goal, epsilon, settings)
    if settings.every_point:
        search.offer(search.clean_points)
        search.offer(search.fast_gradient_points)
        search.climb(search.fast_gradient_points)
    for restart in range(settings.restarts):
        if settings.random_start:
            search.climb(functools.partial(search.random_points, ids, seed, restart))
        else:
            search.climb(search.clean_points)
    return search.best


class _Search:
    """The best points of n images that PGD has found so far."""

    def __init__(self, model, images, goal, epsilon, settings):
        self._model, self._images, self._goal = model, images, goal
        self._epsilon, self._settings = epsilon, settings
        self.best = images.copy()
        self._objectives = np.full(len(images), -np.inf, np.float32)
        self._succeeded = np.zeros(len(images), bool)

    def offer(self, make_points):
        """Offers points to the images without success, by a function of the rows of a batch.

        The predictor judges, so that the result counts in the same way where it is evaluated.
        """
        remaining = np.flatnonzero(~self._succeeded)
        for part in self._model.batches(len(remaining)):
            rows = remaining[part]
            points = make_points(rows)
            objectives, is_success = self._goal.judge(self._model.log_probabilities(points), rows)
            is_better = is_success | (objectives > self._objectives[rows])
            better_rows = rows[is_better]
            self.best[better_rows] = np.asarray(points)[is_better]
            self._objectives[better_rows] = objectives[is_better]
            self._succeeded[better_rows] = is_success[is_better]

    def climb(self, make_points):
        """Climbs from points, and offers the best point, or the last one, of each climb."""
        self.offer(lambda rows: self._climb(rows, tf.constant(make_points(rows))))

    def _climb(self, rows, points):
        clean = tf.constant(self._images[rows])
        best = _BestPoints(points)
        step_size = self._settings.step_size * self._epsilon
        for _ in range(self._settings.steps):
            gradients, *judgement = self._goal.ascend(self._model, points, rows)
            if self._settings.every_point:
                best.update(points, *judgement)
                if best.have_succeeded:
                    return best.points
            points = self._step(points, clean, gradients, step_size)
        if not self._settings.every_point:
            return points
        best.update(points, *self._goal.ascend(self._model, points, rows)[1:])
        return best.points

    def _step(self, points, clean, gradients, step_size):
        return step(points, clean, gradients, step_size, self._epsilon, self._settings.norm)

    def clean_points(self, rows):
        return self._images[rows]

    def fast_gradient_points(self, rows):
        clean = tf.constant(self._images[rows])
        gradients = self._goal.ascend(self._model, clean, rows)[0]
        return self._step(clean, clean, gradients, self._epsilon).numpy()

    def random_points(self, ids, seed, restart, rows):
        clean = self._images[rows]
        numbers = RandomNumbers(seed, [ids[row] for row in rows], f"pgd/{restart}")
        changes = uniform_in_ball(numbers, clean.shape[1:], self._settings.norm)
        points = clean + MAX_PIXEL * self._epsilon * changes
        return np.clip(points, 0, MAX_PIXEL).astype(np.float32)


class _BestPoints:
    """Each image's first point with a success, or the one of the highest objective so far."""

    def __init__(self, points):
        self.points = points
        self._objectives = tf.fill(points.shape[:1], -np.inf)
        self._succeeded = tf.zeros(points.shape[:1], bool)

    def update(self, points, objectives, is_success):
        is_better = ~self._succeeded & (is_success | (objectives > self._objectives))
        self.points = tf.where(
            is_better[:, tf.newaxis, tf.newaxis, tf.newaxis], points, self.points
        )
        self._objectives = tf.where(is_better, objectives, self._objectives)
        self._succeeded |= is_success

    @property
    def have_succeeded(self):
        return bool(tf.reduce_all(self._succeeded))
