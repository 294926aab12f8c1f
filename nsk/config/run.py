"""The run: its folder, seed and machine."""

import dataclasses
from pathlib import PurePosixPath

from nsk.config.fields import Section, equals, setting
from nsk.errors import UserError


@dataclasses.dataclass(frozen=True)
class RunConfig(Section):
    """The run: its folder, seed and machine."""

    workdir: str = setting(
        "",
        "Folder of the run; finished stages in it are reused. Required.",
        changes_results=False,
    )
    run_name: str = setting(
        "",
        "Folder inside the workdir for the summary, configuration and TensorBoard's generations of "
        "this run, so that several runs can share a workdir and its stages; empty: the workdir "
        "itself.",
        changes_results=False,
        commands=("run",),
    )
    wait_for_locks: bool = setting(
        False,
        "Wait for a stage that another process is building, instead of ending with an error.",
        changes_results=False,
    )
    seed: int = setting(0, "Seed of all randomness.", minimum=0)
    strategy: str = setting(
        "auto",
        "one: one device | mirrored: every device of this machine | multi_worker: every device of "
        "all machines in TF_CONFIG, each of which runs the same command; the workdir must be on a "
        "shared file system | tpu: the TPU named by --tpu | auto: mirrored if there are several "
        "GPUs, else one.",
        choices=("auto", "one", "mirrored", "multi_worker", "tpu"),
        changes_results=False,
    )
    tpu: str = setting(
        "local",
        "Name or gRPC address of the TPU; local: that of this machine.",
        used_if=equals("strategy", "tpu"),
        changes_results=False,
    )
    export_formats: str = setting(
        "saved_model",
        "Formats of the exported model beside .keras: saved_model | saved_model,tflite: for LiteRT "
        "(TensorFlow Lite), too, compared with the Keras model on dev images.",
        choices=("saved_model", "saved_model,tflite"),
        changes_results=False,
    )
    jit_compile: str = setting(
        "auto",
        "Compile training steps and predictions with XLA: auto: on GPUs and TPUs | on: also on the "
        "CPU, where it is slower | off. What XLA cannot compile runs without it, and the log says "
        "why.",
        choices=("auto", "on", "off"),
        changes_results=False,
    )
    compilation_cache: str = setting(
        "",
        "Folder for XLA's compiled programs and autotuning results, for later processes on the "
        "same kind of machine and card; empty: none.",
        changes_results=False,
        used_if=equals("jit_compile", "auto", "on"),
    )
    deterministic: bool = setting(
        False,
        "Use only operations on the GPU that repeat to the bit, so that a resumed or repeated run "
        "has the same result there, too; slower. On one CPU device every run does.",
        changes_results=False,
    )
    logical_devices: int = setting(
        0,
        "Split the CPU into this many logical devices (to try --strategy=mirrored without GPUs); "
        "0: no split.",
        minimum=0,
        maximum=64,
        changes_results=False,
    )
    eval_batch_size: int = setting(
        512, "Images per batch in scoring and evaluation.", minimum=1, changes_results=False
    )
    checkpoint_minutes: float = setting(
        5.0,
        "Longest time between checkpoints of a training, minutes. They are written more often if "
        "1 % of the time is enough for that, those of small networks every few seconds; 0: as "
        "often as possible.",
        minimum=0.0,
        changes_results=False,
    )
    engine: str = setting(
        "local",
        "Where unlabelled images are scored, selected and written: local: this process | beam: "
        "Apache Beam pipelines with --beam_options; they need requirements-beam.txt, and a "
        "--workdir that every worker can access.",
        choices=("local", "beam"),
        changes_results=False,
    )
    beam_options: str = setting(
        "",
        "Apache Beam's own options, such as '--runner=FlinkRunner --flink_master=localhost:8081'.",
        used_if=equals("engine", "beam"),
        changes_results=False,
    )

    def __post_init__(self):
        super().__post_init__()
        name = PurePosixPath(self.run_name)
        if name.is_absolute() or ".." in name.parts or not self.run_name.isprintable():
            raise UserError(
                f"--run_name={self.run_name!a}: expected a folder inside the workdir, as first or "
                "cells/first."
            )
