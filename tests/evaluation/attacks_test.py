"""FGSM and PGD against Foolbox and ART, the Adversarial Robustness Toolbox; their properties."""

import itertools
import warnings

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from sklearn.datasets import load_digits

from nsk import models
from nsk.distributed import strategy as strategies
from nsk.evaluation import attack_steps, attacks
from nsk.evaluation.attacks import AttackCurve, AttackedModel, PgdSettings
from nsk.evaluation.corruptions.random_numbers import RandomNumbers
from nsk.evaluation.predictor import Predictor

# As in other libraries: the last point of a single start from the image.
PLAIN = {"random_start": False, "every_point": False}


def digits():
    """297 images of digits, float32 (297, 8, 8, 3) with pixels in [0, 255], and their labels."""
    data = load_digits()
    pixels = np.repeat(data.images[..., np.newaxis] / 16 * 255, 3, axis=-1).astype(np.float32)
    return pixels, data.target


@pytest.fixture(scope="module")
def model():
    """A smooth network of digits, whose accuracy is about 90 %."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input([8, 8, 3])
    features = keras.layers.Conv2D(8, 3, activation="tanh")(inputs / 255)
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(features)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss)
    images, labels = digits()
    model.fit(images[297:], labels[297:], epochs=8, verbose=0)
    return model


@pytest.fixture(scope="module")
def attacked(model):
    return AttackedModel(Predictor(model, 256))


@pytest.fixture(scope="module")
def images():
    return digits()[0][:297]


@pytest.fixture(scope="module")
def labels():
    return digits()[1][:297]


@pytest.fixture(scope="module")
def foolbox():
    with warnings.catch_warnings():
        # Foolbox imports SciPy's filters from where they were before.
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
    return foolbox


@pytest.fixture(scope="module")
def art_classifier(model):
    with warnings.catch_warnings():
        # ART says that PyTorch is not installed.
        warnings.simplefilter("ignore", UserWarning)
        from art.estimators.classification import TensorFlowV2Classifier
    return TensorFlowV2Classifier(
        model=lambda pixels, training: model(pixels * 255, training=False),
        nb_classes=10,
        input_shape=(8, 8, 3),
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
        clip_values=(0, 1),
    )


def is_correct(attacked, images, labels):
    return attacked.log_probabilities(images).argmax(axis=1) == labels


def other_classes(labels):
    return (labels + 1 + np.arange(len(labels)) % 9) % 10


def assert_same_attack(received, expected):
    """Float errors of the network may turn the sign of a gradient near 0, but few."""
    differs = np.abs(received.astype(np.float64) - expected) > 255 * 1e-5
    assert differs.mean() < 1e-3


def lengths(changes):
    return np.sqrt(np.sum(changes.astype(np.float64) ** 2, axis=(1, 2, 3)))


def linear_model(kernel, bias=0.0):
    """Logits kernel^T pixels + bias, for images of the shape (1, 1, len(kernel))."""
    inputs = keras.Input([1, 1, len(kernel)])
    model = keras.Model(inputs, keras.layers.Dense(kernel.shape[1])(keras.layers.Flatten()(inputs)))
    model.layers[-1].kernel.assign(kernel)
    model.layers[-1].bias.assign(np.broadcast_to(bias, kernel.shape[1]))
    return model


def run_foolbox(foolbox, attack, model, images, labels, targets, epsilon):
    criterion = (
        foolbox.criteria.Misclassification(tf.constant(labels))
        if targets is None
        else foolbox.criteria.TargetedMisclassification(tf.constant(targets))
    )
    network = foolbox.TensorFlowModel(model, bounds=(0, 255), device="/CPU:0")
    return attack(network, tf.constant(images), criterion, epsilons=255 * epsilon)[0].numpy()


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("name", "settings", "epsilon"),
    [
        ("LinfPGD", PgdSettings("inf", 0.1, 15, **PLAIN), 0.05),
        ("L2PGD", PgdSettings("2", 0.1, 15, **PLAIN), 0.8),
    ],
)
def test_pgd_equals_foolbox(
    foolbox, model, attacked, images, labels, name, settings, epsilon, targeted
):
    targets = other_classes(labels) if targeted else None
    attack = getattr(foolbox.attacks, name)(rel_stepsize=0.1, steps=15, random_start=False)
    expected = run_foolbox(foolbox, attack, model, images, labels, targets, epsilon)
    received = attacks.pgd(attacked, images, labels, epsilon, settings, targets=targets)
    assert_same_attack(received, expected)


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_equals_foolbox(foolbox, model, attacked, images, labels, targeted):
    targets = other_classes(labels) if targeted else None
    # Foolbox's own FGSM has no targets; it is one step of its PGD.
    attack = foolbox.attacks.LinfPGD(rel_stepsize=1, steps=1, random_start=False)
    if not targeted:
        attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    for epsilon in (0.01, 0.2):
        expected = run_foolbox(foolbox, attack, model, images, labels, targets, epsilon)
        received = attacks.fgsm(attacked, images, labels, epsilon, targets=targets)
        assert_same_attack(received, expected)


def test_foolbox_defaults(foolbox):
    ours, theirs = PgdSettings(), foolbox.attacks.LinfPGD()
    assert (ours.step_size, ours.steps, ours.random_start) == (
        pytest.approx(theirs.rel_stepsize),
        theirs.steps,
        theirs.random_start,
    )


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_and_pgd_equal_art(art_classifier, attacked, images, labels, targeted):
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent

    targets = other_classes(labels) if targeted else None
    classes = np.eye(10)[labels if targets is None else targets]
    fgsm = FastGradientMethod(art_classifier, eps=0.03, targeted=targeted)
    pgd = ProjectedGradientDescent(
        art_classifier,
        eps=0.05,
        eps_step=0.01,
        max_iter=10,
        targeted=targeted,
        num_random_init=0,
        verbose=False,
    )
    unit = images / np.float32(255)
    received = attacks.fgsm(attacked, images, labels, 0.03, targets=targets)
    assert_same_attack(received, 255 * fgsm.generate(unit, y=classes))
    settings = PgdSettings("inf", 0.2, 10, **PLAIN)
    received = attacks.pgd(attacked, images, labels, 0.05, settings, targets=targets)
    assert_same_attack(received, 255 * pgd.generate(unit, y=classes))


def test_l2_pgd_equals_art_where_no_pixel_is_clipped(art_classifier, attacked, images, labels):
    """ART clips before it projects, so the order of the two differs."""
    from art.attacks.evasion import ProjectedGradientDescent

    images = 100 + images / 5
    pgd = ProjectedGradientDescent(
        art_classifier,
        norm=2,
        eps=0.7,
        eps_step=0.14,
        max_iter=10,
        num_random_init=0,
        verbose=False,
    )
    received = attacks.pgd(attacked, images, labels, 0.7, PgdSettings("2", 0.2, 10, **PLAIN))
    expected = pgd.generate(images / np.float32(255), y=np.eye(10)[labels])
    assert_same_attack(received, 255 * expected)


def test_fgsm_of_linear_networks():
    """Two classes: the gradient of the cross-entropy is a multiple of the difference of kernels."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(12, 2)).astype(np.float32) / 300
    model = linear_model(kernel)
    images = rng.uniform(0, 255, (20, 1, 1, 12)).astype(np.float32)
    labels = rng.integers(0, 2, 20)
    towards_error = np.sign(kernel[:, 1 - labels] - kernel[:, labels]).T.reshape(images.shape)
    away_from_label = np.sign(-kernel[:, labels]).T.reshape(images.shape)
    assert np.any(towards_error != away_from_label)
    for received, signs in (
        (attacks.fgsm(model, images, labels, 0.1), towards_error),
        (attacks.fgsm(model, images, labels, 0.1, targets=1 - labels), towards_error),
        (attacks.fgsm_logit(model, images, labels, 0.1), away_from_label),
    ):
        expected = np.clip(images + 25.5 * signs, 0, 255)
        np.testing.assert_allclose(received, expected, atol=1e-4)
        assert received.dtype == np.float32


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_one_step_of_pgd_is_the_fast_gradient(attacked, images, labels, norm):
    rng = np.random.default_rng(0)
    pixels = np.clip(images + rng.normal(0, 3, images.shape), 0, 255).astype(np.float32)
    one_step = PgdSettings(norm, step_size=1.0, steps=1, **PLAIN)
    received = attacks.pgd(attacked, pixels, labels, 0.0371, one_step)
    if norm == "inf":
        np.testing.assert_array_equal(received, attacks.fgsm(attacked, pixels, labels, 0.0371))
        np.testing.assert_array_equal(
            attacks.pgd(attacked, pixels, labels, 0.0371, one_step, targets=other_classes(labels)),
            attacks.fgsm(attacked, pixels, labels, 0.0371, targets=other_classes(labels)),
        )
    else:
        # Where nothing is clipped, the whole epsilon is used.
        middle = 100 + pixels / 5
        received = attacks.pgd(attacked, middle, labels, 0.0371, one_step)
        np.testing.assert_allclose(lengths(received - middle), 0.0371 * 255, rtol=1e-4)


