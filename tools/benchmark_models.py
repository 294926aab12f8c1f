"""Training speed of this project's networks, compared with other implementations of them.

    python -m tools.benchmark_models [--rounds=5] [--steps=5] [--parts=keras,pytorch]

- keras: EfficientNet-B0 at 224 pixels against `keras.applications.EfficientNetB0`, both in the
  compiled steps of nsk (`Trainer.run_steps`) with the same optimizer, without noise in the model.
- pytorch: ResNet-20 and WRN-28-2 at 32 pixels, batch 128, in the compiled steps of nsk against the
  same networks in PyTorch on the CPU (channels-last, `torch.optim.SGD`), with the same number of
  threads. Only this part needs PyTorch: `pip install torch`.

A step is a forward pass, a backward pass and an update of SGD with momentum, on one batch that
stays in memory. The two alternate, and ratios are of adjacent measurements; medians over the
rounds. The last line is a JSON object; a `ratio` above 1 means that nsk is faster.

    python -m tools.benchmark_models --device=gpu [--parts=resnet20,efficientnet_b0]
        [--ways=compiled_bf16,pytorch_bf16] [--torch_python=python3]

times ResNet-20, ResNet-38 (dropout and stochastic depth), WRN-28-2 (batch 512, 32 pixels) and
EfficientNet-B0 (batch 256, 224 pixels) on the GPU, plain and compiled by XLA, in float32 (TF32
where the card has it) and bf16, and in PyTorch: eager, bf16 autocast and bf16 `torch.compile`.
"""

import argparse
import functools
import importlib.util
import json
import os
import time

import keras
import numpy as np
import tensorflow as tf

from nsk import models, noise
from nsk.distributed.runtime import Runtime
from nsk.distributed.strategy import make_strategy
from nsk.stages.training import trainable_parameters
from nsk.store.files import num_cores
from nsk.training.recipe import Recipe
from nsk.training.trainer import Trainer
from tools.benchmark_training import alternate, summarize

PARTS = ("keras", "pytorch")
LEARNING_RATE, MOMENTUM = 0.01, 0.9
WARM_UP_STEPS = 2


