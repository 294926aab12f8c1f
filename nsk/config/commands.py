"""Settings of single commands."""

import dataclasses
import re

from nsk.config.fields import Section, setting
from nsk.errors import UserError


@dataclasses.dataclass(frozen=True)
class CommandConfig(Section):
    """Settings of single commands."""

    plan_images: str = setting(
        "",
        "Command plan: LABELED,UNLABELED,CLASSES, placeholder counts for planning without data, "
        "such as 1281167,130000000,1000.",
        changes_results=False,
        commands=("plan",),
    )
    grid: str = setting(
        "",
        "Commands sweep and plan: a TOML file with the cells of a sweep, named changes of the "
        "other settings, and their seeds.",
        changes_results=False,
        commands=("sweep", "plan"),
    )
    seeds: str = setting(
        "",
        "Commands sweep and plan: comma list of seeds; empty: those of --grid.",
        changes_results=False,
        commands=("sweep", "plan"),
    )
    budget_hours: float = setting(
        0.0,
        "Command sweep: hours after which it stops, with everything saved; the same command goes "
        "on. 0: no limit.",
        minimum=0.0,
        changes_results=False,
        commands=("sweep",),
    )
    images: str = setting(
        "",
        "Command predict: a folder of images, an image, a pattern such as 'photos/*.jpg', a .txt "
        "file with a path in each line, or a CSV or Parquet file with paths in --path_column.",
        changes_results=False,
        commands=("predict",),
    )
    abstain_below: float = setting(
        0.0,
        "Command predict: predictions with a lower probability get no label; it is the calibrated "
        "one if the model has a temperature.",
        minimum=0.0,
        maximum=1.0,
        changes_results=False,
        commands=("predict",),
    )
    generation: int = setting(
        1,
        "Commands score and select: generation of the student that learns from the pseudo-labels; "
        "1: the first student, with labels from the teacher.",
        minimum=0,
        changes_results=False,
        commands=("score", "select"),
    )
    num_shard_workers: int = setting(
        1,
        "Command score: number of processes that share the shards.",
        minimum=1,
        changes_results=False,
        commands=("score",),
    )
    shard_index: int = setting(
        0,
        "Command score: index of this process among --num_shard_workers.",
        minimum=0,
        changes_results=False,
        commands=("score",),
    )

    @property
    def placeholder_counts(self) -> tuple[int, int, int]:
        """`plan_images` as (labelled images, unlabelled images, classes)."""
        labeled, unlabeled, classes = map(int, self.plan_images.split(","))
        return labeled, unlabeled, classes

    def __post_init__(self):
        super().__post_init__()
        if self.plan_images and not re.fullmatch(
            "[0-9]+,[0-9]+,[0-9]+", self.plan_images, re.ASCII
        ):
            raise UserError(
                f"--plan_images={self.plan_images!r}: expected three whole numbers, of labelled "
                "images, unlabelled images and classes, as 1281167,130000000,1000."
            )
        if self.shard_index >= self.num_shard_workers:
            raise UserError(
                f"--shard_index={self.shard_index} of --num_shard_workers="
                f"{self.num_shard_workers}: expected 0 to {self.num_shard_workers - 1}, or raise "
                "--num_shard_workers."
            )