@pytest.mark.parametrize("norm", attacks.NORMS)
@pytest.mark.parametrize("every_point", [False, True])
def test_adversarial_images_are_in_the_ball_and_in_range(
    attacked, images, labels, norm, every_point
):
    epsilon = {"inf": 0.06, "2": 0.7}[norm]
    settings = PgdSettings(norm, 0.4, 6, restarts=2, every_point=every_point)
    received = attacks.pgd(attacked, images, labels, epsilon, settings)
    assert received.shape == images.shape and received.dtype == np.float32
    assert received.min() >= 0 and received.max() <= 255
    changes = received - images
    assert np.any(received != np.round(received))  # They are not rounded.
    size = np.abs(changes).max(axis=(1, 2, 3)) if norm == "inf" else lengths(changes)
    assert np.all(size <= 255 * epsilon * (1 + 1e-5))
    assert np.mean(size > 250 * epsilon) > 0.5  # The whole ball is used.


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_nothing_changes_at_epsilon_0(attacked, images, labels, norm):
    settings = PgdSettings(norm, steps=2)
    np.testing.assert_array_equal(attacks.pgd(attacked, images, labels, 0, settings), images)
    np.testing.assert_array_equal(attacks.fgsm(attacked, images, labels, 0), images)
    np.testing.assert_array_equal(attacks.fgsm_logit(attacked, images, labels, 0), images)


