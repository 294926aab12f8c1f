"""The runner of stages: builds the stages of a run, or reuses those that are finished."""

import functools
import time
from pathlib import Path

from absl import logging

from nsk.config.config import Config
from nsk.data.shards import ShardSet
from nsk.distributed.runtime import Runtime
from nsk.distributed.workers import Workers
from nsk.errors import UserError
from nsk.pseudo.engine import LOCAL, Engine
from nsk.store.disk_errors import naming_disk_errors
from nsk.store.folders import (
    Build,
    StageFolder,
    StageKey,
    build_or_reuse,
    describe_closest_match,
    find_stage,
    load_stage,
)
from nsk.store.verification import stages_of_other_formats

MODEL_FILE = "model.keras"
POLL_SECONDS = 0.2
VISIBILITY_TIMEOUT_SECONDS = 90.0  # By default NFS caches the entries of a folder for a minute.


class StageRunner:
    """Builds the stages of one run, or reuses those that are finished.

    Of several workers, the chief builds; every worker gets the same result.

    Attributes:
        config, runtime: see the arguments.
        workdir: the run's folder.
        all_reused: whether every stage so far was finished before.

    Args:
        config: all settings of the run.
        runtime: its devices and workers.
    """

    def __init__(self, config: Config, runtime: Runtime):
        self.config, self.runtime, self.workdir = config, runtime, config.workdir
        self.all_reused = True

    @property
    def workers(self) -> Workers:
        """The `Workers` of the run."""
        return self.runtime.workers

    def warn_of_other_formats(self) -> None:
        """Warns if the workdir holds stages of another version, which are not reused."""
        folders = stages_of_other_formats(self.workdir) if self.workers.is_chief else []
        if folders:
            logging.warning(
                "Not reused: %d of the stages in %s, written by another version of nsk, such as "
                "%s: delete them to free the space.",
                len(folders),
                self.workdir,
                folders[0].relative_to(self.workdir),
            )

    def make_engine(self, folder: Path) -> Engine:
        """The engine of work on pseudo-labels; Beam keeps what its workers need in `folder`."""
        if self.config.run.engine == "local":
            return LOCAL
        from nsk.pseudo import beam_engine  # Heavy, and optional.

        return beam_engine.BeamEngine(self.config.run.beam_options, folder)

    def build_or_reuse(
        self,
        name: str,
        build: Build,
        settings: dict | None = None,
        *,
        join: Build | None = None,
        resumes: bool = False,
        worker: int = 0,
        num_workers: int = 1,
        **inputs: StageFolder,
    ) -> StageFolder | None:
        """The finished stage with this name, these settings and these inputs.

        Args:
            name: folder and kind, such as `gen1/student`.
            build: function of the folder to fill that returns the stage's counts.
            settings: JSON-like dict of all settings that the result depends on.
            join: function of the same folder that all workers but the chief call while the chief
                builds; None: they wait.
            resumes: as for `nsk.store.folders.build_or_reuse`.
            worker: as for `nsk.store.folders.build_or_reuse`.
            num_workers: as for `nsk.store.folders.build_or_reuse`.
            **inputs: the stages that it is built from, by role.

        Returns:
            The stage; None if `build` returned None.

        Raises:
            GenerationFailedError: raised by `build` of any worker.
            UserError: the stage is damaged or locked, the disk cannot be written, or workers have
                different data.
        """
        key = StageKey(self.workdir, name, settings or {}, inputs)
        make = functools.partial(
            build_or_reuse,
            key,
            resumes=resumes,
            worker=worker,
            num_workers=num_workers,
            wait=self.config.run.wait_for_locks,
        )
        return self._obtain(key, make, build, join)

    def can_obtain(self, name: str, settings: dict, **inputs: StageFolder) -> bool:
        """Whether there is such a stage, or it can be built; arguments of `build_or_reuse`."""
        return True

    def _obtain(self, key, make, build, join):
        """The stage of a key, by `make(build)`."""
        if self.workers.count == 1:
            stage = make(build)
        else:
            stage = self._build_on_chief(key, make, build, join)
        self.all_reused &= stage is not None and stage.reused
        return stage

    def _build_on_chief(self, key, make, build, join):
        """The chief calls `make(build)`, and the other workers `join` if it really builds."""
        workers, stage = self.workers, None
        number = int(key.fingerprint, 16)
        with workers.propagate_errors():
            if workers.is_chief:
                started = []

                def announce_and_build(folder):
                    started.append(True)
                    workers.broadcast_from_chief(True, number)
                    return build(folder)

                stage = make(announce_and_build)
                if not started:
                    workers.broadcast_from_chief(False, number)
            else:
                started, chief_number = workers.broadcast_from_chief(False, 0)
                if chief_number != number:
                    raise UserError(
                        f"Worker {workers.index} has other data than worker 0 ({key.label} is not "
                        "the same stage): give all workers the same data."
                    )
                if started and join:
                    with naming_disk_errors(key.path.parent):
                        join(key.partial_path)
        return stage or _load_when_visible(key.path)


class ReadOnlyRunner(StageRunner):
    """Finds finished stages; a missing stage is a UserError."""

    def can_obtain(self, name: str, settings: dict, **inputs: StageFolder) -> bool:
        """Whether the stage is finished."""
        return StageKey(self.workdir, name, settings, inputs).path.exists()

    def _obtain(self, key, make, build, join):
        stage = find_stage(key)
        if stage is None:
            raise UserError(
                f"{key.name} is not finished in {self.workdir} for these settings"
                f"{describe_closest_match(key)}: give those of its run, or build it with the "
                "command run or score."
            )
        return stage


def _load_when_visible(path):
    """A finished stage of another machine: shared file systems may show it late."""
    deadline = time.monotonic() + VISIBILITY_TIMEOUT_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return load_stage(path)


def shard_set(stage: StageFolder, split: str) -> ShardSet:
    """A shard set inside a finished stage."""
    return ShardSet.load(stage.path / split)


def resize_mode_of(model: StageFolder) -> str:
    """How the images that a model was trained on became squares; see `nsk.data.decoding`."""
    return model.counts["resize_mode"]


def summary_folder(workdir: Path, folder: Path) -> Path:
    """Where TensorBoard's events of a stage are written: a folder that is never renamed."""
    return workdir / "tensorboard" / folder.relative_to(workdir).with_suffix("")
