"""All settings of a run: its sections, and the checks across them.

`nsk.main` defines a command-line flag for every setting and creates a `Config` from their values;
nothing else reads flags.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from nsk.config.chain import ChainConfig
from nsk.config.commands import CommandConfig
from nsk.config.data import SOURCES, DataConfig
from nsk.config.evaluation import EvaluationConfig
from nsk.config.fields import PerGeneration, Section, convert
from nsk.config.finetune import FinetuneConfig
from nsk.config.model import ModelConfig
from nsk.config.noise import NEVER_FLIPPED, NoiseConfig
from nsk.config.run import RunConfig
from nsk.config.scoring import ScoringConfig
from nsk.config.selection import SelectionConfig
from nsk.config.targets import TargetConfig
from nsk.config.train import TrainConfig
from nsk.errors import UserError, list_names


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    run: RunConfig
    data: DataConfig
    chain: ChainConfig
    model: ModelConfig
    noise: NoiseConfig
    train: TrainConfig
    finetune: FinetuneConfig
    scoring: ScoringConfig
    selection: SelectionConfig
    targets: TargetConfig
    evaluation: EvaluationConfig
    command: CommandConfig

    def __post_init__(self):
        self._check_init_from()
        self._check_num_teachers()
        self._check_ratio()
        self._check_workdir()
        self._check_score_views()
        self._check_distillation()
        self._check_first_scores()
        self._check_label_with_noise()
        self._check_plan_images()

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Creates a configuration from flat settings.

        Args:
            values: the values of settings by name; missing ones have their default. Those of
                comma lists are lists of strings or of values.

        Raises:
            UserError: a value is not allowed.
            ValueError: there is no such setting.
        """
        unknown = set(values) - {field.name for field in settings()}
        if unknown:
            raise ValueError(f"No such settings: {list_names(sorted(unknown))}.")
        sections = {}
        for section in dataclasses.fields(cls):
            given = {
                field.name: convert(field, values[field.name])
                for field in dataclasses.fields(section.type)
                if field.name in values
            }
            sections[section.name] = section.type(**given)
        return cls(**sections)

    @property
    def sections(self) -> dict[str, Section]:
        """The sections by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def values_at(self, generation: int) -> dict[str, Any]:
        """All settings by name with the values of a generation, as conditions of use ask for."""
        values = {"is_student": generation > 0}
        for section in self.sections.values():
            values |= section.at(generation).values()
        return values

    def unused_settings(self) -> list[str]:
        """A line for each setting that was given and has no effect.

        This is not an error, since the lists of a flagfile remain if a shorter `--models` is given
        beside it. For the same reason, a chain without students does not make students' settings
        unused.
        """
        first = 1 if self.chain.teacher else 0  # A given teacher is not trained.
        generations = range(first, max(1, self.num_students) + 1)
        values = [self.values_at(generation) for generation in generations]
        lines = []
        for section in self.sections.values():
            for field in dataclasses.fields(section):
                value = getattr(section, field.name)
                if value == field.default:
                    continue
                used_if = field.metadata["used_if"]
                if not any(map(used_if.holds, values)):
                    lines.append(
                        f"--{field.name}={_as_flag(value)} has no effect: it needs {used_if.text}."
                    )
                elif isinstance(value, PerGeneration) and field.name != "models":
                    lines += self._values_beyond_chain(field, value)
        return lines

    def _values_beyond_chain(self, field, value):
        """A line if a comma list has more values than the chain uses."""
        used = max(1, self.num_students + 1 - field.metadata["first_generation"])
        if field.name == "min_confidence" and self.chain.select == "once":
            used = 1
        if len(value) > used:
            yield (
                f"--{field.name}={_as_flag(value)} has {len(value)} values for a chain of "
                f"{len(self.chain.models)} networks, which uses {used}"
                + (" with --select=once" if used == 1 and self.num_students > 1 else "")
                + ": the others are ignored."
            )

    def _check_workdir(self):
        """A workdir inside the images would count as one of their classes in later runs."""
        for flag in SOURCES:
            kind, _, folder = getattr(self.data, flag).partition(":")
            if kind != "folder" or not self.run.workdir:
                continue
            root = Path(os.path.expanduser(folder)).resolve()
            if self.workdir.resolve().is_relative_to(root):
                raise UserError(
                    f"--workdir={self.run.workdir} is inside --{flag}={getattr(self.data, flag)}: "
                    "give a folder outside the images."
                )

    def _check_init_from(self):
        """The first network of a chain has no teacher, unless a teacher was given."""
        given = self.chain.init_from
        if not all(given):
            raise UserError("--init_from has an empty value: give scratch, teacher or a path.")
        if given[0] == "teacher" and not self.chain.teacher:
            instead = ",".join(("scratch", *(given[1:] or given)))
            raise UserError(
                f"--init_from={','.join(given)}: the first network of the chain has no teacher to "
                f"be initialised from: write --init_from={instead}, or give a --teacher."
            )

    def _check_num_teachers(self):
        """A given teacher is a single one."""
        if self.chain.num_teachers > 1 and self.chain.teacher:
            raise UserError(
                f"--num_teachers={self.chain.num_teachers} with --teacher={self.chain.teacher}, "
                "which is not trained: leave one of the two out."
            )

    def _check_first_scores(self):
        """Scores stored in records do not cover dev, and only records have them."""
        if self.scoring.first_scores == "teacher":
            return
        if not self.data.unlabeled_dataset.startswith("tfrecord:"):
            raise UserError(
                f"--first_scores=records with --unlabeled_dataset={self.data.unlabeled_dataset!r}: "
                "give tfrecord:PATTERN of records with pseudo-labels."
            )
        if self.data.keep_remaining:
            raise UserError(
                "--first_scores=records with --keep_remaining: the remaining images of --dataset "
                "have no stored scores; leave one of the two out."
            )
        needs_dev = {
            "--calibrate": self.selection.calibrate,
            "--target_precision": self.selection.target_precision,
            "--unknown_classes=filter": self.selection.unknown_classes == "filter",
        }
        if any(needs_dev.values()):
            given = " and ".join(name for name, is_given in needs_dev.items() if is_given)
            raise UserError(
                f"--first_scores=records with {given}, which needs the teacher's predictions on "
                "dev; leave it out."
            )

    def _check_label_with_noise(self):
        """Images with noise cannot be compared with dev, which has none."""
        if self.scoring.label_with_noise and self.selection.unknown_classes == "filter":
            raise UserError(
                "--label_with_noise with --unknown_classes=filter: the features of images with "
                "noise are not comparable with dev's; leave one of the two out."
            )

    def _check_score_views(self):
        """A teacher cannot label mirror images if its networks never see any."""
        if self.num_students and self.scoring.score_views == "mirror" and not self.flips:
            raise UserError(
                f"--score_views=mirror of --dataset={self.data.dataset} with --flip="
                f"{self.noise.flip}: its networks are not trained on mirror images; give "
                "--score_views=image, or --flip=on if mirroring does not change the class."
            )

    def _check_distillation(self):
        """Distillation needs predictions of labelled images; --select=once needs a selection."""
        if not self.num_students:
            return
        alpha = self.targets.at(1).distillation_alpha
        if alpha and self.scoring.first_scores == "records":
            raise UserError(
                f"--distillation_alpha={alpha:g} with --first_scores=records, which have no "
                "predictions of the labelled images: give 0 for the first student."
            )
        is_once = self.chain.select == "once" and self.needs_unlabeled
        if is_once and not self.learns_unlabeled(1):
            raise UserError(
                "--select=once keeps the first student's selection, but with --ratio=0 and "
                f"--distillation_alpha={alpha:g} it has none: give --select=each_generation."
            )

    def _check_ratio(self):
        """Pseudo-labels that were asked for must not be rounded away."""
        if self.train.mixing == "union":
            return
        for generation in range(1, self.num_students + 1):
            train = self.train.at(generation)
            if train.ratio and round(train.labeled_batch_size * train.ratio) == 0:
                raise UserError(
                    f"--ratio={train.ratio} of --labeled_batch_size={train.labeled_batch_size} "
                    f"rounds to no pseudo-labelled image in a batch of student {generation}: raise "
                    "one of them, or give --ratio=0 for none."
                )

    def _check_plan_images(self):
        """A plan without images needs to be given all that the images would determine."""
        given = self.command.plan_images
        if not given:
            return
        labeled, unlabeled, num_classes = self.command.placeholder_counts
        if labeled < 1 or num_classes < 2 or (self.needs_unlabeled and unlabeled < 1):
            raise UserError(
                f"--plan_images={given}: give at least 1 labelled image, 1 unlabelled image for "
                "students and 2 classes."
            )
        if 0 in self.chain.image_size:
            raise UserError(
                f"--plan_images={given} does not say how large images are: give --image_size."
            )
        if self.chain.teacher:
            raise UserError(
                f"--plan_images={given} with --teacher={self.chain.teacher}, which is compared "
                "with real images: leave one of them out."
            )

    def check_generation(self) -> None:
        """UserError if `--generation` is not in the chain."""
        if not 1 <= self.command.generation <= self.num_students:
            expected = f"1 to {self.num_students}" if self.num_students else "a chain with students"
            raise UserError(
                f"--generation={self.command.generation} of {self.num_students} students: expected "
                f"{expected}, or name more networks in --models."
            )
        if not self.learns_unlabeled(self.command.generation):
            raise UserError(
                f"--generation={self.command.generation}: this student learns from the labelled "
                "images alone (--distillation_alpha with --ratio=0): there are no scores."
            )

    @property
    def num_students(self) -> int:
        """Generations after the teacher."""
        return len(self.chain.models) - (0 if self.chain.has_whole_teacher else 1)

    def learns_unlabeled(self, generation: int) -> bool:
        """Whether a student has a part in the unlabelled images.

        With distillation and no pseudo-labelled images it learns from the labelled ones alone.
        """
        train, targets = self.train.at(generation), self.targets.at(generation)
        return train.ratio > 0 or not targets.distillation_alpha

    @property
    def needs_unlabeled(self) -> bool:
        """Whether any student has a part in the unlabelled images."""
        return any(map(self.learns_unlabeled, range(1, self.num_students + 1)))

    @property
    def trained_generations(self) -> range:
        """The generations that are trained: all but a given teacher."""
        return range(1 if self.chain.teacher else 0, self.num_students + 1)

    def members(self, generation: int) -> range:
        """Numbers of the networks of a generation, from 1: several of an ensemble of teachers."""
        return range(1, (1 if generation else self.chain.num_teachers) + 1)

    def model_name(self, generation: int) -> str:
        """Name of the network of a generation; 0 is the teacher."""
        return self.chain.models[generation - (1 if self.chain.has_whole_teacher else 0)]

    def init_from(self, generation: int) -> str | Path:
        """Initial weights of a generation: `scratch`, `teacher` or a `Path`, `~` expanded."""
        given = self.chain.init_from.at(generation)
        return given if given in ("scratch", "teacher") else Path(os.path.expanduser(given))

    @property
    def init_paths(self) -> list[Path]:
        """The files, prefixes or folders of initial weights, each once, in order."""
        initial_weights = dict.fromkeys(map(self.init_from, self.trained_generations))
        return [path for path in initial_weights if isinstance(path, Path)]

    @property
    def workdir(self) -> Path:
        """Folder of the run, `~` expanded."""
        return Path(self.run.workdir).expanduser()

    @property
    def run_folder(self) -> Path:
        """Folder of the results that are this run's alone, by default the workdir."""
        return self.workdir / self.run.run_name

    @property
    def teacher_path(self) -> Path:
        """The given teacher, `~` expanded."""
        return Path(self.chain.teacher).expanduser()

    @property
    def split_seed(self) -> int:
        """Seed of the random choice of labelled and dev images."""
        return self.run.seed if self.data.split_seed < 0 else self.data.split_seed

    @property
    def flips(self) -> bool:
        """Whether training images are mirrored at random."""
        if self.noise.flip != "auto":
            return self.noise.flip == "on"
        return not self.data.dataset.startswith(NEVER_FLIPPED)


def check_command(command: str, values: Mapping[str, Any]) -> None:
    """UserError if a setting was given that is for other commands.

    Args:
        command: name of the command.
        values: the values of settings by name; missing ones have their default.
    """
    # A plan and a sweep are of runs.
    names = {command, "run"} if command in ("plan", "sweep") else {command}
    for field in settings():
        commands, value = field.metadata["commands"], values.get(field.name, field.default)
        if commands and names.isdisjoint(commands) and value != field.default:
            raise UserError(
                f"--{field.name}={value} is for the command {' or '.join(commands)}: leave it out "
                f"of {command}."
            )


def settings() -> list[dataclasses.Field]:
    """All settings, in order."""
    return [
        field
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(section.type)
    ]


def _as_flag(value):
    """A value as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, PerGeneration) else str(value)
