"""Steps agree with formulas in NumPy, and a complete run is written to TensorBoard."""

import dataclasses
import functools
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits
from tensorflow.core.util import event_pb2

from nsk import models, noise, stopping
from nsk.data import augment, pipeline
from nsk.data.augment import ImageNoise
from nsk.data.image_operations import RandAugmentOptions
from nsk.data.streams import ResidentStream
from nsk.distributed import device_memory
from nsk.distributed import strategy as strategies
from nsk.distributed.batch_share import WHOLE
from nsk.distributed.runtime import Runtime
from nsk.errors import UserError
from nsk.evaluation import metrics
from nsk.evaluation.predictor import Predictor
from nsk.models import kerascv, layers
from nsk.training import losses
from nsk.training.checkpoint import Checkpoints
from nsk.training.recipe import Recipe
from nsk.training.trainer import Trainer, evaluation_steps

KEY = noise.key(0, "trainer test")
STEPS = 50


@functools.cache
def digits():
    """Handwritten digits: uint8 images (1797, 8, 8, 3) and int32 labels."""
    data = load_digits()
    images = np.minimum(data.images * 16, 255).astype(np.uint8)
    return np.repeat(images[..., np.newaxis], 3, axis=-1), data.target.astype(np.int32)


@functools.cache
def streams():
    """16 labelled and 48 pseudo-labelled images a step, the latter with soft labels and copies."""
    images, labels = digits()
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(10, 0.3), 300).astype(np.float32)
    copies = random.integers(1, 4, 300)
    return (
        ResidentStream(
            "labeled",
            tf.constant(images[:100]),
            losses.label_targets(labels[:100], 10, 0.1),
            np.ones(100, np.int32),
            16,
            100,
        ),
        ResidentStream(
            "pseudo", tf.constant(images[100:400]), tf.constant(probabilities), copies, 48, 300
        ),
    )


def batches(first_step, num_steps, share=WHOLE):
    """Crop and RandAugment; few operations, since each makes tracing longer."""
    options = RandAugmentOptions(
        num_ops=2, magnitude=9.0, operations=("rotate", "translate_x", "brightness")
    )
    image_noise = ImageNoise(crop_padding=1, rand_augment=options)

    def noisy(images, targets, key, batch_size, first_step):
        return augment.augment(images, key, image_noise), targets

    return pipeline.training_batches(streams(), KEY, noisy, 8, first_step, num_steps, share)


def noisy_resnet(synchronized):
    """A ResNet-8 with a classifier in the precision of the other layers."""
    model = models.build_model(
        "resnet8",
        num_classes=10,
        image_size=8,
        dropout_rate=0.3,
        survival_probability=0.5,
        synchronized=synchronized,
        seed=1,
    )
    return with_plain_classifier(model)


def noisy_kerascv(synchronized):
    """A KerasCV network, for images smaller than it supports."""
    builder = layers.Builder(seed=1, synchronized=synchronized)
    model = kerascv.build_kerascv(
        builder,
        "efficientnetv2_b0",
        num_classes=10,
        image_size=8,
        dropout_rate=0.3,
        survival_probability=0.5,
    )
    return with_plain_classifier(model)


def with_plain_classifier(model):
    initializer = keras.initializers.GlorotUniform(seed=2)
    classifier = keras.layers.Dense(10, kernel_initializer=initializer, name="logits")
    return keras.Model(model.input, classifier(model.get_layer("dropout").output))


RECIPE = Recipe(
    learning_rates=np.linspace(0.1, 0.01, STEPS, dtype=np.float32),
    batch_sizes={"labeled": 16, "pseudo": 48},
    weight_decay=1e-2,
    gradient_clip_norm=1.0,
    ema_decay=0.9,
)


def make_trainer(strategy, recipe, build_model):
    return Trainer(
        build_model, recipe, KEY, Runtime.from_strategy(strategies.make_strategy(strategy))
    )


def train(trainer, make_batches, folder, **changes):
    """Runs a whole training whose events and checkpoints are in a folder."""
    arguments = {
        "evaluate": lambda: {"accuracy": 0.5},
        "evaluations": 1,
        "summary_folder": folder / "events",
        "title": "a title",
        "checkpoint_folder": folder / "checkpoints",
        "checkpoint_seconds": 1e9,
    }
    return trainer.train(make_batches, **{**arguments, **changes})