def test_projection_finds_the_nearest_point_of_the_ball():
    """Against all points of a fine grid in the plane."""
    rng = np.random.default_rng(0)
    centres, points = rng.uniform(0, 255, (2, 40, 1, 1, 2)).astype(np.float32)
    axis = np.linspace(-60, 60, 601)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    for norm, order in (("inf", np.inf), ("2", 2)):
        ball = grid[np.linalg.norm(grid, ord=order, axis=1) <= 60]
        received = attack_steps.project(points, centres, 60.0, norm).numpy()
        for point, centre, result in zip(points, centres, received, strict=True):
            if np.linalg.norm((point - centre).ravel(), ord=order) <= 60:
                np.testing.assert_array_equal(result, point)
                continue
            distances = np.linalg.norm(centre.ravel() + ball - point.ravel(), axis=1)
            distance = np.linalg.norm((result - point).ravel())
            assert distance == pytest.approx(distances.min(), abs=0.3)
            assert np.linalg.norm((result - centre).ravel(), ord=order) == pytest.approx(60)


@pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.1])
def test_pgd_succeeds_wherever_fgsm_does(attacked, images, labels, epsilon):
    """Even if its own steps are much too short."""
    after_fgsm = is_correct(attacked, attacks.fgsm(attacked, images, labels, epsilon), labels)
    clean = is_correct(attacked, images, labels)
    assert np.any(clean & ~after_fgsm)
    short = {"step_size": 0.01, "steps": 1}
    alone = attacks.pgd(attacked, images, labels, epsilon, PgdSettings(**short, **PLAIN))
    assert np.any(is_correct(attacked, alone, labels) & ~after_fgsm)
    for settings in (PgdSettings(**short), PgdSettings(steps=10)):
        adversarial = attacks.pgd(attacked, images, labels, epsilon, settings)
        assert not np.any(is_correct(attacked, adversarial, labels) & ~(after_fgsm & clean))


