"""Speed of training steps on an accelerator, for `tools.benchmark_models --device=gpu`.

The ways to train are timed in turn; results are medians over several rounds. PyTorch runs in a
separate process of any Python that has it (`--torch_python`), which waits while nsk is timed.
"""

import contextlib
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

import tensorflow as tf

from nsk import models
from nsk.stages.training import trainable_parameters
from tools import benchmark_models

TORCH_PROGRAM = Path(__file__).with_name("torch_networks.py")


@dataclasses.dataclass(frozen=True)
class Part:
    """A network and the batch that it is timed on.

    Attributes:
        batch_size: images in a step.
        image_size: side of the images, pixels.
        num_classes: number of classes.
        noise: keyword arguments of `models.build_model`, such as `dropout_rate`.
    """

    batch_size: int
    image_size: int
    num_classes: int
    noise: dict = dataclasses.field(default_factory=dict)


PARTS = {
    "resnet20": Part(512, 32, 10),
    "resnet38": Part(512, 32, 10, {"dropout_rate": 0.5, "survival_probability": 0.8}),
    "wrn28_2": Part(512, 32, 10),
    "efficientnet_b0": Part(256, 224, 1000),
}
# Ways to train with nsk: --jit_compile and --precision.
OURS = {
    "plain_float32": ("off", "float32"),
    "plain_bf16": ("off", "bf16"),
    "compiled_float32": ("on", "float32"),
    "compiled_bf16": ("on", "bf16"),
}
PYTORCH = {
    "pytorch_float32": "float32",
    "pytorch_bf16": "bf16",
    "pytorch_bf16_compiled": "bf16_compiled",
}


class TorchProcess:
    """PyTorch in a process of its own.

    Args:
        python: path of a Python that has PyTorch.
    """

    def __init__(self, python):
        hidden = ("LD_LIBRARY_PATH", "PYTHONPATH")  # TensorFlow's libraries.
        environment = {name: text for name, text in os.environ.items() if name not in hidden}
        self._process = subprocess.Popen(
            [python, str(TORCH_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def time_steps(self, **request):
        """Times training steps in PyTorch; request and result as in `torch_networks`."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"PyTorch's process ended with {self._process.wait()}.")
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.stdin.close()  # The process ends at the end of its input.
        self._process.wait()
        self._process.stdout.close()


def our_turn(name, part, way, steps):
    """Function without arguments that times nsk: dict of `images_per_second`, `first_seconds`."""
    jit_compile, precision = OURS[way]
    images, labels = benchmark_models.make_batch(part.batch_size, part.image_size, part.num_classes)
    build = functools.partial(
        models.build_model,
        name,
        num_classes=part.num_classes,
        image_size=part.image_size,
        precision=precision,
        **part.noise,
    )
    timed = benchmark_models.our_steps(build, images, labels, part.num_classes, steps, jit_compile)

    def turn():
        started = time.perf_counter()
        speed = timed()
        seconds = time.perf_counter() - started
        return {
            "images_per_second": speed,
            "first_seconds": seconds - steps * part.batch_size / speed,
        }

    return turn


def benchmark(name, part, ways, rounds, steps, torch_process):
    """Times a network, all ways to train it in turn.

    Returns:
        dict from a way to a dict: `images_per_second` (median), `rounds` (all of them) and
        `first_seconds` (building it and its first steps).
    """
    turns = {}
    for way in ways:
        if way in OURS:
            turns[way] = our_turn(name, part, way, steps)
        else:
            turns[way] = functools.partial(
                torch_process.time_steps,
                network=name,
                precision=PYTORCH[way],
                batch_size=part.batch_size,
                image_size=part.image_size,
                steps=steps,
            )
    first = {}
    for way, turn in turns.items():
        result = turn()
        first[way] = result["first_seconds"]
        _check_parameters(name, part, result.get("parameters"))
        print(f"{name}, {way}: first call {first[way]:.1f} s", flush=True)
    speeds = {way: [] for way in turns}
    for _ in range(rounds):
        for way, turn in turns.items():
            speeds[way].append(round(turn()["images_per_second"], 1))
    results = {}
    for way, values in speeds.items():
        median = statistics.median(values)
        print(f"{name}, {way}: {median:,.0f} images/s", flush=True)
        results[way] = {
            "images_per_second": median,
            "rounds": values,
            "first_seconds": round(first[way], 1),
        }
    return results


def _check_parameters(name, part, in_pytorch):
    """Ends the benchmark if PyTorch's network has another number of parameters."""
    sizes = {"num_classes": part.num_classes, "image_size": part.image_size}
    if in_pytorch is None:
        return
    in_nsk = trainable_parameters(models.build_model(name, **sizes))
    if in_pytorch != in_nsk:
        raise SystemExit(f"{name} has {in_pytorch:,} parameters in PyTorch, {in_nsk:,} here.")


def device_name():
    """Name of the first GPU, or CPU."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "CPU"
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)


def ratio_to_pytorch(results):
    """Speed of nsk's fastest way to train over PyTorch's; None unless both were timed."""
    speeds = {way: result["images_per_second"] for way, result in results.items()}
    ours = [speed for way, speed in speeds.items() if way in OURS]
    pytorch = [speed for way, speed in speeds.items() if way in PYTORCH]
    return round(max(ours) / max(pytorch), 3) if ours and pytorch else None


def run(parts, ways, rounds, steps, torch_python, sizes=None):
    """Times networks and prints a JSON object as last line.

    Args:
        parts: names of `PARTS`.
        ways: names of `OURS` and `PYTORCH`.
        rounds: int, timed turns of each way.
        steps: int, training steps in a turn.
        torch_python: path of a Python that has PyTorch.
        sizes: dict of fields of `Part` that are replaced; None: none.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)  # Leaves memory for PyTorch.
    results, needs_torch = {}, bool(set(ways) & set(PYTORCH))
    with TorchProcess(torch_python) if needs_torch else contextlib.nullcontext() as torch_process:
        for name in parts:
            part = dataclasses.replace(PARTS[name], **(sizes or {}))
            results[name] = benchmark(name, part, ways, rounds, steps, torch_process)
    ratios = {name: ratio_to_pytorch(result) for name, result in results.items()}
    print(json.dumps({"device": device_name(), "ratio": ratios, "details": results}))