def run(trainer, make_batches, calls):
    """Losses and gradient norms of all steps, made by calls of the given lengths."""
    iterator = trainer.iterate(make_batches, 0, sum(calls))
    step, parts = 0, []
    for count in calls:
        parts.append(trainer.call_steps(iterator, step, count))
        step += count
    return (np.concatenate(part) for part in zip(*parts, strict=True))


def weights(model):
    return {variable.path: variable.numpy() for variable in model.variables}


def assert_all_close(first, second, tolerance):
    for path in first:
        np.testing.assert_allclose(
            first[path], second[path], rtol=tolerance, atol=tolerance, err_msg=path
        )


def test_synchronised_batch_norm_on_one_device_changes_nothing():
    """A single device can evaluate a model that was trained on several devices."""
    model, synchronised = noisy_resnet(synchronized=False), noisy_resnet(synchronized=True)
    images = tf.cast(digits()[0][:32], tf.float32)
    for network in (model, synchronised):
        with noise.scope(KEY, tf.range(32), 32):
            network(images, training=True)
    assert_all_close(weights(model), weights(synchronised), 1e-6)
    np.testing.assert_allclose(model(images), synchronised(images), rtol=1e-4, atol=1e-5)


# The formulas in NumPy, for a linear model.


def linear(synchronized):
    pixels = keras.Input([8, 8, 3])
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels))
    initializer = keras.initializers.GlorotUniform(seed=3)
    return keras.Model(pixels, keras.layers.Dense(10, kernel_initializer=initializer)(features))


def weighted_batches(first_step, num_steps, share=WHOLE):
    """4 labelled and 6 pseudo-labelled rows with different weights, new ones in every step."""
    images, labels = digits()
    random = np.random.default_rng(1)
    targets = np.eye(10, dtype=np.float32)[labels]
    elements = []
    for step in range(num_steps):
        rows = slice(10 * step, 10 * step + 4), slice(10 * step + 4, 10 * step + 10)
        elements.append(
            tuple(
                {
                    "image": images[some],
                    "target": targets[some],
                    "weight": random.uniform(0.2, 2.0, some.stop - some.start).astype(np.float32),
                }
                for some in rows
            )
        )
    stacked = tf.nest.map_structure(lambda *parts: np.stack(parts), *elements)
    by_replica = tf.nest.map_structure(
        lambda rows: rows.reshape(num_steps * share.replicas, -1, *rows.shape[2:]), stacked
    )
    return tf.data.Dataset.from_tensor_slices(by_replica).skip(first_step * share.replicas)


def linear_training_by_hand(recipe):
    """Loss, gradient norm, weights and averages of every step, in float64."""
    model = linear(False)
    parameters = [variable.numpy().astype(np.float64) for variable in model.variables]
    velocity = [np.zeros_like(parameter) for parameter in parameters]
    averages = [parameter.copy() for parameter in parameters]
    losses_, norms = [], []
    for step, element in enumerate(weighted_batches(0, recipe.num_steps).as_numpy_iterator()):
        labeled, _ = element
        images, targets, row_weights = (
            np.concatenate([stream[part] for stream in element]).astype(np.float64)
            for part in ("image", "target", "weight")
        )
        # The number of rows, whatever their weights.
        counted = len(labeled["image"] if recipe.loss_normalization == "labelled" else images)
        pixels = images.reshape(len(images), -1) / 255
        logits = pixels @ parameters[0] + parameters[1]
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        entropies = -np.sum(targets * np.log(probabilities), axis=1)
        losses_.append(np.sum(row_weights * entropies) / counted)
        errors = row_weights[:, np.newaxis] * (probabilities - targets) / counted
        gradients = [pixels.T @ errors, errors.sum(axis=0)]
        gradients = [
            gradient + recipe.weight_decay * parameter
            for gradient, parameter in zip(gradients, parameters, strict=True)
        ]
        norms.append(np.sqrt(sum(np.sum(gradient**2) for gradient in gradients)))
        clip = min(1.0, (recipe.gradient_clip_norm or np.inf) / norms[-1])
        decay = min(recipe.ema_decay, (1 + step) / (10 + step))
        for i, gradient in enumerate(gradients):
            velocity[i] = 0.9 * velocity[i] - recipe.learning_rates[step] * clip * gradient
            parameters[i] = parameters[i] + velocity[i]
            averages[i] += (1 - decay) * (parameters[i] - averages[i])
    return losses_, norms, parameters, averages


