"""Kinds of files that a run leaves, kinds of damage to them, and the outcomes of each."""

import contextlib
import functools
import re

import numpy as np

from nsk.training import checkpoint

# Kinds of file: those of finished stages, others, and those that an interrupted run leaves.
FINISHED = (
    "*/stage.json",
    "data/images-<id>/*/*.tfrecord",
    "data/images-<id>/*/manifest.json",
    "data/images-<id>/sealed/*.parquet",
    "gen*/*-<id>/model.keras",
    "gen*/evaluation-<id>/*.parquet",
    "gen*/scores-<id>/unlabeled/*.parquet",
    "gen*/scores-<id>/dev.parquet",
    "gen*/scores-<id>/temperature.json",
    "gen*/scores-<id>/dev_features.npy",
    "gen*/comparison-<id>/comparison.json",
    "gen*/comparison-<id>/suspicious.csv",
    "gen*/selection-<id>/*.parquet",
    "gen*/selection-<id>/classes.csv",
    "gen*/pseudo-<id>/shards/*.tfrecord",
    "gen*/pseudo-<id>/shards/manifest.json",
    "gen*/pseudo-<id>/labeled.parquet",
    "export-<id>/model.keras",
    "export-<id>/class_names.txt",
    "export-<id>/calibration.json",
    "export-<id>/decoding.json",
    "export-<id>/saved_model/*.pb",
    "export-<id>/saved_model/variables/*",
)
OTHERS = (
    "config.json",
    "summary.json",
    "classes.csv",
    "tensorboard/generations/*",
    "tensorboard/gen*/*/*",
)
CHECKPOINT_FILES = tuple(
    f"gen*/*-<id>.checkpoints/step-*/{name}" for name in (checkpoint.ARRAYS, checkpoint.MANIFEST)
)
INTERRUPTED_SCORES = (
    "gen*/scores-<id>.partial/unlabeled/*.parquet",
    "gen*/scores-<id>.partial/dev.parquet",
    "gen*/scores-<id>.partial/temperature.json",
    "gen*/scores-<id>.partial/dev_features.npy",
    "gen*/scores-<id>.lock",
)
INTERRUPTED_PSEUDO = "gen*/pseudo-<id>.partial/shards/*.tfrecord"
INTERRUPTED_TRAINING = "gen*/*-<id>.partial/model.keras"
ROWS = (
    *FINISHED,
    *OTHERS,
    *CHECKPOINT_FILES,
    *INTERRUPTED_SCORES,
    INTERRUPTED_PSEUDO,
    INTERRUPTED_TRAINING,
)
IMPOSSIBLE = "-"  # The outcome of damage that cannot be done.


class ImpossibleError(Exception):
    """This kind of damage cannot be done to this file."""


# Kinds of damage: functions of a file and of all files of its kind.


def flip(path, _, place=0.5, bit=4):
    """Flips a bit in the byte at a place between 0 and 1."""
    content = bytearray(path.read_bytes())
    if not content:
        raise ImpossibleError
    content[min(len(content) - 1, int(place * len(content)))] ^= 1 << bit
    path.write_bytes(content)


def flip_random(path, _, seed=0):
    random = np.random.default_rng([seed, path.stat().st_size])
    flip(path, _, random.random(), int(random.integers(8)))


def cut(path, _, seed=0):
    size = path.stat().st_size
    if not size:
        raise ImpossibleError
    path.write_bytes(path.read_bytes()[: np.random.default_rng([seed, size]).integers(size)])


def cut_record(path, _):
    """Cuts between two records, which TFRecord's own checksums do not detect."""
    if path.suffix != ".tfrecord":
        raise ImpossibleError
    content, ends = path.read_bytes(), [0]
    while ends[-1] < len(content):  # Length, its checksum, the record, its checksum.
        length = int.from_bytes(content[ends[-1] : ends[-1] + 8], "little")
        ends.append(ends[-1] + 8 + 4 + length + 4)
    assert ends[-1] == len(content)
    path.write_bytes(content[: ends[len(ends) // 2]])


def empty(path, _):
    if not path.stat().st_size:
        raise ImpossibleError
    path.write_bytes(b"")


def delete(path, _):
    path.unlink()


def swap(path, paths):
    """Swaps the contents of the file and of the most similar one in size with another content."""
    content = path.read_bytes()
    candidates = [other for other in paths if other != path and other.read_bytes() != content]
    if not candidates:
        raise ImpossibleError
    partner = min(candidates, key=lambda other: abs(other.stat().st_size - len(content)))
    path.write_bytes(partner.read_bytes())
    partner.write_bytes(content)


DAMAGES = {
    "a bit flipped": (
        functools.partial(flip, place=0, bit=0),
        flip,
        functools.partial(flip, place=1, bit=7),
        *(functools.partial(flip_random, seed=seed) for seed in range(3)),
    ),
    "cut anywhere": tuple(functools.partial(cut, seed=seed) for seed in range(2)),
    "cut between records": (cut_record,),
    "emptied": (empty,),
    "deleted": (delete,),
    "two swapped": (swap,),
}


def files_of_kind(workdir, kind):
    """Paths of the files of a kind, sorted."""
    pattern = re.escape(kind).replace("<id>", "[0-9a-f]{10}")
    pattern = pattern.replace(r"\*", "[^/]*", kind.count("*"))
    if kind == "*/stage.json":
        pattern = "(?!tensorboard).*/stage\\.json"
    return sorted(
        path
        for path in workdir.rglob("*")
        if path.is_file() and re.fullmatch(pattern, path.relative_to(workdir).as_posix())
    )


@contextlib.contextmanager
def damaged(path, paths, damage):
    """Damages a file of a kind, yields the paths that were changed, and restores them."""
    intact = {path: path.read_bytes() for path in paths}
    damage(path, paths)
    try:
        yield [
            path
            for path, content in intact.items()
            if not path.exists() or path.read_bytes() != content
        ]
    finally:
        for path, content in intact.items():
            path.write_bytes(content)


def collect_outcomes(workdir, kinds, outcome_of, variants=None):
    """{(kind of file, kind of damage): outcome} of damage to one file of each kind.

    Args:
        workdir: path of a run; it is unchanged afterwards.
        kinds: kinds of file.
        outcome_of: function of the list of damaged paths that returns the outcome.
        variants: variants of each kind of damage, at most.
    """
    outcomes = {}
    for kind in kinds:
        paths = files_of_kind(workdir, kind)
        assert paths, kind
        for name, damages in DAMAGES.items():
            received = set()
            for damage in damages[:variants]:
                path = paths[len(paths) // 2]
                with contextlib.suppress(ImpossibleError), damaged(path, paths, damage) as changed:
                    received.add(outcome_of(changed))
            assert len(received) <= 1, (kind, name, received)
            outcomes[kind, name] = received.pop() if received else IMPOSSIBLE
    return outcomes
