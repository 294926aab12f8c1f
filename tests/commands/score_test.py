"""The command score: the chain up to the scores of a generation, by one or several processes."""

import json
import logging
import shutil

import pytest

from nsk.commands import score
from nsk.errors import UserError
from nsk.evaluation.prediction_files import read_table
from tests.commands.small_run import (
    STAGES_BEFORE_STUDENTS,
    make_values,
    read_files,
    stage_names,
)


def test_score_ends_with_the_scores_of_the_first_generation(scored):
    assert stage_names(scored.workdir) == STAGES_BEFORE_STUDENTS
    (manifest,) = scored.workdir.glob("data/images-*/unlabeled/manifest.json")
    num_records = [file["records"] for file in json.loads(manifest.read_text())["files"]]
    counts = scored.scores.counts
    assert counts["scored"] == sum(num_records) > 1000 and counts["temperature"] > 0
    names = sorted(path.name for path in (scored.scores.path / "unlabeled").iterdir())
    assert names == [f"{number:05d}.parquet" for number in range(4)]
    assert read_table(scored.scores.path / "dev.parquet").num_rows == 200
    again = score.execute(make_values(scored.workdir))
    assert again.reused and again.path == scored.scores.path


def test_processes_score_their_shards_and_the_last_one_finishes(scored, copied_workdir):
    shutil.rmtree(copied_workdir / "gen1")
    for index, expected in ((2, {2}), (0, {0, 2, 3})):
        values = make_values(copied_workdir, shard_index=index, num_shard_workers=3)
        assert score.execute(values) is None
        (partial,) = copied_workdir.glob("gen1/scores-*.partial/unlabeled")
        assert {int(path.stem) for path in partial.iterdir()} == expected
    scores = score.execute(make_values(copied_workdir, shard_index=1, num_shard_workers=3))
    assert scores.path.name == scored.scores.path.name
    assert scores.counts == scored.scores.counts
    assert read_files(scores.path) == read_files(scored.scores.path)
    # A late process finds them finished, and later commands do not depend on the processes.
    assert score.execute(make_values(copied_workdir, shard_index=2, num_shard_workers=3)).reused
    assert score.execute(make_values(copied_workdir)).reused


def test_a_process_logs_what_it_has_scored(copied_workdir, caplog):
    shutil.rmtree(copied_workdir / "gen1")
    for index, message in (
        (3, "has scored its shards"),
        (4, "only the first 4 of --num_shard_workers=6 have one"),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="absl"):
            values = make_values(copied_workdir, shard_index=index, num_shard_workers=6)
            assert score.execute(values) is None
        assert message in caplog.records[-1].getMessage()


def test_a_later_generation_needs_the_finished_scores_of_the_first(copied_workdir):
    """A process that shares the shards cannot finish the scores of the first generation."""
    shutil.rmtree(copied_workdir / "gen1")
    values = make_values(copied_workdir, generation=2, shard_index=0, num_shard_workers=2)
    with pytest.raises(UserError, match="have not finished the scores for generation 1: finish"):
        score.execute(values)
    assert stage_names(copied_workdir) == STAGES_BEFORE_STUDENTS  # With its share of the scores.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generation": 0}, "--generation=0 of 2 students: expected 1 to 2"),
        ({"generation": 3}, "--generation=3 of 2 students: expected 1 to 2"),
        ({"num_shard_workers": 2, "strategy": "multi_worker"}, "shares the scoring already"),
        (
            {
                "num_shard_workers": 2,
                "first_scores": "records",
                "unlabeled_dataset": "tfrecord:/records/*",
            },
            "--first_scores=records leaves nothing to score",
        ),
    ],
)
def test_settings_that_do_not_fit_the_command_are_refused(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        score.execute(make_values(tmp_path / "run", **values))
    assert not (tmp_path / "run").exists()