@pytest.mark.parametrize("strategy", ["one", "mirrored"])
@pytest.mark.parametrize(("normalization", "clip"), [("labelled", 0.0), ("all", 0.5)])
def test_steps_equal_the_formulas_in_numpy(strategy, normalization, clip):
    recipe = Recipe(
        learning_rates=np.float32([0.3, 0.05, 0.2, 0.1]),
        batch_sizes={"labeled": 4, "pseudo": 6},
        weight_decay=0.02,
        gradient_clip_norm=clip,
        loss_normalization=normalization,
        ema_decay=0.2,
    )
    trainer = make_trainer(strategy, recipe, linear)
    received_losses, received_norms = run(trainer, weighted_batches, [1, 3])
    expected_losses, expected_norms, parameters, averages = linear_training_by_hand(recipe)
    np.testing.assert_allclose(received_losses, expected_losses, rtol=1e-5)
    np.testing.assert_allclose(received_norms, expected_norms, rtol=1e-5)
    for model, expected in ((trainer.model, parameters), (trainer.publish(), averages)):
        for variable, value in zip(model.variables, expected, strict=True):
            np.testing.assert_allclose(variable.numpy(), value, rtol=1e-4, atol=1e-6)
    if clip:
        assert min(expected_norms) > clip


def small_noisy(synchronized):
    """Every kind of layer that is relevant here; fast to trace."""
    pixels = keras.Input([8, 8, 3])
    features = keras.layers.Rescaling(1 / 127.5, offset=-1)(pixels)
    initializer = keras.initializers.HeNormal(seed=5)
    features = keras.layers.Conv2D(8, 3, strides=2, kernel_initializer=initializer)(features)
    features = keras.layers.BatchNormalization(momentum=0.9, synchronized=synchronized)(features)
    features = layers.StochasticDepth(0.7, name="depth")(keras.layers.ReLU()(features))
    features = layers.Dropout(0.3, name="dropout")(keras.layers.Flatten()(features))
    initializer = keras.initializers.GlorotUniform(seed=6)
    return keras.Model(pixels, keras.layers.Dense(10, kernel_initializer=initializer)(features))


def test_weight_decay_is_the_gradient_of_the_penalty_without_batch_norm():
    """One step of SGD: what decay adds is -rate x gradient of decay x sum of 1/2 w^2."""
    rate, decay = 0.1, 0.3
    after = {}
    for weight_decay in (0.0, decay):
        rates = np.float32([rate])
        recipe = Recipe(
            rates, {"labeled": 16, "pseudo": 48}, momentum=0.0, weight_decay=weight_decay
        )
        trainer = make_trainer("one", recipe, small_noisy)
        run(trainer, batches, [1])
        after[weight_decay] = trainer.model.trainable_variables

    start = small_noisy(synchronized=False).trainable_variables
    with tf.GradientTape() as tape:
        decayed = [variable.value for variable in start if variable.name in ("kernel", "bias")]
        penalty = decay * sum(tf.nn.l2_loss(weight) for weight in decayed)
    gradients = iter(tape.gradient(penalty, decayed))
    for variable, with_decay, without in zip(start, after[decay], after[0.0], strict=True):
        is_decayed = variable.name in ("kernel", "bias")
        assert is_decayed or variable.name in ("gamma", "beta")
        expected = -rate * next(gradients) if is_decayed else tf.zeros_like(variable.value)
        difference = with_decay.numpy() - without.numpy()
        np.testing.assert_allclose(difference, expected, atol=1e-6, err_msg=variable.path)


def test_how_steps_are_divided_into_calls_changes_nothing():
    """Noise and order depend only on step and position: results are bit-identical."""
    recipe = dataclasses.replace(RECIPE, learning_rates=np.full(12, 0.05, np.float32))
    first = make_trainer("one", recipe, small_noisy)
    losses_, norms = run(first, batches, [1, 11])

    other = make_trainer("one", recipe, small_noisy)
    parts = []
    for start, stop in ((0, 5), (5, 6), (6, 12)):  # Each from batches that start at this step.
        iterator = other.iterate(batches, start, stop)
        parts.append(other.call_steps(iterator, start, stop - start))
    other_losses, other_norms = (np.concatenate(part) for part in zip(*parts, strict=True))
    np.testing.assert_array_equal(losses_, other_losses)
    np.testing.assert_array_equal(norms, other_norms)
    for variable, expected in zip(other.model.variables, first.model.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), expected.numpy(), err_msg=variable.path)

    another_key = Trainer(small_noisy, recipe, noise.key(1), Runtime.from_strategy(first.strategy))
    assert next(run(another_key, batches, [1]))[0] != losses_[0]


