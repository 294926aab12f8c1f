"""Every kind of damage to every kind of file that a run leaves is noticed, or is harmless.

The outcomes are collected as the table in `docs/recovery.md`, row by row; the last test compares
them. `NSK_WRITE_DOCS=1` rewrites the table.
"""

import contextlib
import difflib
import logging
import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from nsk.commands import run as run_command
from nsk.commands import verify
from nsk.config.config import Config
from nsk.distributed.runtime import Runtime
from nsk.distributed.strategy import make_strategy
from nsk.errors import UserError
from nsk.evaluation.shard_predictor import load_predictor
from nsk.models.model_files import load_model
from nsk.stages import ingestion, pseudo_shards, scoring, training
from nsk.stages.runner import MODEL_FILE, StageRunner, shard_set
from nsk.stages.training import CHECKPOINTS
from nsk.store import folders
from nsk.store.folders import StageKey, build_or_reuse, load_stage
from nsk.store.manifest import MANIFEST
from nsk.store.verification import find_damage, finished_stages
from nsk.training import checkpoint
from tests.store.damages import (
    CHECKPOINT_FILES,
    DAMAGES,
    FINISHED,
    IMPOSSIBLE,
    INTERRUPTED_PSEUDO,
    INTERRUPTED_SCORES,
    INTERRUPTED_TRAINING,
    OTHERS,
    ROWS,
    ImpossibleError,
    collect_outcomes,
    cut,
    damaged,
    delete,
    files_of_kind,
    flip,
)

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
# Outcomes; docs/recovery.md explains the words.
REFUSED, PREVIOUS, HARMLESS = "refused", "previous", "harmless"
WARNED, REBUILT = "warned, rebuilt", "rebuilt"
RESUMED = "resumes from step"  # In the log of a training.
DOCS = Path(__file__).parents[2] / "docs" / "recovery.md"
BEGIN, END = "<!-- table: tests/store/damage_test.py -->", "<!-- end of table -->"


def rerun(workdir, **values):
    """The summary of the command run."""
    return run_command.execute({**SETTINGS, **values, "workdir": str(workdir)})


def make_runner(workdir, **values):
    config = Config.from_values({**SETTINGS, **values, "workdir": str(workdir)})
    return StageRunner(config, Runtime.from_strategy(make_strategy(config.run.strategy)))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    rerun(folder)
    return folder


def copy_stages(workdir, folder, *names):
    """Copies the folders of a run with these names."""
    for name in names:
        for path in workdir.glob(name):
            shutil.copytree(path, folder / path.relative_to(workdir))


