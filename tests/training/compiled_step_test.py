"""Steps give the same results with and without XLA, noise included."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk import models, noise
from nsk.distributed import strategy as strategies
from nsk.distributed.batch_share import WHOLE, Share
from nsk.distributed.runtime import Runtime
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
    runtime = Runtime.from_strategy(strategies.make_strategy(strategy))
    return Trainer(build, recipe, KEY, runtime, jit_compile)


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
def test_the_loss_of_a_step_of_every_family_is_the_same_with_and_without_xla(name, side):
    plain, compiled = (trained(name, side, mode)[0] for mode in ("off", "on"))
    np.testing.assert_allclose(compiled, plain, rtol=1e-5)


def test_several_steps_and_their_weights_are_the_same_with_and_without_xla():
    plain, compiled = (trained("resnet8", 8, mode, num_steps=3) for mode in ("off", "on"))
    assert not is_compiled(plain[2])
    assert is_compiled(compiled[2])
    for expected, received in zip(plain[:2], compiled[:2], strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-4)
    assert len(set(plain[0])) == 3
    for name, variable in plain[2].variables().items():
        np.testing.assert_allclose(
            compiled[2].variables()[name].numpy(), variable.numpy(), atol=1e-4, err_msg=name
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation_steps": 2},
        pytest.param({"rematerialize": True}, marks=pytest.mark.slow),
    ],
)
def test_micro_batches_and_recomputed_blocks_are_compiled_as_well(changes):
    plain, compiled = (trained("resnet8", 8, mode, **changes) for mode in ("off", "on"))
    assert is_compiled(compiled[2])
    np.testing.assert_allclose(compiled[0], plain[0], rtol=1e-5)


class OnTheHost(keras.layers.Layer):
    """The identity, as a Python function that XLA cannot compile."""

    def call(self, inputs):
        outputs = tf.numpy_function(lambda array: array, [inputs], tf.float32)
        return tf.ensure_shape(outputs, inputs.shape)

    def compute_output_shape(self, input_shape):
        return input_shape


def linear_on_the_host(synchronized=False):
    pixels = keras.Input([8, 8, 3])
    features = keras.layers.Flatten()(OnTheHost()(pixels))
    initializer = keras.initializers.GlorotUniform(seed=3)
    logits = keras.layers.Dense(10, kernel_initializer=initializer)(features)
    return keras.Model(pixels, logits, name="linear")


def numbered_batches(first_step, num_steps, share=WHOLE):
    """Batches of images in which every value is the number of the step."""
    streams = first_batch(8)
    images = [np.full((num_steps, *stream["image"].shape), 0, np.uint8) for stream in streams]
    for number in range(num_steps):
        for array in images:
            array[number] = number
    elements = tuple(
        {name: np.repeat(rows[None], num_steps, axis=0) for name, rows in stream.items()}
        | {"image": array}
        for stream, array in zip(streams, images, strict=True)
    )
    return tf.data.Dataset.from_tensor_slices(elements).skip(first_step)


def train(jit_compile, folder, monkeypatch):
    """(losses, warnings) of a whole training of a network that XLA cannot compile."""
    recipe = Recipe(np.full(4, 1e-4, np.float32), SIZES)
    strategy = strategies.make_strategy("one")
    trainer = Trainer(linear_on_the_host, recipe, KEY, Runtime.from_strategy(strategy), jit_compile)
    losses, warnings = [], []
    call_steps = trainer.call_steps

    def recorded(*arguments):
        result = call_steps(*arguments)
        losses.extend(result[0])
        return result

    monkeypatch.setattr(trainer, "call_steps", recorded)
    monkeypatch.setattr(
        "nsk.distributed.compilation.logging.warning", lambda *arguments: warnings.append(arguments)
    )
    trainer.train(
        numbered_batches,
        evaluate=lambda: {"accuracy": 0.5},
        evaluations=1,
        summary_folder=folder / "summary",
        title="test",
        checkpoint_folder=folder / "checkpoints",
        checkpoint_seconds=1000.0,
    )
    return losses, warnings


def test_a_step_that_cannot_be_compiled_runs_without_xla_and_loses_no_batch(tmp_path, monkeypatch):
    plain, no_warnings = train("off", tmp_path / "plain", monkeypatch)
    fallen_back, warnings = train("on", tmp_path / "compiled", monkeypatch)
    assert len(plain) == 4 and len(set(plain)) == 4
    np.testing.assert_array_equal(fallen_back, plain)
    assert not no_warnings
    ((message, title, reason),) = warnings
    assert "without XLA" in message and title == "Training steps of linear"
    assert reason.startswith("Detected unsupported operations") and "PyFunc" in reason


def test_synchronized_replicas_run_without_xla_and_the_log_says_why(monkeypatch):
    warnings = []
    monkeypatch.setattr(
        "nsk.distributed.compilation.logging.warning", lambda *arguments: warnings.append(arguments)
    )
    make_trainer("convnet5", 8, "on", strategy="mirrored")
    ((_, _, reason),) = warnings
    assert reason.startswith("BatchNorm sums over replicas")
    make_trainer("convnet5", 8, "auto", strategy="mirrored")
    assert len(warnings) == 1  # On the CPU, `auto` does not compile.
    make_trainer("convnet5", 8, "on", strategy="mirrored", synchronized=False)
    assert len(warnings) == 1


def halves(first_step, num_steps, share):
    """The batches of one replica, or of two; the second half of each stream is dark."""
    parts = []
    for part in range(share.replicas):
        streams = first_batch(8)
        for stream in streams:
            size = len(stream["image"])
            stream["image"][size // 2 :] //= 8
            rows = slice(part * size // share.replicas, (part + 1) * size // share.replicas)
            stream.update({name: values[rows] for name, values in stream.items()})
        parts.append(streams)
    elements = tf.nest.map_structure(lambda *arrays: np.stack(arrays), *parts)
    return tf.data.Dataset.from_tensor_slices(elements).repeat(num_steps)


def trained_on_replicas(name, jit_compile, num_steps=2, strategy="mirrored", **changes):
    """(losses, norms, trainer) after all steps on `halves`."""
    changes = {"synchronized": False, **changes}
    trainer = make_trainer(name, 8, jit_compile, num_steps, strategy, **changes)
    batches = trainer.iterate(halves, 0, num_steps)
    return *trainer.call_steps(batches, 0, num_steps), trainer


@pytest.mark.parametrize(
    "changes",
    [{}, pytest.param({"accumulation_steps": 2}, marks=pytest.mark.slow)],
)
def test_replicas_with_their_own_batch_norm_are_compiled_with_the_same_result(changes):
    plain, compiled = (trained_on_replicas("resnet8", mode, **changes) for mode in ("off", "on"))
    assert compiled[2].is_compiled and not plain[2].is_compiled
    for expected, received in zip(plain[:2], compiled[:2], strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-4)
    for name, variable in plain[2].variables().items():
        received = replicas(compiled[2].variables()[name])
        np.testing.assert_allclose(received, replicas(variable), atol=1e-4, err_msg=name)


def replicas(variable):
    """A variable's values on both replicas, NumPy arrays."""
    values = variable.value if isinstance(variable, keras.Variable) else variable
    return [part.numpy() for part in values.values]