def test_every_step_draws_new_noise():
    """The same batch and the same weights: only the layers' noise can change the loss."""
    recipe = Recipe(np.zeros(4, np.float32), {"labeled": 16, "pseudo": 48})

    def same_batch(first_step, num_steps, share):
        return batches(0, 1).repeat(num_steps)

    losses_, _ = run(make_trainer("one", recipe, small_noisy), same_batch, [2, 2])
    assert len(set(losses_)) == 4


# Complete runs.


def read_events(folder):
    """{tag: {step: value}} of TensorBoard's scalars; images as PNG bytes."""
    scalars = {}
    for path in sorted(folder.iterdir()):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                array = tf.make_ndarray(value.tensor)
                kept = float(array) if array.ndim == 0 else array[2]  # Width, height, PNG.
                scalars.setdefault(value.tag, {})[event.step] = kept
    return scalars


def test_a_small_run_learns_and_writes_to_tensorboard(tmp_path):
    images, labels = digits()
    recipe = Recipe(
        learning_rates=np.linspace(0.2, 0.0, 61, dtype=np.float32)[:60],
        batch_sizes={"labeled": 64},
        loss_normalization="all",
        ema_decay=0.9,
    )
    stream = ResidentStream(
        "labeled",
        tf.constant(images[:800]),
        losses.label_targets(labels[:800], 10),
        np.ones(800, np.int32),
        64,
        800,
    )

    def make_batches(first_step, num_steps, share=WHOLE):
        return pipeline.training_batches(
            (stream,), KEY, lambda images, targets, *_: (images, targets), 8, first_step, num_steps
        )

    trainer = make_trainer("one", recipe, small_noisy)
    predict = Predictor(trainer.published_model, 800)

    def evaluate():
        return metrics.summarize(predict.log_probabilities(images[1000:]), labels[1000:])

    result = train(trainer, make_batches, tmp_path, evaluate=evaluate, evaluations=3)
    scalars = read_events(tmp_path / "events")
    assert result["steps"] == 60
    assert result["images_seen"] == 60 * 64
    last = [scalars["train/loss"][step] for step in range(55, 61)]
    assert result["final_loss"] == pytest.approx(np.mean(last), rel=1e-6)
    assert result["final_loss"] < 0.5 * scalars["train/loss"][1]
    assert result["dev"]["accuracy"] > 0.8
    assert result["dev"] == evaluate()
    assert set(scalars["dev/accuracy"]) == {20, 40, 60}
    for name in ("accuracy", "top5", "nll", "ece", "brier"):
        assert scalars[f"dev/{name}"][60] == pytest.approx(result["dev"][name], rel=1e-6)
    for step, rate in scalars["train/learning_rate"].items():
        assert rate == recipe.learning_rates[step - 1]
    steps = set(scalars["train/loss"])
    assert {1, 20, 40, 60} <= steps
    assert set(scalars["train/gradient_norm"]) == set(scalars["train/images_per_second"]) == steps
    assert min(scalars["train/images_per_second"].values()) > 0
    (shown,) = scalars["train/labeled_images"].values()
    first = next(iter(make_batches(0, 60)))[0]["image"].numpy().reshape(8, 8, 8, 8, 3)
    expected = np.concatenate(np.concatenate(first, axis=1), axis=1)
    np.testing.assert_array_equal(tf.io.decode_png(shown), expected)


def train_with_broken_step(tmp_path, broken_step):
    def make_batches(first_step, num_steps, share=WHOLE):
        def spoil(step, element):
            labeled, pseudo = element
            factor = tf.where(step == broken_step, np.nan, 1.0)
            return labeled, {**pseudo, "weight": pseudo["weight"] * tf.cast(factor, tf.float32)}

        return weighted_batches(first_step, num_steps).enumerate().map(spoil)

    recipe = Recipe(np.full(6, 0.01, np.float32), {"labeled": 4, "pseudo": 6})
    trainer = make_trainer("one", recipe, linear)
    measured = {"accuracy": 0.5, "top5": None}
    options = {"evaluate": lambda: measured, "evaluations": 2, "checkpoint_seconds": 0.0}
    return train(trainer, make_batches, tmp_path, **options)


@pytest.mark.parametrize("broken_step", [0, 4])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_step(tmp_path, broken_step):
    at = f"loss became nan at step {broken_step}, in the steps . to .; .*checkpoint.*Lower --learn"
    with pytest.raises(UserError, match=at):
        train_with_broken_step(tmp_path, broken_step)