def test_an_image_without_success_keeps_its_highest_loss(attacked, images, labels):
    """A start and steps that lower the loss of a few images do not count."""
    settings = PgdSettings(step_size=0.3, steps=5, restarts=2)
    received = attacks.pgd(attacked, images, labels, 0.02, settings)
    rows = np.flatnonzero(is_correct(attacked, received, labels))
    loss = -attacked.log_probabilities(received)[rows, labels[rows]]
    for other in (
        images,
        attacks.fgsm(attacked, images, labels, 0.02),
        attacks.pgd(attacked, images, labels, 0.02, PgdSettings(step_size=0.3, steps=2, **PLAIN)),
    ):
        other_loss = -attacked.log_probabilities(other)[rows, labels[rows]]
        assert np.all(loss >= other_loss - 1e-5)
    last = PgdSettings(step_size=0.3, steps=5, restarts=2, every_point=False)
    last_loss = -attacked.log_probabilities(attacks.pgd(attacked, images, labels, 0.02, last))
    assert np.any(loss > last_loss[rows, labels[rows]] + 1e-4)


def test_images_that_are_wrong_without_an_attack_stay_as_they_are(attacked, images, labels):
    is_wrong = ~is_correct(attacked, images, labels)
    assert is_wrong.sum() > 5
    received = attacks.pgd(attacked, images, labels, 0.1, PgdSettings(steps=2))
    np.testing.assert_array_equal(received[is_wrong], images[is_wrong])
    assert np.all(np.any(received != images, axis=(1, 2, 3)) == ~is_wrong)


def test_the_search_climbs_from_the_point_of_fgsm(attacked, images, labels):
    """And the point after its last step counts."""
    first = attacks.fgsm(attacked, images, labels, 0.02)
    gradients = attacked.gradients(first[:256], labels[:256].astype(np.int32))[0].numpy()
    clean = images[:256]
    second = np.clip(first[:256] + 0.5 * 5.1 * np.sign(gradients), clean - 5.1, clean + 5.1)
    second_loss = -attacked.log_probabilities(np.clip(second, 0, 255))[np.arange(256), labels[:256]]
    first_loss = -attacked.log_probabilities(first[:256])[np.arange(256), labels[:256]]
    settings = PgdSettings(step_size=0.5, steps=1, random_start=False)
    received = attacks.pgd(attacked, images[:256], labels[:256], 0.02, settings)
    log_probabilities = attacked.log_probabilities(received)
    rows = np.flatnonzero(log_probabilities.argmax(axis=1) == labels[:256])
    loss = -log_probabilities[rows, labels[rows]]
    assert np.any(second_loss[rows] > first_loss[rows] + 1e-6)
    assert np.all(loss >= np.maximum(first_loss, second_loss)[rows] - 1e-6)


def test_the_first_success_counts_and_otherwise_the_highest_objective():
    best = attacks._BestPoints(tf.zeros([4, 1, 1, 1]))
    steps = [
        ([1.0, 1.0, 2.0, 1.0], [False, True, False, False]),
        ([2.0, 5.0, 1.0, 0.5], [False, True, False, True]),
        ([3.0, 9.0, 0.0, 9.0], [True, False, False, True]),
    ]
    for number, (objectives, is_success) in enumerate(steps, start=1):
        assert not best.have_succeeded
        best.update(
            tf.fill([4, 1, 1, 1], float(number)), tf.constant(objectives), tf.constant(is_success)
        )
    np.testing.assert_array_equal(best.points[:, 0, 0, 0], [3, 1, 1, 2])
    best.update(tf.fill([4, 1, 1, 1], 4.0), tf.zeros(4), tf.constant([False, False, True, False]))
    np.testing.assert_array_equal(best.points[:, 0, 0, 0], [3, 1, 4, 2])
    assert best.have_succeeded


def test_more_restarts_are_not_weaker(attacked, images, labels):
    settings = {"step_size": 0.3, "steps": 2, "every_point": False}
    correct = [
        is_correct(
            attacked,
            attacks.pgd(attacked, images, labels, 0.06, PgdSettings(restarts=restarts, **settings)),
            labels,
        )
        for restarts in (1, 2, 6)
    ]
    for fewer, more in itertools.pairwise(correct):
        assert not np.any(more & ~fewer)
    assert correct[2].sum() < correct[0].sum()