def make_batch(batch_size, image_size, num_classes):
    """Random uint8 images (batch, side, side, 3) and int labels (batch,)."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8)
    return images, random.integers(0, num_classes, batch_size)


def our_steps(build, images, labels, num_classes, steps, jit_compile="auto"):
    """Function without arguments that returns the images per second of a network in compiled steps.

    Args:
        build: function of `synchronized` that returns a `keras.Model` from pixels to logits.
        images: uint8 array (batch, side, side, 3).
        labels: int array (batch,).
        num_classes: int.
        steps: int, training steps in a turn.
        jit_compile: of `Trainer`.
    """
    batch_size = len(images)
    recipe = Recipe(
        learning_rates=np.full(1, LEARNING_RATE, np.float32),  # Also used in later steps.
        batch_sizes={"labeled": batch_size},
        momentum=MOMENTUM,
    )
    runtime = Runtime.from_strategy(make_strategy("one"))
    trainer = Trainer(build, recipe, noise.key(0, "benchmark"), runtime, jit_compile)
    stream = {
        "image": tf.constant(images),
        "target": tf.one_hot(labels, num_classes),
        "weight": tf.ones(batch_size),
    }
    batches = iter(tf.data.Dataset.from_tensors((stream,)).repeat())

    def timed():
        trainer.call_steps(batches, 0, WARM_UP_STEPS)
        started = time.perf_counter()
        trainer.call_steps(batches, 0, steps)
        return steps * batch_size / (time.perf_counter() - started)

    return timed


def keras_efficientnet(image_size, num_classes, synchronized=False):
    """EfficientNet-B0 of `keras.applications`, from pixels to logits, without noise.

    `synchronized` has no effect on one device.
    """
    network = keras.applications.EfficientNetB0(
        weights=None,
        input_shape=(image_size, image_size, 3),
        classes=num_classes,
        classifier_activation=None,
    )
    for layer in network.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return network


def benchmark_keras(image_size, batch_size, rounds, steps):
    """Compares with `keras.applications`; returns the result of `summarize`."""
    num_classes = 1000
    images, labels = make_batch(batch_size, image_size, num_classes)
    sizes = {"num_classes": num_classes, "image_size": image_size}
    builders = (
        functools.partial(models.build_model, "efficientnet_b0", **sizes),
        functools.partial(keras_efficientnet, **sizes),
    )
    measures = (our_steps(build, images, labels, num_classes, steps) for build in builders)
    title = f"efficientnet_b0, {image_size} pixels"
    return summarize(title, alternate(rounds, *measures), "ours", "keras.applications")


def benchmark_pytorch(name, batch_size, rounds, steps):
    """Compares with PyTorch on the CPU; returns the result of `summarize`."""
    # Otherwise PyTorch's waiting threads would occupy the cores that TensorFlow needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from tools import torch_networks  # Needs PyTorch.

    sizes = {"num_classes": 10, "image_size": 32}
    images, labels = make_batch(batch_size, 32, 10)
    build = functools.partial(models.build_model, name, **sizes)
    run = torch_networks.TrainingSteps(
        name, images, labels, LEARNING_RATE, MOMENTUM, threads=num_cores()
    )
    ours = trainable_parameters(build())
    if run.num_parameters != ours:
        raise SystemExit(f"{name} has {run.num_parameters:,} parameters in PyTorch, {ours:,} here.")

    def timed():
        run(WARM_UP_STEPS)
        started = time.perf_counter()
        run(steps)
        return steps * batch_size / (time.perf_counter() - started)

    pairs = alternate(rounds, our_steps(build, images, labels, 10, steps), timed)
    return summarize(f"{name}, 32 pixels", pairs, "ours", "PyTorch")


def _on_gpu(parser, options):
    """Runs the benchmark of `--device=gpu`."""
    from tools import benchmark_gpu  # It imports this module.

    known = {"parts": benchmark_gpu.PARTS, "ways": benchmark_gpu.OURS | benchmark_gpu.PYTORCH}
    chosen = {}
    for option, names in known.items():
        given = getattr(options, option)
        chosen[option] = given.split(",") if given else list(names)
        if not set(chosen[option]) <= set(names):
            parser.error(f"--{option}={given}: expected some of {','.join(names)}.")
    benchmark_gpu.run(
        **chosen,
        rounds=options.rounds,
        steps=options.steps or 50,
        torch_python=options.torch_python,
        sizes=json.loads(options.gpu_sizes),
    )


def main(arguments=None):
    """Times the networks and prints a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device",
        default="cpu",
        choices=("auto", "cpu", "gpu"),
        help="auto: a GPU if there is one",
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of timed rounds")
    parser.add_argument(
        "--steps", type=int, default=0, help="training steps in a turn; 0: 5, on a GPU 50"
    )
    parser.add_argument(
        "--parts",
        default="",
        help="implementations to compare with; on a GPU: networks; empty: all",
    )
    parser.add_argument("--ways", default="", help="on a GPU: ways to train; empty: all")
    parser.add_argument(
        "--torch_python", default="python3", help="on a GPU: path of a Python that has PyTorch"
    )
    parser.add_argument(
        "--gpu_sizes", default="{}", help='on a GPU: JSON of other sizes, as {"batch_size": 64}'
    )
    parser.add_argument("--image_size", type=int, default=224, help="of EfficientNet-B0, pixels")
    parser.add_argument("--large_batch", type=int, default=16, help="images for EfficientNet-B0")
    parser.add_argument("--batch", type=int, default=128, help="images for the others")
    parser.add_argument("--models", default="resnet20,wrn28_2", help="networks against PyTorch")
    options = parser.parse_args(arguments)
    has_gpu = options.device == "auto" and tf.config.list_physical_devices("GPU")
    if options.device == "gpu" or has_gpu:
        return _on_gpu(parser, options)
    parts = options.parts.split(",") if options.parts else PARTS
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts={options.parts}: expected some of {','.join(PARTS)}.")
    if "pytorch" in parts and importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed: pip install torch, or give --parts=keras.")
    results, turns = {}, (options.rounds, options.steps or 5)
    if "keras" in parts:
        results["efficientnet_b0"] = benchmark_keras(
            options.image_size, options.large_batch, *turns
        )
    if "pytorch" in parts:
        for name in options.models.split(","):
            results[name] = benchmark_pytorch(name, options.batch, *turns)
    ratios = {name: round(result["ratio"], 3) for name, result in results.items()}
    print(json.dumps({"ratio": ratios, "cores": num_cores(), "details": results}))


if __name__ == "__main__":
    main()
