"""Gradient accumulation, gradient checkpointing and frozen blocks: same updates, less memory."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from nsk import models, noise
from nsk.distributed import strategy as strategies
from nsk.distributed.batch_share import WHOLE
from nsk.distributed.runtime import Runtime
from nsk.models import blocks
from nsk.training.recipe import Recipe
from nsk.training.trainer import Trainer

KEY = noise.key(0, "step test")
# A separate test compares micro-batches and their statistics on two devices.
each_strategy = pytest.mark.parametrize(
    "strategy", ["one", pytest.param("mirrored", marks=pytest.mark.slow)]
)
SIZES = {"labeled": 8, "pseudo": 16}
RECIPE = Recipe(
    np.full(3, 0.05, np.float32),
    SIZES,
    weight_decay=1e-2,
    gradient_clip_norm=1.0,
    ema_decay=0.9,
)


def batches(side=8, sizes=SIZES):
    """The `make_batches` of `Trainer.train`, with random images and soft labels."""

    def make(first_step, num_steps, share=WHOLE):
        def stream(number, size):
            random = np.random.default_rng(number)
            return {
                "image": random.integers(0, 256, (size, side, side, 3)).astype(np.uint8),
                "target": random.dirichlet(np.ones(10), size).astype(np.float32),
                "weight": random.uniform(0.5, 1.0, size).astype(np.float32),
            }

        whole = [stream(number, size) for number, size in enumerate(sizes.values())]

        def parts():
            for _ in range(first_step, num_steps):
                for replica in range(share.replicas):
                    yield tuple(
                        {
                            name: np.array_split(rows, share.replicas)[replica]
                            for name, rows in batch.items()
                        }
                        for batch in whole
                    )

        first = next(parts())
        signature = tf.nest.map_structure(lambda rows: tf.TensorSpec(rows.shape, rows.dtype), first)
        return tf.data.Dataset.from_generator(parts, output_signature=signature)

    return make


def resnet(synchronized, precision="float32"):
    return models.build_model(
        "resnet8",
        num_classes=10,
        image_size=8,
        dropout_rate=0.3,
        survival_probability=0.5,
        synchronized=synchronized,
        precision=precision,
        seed=1,
    )


def plain_network(name, synchronized):
    return models.build_model(name, num_classes=10, image_size=8, synchronized=synchronized, seed=1)


def without_batch_norm(build):
    """What `build` makes, its BatchNorm at inference, so that rows do not know of each other."""

    def build_without(synchronized):
        model = build(synchronized)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
        return model

    return build_without


def trained(build, strategy="one", make_batches=None, **changes):
    """(losses, norms, trainer) after all steps."""
    recipe = dataclasses.replace(RECIPE, **changes)
    trainer = Trainer(build, recipe, KEY, Runtime.from_strategy(strategies.make_strategy(strategy)))
    iterator = trainer.iterate(make_batches or batches(), 0, recipe.num_steps)
    losses, norms = trainer.call_steps(iterator, 0, recipe.num_steps)
    return losses, norms, trainer


def assert_same(first, second, tolerance):
    for values, other_values in zip(first[:2], second[:2], strict=True):
        np.testing.assert_allclose(values, other_values, rtol=tolerance)
    variables = zip(first[2].model.variables, second[2].model.variables, strict=True)
    for variable, other in variables:
        np.testing.assert_allclose(
            variable.numpy(),
            other.numpy(),
            rtol=tolerance,
            atol=tolerance,
            err_msg=variable.path,
        )


@pytest.mark.parametrize(
    "strategy, changes",
    [
        ("one", {}),
        ("one", {"loss_normalization": "all"}),
        ("one", {"frozen_blocks": 1, "rematerialize": True}),
        pytest.param("mirrored", {}, marks=pytest.mark.slow),
    ],
)
def test_accumulated_gradients_are_those_of_the_whole_batch(strategy, changes):
    build = without_batch_norm(resnet)
    whole = trained(build, **changes)
    parts = trained(build, strategy, accumulation_steps=2, **changes)
    assert_same(whole, parts, 1e-5)


def test_micro_batches_are_a_loop_in_the_graph_of_one_device():
    whole, parts = (
        [node.op for node in nodes_of(trained(resnet, accumulation_steps=steps)[2])]
        for steps in (1, 4)
    )
    assert parts.count("Conv2D") == whole.count("Conv2D") > 0
    assert parts.count("While") == whole.count("While") + 1


def nodes_of(trainer):
    """All nodes of the graph of steps."""
    graph = trainer.run_steps.get_concrete_function(
        trainer.iterate(batches(), 0, 3), tf.constant(0), tf.constant(3)
    ).graph.as_graph_def()
    nested = (node for function in graph.library.function for node in function.node_def)
    return [*graph.node, *nested]


def test_micro_batches_are_the_same_on_one_device_and_two():
    """Including BatchNorm's statistics of each micro-batch."""
    parts = {"accumulation_steps": 2, "learning_rates": np.full(2, 0.01, np.float32)}
    assert_same(trained(resnet, **parts), trained(resnet, "mirrored", **parts), 1e-4)


def test_batch_norm_uses_the_statistics_of_micro_batches():
    """The only, documented difference: each micro-batch has its own statistics."""
    whole, parts = trained(resnet), trained(resnet, accumulation_steps=2)
    assert whole[0][0] != parts[0][0]
    name = "final_bn"
    variances = [
        trainer.model.get_layer(name).moving_variance.numpy() for _, _, trainer in (whole, parts)
    ]
    assert np.abs(variances[0] - variances[1]).max() > 1e-3


@each_strategy
def test_rematerialisation_changes_nothing(strategy):
    plain = trained(resnet, strategy)
    rematerialized = trained(resnet, strategy, rematerialize=True)
    assert_same(plain, rematerialized, 0.0 if strategy == "one" else 1e-5)