def contents(folder):
    """{name: bytes} of a stage's files without its manifest, which holds the time it took."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


@contextlib.contextmanager
def interrupted(owner, name, calls):
    """Interrupts the code within, as Ctrl-C does, before a function is called more often."""
    remaining, original = [calls], getattr(owner, name)

    def counted(*arguments, **keywords):
        remaining[0] -= 1
        if remaining[0] < 0:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    with mock.patch.object(owner, name, counted), pytest.raises(KeyboardInterrupt):
        yield


# Finished stages.


def test_every_file_is_of_one_kind(workdir):
    """And those of stages are of other kinds than the rest."""
    stages = finished_stages(workdir)
    assert verify.verify_workdir(workdir) == len(stages) == 10
    kinds = {kind: files_of_kind(workdir, kind) for kind in ROWS}
    for path in (path for path in workdir.rglob("*") if path.is_file()):
        found = [kind for kind, paths in kinds.items() if path in paths]
        assert len(found) == 1, (path, found)
        (kind,) = found
        assert kind in (FINISHED if any(stage in path.parents for stage in stages) else OTHERS)


def reported_damage(folder):
    """The paths that are reported as damaged."""
    try:
        return {path for path, _ in find_damage(folder)}
    except UserError as error:
        assert str(folder) in str(error)
        return {folder / MANIFEST}


def assert_not_reused(folder):
    """As every run does it."""
    key = mock.Mock(path=folder, label=folder.name)
    with pytest.raises(UserError, match=r"delete the folder .*and run again") as error:
        folders._reuse(key)
    assert str(folder) in str(error.value)


@pytest.fixture(scope="module")
def outcomes_of_finished(workdir):
    """Outcomes of damage to finished stages."""

    def outcome_of(changed):
        damaged_stages = {
            next(stage for stage in stages if stage in path.parents) for path in changed
        }
        for stage in damaged_stages:
            expected = {path for path in changed if stage in path.parents}
            assert reported_damage(stage) == expected or expected == {stage / MANIFEST}
            assert_not_reused(stage)
        if tuple(changed) not in tried:  # The commands, once for each set of files.
            tried.add(tuple(changed))
            with pytest.raises(UserError) as error:
                verify.verify_workdir(workdir)
            assert f"{len(damaged_stages)} of 10 stages are damaged" in str(error.value)
            assert all(stage.name in str(error.value) for stage in damaged_stages)
            with pytest.raises(UserError, match=r"delete the folder .* run again") as error:
                rerun(workdir)
            assert any(str(stage) in str(error.value) for stage in damaged_stages)
        return REFUSED

    tried = set()
    stages = finished_stages(workdir)
    outcomes = collect_outcomes(workdir, FINISHED, outcome_of)
    verify.verify_workdir(workdir)
    return outcomes


def test_damage_to_a_stage_is_refused(outcomes_of_finished):
    assert set(outcomes_of_finished.values()) == {REFUSED, IMPOSSIBLE}
    refused = [name for (_, name), outcome in outcomes_of_finished.items() if outcome == REFUSED]
    for name in ("a bit flipped", "cut anywhere", "emptied", "deleted"):
        assert refused.count(name) == len(FINISHED)
    assert refused.count("cut between records") == 2 and refused.count("two swapped") >= 8


def test_damage_to_every_file_of_a_stage_is_named(workdir, capsys):
    damages = [damage for variants in DAMAGES.values() for damage in variants]
    count = 0
    for kind in FINISHED:
        paths = files_of_kind(workdir, kind)
        for number, path in enumerate(paths):
            # Two of the damages to each file, which is enough for so many files.
            for damage in (damages[number % 9], delete):
                with contextlib.suppress(ImpossibleError), damaged(path, paths, damage) as changed:
                    count += 1
                    with pytest.raises(UserError, match=r"\d of 10 stages are damaged"):
                        verify.verify_workdir(workdir)
                    printed = capsys.readouterr().out
                    assert all(
                        str(path if path.exists() else path.parent) in printed for path in changed
                    )
    assert count > 80
    verify.verify_workdir(workdir)


def test_swapped_stages_are_named(workdir, capsys):
    first, second = sorted(workdir.glob("gen*/evaluation-*"))

    def swap_folders():
        first.rename(workdir / "between")
        second.rename(first)
        (workdir / "between").rename(second)

    swap_folders()
    with pytest.raises(UserError, match="2 of 10 stages are damaged"):
        verify.verify_workdir(workdir)
    assert capsys.readouterr().out.count("stage.json: it belongs to another stage") == 2
    with pytest.raises(UserError, match=rf"{first.name} is damaged .*belongs to another stage"):
        rerun(workdir)
    swap_folders()
    verify.verify_workdir(workdir)


def test_foreign_files_are_reported_and_harmless(workdir, capsys, caplog):
    stages = finished_stages(workdir)
    foreign = [stages[0] / "unlabeled/99999.tfrecord", *(stage / ".DS_Store" for stage in stages)]
    (scores,) = workdir.glob("gen1/scores-*/unlabeled")
    foreign.append(scores / "notes.txt")
    for path in foreign:
        path.write_bytes(b"more")
    verify.verify_workdir(workdir)
    printed = capsys.readouterr().out
    assert all(f"{path}: does not belong to this stage, ignored" in printed for path in foreign)
    assert len(rerun(workdir)["generations"]) == 2
    assert all(f"{path} does not belong to its stage" in caplog.text for path in foreign)
    for path in foreign:
        path.unlink()


def test_only_the_damaged_stage_is_rebuilt(workdir):
    def modification_times():
        stages = finished_stages(workdir)
        return {stage: (stage / MANIFEST).stat().st_mtime_ns for stage in stages}

    before = modification_times()
    (pseudo,) = (stage for stage in before if stage.name.startswith("pseudo-"))
    expected = contents(pseudo)
    flip(pseudo / "shards/00000.tfrecord", None)
    with pytest.raises(UserError, match=r"is damaged .*00000\.tfrecord: its SHA-256"):
        rerun(workdir)
    shutil.rmtree(pseudo)
    assert len(rerun(workdir)["generations"]) == 2
    after = modification_times()
    assert {stage for stage in after if after[stage] != before[stage]} == {pseudo}
    assert contents(pseudo) == expected


# Files outside of stages: reports for a person, and settings.


@pytest.fixture(scope="module")
def outcomes_of_others(workdir):
    """Outcomes of damage to files outside of stages."""

    def outcome_of(changed):
        def read_folder():
            files = (path for path in changed[0].parent.iterdir() if path.is_file())
            return {path: path.read_bytes() for path in files}

        before = read_folder()
        assert len(rerun(workdir)["generations"]) == 2
        assert stages == finished_stages(workdir)
        return HARMLESS if read_folder() == before else REBUILT

    stages = finished_stages(workdir)
    outcomes = collect_outcomes(workdir, OTHERS, outcome_of, variants=1)
    rerun(workdir)
    return outcomes


def test_damage_to_reports_is_harmless(outcomes_of_others):
    for (kind, _), outcome in outcomes_of_others.items():
        assert outcome in (HARMLESS if kind == OTHERS[-1] else REBUILT, IMPOSSIBLE)


# An interrupted training.


@pytest.fixture(scope="module")
def interrupted_training(workdir, tmp_path_factory):
    """Workdir of a teacher that was interrupted midway, with two checkpoints."""
    folder = tmp_path_factory.mktemp("interrupted")
    copy_stages(workdir, folder, "data")
    runner = make_runner(folder, evaluations=6, checkpoint_minutes=0.0)
    with interrupted(checkpoint.Checkpoints, "save", 3):
        train_teacher(runner)
    assert len(files_of_kind(folder, CHECKPOINT_FILES[0])) == 2
    return folder


def train_teacher(runner):
    """The finished stage of the teacher."""
    return training.train(runner, 0, ingestion.ingest_images(runner))


@pytest.fixture(scope="module")
def outcomes_of_checkpoints(interrupted_training):
    """Outcomes of damage to the last checkpoint."""
    (folder,) = interrupted_training.glob(f"gen0/*{CHECKPOINTS}")
    previous = min(folder.iterdir())
    step, arrays, _ = checkpoint.read(previous)

    def outcome_of(changed):
        copy = Path(shutil.copytree(folder, folder.with_name("copy")))
        variables = {name: tf.Variable(tf.zeros_like(value)) for name, value in arrays.items()}
        with mock.patch.object(checkpoint.logging, "warning") as warning:
            restored = checkpoint.Checkpoints(copy, variables, 1.0).restore()
        shutil.rmtree(copy)
        assert {call.args[1].name for call in warning.call_args_list} == {
            path.parent.name for path in changed
        }
        if restored is None:
            return WARNED
        assert restored[0] == step
        for name, value in arrays.items():
            np.testing.assert_array_equal(variables[name], value)
        return PREVIOUS

    return collect_outcomes(interrupted_training, CHECKPOINT_FILES, outcome_of)


def test_the_checkpoint_before_a_damaged_one_is_used(outcomes_of_checkpoints):
    outcomes = {name: outcome for (_, name), outcome in outcomes_of_checkpoints.items()}
    assert outcomes.pop("cut between records") == IMPOSSIBLE
    assert outcomes.pop("two swapped") == WARNED  # Both are damaged.
    assert set(outcomes.values()) == {PREVIOUS}


@pytest.mark.parametrize(("num_damaged", "damage"), [(1, flip), (2, cut)])
def test_a_training_without_its_damaged_checkpoints_ends_with_the_same_weights(
    workdir, interrupted_training, tmp_path, caplog, num_damaged, damage
):
    caplog.set_level(logging.INFO, "absl")
    copy = Path(shutil.copytree(interrupted_training, tmp_path / "copy"))
    paths = files_of_kind(copy, CHECKPOINT_FILES[0])
    for path in paths[-num_damaged:]:
        damage(path, paths)
    trained = train_teacher(make_runner(copy))
    assert caplog.text.count("is damaged") == num_damaged
    assert (RESUMED in caplog.text) == (num_damaged == 1)
    assert not list(copy.glob(f"gen0/*{CHECKPOINTS}"))
    assert_same_weights(trained.path, workdir / trained.name)


def assert_same_weights(folder, expected_folder):
    """Compares the models of two finished stages."""
    received, expected = (
        load_model(path / MODEL_FILE).get_weights() for path in (folder, expected_folder)
    )
    for value, expected_value in zip(received, expected, strict=True):
        np.testing.assert_array_equal(value, expected_value)


@pytest.fixture(scope="module")
def outcomes_of_interrupted_training(workdir, tmp_path_factory):
    """Outcomes of damage to a model whose process was killed before it finished the stage."""

    def train(folder):
        with mock.patch.object(training.Trainer, "train", lambda *_, **__: {}):
            return train_teacher(make_runner(folder)).path

    def outcome_of(_):
        copy = Path(shutil.copytree(folder, folder.with_name("copy")))
        assert_same_weights(train(copy), undisturbed)
        shutil.rmtree(copy)
        return REBUILT

    folder, complete = (tmp_path_factory.mktemp(name) / "run" for name in ("stopped", "complete"))
    for target in (folder, complete):
        copy_stages(workdir, target, "data")
    undisturbed = train(complete)
    with interrupted(folders, "_sync_and_describe", 0):
        train(folder)
    return collect_outcomes(folder, [INTERRUPTED_TRAINING], outcome_of, variants=1)


# Interrupted scoring and writing, which resume from the files that exist.


def collect_resumed(workdir, kinds, finish, expected):
    """Outcomes of damage to an interrupted stage before it resumes.

    Args:
        workdir: path of the interrupted run.
        kinds: kinds of file.
        finish: function of a copy of the workdir that finishes the stage and returns its folder.
        expected: `contents` of the same stage of an undisturbed run.
    """

    def outcome_of(changed):
        copy = Path(shutil.copytree(workdir, workdir.with_name("copy")))
        with mock.patch.object(folders.logging, "warning") as warning:
            finished = finish(copy)
        assert contents(finished) == expected
        shutil.rmtree(copy)
        reported = [call.args[1].relative_to(copy) for call in warning.call_args_list]
        if reported:
            assert reported == [path.relative_to(workdir) for path in changed]
            return WARNED
        return HARMLESS if changed[0].suffix == ".lock" else REBUILT

    return collect_outcomes(workdir, kinds, outcome_of, variants=2)


def load_stages(workdir, *names):
    """The finished stages with the given names."""
    return [load_stage(*workdir.glob(f"{name}-??????????")) for name in names]


@pytest.fixture(scope="module")
def predictions(workdir):
    """The teacher's predictions of each shard, so that its network is loaded once."""
    teacher, images = load_stages(workdir, "gen0/teacher", "data/images")
    strategy = make_strategy("one")
    predict = load_predictor(teacher.path / MODEL_FILE, 512, strategy, "image")
    return {
        (split, shard): list(predict(shard_set(images, split), [shard]))
        for split in ("unlabeled", "dev")
        for shard in range(len(shard_set(images, split).names))
    }


