"""Verification of finished stages: damage, foreign files, other formats."""

import os
import shutil

import pytest

from nsk.errors import UserError
from nsk.store import manifest
from nsk.store.folders import StageKey, build_or_reuse
from nsk.store.verification import (
    find_damage,
    finished_stages,
    foreign_files,
    stages_of_other_formats,
)

FORMAT = manifest.FORMAT


def build_stage(workdir, name, contents=None):
    """The folder of a finished stage with the given contents by name."""

    def build(folder):
        for path, content in (contents or {}).items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)
        return {}

    return build_or_reuse(StageKey(workdir, name, {}, {}), build).path


@pytest.fixture
def scores(tmp_path):
    contents = {"dev": b"123", "unlabeled/0": b"12345", "unlabeled/1": b"abcde"}
    return build_stage(tmp_path, "gen1/scores", contents)


def test_an_intact_stage_has_no_damage(scores):
    assert find_damage(scores) == foreign_files(scores) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"12346", "its SHA-256 differs from what was written"),
        (b"1234", "it has 4 bytes, expected 5"),
        (b"", "it has 0 bytes, expected 5"),
        (None, "it is missing"),
    ],
)
def test_damage_is_named_with_its_reason(scores, content, reason):
    path = scores / "unlabeled" / "0"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert find_damage(scores) == [(path, reason)]


def test_swapped_stages_belong_to_other_stages(scores, tmp_path):
    selection = build_stage(tmp_path, "gen1/selection")
    for source, target in ((scores, "third"), (selection, scores.name), ("third", selection.name)):
        (tmp_path / "gen1" / source).rename(tmp_path / "gen1" / target)
    for folder in (scores, selection):
        damage = dict(find_damage(folder))
        assert damage[folder / "stage.json"] == "it belongs to another stage"


def test_a_damaged_manifest_is_a_user_error(scores):
    (scores / "stage.json").write_text("{}")
    for function in (find_damage, foreign_files):
        with pytest.raises(UserError, match="is damaged"):
            function(scores)


def test_foreign_files_are_not_damage(scores, tmp_path, caplog):
    paths = [scores / ".DS_Store", scores / "unlabeled" / "notes.txt"]
    for path in paths:
        path.write_text("")
    assert find_damage(scores) == [] and foreign_files(scores) == paths
    build_stage(tmp_path, "gen1/scores")
    assert all(f"{path} does not belong to its stage" in caplog.text for path in paths)


def test_finished_stages_of_a_workdir(scores, tmp_path):
    """A stage that has lost its manifest is one of them; curves and unfinished stages are not."""
    images = build_stage(tmp_path, "data/images")
    export = build_stage(tmp_path, "export")
    (images / "stage.json").unlink()
    for name in ("tensorboard/gen0/teacher-0123456789", "gen0/teacher-0123456789.checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    partial = tmp_path / "gen1" / "pseudo-0123456789.partial"
    shutil.copytree(scores, partial)
    assert finished_stages(tmp_path) == sorted([images, export, scores])
    assert finished_stages(tmp_path / "missing") == []


def test_stages_of_other_formats_are_listed(scores, tmp_path, monkeypatch):
    assert stages_of_other_formats(tmp_path) == []
    monkeypatch.setattr(manifest, "FORMAT", FORMAT - 1)
    old = build_stage(tmp_path, "gen0/teacher")
    monkeypatch.undo()
    damaged = build_stage(tmp_path, "gen0/evaluation")
    (damaged / "stage.json").write_text("[]")
    assert stages_of_other_formats(tmp_path) == [old]


def test_a_pipe_in_the_place_of_a_manifest_does_not_block(tmp_path):
    folder = tmp_path / "data" / "images-0123456789"
    folder.mkdir(parents=True)
    os.mkfifo(folder / manifest.MANIFEST)
    assert stages_of_other_formats(tmp_path) == []
