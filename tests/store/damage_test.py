"""Every kind of damage to every kind of file that a run leaves is noticed, or harms nothing.

What really happens is collected as the table in `docs/recovery.md`, row by row; the last test
compares them. `NSK_WRITE_DOCS=1` writes the table anew.
"""

import contextlib
import difflib
import functools
import logging
import os
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from nsk.stages.all_stages import CHECKPOINTS, MODEL, Stages, shard_set

from nsk import self_training
from nsk.commands import verify
from nsk.config.config import Config
from nsk.errors import UserError
from nsk.models import files as model_files
from nsk.stages import pseudo_shards as write
from nsk.stages import scoring as score
from nsk.stages import training as train_stage
from nsk.store import folders as stage
from nsk.store.files import WRITTEN, atomic_write
from nsk.store.manifest import MANIFEST
from nsk.training import checkpoint

SETTINGS = {
    "dataset": "digits",
    "image_size": [8],
    "num_labeled": 50,
    "num_dev": 50,
    "images_per_shard": 300,
    "models": ["convnet5", "convnet5"],
    "train_images": [3000, 200],
    "labeled_batch_size": [25],
    "learning_rate": [0.05],
    "flip": "off",
    "crop_padding": [0],
    "randaugment_num_ops": [0],
    "dropout_rate": [0.0],
    "policy": "gap",
    "min_confidence": [0.1],
    "gap_floor": 150,
    "evaluations": 1,
}
# Kinds of file: those of finished stages, others, and what a stopped run leaves.
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
    "gen*/selection-<id>/*.parquet",
    "gen*/pseudo-<id>/shards/*.tfrecord",
    "gen*/pseudo-<id>/shards/manifest.json",
    "gen*/pseudo-<id>/labeled.parquet",
    "export-<id>/model.keras",
    "export-<id>/class_names.txt",
    "export-<id>/saved_model/*.pb",
    "export-<id>/saved_model/variables/*",
)
OTHERS = (
    "config.json",
    "summary.json",
    "tensorboard/generations/*",
    "tensorboard/gen*/*/*",
)
CHECKPOINT_FILES = tuple(
    f"gen*/*-<id>.checkpoints/step-*/{name}" for name in (checkpoint.ARRAYS, checkpoint.MANIFEST)
)
STOPPED_SCORES = (
    "gen*/scores-<id>.partial/unlabeled/*.parquet",
    "gen*/scores-<id>.partial/dev.parquet",
    "gen*/scores-<id>.partial/temperature.json",
    "gen*/scores-<id>.lock",
)
STOPPED_PSEUDO = "gen*/pseudo-<id>.partial/shards/*.tfrecord"
STOPPED_TRAINING = "gen*/*-<id>.partial/model.keras"
ROWS = (
    *FINISHED,
    *OTHERS,
    *CHECKPOINT_FILES,
    *STOPPED_SCORES,
    STOPPED_PSEUDO,
    STOPPED_TRAINING,
)
# What may happen; docs/recovery.md explains the words.
REFUSED, PREVIOUS, HARMLESS = "refused", "previous", "harmless"
TOLD, ANEW = "warned, rebuilt", "rebuilt"
IMPOSSIBLE = "-"

DOCS = Path(__file__).parents[2] / "docs" / "recovery.md"
BEGIN, END = "<!-- table: tests/store/damage_test.py -->", "<!-- end of table -->"


class ImpossibleError(Exception):
    """There is no such damage to this file."""


# Damages: functions of a file and of those of its kind, it included.


def flip(path, _, place=0.5, bit=4):
    """Another bit in the byte at a place between 0 and 1."""
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
    """Whole records alone are left, which TFRecord's own checksums do not tell."""
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


def swap(path, others):
    """It and another file of its kind change places: the one whose size is most like its own."""
    content = path.read_bytes()
    others = [one for one in others if one != path and one.read_bytes() != content]
    if not others:
        raise ImpossibleError
    other = min(others, key=lambda one: abs(one.stat().st_size - len(content)))
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


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