def test_a_metric_that_is_not_defined_is_left_out_of_tensorboard(tmp_path):
    result = train_with_broken_step(tmp_path, broken_step=-1)
    assert result["dev"] == {"accuracy": 0.5, "top5": None}
    scalars = read_events(tmp_path / "events")
    assert set(scalars["dev/accuracy"]) == {3, 6}
    assert "dev/top5" not in scalars


def test_evaluations_are_spread_evenly_and_the_last_step_is_among_them():
    assert evaluation_steps(10, 3) == {3, 7, 10}
    assert evaluation_steps(2, 5) == {1, 2}
    assert evaluation_steps(7, 1) == {7}
    for num_steps in range(1, 30):
        for evaluations in range(1, 35):
            steps = sorted(evaluation_steps(num_steps, evaluations))
            assert len(steps) == min(num_steps, evaluations)
            assert steps[-1] == num_steps
            assert steps[0] > 0


class KilledError(Exception):
    """Simulates the end of the process."""


def train_in_parts(folder, stops=(), evaluations=4):
    """Trains, interrupted after the evaluations of the numbers `stops`; (result, weights)."""
    measured = 0
    recipe = dataclasses.replace(RECIPE, learning_rates=RECIPE.learning_rates[:20])
    for number in (*stops, None):
        trainer = make_trainer("one", recipe, small_noisy)

        def evaluate(number=number, trainer=trainer):
            nonlocal measured
            measured += 1
            if number is not None and measured >= number:
                raise KilledError
            total = sum(
                float(tf.reduce_sum(variable.value)) for variable in trainer.model.variables
            )
            return {"accuracy": 0.5, "sum": total}

        try:
            options = {"evaluations": evaluations, "checkpoint_seconds": 0.0}
            result = train(trainer, batches, folder, evaluate=evaluate, **options)
        except KilledError:
            continue
    return result, [variable.numpy() for variable in trainer.publish().variables]


def test_a_resumed_training_ends_with_identical_weights_and_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(device_memory, "peak_bytes", lambda _: 2**29)
    expected, weights = train_in_parts(tmp_path / "whole")
    received, received_weights = train_in_parts(tmp_path / "parts", stops=(2, 3, 3))
    assert {**received, "seconds": 0} == {**expected, "seconds": 0}
    for received_array, array in zip(received_weights, weights, strict=True):
        np.testing.assert_array_equal(received_array, array)
    expected_curves, curves = (
        read_events(tmp_path / name / "events") for name in ("whole", "parts")
    )
    del curves["train/images_per_second"], expected_curves["train/images_per_second"]
    assert curves == expected_curves
    assert set(curves["train/device_memory_gib"].values()) == {0.5}
    assert len(list((tmp_path / "parts/checkpoints").iterdir())) == 2


def test_variables_have_the_same_names_in_every_process(tmp_path):
    """A student that resumes is the first network of its process; before, it was the second."""
    first, second = (make_trainer("one", RECIPE, small_noisy) for _ in range(2))
    assert list(first.variables()) == list(second.variables())
    for variable in first.variables().values():
        variable.assign(tf.ones_like(variable))
    Checkpoints(tmp_path, first.variables(), 1.0).save(3, {}, wait=True)
    assert Checkpoints(tmp_path, second.variables(), 1.0).restore() == (3, {})
    for variable in second.variables().values():
        assert np.all(np.asarray(variable) == 1)


def test_a_full_memory_is_one_line_that_names_what_would_fit(tmp_path, huge_layer):
    def huge(synchronized):
        model = small_noisy(synchronized)
        return keras.Model(model.input, huge_layer(model.output))

    trainer = make_trainer("one", RECIPE, huge)
    with pytest.raises(UserError, match=r"^a title: the device's memory is full: 64 ima") as error:
        train(trainer, batches, tmp_path)
    assert "give --accumulation_steps=2 (32 images at a time)" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stop_on_request_saves_the_last_step(tmp_path):
    recipe = dataclasses.replace(RECIPE, learning_rates=RECIPE.learning_rates[:20])
    trainer = make_trainer("one", recipe, small_noisy)

    def evaluate():
        signal.raise_signal(signal.SIGTERM)
        return {"accuracy": 0.5}

    kept = signal.signal(signal.SIGTERM, stopping.handle_signal)
    try:
        with pytest.raises(stopping.Stopped):
            train(trainer, batches, tmp_path, evaluate=evaluate, evaluations=2)
    finally:
        signal.signal(signal.SIGTERM, kept)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000010"]