def test_targeted_attacks_reach_the_target_instead_of_any_class(attacked, images, labels):
    targets = other_classes(labels)

    def reached(adversarial):
        return attacked.log_probabilities(adversarial).argmax(axis=1) == targets

    by_fgsm = reached(attacks.fgsm(attacked, images, labels, 0.15, targets=targets))
    by_pgd = reached(attacks.pgd(attacked, images, labels, 0.15, targets=targets))
    any_class = reached(attacks.pgd(attacked, images, labels, 0.15))
    assert not np.any(by_fgsm & ~by_pgd)
    assert reached(images).mean() < 0.05 < 0.2 < by_fgsm.mean() < by_pgd.mean()
    assert any_class.mean() < by_pgd.mean() - 0.1


def test_random_starts_belong_to_the_image(attacked, model, images, labels):
    """The same image has the same result in any batch and order, but not with another seed."""
    settings = PgdSettings(steps=2, step_size=0.1, every_point=False)
    ids = [f"image/{row}" for row in range(40)]

    def run(rows, seed=0, ids=ids, attacked=attacked):
        part = [ids[row] for row in rows]
        return attacks.pgd(
            attacked, images[rows], labels[rows], 0.05, settings, ids=part, seed=seed
        )

    everything = run(range(40))
    small_batches = AttackedModel(Predictor(model, 16))
    assert_same_attack(run(range(40), attacked=small_batches), everything)
    for rows in ([7], [39, 0, 12], range(20, 40)):
        assert_same_attack(run(rows), everything[rows])
    assert np.abs(run(range(40), seed=1) - everything).mean() > 1
    others = [f"other/{row}" for row in range(40)]
    assert np.abs(run(range(40), ids=others) - everything).mean() > 1
    by_position = attacks.pgd(attacked, images[:2], labels[:2], 0.05, settings)
    numbered = attacks.pgd(attacked, images[:2], labels[:2], 0.05, settings, ids=["0", "1"])
    np.testing.assert_array_equal(by_position, numbered)


def test_random_points_are_uniform_in_the_ball():
    numbers = RandomNumbers(0, [str(row) for row in range(3000)], "test")
    cube = attack_steps.uniform_in_ball(numbers, (1, 2, 3), "inf")
    assert scipy.stats.kstest(cube.ravel(), "uniform", args=(-1, 2)).pvalue > 0.01
    ball = attack_steps.uniform_in_ball(numbers, (1, 2, 3), "2").reshape(3000, 6)
    radii = np.linalg.norm(ball, axis=1)
    assert scipy.stats.kstest(radii**6, "uniform").pvalue > 0.01
    directions = ball / radii[:, np.newaxis]
    np.testing.assert_allclose(directions.T @ directions / 3000, np.eye(6) / 6, atol=0.02)
    np.testing.assert_allclose(directions.mean(axis=0), 0, atol=0.03)


def test_starts_are_clipped_points_of_the_ball_and_restarts_differ(attacked, images, labels):
    search = attacks._Search(attacked, images, None, 0.1, PgdSettings())
    ids = [str(row) for row in range(len(images))]
    first, second = (search.random_points(ids, 0, restart, np.arange(297)) for restart in (0, 1))
    assert np.abs(first - second).mean() > 5
    assert first.min() == 0 and first.max() == 255 and first.dtype == np.float32
    changes = (first - images)[(images > 30) & (images < 220)]
    assert scipy.stats.kstest(changes, "uniform", args=(-25.5, 51)).pvalue > 0.01


def test_the_curve_equals_fgsm_at_each_epsilon(attacked, images, labels):
    epsilons = (0.05, 0, 0.01)
    for loss, attack in (("cross_entropy", attacks.fgsm), ("logit", attacks.fgsm_logit)):
        curve = attacks.fgsm_curve(attacked, images, labels, epsilons, loss=loss)
        assert curve.epsilons == epsilons and curve.predictions.shape == (297, 3)
        for column, epsilon in enumerate(epsilons):
            expected = attacked.log_probabilities(attack(attacked, images, labels, epsilon))
            np.testing.assert_array_equal(curve.predictions[:, column], expected.argmax(axis=1))
            np.testing.assert_array_equal(
                curve.label_log_probabilities[:, column], expected[np.arange(297), labels]
            )
        np.testing.assert_array_equal(curve.correct, curve.predictions == labels[:, np.newaxis])
        assert not curve.has_zero_gradient.any()
    targets = other_classes(labels)
    curve = attacks.fgsm_curve(attacked, images, labels, [0.2], targets=targets)
    adversarial = attacks.fgsm(attacked, images, labels, 0.2, targets=targets)
    np.testing.assert_array_equal(
        curve.predictions[:, 0], attacked.log_probabilities(adversarial).argmax(axis=1)
    )