def of_kind(workdir, kind):
    """Paths of the files of a kind, in order."""
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
def damaged(path, others, damage):
    """Does a damage and mends it; yields the paths that are damaged."""
    whole = {one: one.read_bytes() for one in others}
    damage(path, others)
    try:
        yield [one for one in others if not one.exists() or one.read_bytes() != whole[one]]
    finally:
        for one, content in whole.items():
            one.write_bytes(content)


def outcomes(workdir, kinds, happens, variants=None):
    """{(kind, damage's name): what happens}, where one file of each kind is damaged.

    Args:
        workdir: path of a run; it is whole again afterwards.
        kinds: kinds of file.
        happens: function of the list of damaged paths that says what happens.
        variants: of how many kinds each damage is, at most.
    """
    found = {}
    for kind in kinds:
        paths = of_kind(workdir, kind)
        assert paths, kind
        for name, damages in DAMAGES.items():
            received = set()
            for damage in damages[:variants]:
                path = paths[len(paths) // 2]
                with contextlib.suppress(ImpossibleError), damaged(path, paths, damage) as wrong:
                    received.add(happens(wrong))
            assert len(received) <= 1, (kind, name, received)
            found[kind, name] = received.pop() if received else IMPOSSIBLE
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = Config.from_values({**SETTINGS, "workdir": str(tmp_path_factory.mktemp("run"))})
    self_training.run(config)
    return config


def in_copy(run, folder, *names, **values):
    """(config, Stages) of a copy of a run: of the folders with these names alone."""
    for name in names:
        for path in run.workdir.glob(name):
            shutil.copytree(path, folder / path.relative_to(run.workdir))
    config = Config.from_values({**SETTINGS, **values, "workdir": str(folder)})
    return config, Stages(config)


def contents(folder):
    """{name: bytes} of a stage's files but its manifest, which tells the time it took."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


@contextlib.contextmanager
def stopped(owner, name, calls):
    """A function is stopped, as by Ctrl-C, before it is called more often."""
    left, original = [calls], getattr(owner, name)

    def counted(*arguments, **keywords):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    with mock.patch.object(owner, name, counted), pytest.raises(KeyboardInterrupt):
        yield


# Finished stages.


def test_every_file_is_of_one_kind_and_of_a_stage_or_harms_nothing(run):
    assert verify.verify(run.workdir) == len(stage.finished(run.workdir)) == 9
    stages = stage.finished(run.workdir)
    kinds = {kind: of_kind(run.workdir, kind) for kind in ROWS}
    for path in (path for path in run.workdir.rglob("*") if path.is_file()):
        (kind,) = (kind for kind, paths in kinds.items() if path in paths)
        assert kind in (FINISHED if any(one in path.parents for one in stages) else OTHERS)


def named(folder):
    """Set of the files that are told to be damaged."""
    try:
        return {path for path, _ in stage.damages(folder)}
    except UserError as error:
        assert str(folder) in str(error)
        return {folder / MANIFEST}


@pytest.fixture(scope="module")
def of_finished(run):
    """What happens to a run whose finished stages are damaged."""

    def happens(wrong):
        folders = {next(one for one in stages if one in path.parents) for path in wrong}
        for folder in folders:
            of_folder = {path for path in wrong if folder in path.parents}
            assert named(folder) == of_folder or of_folder == {folder / MANIFEST}
        if tuple(wrong) not in tried:
            tried.add(tuple(wrong))
            with pytest.raises(UserError) as error:
                verify.verify(run.workdir)
            assert f"{len(folders)} of 9 stages are damaged" in str(error.value)
            assert all(folder.name in str(error.value) for folder in folders)
            with pytest.raises(UserError, match=r"delete the folder .* run again") as error:
                self_training.run(run)
            assert any(str(folder) in str(error.value) for folder in folders)
        for folder in folders:  # As each run does it.
            with pytest.raises(UserError, match=r"delete the folder .*and run again") as error:
                stage._reuse(folder, folder.name)
            assert str(folder) in str(error.value)
        return REFUSED

    tried = set()
    stages = stage.finished(run.workdir)
    found = outcomes(run.workdir, FINISHED, happens)
    verify.verify(run.workdir)
    return found


def test_damage_to_a_stage_is_refused(of_finished):
    assert set(of_finished.values()) == {REFUSED, IMPOSSIBLE}
    possible = [name for (_, name), what in of_finished.items() if what == REFUSED]
    for name in ("a bit flipped", "cut anywhere", "emptied", "deleted"):
        assert possible.count(name) == len(FINISHED)
    assert possible.count("cut between records") == 2 and possible.count("two swapped") >= 8


def test_damage_to_every_file_of_a_stage_is_named_exactly(run, capsys):
    damages = [damage for several in DAMAGES.values() for damage in several]
    count = 0
    for kind in FINISHED:
        paths = of_kind(run.workdir, kind)
        for number, path in enumerate(paths):
            # One after the other, which is enough for so many files.
            for damage in (damages[number % 9], delete):
                with contextlib.suppress(ImpossibleError), damaged(path, paths, damage) as wrong:
                    count += 1
                    with pytest.raises(UserError, match=r"\d of 9 stages are damaged"):
                        verify.verify(run.workdir)
                    told = capsys.readouterr().out
                    assert all(str(one if one.exists() else one.parent) in told for one in wrong)
    assert count > 80
    verify.verify(run.workdir)


def test_stages_that_change_places_are_named(run, capsys):
    one, other = sorted(run.workdir.glob("gen*/evaluation-*"))

    def exchange():
        one.rename(run.workdir / "between")
        other.rename(one)
        (run.workdir / "between").rename(other)

    exchange()
    with pytest.raises(UserError, match="2 of 9 stages are damaged"):
        verify.verify(run.workdir)
    assert capsys.readouterr().out.count("stage.json: it is of another stage") == 2
    with pytest.raises(UserError, match=f"{one.name} is damaged .*of another stage"):
        self_training.run(run)
    exchange()
    verify.verify(run.workdir)


def test_files_that_are_not_the_stages_are_told_and_harm_nothing(run, capsys, caplog):
    strays = [stage.finished(run.workdir)[0] / "unlabeled/99999.tfrecord"]
    strays += [path / ".DS_Store" for path in stage.finished(run.workdir)]
    (scores,) = run.workdir.glob("gen1/scores-*/unlabeled")
    strays.append(scores / "notes.txt")
    for stray in strays:
        stray.write_bytes(b"more")
    verify.verify(run.workdir)
    assert all(f"{stray}: not of this stage" in capsys.readouterr().out for stray in strays[:1])
    assert len(self_training.run(run)["generations"]) == 2
    assert all(f"{stray} is not of its stage" in caplog.text for stray in strays)
    for stray in strays:
        stray.unlink()


def test_only_the_damaged_stage_is_made_again(run):
    def made():
        """When each finished stage was made."""
        return {path: (path / MANIFEST).stat().st_mtime_ns for path in stage.finished(run.workdir)}

    before = made()
    (pseudo,) = (path for path in before if path.name.startswith("pseudo-"))
    kept = contents(pseudo)
    flip(pseudo / "shards/00000.tfrecord", None)
    with pytest.raises(UserError, match=r"is damaged .*00000\.tfrecord: its SHA-256"):
        self_training.run(run)
    shutil.rmtree(pseudo)
    assert len(self_training.run(run)["generations"]) == 2
    after = made()
    assert {path for path in after if after[path] != before[path]} == {pseudo}
    assert contents(pseudo) == kept


def test_a_folder_without_stages_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no finished stage"):
        verify.verify(tmp_path)


# What is in no stage: reports for a person, and settings.


@pytest.fixture(scope="module")
def of_others(run):
    def happens(wrong):
        def beside():
            return {one: one.read_bytes() for one in wrong[0].parent.iterdir() if one.is_file()}

        before = beside()
        assert len(self_training.run(run)["generations"]) == 2
        assert stages == stage.finished(run.workdir)
        return HARMLESS if beside() == before else ANEW

    stages = stage.finished(run.workdir)
    found = outcomes(run.workdir, OTHERS, happens, variants=1)
    self_training.run(run)
    return found


def test_damage_to_reports_harms_nothing(of_others):
    for (kind, _), what in of_others.items():
        assert what in (HARMLESS if kind == OTHERS[3] else ANEW, IMPOSSIBLE)


# A training that was stopped.


@pytest.fixture(scope="module")
def stopped_training(run, tmp_path_factory):
    """Workdir of a teacher that was stopped midway, with two checkpoints."""
    folder = tmp_path_factory.mktemp("stopped")
    _, stages = in_copy(run, folder, "data", evaluations=6, checkpoint_minutes=0.0)
    with (
        mock.patch.object(checkpoint, "LARGEST_SHARE", 1e9),
        stopped(checkpoint.Checkpoints, "save", 3),
    ):
        stages.train(0, stages.ingest())
    assert len(of_kind(folder, CHECKPOINT_FILES[0])) == 2
    return folder


@pytest.fixture(scope="module")
def of_checkpoints(stopped_training):
    (folder,) = stopped_training.glob(f"gen0/*{CHECKPOINTS}")
    previous = min(folder.iterdir())
    number, arrays, _ = checkpoint.read(previous)

    def happens(wrong):
        copy = Path(shutil.copytree(folder, folder.with_name("copy")))
        variables = {name: tf.Variable(tf.zeros_like(value)) for name, value in arrays.items()}
        with mock.patch.object(checkpoint.logging, "warning") as warning:
            restored = checkpoint.Checkpoints(copy, variables, 1.0).restore()
        shutil.rmtree(copy)
        assert {call.args[1].name for call in warning.call_args_list} == {
            path.parent.name for path in wrong
        }
        if restored is None:
            return TOLD
        assert restored[0] == number
        for name, value in arrays.items():
            np.testing.assert_array_equal(variables[name], value)
        return PREVIOUS

    return outcomes(stopped_training, CHECKPOINT_FILES, happens)


def test_a_damaged_checkpoint_is_told_and_the_previous_one_used(of_checkpoints):
    told = {name: what for (_, name), what in of_checkpoints.items()}
    assert told.pop("cut between records") == IMPOSSIBLE
    assert told.pop("two swapped") == TOLD  # Both are damaged.
    assert set(told.values()) == {PREVIOUS}


@pytest.mark.parametrize(("how_many", "damage"), [(1, flip), (2, cut)])
def test_a_training_ends_the_same_without_its_damaged_checkpoints(
    run, stopped_training, tmp_path, caplog, how_many, damage
):
    caplog.set_level(logging.INFO, "absl")
    workdir = Path(shutil.copytree(stopped_training, tmp_path / "copy"))
    paths = of_kind(workdir, CHECKPOINT_FILES[0])
    for path in paths[-how_many:]:
        damage(path, paths)
    stages = Stages(Config.from_values({**SETTINGS, "workdir": str(workdir)}))
    made = stages.train(0, stages.ingest())
    assert caplog.text.count("is damaged") == how_many
    assert ("goes on from step" in caplog.text) == (how_many == 1)
    assert not list(workdir.glob(f"gen0/*{CHECKPOINTS}"))
    assert_same_weights(made.path, run.workdir / made.name)


def assert_same_weights(one, other):
    """Of two stages, as folders."""
    received, expected = (
        model_files.load_model(path / MODEL).get_weights() for path in (one, other)
    )
    for number, value in enumerate(expected):
        np.testing.assert_array_equal(received[number], value)


@pytest.fixture(scope="module")
def of_stopped_training(run, tmp_path_factory):
    """The model was saved, and the process killed before its stage was finished."""

    def train(config):
        stages = Stages(config)
        with mock.patch.object(train_stage.Trainer, "train", lambda *_, **__: {}):
            return stages.train(0, stages.ingest()).path

    def happens(_):
        copy = Path(shutil.copytree(config.workdir, config.workdir.with_name("copy")))
        assert_same_weights(train(Config.from_values({**SETTINGS, "workdir": str(copy)})), whole)
        shutil.rmtree(copy)
        return ANEW

    whole = train(in_copy(run, tmp_path_factory.mktemp("whole"), "data")[0])
    config, _ = in_copy(run, tmp_path_factory.mktemp("stopped") / "run", "data")
    with stopped(stage, "_sync_and_describe", 0):
        train(config)
    return outcomes(config.workdir, [STOPPED_TRAINING], happens, variants=1)


# Scoring and writing that were stopped: they go on with the files that are there.


def goes_on(workdir, kinds, finish, whole):
    """What happens to a stopped stage whose files are damaged before it goes on.

    Args:
        workdir: path of the stopped run.
        kinds: kinds of file.
        finish: function of a copy of the workdir that finishes the stage; its folder.
        whole: `contents` of the same stage of an undisturbed run.
    """

    def happens(wrong):
        copy = Path(shutil.copytree(workdir, workdir.with_name("copy")))
        with mock.patch.object(stage.logging, "warning") as warning:
            made = finish(copy)
        assert contents(made) == whole
        shutil.rmtree(copy)
        told = [call.args[1].relative_to(copy) for call in warning.call_args_list]
        if told:
            assert told == [path.relative_to(workdir) for path in wrong]
            return TOLD
        return HARMLESS if wrong[0].suffix == ".lock" else ANEW

    return outcomes(workdir, kinds, happens, variants=2)


@pytest.fixture(scope="module")
def predictions(run):
    """What the teacher says of each shard, so that its network need not be loaded again."""
    (teacher, images) = (
        stage.load_stage(*run.workdir.glob(f"{one}-*")) for one in ("gen0/teacher", "data/images")
    )
    predict = Stages(run)._predictor(teacher, None)()
    return {
        (split, shard): list(predict(shard_set(images, split), [shard]))
        for split in ("unlabeled", "dev")
        for shard in range(len(shard_set(images, split).names))
    }


def score_again(workdir, predictions, **values):
    """The stage of the teacher's scores."""
    stages = Stages(Config.from_values({**SETTINGS, **values, "workdir": str(workdir)}))
    (teacher, images) = (
        stage.load_stage(*workdir.glob(f"{one}-*")) for one in ("gen0/teacher", "data/images")
    )

    def predict(shard_set, shards):
        for shard in shards:
            yield from predictions[shard_set.folder.name, shard]

    with mock.patch.object(stages, "_predictor", lambda *_: lambda: predict):
        return stages.score(1, teacher, images)


@pytest.fixture(scope="module")
def stopped_scoring(run, predictions, tmp_path_factory):
    """Workdir of a scoring that was stopped after dev and two shards."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    in_copy(run, folder, "data", "gen0")
    with stopped(score, "write_scores", 3):
        score_again(folder, predictions)
    return folder


@pytest.fixture(scope="module")
def of_stopped_scoring(run, predictions, stopped_scoring):
    (scores,) = run.workdir.glob("gen1/scores-*")
    return goes_on(
        stopped_scoring,
        STOPPED_SCORES,
        lambda workdir: score_again(workdir, predictions).path,
        contents(scores),
    )


@pytest.fixture(scope="module")
def of_stopped_writing(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    folder.mkdir()
    finished = {path.name.split("-")[0]: path for path in stage.finished(run.workdir)}
    unlabeled = shard_set(stage.load_stage(finished["images"]), "unlabeled")

    def build(partial):
        return write.write(
            unlabeled, finished["scores"], finished["selection"], partial, shard_bytes=100_000
        )

    def finish(workdir):
        return stage.run(workdir, "gen1/pseudo", build, settings={}, inputs={}, goes_on=True).path

    with stopped(write.shards, "write_manifest", 0):
        finish(folder)
    assert len(of_kind(folder, STOPPED_PSEUDO)) > 2
    whole = contents(finish(tmp_path_factory.mktemp("whole")))
    return goes_on(folder, [STOPPED_PSEUDO], finish, whole)


def test_a_stopped_stage_goes_on_with_whole_files_alone(of_stopped_scoring, of_stopped_writing):
    for (kind, name), what in {**of_stopped_scoring, **of_stopped_writing}.items():
        if what != IMPOSSIBLE:
            if kind.endswith(".lock"):
                assert what == HARMLESS
            else:
                assert what == (ANEW if name == "deleted" else TOLD)
    assert of_stopped_writing[STOPPED_PSEUDO, "cut between records"] == TOLD
    assert of_stopped_scoring[STOPPED_SCORES[0], "two swapped"] == TOLD


def test_one_of_several_workers_removes_nothing(stopped_scoring, predictions, tmp_path):
    workdir = Path(shutil.copytree(stopped_scoring, tmp_path / "copy"))
    path = of_kind(workdir, STOPPED_SCORES[0])[0]
    flip(path, None)
    with pytest.raises(UserError, match=f"{path.name} is damaged: stop the other workers"):
        score_again(workdir, predictions, num_shard_workers=2, shard_index=1)
    assert path.exists()


def test_a_damaged_lock_still_locks(tmp_path):
    def build(folder):
        (lock,) = folder.parent.glob("*.lock")
        lock.write_bytes(b"\xff\x00\n")
        with pytest.raises(UserError, match="is being made by"):
            stage.run(tmp_path, "gen1/made", None, settings={}, inputs={})
        return {}

    stage.run(tmp_path, "gen1/made", build, settings={}, inputs={})
    assert not list(tmp_path.rglob("*.lock"))


def test_files_of_the_same_size_that_change_places_are_noticed(tmp_path):
    def build(folder):
        for name in "ab":
            if not (folder / name).exists():
                with atomic_write(folder / name) as unfinished:
                    unfinished.write_text(f"{name}'s")
        return None if stops else {}

    def make():
        return stage.run(tmp_path, "gen1/made", build, settings={}, inputs={}, goes_on=True)

    def exchange(folder):
        swap(folder / "a", [folder / "a", folder / "b"])
        assert (folder / "a").read_text() == "b's"

    stops = True
    make()
    (partial,) = tmp_path.glob("gen1/*.partial")
    assert (partial / WRITTEN).is_dir()
    exchange(partial)
    stops = False
    made = make()
    assert contents(made.path) == {"a": b"a's", "b": b"b's"}
    exchange(made.path)
    with pytest.raises(UserError, match=r"a: its SHA-256 .*b: its SHA-256"):
        make()


# The table.


def table(found):
    """The outcomes as Markdown."""
    lines = [["", *DAMAGES]] + [
        [f"`{kind}`", *(found[kind, name] for name in DAMAGES)] for kind in ROWS
    ]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_the_table_in_the_docs_is_what_happens(
    of_finished,
    of_others,
    of_checkpoints,
    of_stopped_training,
    of_stopped_scoring,
    of_stopped_writing,
):
    found = {
        **of_finished,
        **of_others,
        **of_checkpoints,
        **of_stopped_training,
        **of_stopped_scoring,
        **of_stopped_writing,
    }
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(f"{BEGIN}\n")
    written, _, after = rest.partition(END)
    assert before and after, f"{DOCS} lacks the lines {BEGIN} and {END}."
    received = f"\n{table(found)}\n"
    if os.environ.get("NSK_WRITE_DOCS"):
        DOCS.write_text(f"{before}{BEGIN}\n{received}{END}{after}", encoding="utf-8")
    elif written != received:
        differing = difflib.unified_diff(written.splitlines(), received.splitlines(), lineterm="")
        pytest.fail(
            "\n".join(
                [
                    f"The table in {DOCS} is not what happens. Look whether it should be; then",
                    "NSK_WRITE_DOCS=1 python -m pytest tests/store/damage_test.py writes it anew.",
                    *differing,
                ]
            ),
            pytrace=False,
        )