def test_a_rematerialised_network_computes_its_blocks_again():
    convolutions = []
    for rematerialize in (False, True):
        _, _, trainer = trained(resnet, rematerialize=rematerialize)
        convolutions.append(sum(node.op == "Conv2D" for node in nodes_of(trainer)))
    assert convolutions[1] >= 1.7 * convolutions[0]


@pytest.mark.parametrize("frozen", [1, 2])
def test_frozen_blocks_stay_as_they_are(frozen):
    """Bit-identical, including BatchNorm's statistics and the averages."""
    _, _, trainer = trained(resnet, frozen_blocks=frozen)
    before = {variable.path: variable.numpy() for variable in resnet(False).variables}
    shallow = blocks.shallow_layers(trainer.model, frozen)
    names = {layer.name for layer in shallow}
    assert "stem_conv" in names and f"stage{frozen}_block1_add" in names
    for model in (trainer.model, trainer.publish()):
        for variable in model.variables:
            is_frozen = variable.path.split("/")[0] in names
            stayed = np.array_equal(variable.numpy(), before[variable.path])
            assert stayed == is_frozen, variable.path
    assert all(layer.trainable for layer in trainer.published_model.layers)


def test_frozen_blocks_drop_nothing():
    """Their stochastic depth and dropout are at inference, and the others' are not."""
    recipe = {"learning_rates": np.zeros(3, np.float32), "weight_decay": 0.0}
    build = without_batch_norm(resnet)
    all_blocks = len(blocks.block_names(build(False)))

    def build_frozen(synchronized):
        model = build(synchronized)
        model.get_layer("dropout").trainable = False
        return model

    losses, _, _ = trained(build_frozen, frozen_blocks=all_blocks, **recipe)
    assert len(set(losses)) == 1
    losses, _, _ = trained(build_frozen, frozen_blocks=all_blocks - 1, **recipe)
    assert len(set(losses)) > 1


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("wrn10_1", 8),
        *(
            pytest.param(name, side, marks=pytest.mark.slow)
            for name, side in (
                ("convnet5", 8),
                ("resnet6", 8),
                ("resnet9", 8),
                ("resnet8", 8),
                ("imagenet_resnet18", 32),
                ("efficientnet_b0_small", 16),
                ("efficientnet_b0", 32),
            )
        ),
    ],
)
def test_one_step_of_every_family_on_two_devices_is_that_of_one(name, side):
    def build(synchronized):
        return models.build_model(
            name,
            num_classes=10,
            image_size=side,
            dropout_rate=0.3,
            survival_probability=0.5,
            synchronized=synchronized,
        )

    one_step = {"learning_rates": np.full(1, 0.01, np.float32), "make_batches": batches(side)}
    single, mirrored = trained(build, **one_step), trained(build, "mirrored", **one_step)
    for expected, received in zip(single[:2], mirrored[:2], strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-3)
    assert np.isfinite(mirrored[0]).all()


@pytest.mark.slow
def test_micro_batches_of_efficientnet_b0_at_224_equal_the_whole_batch():
    def build(synchronized):
        return models.build_model(
            "efficientnet_b0",
            num_classes=10,
            image_size=224,
            dropout_rate=0.2,
            survival_probability=0.8,
            synchronized=synchronized,
        )

    sizes = {"labeled": 4, "pseudo": 4}
    one_step = {
        "learning_rates": np.full(1, 0.1, np.float32),
        "make_batches": batches(224, sizes),
        "batch_sizes": sizes,
    }
    build = without_batch_norm(build)
    assert_same(trained(build, **one_step), trained(build, accumulation_steps=4, **one_step), 1e-5)


def test_bfloat16_trains_as_float32_does():
    losses, _, trainer = trained(resnet)
    rounded, _, _ = trained(lambda synchronized: resnet(synchronized, "bf16"))
    assert losses.dtype == rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, losses, rtol=0.02)
    assert (rounded != losses).any()
    assert {variable.dtype for variable in trainer.model.variables} == {"float32"}


@pytest.mark.parametrize("normalization", ["labelled", "all"])
def test_distillation_is_in_the_loss_and_accumulates(normalization):
    """The first loss is the formula's for the logits of the untrained network."""
    build = without_batch_norm(functools.partial(plain_network, "convnet5"))
    plain = batches()

    def with_two_targets(*arguments):
        def double(*streams):
            return tuple(
                {**stream, "target": tf.stack([stream["target"], stream["target"] ** 2], 1)}
                for stream in streams
            )

        return plain(*arguments).map(double)

    changes = {
        "make_batches": with_two_targets,
        "distillation_alpha": 0.4,
        "distillation_temperature": 5.0,
        "loss_normalization": normalization,
    }
    whole = trained(build, **changes)
    assert_same(whole, trained(build, accumulation_steps=2, **changes), 1e-5)

    streams = next(iter(with_two_targets(0, 1)))
    images, targets, weights = (
        np.concatenate([stream[name] for stream in streams]).astype(np.float64)
        for name in ("image", "target", "weight")
    )
    logits = build(False)(images.astype(np.float32), training=False).numpy().astype(np.float64)
    hard, soft = targets[:, 0], targets[:, 1]
    log_student = special.log_softmax(logits / 5, axis=1)
    rows = 0.6 * -(hard * special.log_softmax(logits, axis=1)).sum(axis=1)
    rows += 0.4 * 25 * (special.xlogy(soft, soft) - soft * log_student).sum(axis=1)
    expected = weights @ rows / (8 if normalization == "labelled" else 24)
    assert whole[0][0] == pytest.approx(expected, rel=1e-4)
