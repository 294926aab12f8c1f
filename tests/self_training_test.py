"""The commands that do a part of a run: score, with several workers, and select."""

import json
import logging
import shutil

import pyarrow.parquet as pq
import pytest

from nsk import self_training
from nsk.config.config import Config
from nsk.errors import UserError
from nsk.evaluation.prediction_files import read_table

SETTINGS = {
    "num_labeled": 100,
    "num_dev": 200,
    "images_per_shard": 300,
    "models": ["convnet5"] * 3,
    "train_steps": ["40", "2"],
    "min_confidence": ["0"],
    "chance_p_value": 1.0,
}


def make_config(workdir, **values):
    return Config.from_values({**SETTINGS, "workdir": str(workdir), **values})


def kinds(workdir):
    """Names of all stages that are finished, and that are not."""
    return {
        path.relative_to(workdir).as_posix().rpartition("-")[0]
        for path in (*workdir.glob("*-*"), *workdir.glob("*/*-*"))
        if path.is_dir() and path.parent.name != "tensorboard"
    }


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "stage.json"
    }


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Workdir with a teacher and its scores, and the scores' stage."""
    workdir = tmp_path_factory.mktemp("scored")
    return workdir, self_training.score(make_config(workdir))


@pytest.fixture
def copied(scored, tmp_path):
    return shutil.copytree(scored[0], tmp_path / "copy")


BEFORE_STUDENTS = {"data/images", "gen0/teacher", "gen0/evaluation", "gen1/scores"}


def test_score_goes_up_to_the_scores_of_the_first_generation(scored):
    workdir, scores = scored
    assert kinds(workdir) == BEFORE_STUDENTS
    (manifest,) = workdir.glob("data/images-*/unlabeled/manifest.json")
    counts = [file["records"] for file in json.loads(manifest.read_text())["files"]]
    assert scores.counts["scored"] == sum(counts) > 1000 and scores.counts["temperature"] > 0
    names = sorted(path.name for path in (scores.path / "unlabeled").iterdir())
    assert names == [f"{number:05d}.parquet" for number in range(4)]
    assert read_table(scores.path / "dev.parquet").num_rows == 200
    again = self_training.score(make_config(workdir))
    assert again.reused and again.path == scores.path


def test_workers_score_their_shards_and_the_last_one_finishes(scored, copied):
    _, alone = scored
    shutil.rmtree(copied / "gen1")
    for worker, expected in ((2, {2}), (0, {0, 2, 3})):
        config = make_config(copied, shard_index=worker, num_shard_workers=3)
        assert self_training.score(config) is None
        (partial,) = copied.glob("gen1/scores-*.partial/unlabeled")
        assert {int(path.stem) for path in partial.iterdir()} == expected
    made = self_training.score(make_config(copied, shard_index=1, num_shard_workers=3))
    assert made.path.name == alone.path.name and made.counts == alone.counts
    assert files(made.path) == files(alone.path)
    # Who comes late finds them finished, and what goes on with them knows nothing of workers.
    assert self_training.score(make_config(copied, shard_index=2, num_shard_workers=3)).reused
    assert self_training.score(make_config(copied)).reused


def test_a_worker_without_a_shard_says_so(scored, copied, caplog):
    shutil.rmtree(copied / "gen1")
    for worker, told in (
        (3, "has scored its shards"),
        (4, "of --num_shard_workers=6 only the first 4"),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="absl"):
            config = make_config(copied, shard_index=worker, num_shard_workers=6)
            assert self_training.score(config) is None
        assert told in caplog.records[-1].getMessage()


def test_select_prints_what_is_kept_and_trains_nothing(copied, capsys):
    counts = self_training.select(make_config(copied, images_per_class=30))
    assert kinds(copied) == BEFORE_STUDENTS | {"gen1/selection"}
    told = capsys.readouterr().out
    rows = [line.split() for line in told.splitlines() if line[:2].strip().isdigit()]
    assert [row[0] for row in rows] == [str(digit) for digit in range(10)]
    per_class = counts["per_class"]
    for label, row in enumerate(rows):
        assert row[2:5] == [
            str(per_class[name][label]) for name in ("candidates", "kept", "copies")
        ]
        assert per_class["dev_correct"][label] <= per_class["dev_kept"][label]
    assert "Nothing was trained" in told and str(copied / "gen1" / "selection") in told
    assert counts["copies"] == sum(per_class["copies"])

    # Another setting selects beside it.
    self_training.select(make_config(copied, images_per_class=30, min_confidence=["0.1"]))
    assert len(list(copied.glob("gen1/selection-*"))) == 2
    assert not (copied / "summary.json").exists() and not (copied / "config.json").exists()


def test_select_reads_neither_hidden_labels_nor_test(copied, monkeypatch):
    read, read_table = [], pq.read_table

    def noting(path, **settings):
        read.append(path.relative_to(copied).as_posix())
        return read_table(path, **settings)

    monkeypatch.setattr(pq, "read_table", noting)
    self_training.select(make_config(copied))
    kinds_read = {(path.partition("-")[0], path.rpartition("/")[2]) for path in read}
    files = {"dev.parquet", *(f"{number:05d}.parquet" for number in range(4))}
    assert kinds_read == {("gen1/scores", name) for name in files}


def test_select_refuses_what_is_not_finished_and_makes_nothing(copied, tmp_path):
    with pytest.raises(UserError, match="data/images is not finished"):
        self_training.select(make_config(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(UserError, match=r"gen0/teacher is not finished .* for these settings"):
        self_training.select(make_config(copied, learning_rate=["0.5"]))
    told = r"\(teacher-\w+ has learning_rate=0.1 and not 0.5\): give"  # And no other setting.
    with pytest.raises(UserError, match=told):
        self_training.select(make_config(copied, learning_rate=["0.5"]))
    with pytest.raises(UserError, match="gen1/scores is not finished"):
        self_training.select(make_config(copied, top_k=3))
    before = kinds(copied)
    with pytest.raises(UserError, match=r"gen1/.* is not finished"):
        self_training.select(make_config(copied, generation=2))
    assert kinds(copied) == before == BEFORE_STUDENTS


def test_score_and_select_of_the_second_generation(copied, capsys):
    scores = self_training.score(make_config(copied, generation=2))
    assert scores.path.parent.name == "gen2"
    students = {"gen1/selection", "gen1/pseudo", "gen1/student", "gen1/evaluation", "gen2/scores"}
    assert kinds(copied) == BEFORE_STUDENTS | students
    self_training.select(make_config(copied, generation=2))
    assert kinds(copied) == BEFORE_STUDENTS | students | {"gen2/selection"}
    assert str(copied / "gen2" / "selection") in capsys.readouterr().out


def test_workers_of_the_second_generation_need_the_scores_of_the_first(copied):
    """They are not there, and no worker alone can make them: it says so, or makes its share."""
    shutil.rmtree(copied / "gen1")
    config = make_config(copied, generation=2, shard_index=0, num_shard_workers=2)
    try:
        assert self_training.score(config) is None
    except UserError as error:
        assert "gen1/scores" in str(error) or "generation" in str(error)