@pytest.mark.parametrize("synchronized", [False, True])
def test_the_variance_is_that_of_a_replica_or_of_the_batch(synchronized):
    """Of the first BatchNorm in the first step, which only depends on the images."""
    trainer = make_trainer("resnet8", 8, "off", 1, "mirrored", synchronized=synchronized)
    convolution, batch_norm = (f"stage1_block1_1_{kind}" for kind in ("conv", "bn"))
    network = trainer.published_model  # With the same weights.
    features = keras.Model(network.input, network.get_layer(convolution).output)
    shares = [
        features(tf.cast(tf.concat([stream["image"] for stream in streams], 0), tf.float32))
        for streams in halves(0, 1, Share(replicas=2))
    ]
    variances = [np.var(share, axis=(0, 1, 2)) for share in shares]
    expected = np.mean(variances, axis=0)
    if synchronized:
        expected = np.var(tf.concat(shares, 0), axis=(0, 1, 2))
        assert np.all(np.abs(np.mean(variances, axis=0) / expected - 1) > 0.01)
    trainer.call_steps(trainer.iterate(halves, 0, 1), 0, 1)
    layer = trainer.model.get_layer(batch_norm)
    for value in replicas(layer.moving_variance):
        moved = (value - layer.momentum) / (1 - layer.momentum)  # It was 1.
        np.testing.assert_allclose(moved, expected, rtol=1e-3)


def test_replicas_need_no_batch_norm():
    build = linear_on_the_host
    recipe = Recipe(np.full(1, 1e-4, np.float32), SIZES, synchronized=False)
    runtime = Runtime.from_strategy(strategies.make_strategy("mirrored"))
    trainer = Trainer(build, recipe, KEY, runtime, "off")
    losses, _ = trainer.call_steps(trainer.iterate(halves, 0, 1), 0, 1)
    assert np.isfinite(losses).all()
