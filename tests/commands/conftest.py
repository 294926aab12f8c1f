"""A workdir with a teacher and its scores, made once for all tests of commands."""

import shutil
from types import SimpleNamespace

import pytest

from nsk.commands import score
from tests.commands.small_run import make_values


@pytest.fixture(scope="session")
def scored(tmp_path_factory):
    """`workdir` of a teacher and its scores, and their stage, `scores`. Not to be changed."""
    workdir = tmp_path_factory.mktemp("scored")
    return SimpleNamespace(workdir=workdir, scores=score.execute(make_values(workdir)))


@pytest.fixture
def copied_workdir(scored, tmp_path):
    """A copy of this workdir."""
    return shutil.copytree(scored.workdir, tmp_path / "copy")
