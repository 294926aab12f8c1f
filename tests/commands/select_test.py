"""The command select: what the settings keep of finished scores."""

import csv
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from nsk.commands import run, score, select
from nsk.errors import GenerationFailedError, UserError
from tests.commands.small_run import STAGES_BEFORE_STUDENTS, make_values, stage_names


def test_select_prints_a_table_and_trains_nothing(copied_workdir, capsys):
    counts = select.execute(make_values(copied_workdir, images_per_class=30))
    assert stage_names(copied_workdir) == STAGES_BEFORE_STUDENTS | {
        "gen1/comparison",
        "gen1/selection",
    }
    output = capsys.readouterr().out
    rows = [line.split() for line in output.splitlines() if line[:2].strip().isdigit()]
    per_class = counts["per_class"]
    assert sorted(row[0] for row in rows) == [str(digit) for digit in range(10)]
    kept = [int(row[3]) for row in rows]
    assert kept == sorted(per_class["kept"], reverse=True) and len(set(kept)) > 1
    for row in rows:
        label = int(row[0])
        columns = ("candidates", "kept", "copies")
        assert row[2:5] == [str(per_class[name][label]) for name in columns]
        assert per_class["dev_correct"][label] <= per_class["dev_kept"][label]
    assert "Nothing was trained" in output
    assert str(copied_workdir / "gen1" / "selection") in output
    assert counts["copies"] == sum(per_class["copies"])
    (path,) = (copied_workdir / "gen1").glob("classes-*.csv")
    assert f"All classes: {path}" in output
    with open(path, newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == [row[0] for row in rows]

    # Another setting selects beside it.
    select.execute(make_values(copied_workdir, images_per_class=30, min_confidence=["0.1"]))
    assert len(list(copied_workdir.glob("gen1/selection-*"))) == 2
    assert not (copied_workdir / "summary.json").exists()
    assert not (copied_workdir / "config.json").exists()


def warnings_about_selection(caplog):
    """The warnings so far, but for those about the weak teacher; forgets them."""
    records = [record for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    ignored = ("--labeled_batch_size=128 exceeds", "takes")
    messages = [record.getMessage() for record in records]
    return [message for message in messages if not any(text in message for text in ignored)]


def test_select_warns_of_what_would_end_a_run(copied_workdir, caplog):
    """Figures by counting in the files; a run ends before the student is trained."""
    settings = {"images_per_class": 2, "min_kept_fraction": 0.5}
    counts = select.execute(make_values(copied_workdir, **settings))
    (folder,) = copied_workdir.glob("gen1/selection-*")
    copies = np.concatenate([pq.read_table(path)["copies"] for path in folder.glob("*.parquet")])
    kept, scored = np.sum(copies > 0), len(copies)
    assert counts["images"] == kept < 21
    # Two steps of 128 labelled and 384 pseudo-labelled images.
    seen = (
        f"the {kept} kept images {2 * 384 / kept:.3g} times on average, a labelled one 2.56 times"
    )
    share = f"{100 * kept / scored:.2g} %"
    ending = (
        f"{kept} of {scored:,} unlabelled images ({share}; {scored:,} reach the minimum confidence "
        f"of their class); --min_kept_fraction=0.5 asks for {math.ceil(scored / 2)}: student 1 "
        "cannot gain from so few"
    )
    first, second = warnings_about_selection(caplog)
    assert seen in first and second.startswith(f"A run would end here: {ending}")
    with pytest.raises(GenerationFailedError) as raised:
        run.execute(make_values(copied_workdir, **settings))
    assert str(raised.value).startswith(ending)
    assert stage_names(copied_workdir) == STAGES_BEFORE_STUDENTS | {
        "gen1/comparison",
        "gen1/selection",
    }

    caplog.clear()
    select.execute(make_values(copied_workdir, images_per_class=2))
    first, _ = warnings_about_selection(caplog)
    assert first.startswith(f"Few images are kept, {kept} of {scored:,} unlabelled images ({share}")
    assert len(list(copied_workdir.glob("gen1/selection-*"))) == 1  # Reused.
    # Without pseudo-labels in its batches, a student does not depend on them.
    select.execute(make_values(copied_workdir, **settings, ratio=["0"]))
    assert not warnings_about_selection(caplog)


def test_select_reads_neither_hidden_labels_nor_test(copied_workdir, monkeypatch):
    paths, read_table = [], pq.read_table

    def record_path(path, **settings):
        paths.append(path.relative_to(copied_workdir).as_posix())
        return read_table(path, **settings)

    monkeypatch.setattr(pq, "read_table", record_path)
    select.execute(make_values(copied_workdir))
    files = {(path.partition("-")[0], path.rpartition("/")[2]) for path in paths}
    expected = {"dev.parquet", *(f"{number:05d}.parquet" for number in range(4))}
    assert files == {("gen1/scores", name) for name in expected}


def test_select_refuses_unfinished_stages_and_builds_nothing(copied_workdir, tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match="data/images is not finished"):
        select.execute(make_values(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []
    expected = (
        r"gen0/teacher is not finished .* for these settings "
        r"\(teacher-\w+ has learning_rate=0.1, not 0.5\): give"  # And no other setting.
    )
    with pytest.raises(UserError, match=expected):
        select.execute(make_values(copied_workdir, learning_rate=["0.5"]))
    with pytest.raises(UserError, match="gen1/scores is not finished"):
        select.execute(make_values(copied_workdir, top_k=3))
    with pytest.raises(UserError, match=r"gen1/.* is not finished"):
        select.execute(make_values(copied_workdir, generation=2))
    assert stage_names(copied_workdir) == STAGES_BEFORE_STUDENTS


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generation": 3}, "--generation=3 of 2 students: expected 1 to 2"),
        ({"generation": 2, "select": "once"}, "--generation=2 with --select=once: every student"),
        ({"models": ["convnet5"]}, "--generation=1 of 0 students: .* more networks in --models"),
        ({}, "--workdir=.*/run does not exist: give the workdir of a run"),
        ({"workdir": ""}, "--workdir is not given"),
    ],
)
def test_settings_that_do_not_fit_the_command_are_refused(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        select.execute(make_values(tmp_path / "run") | values)
    assert not (tmp_path / "run").exists()


def test_score_and_select_of_the_second_generation(copied_workdir, capsys):
    scores = score.execute(make_values(copied_workdir, generation=2, unknown_classes="off"))
    assert scores.path.parent.name == "gen2"
    stages = ("selection", "pseudo", "student", "evaluation")
    scored = STAGES_BEFORE_STUDENTS | {f"gen1/{stage}" for stage in stages} | {"gen2/scores"}
    assert stage_names(copied_workdir) == scored
    select.execute(make_values(copied_workdir, generation=2))
    assert stage_names(copied_workdir) == scored | {"gen2/comparison", "gen2/selection"}
    assert str(copied_workdir / "gen2" / "selection") in capsys.readouterr().out
    with pytest.raises(UserError, match="gen1/comparison is not finished"):
        select.execute(make_values(copied_workdir, generation=2, unknown_classes="filter"))