def test_epsilon_0_is_the_evaluation_of_the_clean_images(model, images, labels):
    """To the digit, in the same batches, from uint8 pixels."""
    images = images.astype(np.uint8)
    predictor = Predictor(model, 100)
    expected = np.concatenate(
        [predictor.log_probabilities(images[first : first + 100]) for first in (0, 100, 200)]
    )
    curve = attacks.fgsm_curve(AttackedModel(predictor), images, labels)
    assert curve.epsilons == pytest.approx(np.linspace(0, 0.1, 11))
    np.testing.assert_array_equal(
        curve.label_log_probabilities[:, 0], expected[np.arange(297), labels]
    )
    np.testing.assert_array_equal(curve.predictions[:, 0], expected.argmax(axis=1))
    np.testing.assert_array_equal(curve.clean_predictions, expected.argmax(axis=1))
    accuracies = curve.correct.mean(axis=0)
    assert accuracies[0] > 0.85 and accuracies[10] < accuracies[0] - 0.2


def test_right_before_and_unchanged():
    labels = np.array([0, 0, 0, 1])
    before, after = np.array([0, 0, 1, 0]), np.array([[0, 0], [1, 0], [0, 0], [0, 1]])
    curve = AttackCurve((0.1, 0.2), labels, before, after, np.zeros((4, 2)), np.zeros(4, bool))
    assert curve.correct.tolist() == [[True] * 2, [False, True], [True] * 2, [False, True]]
    assert curve.correct_before_and_unchanged.tolist() == [
        [True, True],
        [False, True],
        [False, False],
        [False, False],
    ]


def test_uint8_and_float_images_and_tensors_are_attacked_alike(attacked, images, labels):
    pixels = images[:20].astype(np.uint8)
    expected = attacks.fgsm(attacked, pixels, labels[:20], 0.01)
    for same in (pixels.astype(np.float32), tf.constant(pixels)):
        received = attacks.fgsm(attacked, same, tf.constant(labels[:20]), 0.01)
        np.testing.assert_array_equal(received, expected)
    np.testing.assert_array_equal(pixels, images[:20].astype(np.uint8))