def score(workdir, predictions, **values):
    """The stage of the teacher's scores."""
    teacher, images = load_stages(workdir, "gen0/teacher", "data/images")

    def predict(shard_set, shards):
        for shard in shards:
            yield from predictions[shard_set.folder.name, shard]

    with mock.patch.object(scoring, "load_predictor", lambda *_: predict):
        return scoring.score(make_runner(workdir, **values), 1, teacher, images)


@pytest.fixture(scope="module")
def interrupted_scoring(workdir, predictions, tmp_path_factory):
    """Workdir of a scoring that was interrupted after dev and two shards."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    copy_stages(workdir, folder, "data", "gen0")
    with interrupted(scoring, "write_predictions", 3):
        score(folder, predictions)
    return folder


@pytest.fixture(scope="module")
def outcomes_of_interrupted_scoring(workdir, predictions, interrupted_scoring):
    (scores,) = workdir.glob("gen1/scores-*")
    return collect_resumed(
        interrupted_scoring,
        INTERRUPTED_SCORES,
        lambda copy: score(copy, predictions).path,
        contents(scores),
    )


@pytest.fixture(scope="module")
def outcomes_of_interrupted_writing(workdir, tmp_path_factory):
    names = ("data/images", "gen1/scores", "gen1/selection")
    images, scores, selection = load_stages(workdir, *names)

    def build(folder):
        return pseudo_shards.write_pseudo_shards(
            shard_set(images, "unlabeled"),
            scores.path,
            selection.path,
            folder,
            shard_bytes=100_000,
        )

    def finish(folder):
        return build_or_reuse(StageKey(folder, "gen1/pseudo", {}, {}), build, resumes=True).path

    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with interrupted(pseudo_shards.shards, "write_manifest", 0):
        finish(folder)
    assert len(files_of_kind(folder, INTERRUPTED_PSEUDO)) > 2
    expected = contents(finish(tmp_path_factory.mktemp("complete")))
    return collect_resumed(folder, [INTERRUPTED_PSEUDO], finish, expected)


def test_an_interrupted_stage_resumes_with_intact_files_alone(
    outcomes_of_interrupted_scoring, outcomes_of_interrupted_writing
):
    outcomes = {**outcomes_of_interrupted_scoring, **outcomes_of_interrupted_writing}
    for (kind, name), outcome in outcomes.items():
        if outcome != IMPOSSIBLE:
            if kind.endswith(".lock"):
                assert outcome == HARMLESS
            else:
                assert outcome == (REBUILT if name == "deleted" else WARNED)
    assert outcomes[INTERRUPTED_PSEUDO, "cut between records"] == WARNED
    assert outcomes[INTERRUPTED_SCORES[0], "two swapped"] == WARNED


def test_one_of_several_workers_does_not_delete_a_damaged_file(
    interrupted_scoring, predictions, tmp_path
):
    copy = Path(shutil.copytree(interrupted_scoring, tmp_path / "copy"))
    path = files_of_kind(copy, INTERRUPTED_SCORES[0])[0]
    flip(path, None)
    with pytest.raises(UserError, match=f"{path.name} is damaged: stop the other workers"):
        score(copy, predictions, num_shard_workers=2, shard_index=1)
    assert path.exists()


# The table.


def format_table(outcomes):
    """The outcomes as Markdown."""
    lines = [["", *DAMAGES]] + [
        [f"`{kind}`", *(outcomes[kind, name] for name in DAMAGES)] for kind in ROWS
    ]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_the_table_in_the_docs_is_up_to_date(
    outcomes_of_finished,
    outcomes_of_others,
    outcomes_of_checkpoints,
    outcomes_of_interrupted_training,
    outcomes_of_interrupted_scoring,
    outcomes_of_interrupted_writing,
):
    outcomes = {
        **outcomes_of_finished,
        **outcomes_of_others,
        **outcomes_of_checkpoints,
        **outcomes_of_interrupted_training,
        **outcomes_of_interrupted_scoring,
        **outcomes_of_interrupted_writing,
    }
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(f"{BEGIN}\n")
    written, _, after = rest.partition(END)
    assert before and after, f"{DOCS} lacks the lines {BEGIN} and {END}."
    received = f"\n{format_table(outcomes)}\n"
    if os.environ.get("NSK_WRITE_DOCS"):
        DOCS.write_text(f"{before}{BEGIN}\n{received}{END}{after}", encoding="utf-8")
    elif written != received:
        differences = difflib.unified_diff(written.splitlines(), received.splitlines(), lineterm="")
        pytest.fail(
            "\n".join(
                [
                    f"The table in {DOCS} differs from the outcomes. If they are as intended,",
                    "NSK_WRITE_DOCS=1 python -m pytest tests/store/damage_test.py rewrites it.",
                    *differences,
                ]
            ),
            pytrace=False,
        )
