"""A small run on handwritten digits, for tests of commands."""

from pathlib import Path
from typing import Any

SETTINGS = {
    "num_labeled": 100,
    "num_dev": 200,
    "images_per_shard": 300,
    "models": ["convnet5"] * 3,
    "train_steps": ["40", "2"],
    "min_confidence": ["0"],
    "chance_p_value": 1.0,
}
STAGES_BEFORE_STUDENTS = {"data/images", "gen0/teacher", "gen0/evaluation", "gen1/scores"}


def make_values(workdir: Path, **values: Any) -> dict[str, Any]:
    """Values of settings by name, as the command line gives them."""
    return {**SETTINGS, "workdir": str(workdir), **values}


def stage_names(workdir: Path) -> set[str]:
    """Names of all stages, finished or not, such as `gen1/scores`."""
    return {
        path.relative_to(workdir).as_posix().rpartition("-")[0]
        for path in (*workdir.glob("*-*"), *workdir.glob("*/*-*"))
        if path.is_dir() and path.parent.name != "tensorboard"
    }


def read_files(folder: Path) -> dict[str, bytes]:
    """{name: content} of a stage's files without its manifest."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "stage.json"
    }