def test_the_noise_of_the_network_is_off_and_its_weights_stay():
    model = models.build_model(
        "resnet8",
        num_classes=4,
        image_size=8,
        dropout_rate=0.9,
        survival_probability=0.2,
        synchronized=True,
        seed=1,
    )
    before = [variable.numpy() for variable in model.variables]
    images = np.random.default_rng(0).uniform(0, 255, (9, 8, 8, 3)).astype(np.float32)
    labels = np.arange(9) % 4
    settings = PgdSettings(steps=3)
    attacked = AttackedModel(Predictor(model, 4))
    first, second = (attacks.pgd(attacked, images, labels, 0.05, settings) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


@pytest.mark.parametrize("name", ["replicas", "compiled"])
def test_replicas_and_compiled_gradients_agree_with_one_device(model, images, labels, name):
    images, labels = images[:75], labels[:75]
    expected_model = AttackedModel(Predictor(model, 30))
    if name == "replicas":
        strategy = strategies.make_strategy("mirrored")
        with strategy.scope():
            copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        attacked = AttackedModel(Predictor(copy, 30, strategy))
    else:
        attacked = AttackedModel(Predictor(model, 30, jit_compile="on"))
    settings = PgdSettings(step_size=0.2, steps=3, every_point=False)
    for attack in (
        lambda model: attacks.fgsm(model, images, labels, 0.03),
        lambda model: attacks.pgd(model, images, labels, 0.03, settings),
    ):
        assert_same_attack(attack(attacked), attack(expected_model))


def test_gradients_are_compiled_once_for_all_epsilons(model, images, labels):
    attacked = AttackedModel(Predictor(model, 64))
    for epsilon in (0.01, 0.02):
        for settings in (PgdSettings("inf", steps=2), PgdSettings("2", steps=3)):
            attacks.pgd(attacked, images[:100], labels[:100], epsilon, settings)
        attacks.fgsm(attacked, images[:5], labels[:5], epsilon)
    function = attacked._gradients["cross_entropy"]._global_batch
    assert function.experimental_get_tracing_count() == 2  # Of 32 and 64 images.


def test_directions_of_tiny_zero_and_infinite_gradients():
    gradients = np.zeros((3, 1, 1, 2), np.float32)
    gradients[0, 0, 0], gradients[1, 0, 0] = (3e-30, -4e-30), (3e30, 4e30)
    received = attack_steps.direction(tf.constant(gradients), "2").numpy()[:, 0, 0]
    np.testing.assert_allclose(received, [[0.6, -0.8], [0.6, 0.8], [0, 0]], rtol=1e-6)
    received = attack_steps.direction(tf.constant(gradients), "inf").numpy()[:, 0, 0]
    np.testing.assert_array_equal(received, [[1, -1], [1, 1], [0, 0]])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": np.zeros((2, 8, 8), np.uint8)}, r"shape \(2, 8, 8\) and type uint8: expected"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "at least one"),
        ({"images": np.zeros((2, 8, 8, 3))}, "type float64: expected uint8 or float32"),
        ({"images": np.full((2, 8, 8, 3), 256, np.float32)}, r"256.0: expected \[0, 255\]"),
        ({"images": np.full((2, 8, 8, 3), np.nan, np.float32)}, r"nan: expected \[0, 255\]"),
        ({"labels": [0.0, 1.0]}, "labels of shape .* type float64: expected integers"),
        ({"labels": [0, 1, 2]}, "2 images and 3 labels"),
        ({"labels": [0, 10]}, "labels from 0 to 10: expected 0 to 9"),
        ({"labels": [0, -1]}, "labels from -1 to 0: expected 0 to 9"),
        ({"epsilon": 8}, "epsilon=8: expected units of .* 8 / 255"),
        ({"epsilon": -0.1}, "epsilon=-0.1: expected units"),
        ({"epsilon": np.nan}, "epsilon=nan: expected units"),
        ({"targets": [1, 1]}, "target 1 of image 1 is its label"),
        ({"targets": [1]}, "2 images and 1 targets"),
        ({"targets": [1, 10]}, "targets from 1 to 10: expected 0 to 9"),
        ({"ids": ["a"]}, "2 images and 1 ids"),
    ],
)
def test_wrong_arguments_are_rejected(attacked, changed, message):
    arguments = {
        "images": np.zeros((2, 8, 8, 3), np.uint8),
        "labels": [0, 1],
        "epsilon": 0.1,
        "targets": None,
    } | changed
    with pytest.raises(ValueError, match=message):
        attacks.pgd(attacked, **arguments)
    if "ids" not in changed:
        with pytest.raises(ValueError, match=message):
            attacks.fgsm(attacked, **arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "1"}, "norm='1': expected one of inf, 2"),
        ({"steps": 0}, "steps=0: expected 1 or more"),
        ({"restarts": 0}, "restarts=0: expected 1 or more"),
        ({"step_size": 0.0}, "step_size=0.0: expected a positive number"),
        ({"step_size": np.inf}, "step_size=inf: expected a positive number"),
        ({"restarts": 2, "random_start": False}, "restarts=2: starts that are not random"),
    ],
)
def test_wrong_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        PgdSettings(**settings)


def test_wrong_arguments_of_the_curve_are_rejected(attacked, images, labels):
    with pytest.raises(ValueError, match="loss='hinge': expected one of cross_entropy, logit"):
        attacks.fgsm_curve(attacked, images, labels, loss="hinge")
    with pytest.raises(ValueError, match="epsilons: expected at least one"):
        attacks.fgsm_curve(attacked, images, labels, [])
    with pytest.raises(ValueError, match=r"epsilon=1\.5: expected"):
        attacks.fgsm_curve(attacked, images, labels, [0.1, 1.5])
