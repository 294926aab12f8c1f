"""All settings of a run: its sections, and what holds between them.

`Config` is a tree of frozen dataclasses. `main` makes a command-line flag of every field of
`nsk.config.sections` and builds a `Config` from what was given; nothing else reads flags.
"""

import dataclasses
import os
from pathlib import Path

from nsk.config.fields import PerGeneration, convert
from nsk.config.sections import (
    NEVER_FLIPPED,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    NoiseConfig,
    PseudoConfig,
    RunConfig,
    TrainConfig,
)
from nsk.errors import UserError

# What says something under one policy alone.
POLICY_SETTINGS = {"images_per_class": "paper", "gap_floor": "gap", "gap_margin": "gap"}


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig
    noise: NoiseConfig
    train: TrainConfig
    finetune: FinetuneConfig
    pseudo: PseudoConfig

    def __post_init__(self):
        self._check_init_from()
        self._check_ratio()
        self._check_workdir()
        self._check_views()
        self._check_first_scores()
        self._check_stated_images()

    def unused_values(self):
        """A line for each list that is longer than the chain: its last values are not used.

        No error, since a flagfile's lists stay when `--models` is given anew, shorter, beside it.
        """
        lines = []
        for part in dataclasses.fields(self):
            section = getattr(self, part.name)
            for field in dataclasses.fields(section):
                value = getattr(section, field.name)
                if not isinstance(value, PerGeneration) or field.name == "models":
                    continue
                # Defaults are written for a teacher and students, whatever the chain.
                used = max(1, self.num_students + 1 - field.metadata["first"])
                if len(value) > used and value != field.default:
                    lines.append(
                        f"--{field.name}={','.join(map(str, value))} has {len(value)} values for a "
                        f"chain of {len(self.model.models)} networks, of which {used} count."
                    )
        for name, policy in POLICY_SETTINGS.items():
            value, default = getattr(self.pseudo, name), getattr(PseudoConfig, name)
            if value != default and self.pseudo.policy != policy:
                lines.append(f"--{name} is for --policy={policy}, not {self.pseudo.policy}.")
        if self.data.first_label and "tfrecord:" not in "".join(
            (self.data.dataset, self.data.unlabeled_dataset, self.data.test_dataset)
        ):
            lines.append("--first_label is for tfrecord: data sets alone.")
        if self.data.unlabeled_split and not self.data.unlabeled_dataset.startswith("tfds:"):
            lines.append("--unlabeled_split is for --unlabeled_dataset=tfds:... alone.")
        if not any(self.finetune.finetune_resolution):
            lines += [
                f"--{field.name} is not used without --finetune_resolution."
                for field in dataclasses.fields(FinetuneConfig)
                if field.name != "finetune_resolution"
                and getattr(self.finetune, field.name) != field.default
            ]
        if self.pseudo.beam_options and self.pseudo.engine != "beam":
            lines.append("--beam_options without --engine=beam are not used.")
        if self.pseudo.select == "once" and len(self.pseudo.min_confidence) > 1:
            lines.append("--select=once: only the first value of --min_confidence is used.")
        return lines

    def _check_workdir(self):
        """A workdir among the images would be taken for a class of them, ever after."""
        for flag in ("dataset", "test_dataset", "unlabeled_dataset"):
            kind, _, folder = getattr(self.data, flag).partition(":")
            if kind != "folder" or not self.run.workdir:
                continue
            root = Path(os.path.expanduser(folder)).resolve()
            if self.workdir.resolve().is_relative_to(root):
                raise UserError(
                    f"--workdir={self.run.workdir} lies in --{flag}={getattr(self.data, flag)}: "
                    "give a folder outside of the images."
                )

    def _check_init_from(self):
        """The first network of a chain has no teacher, unless one is adopted."""
        given = self.model.init_from
        if not all(given):
            raise UserError("--init_from names nothing: give scratch, teacher or a path.")
        if given[0] == "teacher" and not self.run.teacher:
            instead = ",".join(("scratch", *(given[1:] or given)))
            raise UserError(
                f"--init_from={','.join(given)}: the first network of the chain has no teacher to "
                f"begin with: write --init_from={instead}, or give a --teacher."
            )

    def _check_first_scores(self):
        """Scores of records say nothing of dev, and only records have them."""
        pseudo = self.pseudo
        if pseudo.first_scores == "teacher":
            return
        if not self.data.unlabeled_dataset.startswith("tfrecord:"):
            raise UserError(
                f"--first_scores=records of --unlabeled_dataset={self.data.unlabeled_dataset!r}: "
                "give tfrecord:PATTERN of records with pseudo-labels."
            )
        if pseudo.calibrate or pseudo.target_precision:
            raise UserError(
                "--first_scores=records with --calibrate or --target_precision: the records' "
                "teacher says nothing of dev; leave these two out."
            )

    def _check_views(self):
        """A teacher cannot label what its networks never see."""
        if self.num_students and self.pseudo.score_views == "mirror" and not self.flips:
            raise UserError(
                f"--score_views=mirror of --dataset={self.data.dataset} with --flip="
                f"{self.noise.flip}: its networks never learn from mirror images; give "
                "--score_views=image, or --flip=on where a mirror image keeps its class."
            )

    def _check_ratio(self):
        """Pseudo-labels that were asked for must not be rounded away."""
        if self.train.mixing == "union":
            return
        for generation in range(1, self.num_students + 1):
            train = self.train.at(generation)
            labeled, ratio = train["labeled_batch_size"], train["ratio"]
            if ratio and round(labeled * ratio) == 0:
                raise UserError(
                    f"--ratio={ratio} of --labeled_batch_size={labeled} rounds to no "
                    f"pseudo-labelled image in a batch of student {generation}: raise one of them, "
                    "or give --ratio=0 to mean none."
                )

    def _check_stated_images(self):
        """A plan without images must be told all that these would tell it."""
        stated = self.run.plan_images
        if not stated:
            return
        labeled, unlabeled, num_classes = self.run.stated_images
        if labeled < 1 or num_classes < 2 or (self.num_students and unlabeled < 1):
            raise UserError(
                f"--plan_images={stated}: give at least 1 labelled image, 1 unlabelled one for "
                "students and 2 classes."
            )
        if 0 in self.model.image_size:
            raise UserError(
                f"--plan_images={stated} does not tell how large images are: give --image_size."
            )
        if self.run.teacher:
            raise UserError(
                f"--plan_images={stated} with --teacher={self.run.teacher}, which is compared with "
                "images that are there: leave one of them out."
            )

    def check_generation(self):
        """UserError where `--generation` is beyond the chain."""
        if not 1 <= self.run.generation <= self.num_students:
            expected = f"1 to {self.num_students}" if self.num_students else "a chain with students"
            raise UserError(
                f"--generation={self.run.generation} of {self.num_students} students: expected "
                f"{expected}, or name more networks in --models."
            )

    @classmethod
    def from_values(cls, values):
        """Builds a configuration from flat settings.

        Args:
            values: dict from the name of a setting to its value; what is left out keeps its
                default. Values of `PerGeneration` settings are lists of strings or of values.

        Raises:
            UserError: a value is not allowed.
            ValueError: there is no such setting.
        """
        unknown = set(values) - {field.name for field in settings()}
        if unknown:
            raise ValueError(f"No such settings: {', '.join(sorted(unknown))}.")
        sections = {}
        for part in dataclasses.fields(cls):
            given = {}
            for field in dataclasses.fields(part.type):
                if field.name in values:
                    given[field.name] = convert(field, values[field.name])
            sections[part.name] = part.type(**given)
        return cls(**sections)

    @property
    def num_students(self):
        """Generations after the teacher."""
        return len(self.model.models) - (0 if self.run.teacher else 1)

    def model_name(self, generation):
        """Name of the network of a generation; 0 is the teacher."""
        return self.model.models[generation - (1 if self.run.teacher else 0)]

    def init_from(self, generation):
        """Where a generation's weights begin: `scratch`, `teacher` or a `Path`, `~` expanded."""
        given = self.model.init_from.at(generation)
        return given if given in ("scratch", "teacher") else Path(os.path.expanduser(given))

    @property
    def init_paths(self):
        """The files, prefixes or folders that weights are taken from, each once, in order."""
        trained = range(1 if self.run.teacher else 0, self.num_students + 1)
        begins = dict.fromkeys(map(self.init_from, trained))
        return [one for one in begins if isinstance(one, Path)]

    @property
    def workdir(self):
        """Folder of the run, `~` expanded."""
        return Path(self.run.workdir).expanduser()

    @property
    def teacher_path(self):
        """The adopted teacher, `~` expanded."""
        return Path(self.run.teacher).expanduser()

    @property
    def split_seed(self):
        return self.run.seed if self.data.split_seed < 0 else self.data.split_seed

    @property
    def flips(self):
        """Whether training images are mirrored at random."""
        if self.noise.flip != "auto":
            return self.noise.flip == "on"
        return not self.data.dataset.startswith(NEVER_FLIPPED)


def settings():
    """All settings in order, as dataclass fields."""
    return [field for part in dataclasses.fields(Config) for field in dataclasses.fields(part.type)]
