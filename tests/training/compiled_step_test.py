"""Steps that XLA compiles are those that run plain, noise included."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from nsk import models, noise
from nsk.training import strategy as strategies
from nsk.training.recipe import Recipe
from nsk.training.trainer import Trainer

KEY = noise.key(0, "compiled step test")
SIZES = {"labeled": 4, "pseudo": 8}
NOISE = {"dropout_rate": 0.5, "survival_probability": 0.5}


def first_batch(side):
    def stream(number, size):
        random = np.random.default_rng(number)
        return {
            "image": random.integers(0, 256, (size, side, side, 3)).astype(np.uint8),
            "target": random.dirichlet(np.ones(10), size).astype(np.float32),
            "weight": random.uniform(0.5, 1.0, size).astype(np.float32),
        }

    return tuple(stream(number, size) for number, size in enumerate(SIZES.values()))


def make_trainer(name, side, jit_compile, num_steps=1, strategy="one", **changes):
    build = functools.partial(models.build_model, name, num_classes=10, image_size=side, **NOISE)
    recipe = Recipe(
        np.full(num_steps, 0.01, np.float32),
        SIZES,
        **{"weight_decay": 1e-2, "gradient_clip_norm": 1.0, "ema_decay": 0.9, **changes},
    )
    return Trainer(build, recipe, KEY, strategies.make_strategy(strategy), jit_compile)


def trained(name, side, jit_compile, num_steps=1, **changes):
    """(losses, norms, trainer) after all steps on one batch."""
    trainer = make_trainer(name, side, jit_compile, num_steps, **changes)
    batches = iter(tf.data.Dataset.from_tensors(first_batch(side)).repeat())
    return *trainer.call_steps(batches, 0, num_steps), trainer


def is_compiled(trainer):
    """Whether the graph of steps asks XLA to compile a function."""
    batches = iter(tf.data.Dataset.from_tensors(first_batch(8)).repeat())
    steps = trainer.run_steps.get_concrete_function(batches, tf.constant(0), tf.constant(1))
    functions = steps.graph.as_graph_def().library.function
    return any(function.attr["_XlaMustCompile"].b for function in functions)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("convnet5", 8),
        ("resnet8", 8),
        *(
            pytest.param(name, side, marks=pytest.mark.slow)
            for name, side in (
                ("resnet6", 8),
                ("resnet9", 8),
                ("wrn10_1", 8),
                ("imagenet_resnet18", 32),
                ("efficientnet_b0_small", 16),
                ("efficientnet_b0", 32),
                ("kerascv:efficientnetv2_b0", 32),
            )
        ),
    ],
)
def test_the_loss_of_a_step_of_every_family_is_the_same_plain_and_compiled(name, side):
    plain, compiled = (trained(name, side, mode)[0] for mode in ("off", "on"))
    np.testing.assert_allclose(compiled, plain, rtol=1e-5)


def test_several_steps_and_their_weights_are_the_same_plain_and_compiled():
    plain, compiled = (trained("resnet8", 8, mode, num_steps=3) for mode in ("off", "on"))
    assert not is_compiled(plain[2])
    assert is_compiled(compiled[2])
    for ours, theirs in zip(plain[:2], compiled[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert len(set(plain[0])) == 3
    for name, variable in plain[2].variables().items():
        np.testing.assert_allclose(
            compiled[2].variables()[name].numpy(), variable.numpy(), atol=1e-4, err_msg=name
        )
