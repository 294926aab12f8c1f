import json
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from nsk.errors import GenerationFailedError, UserError
from nsk.training import checkpoint
from nsk.training.checkpoint import Checkpoints


def make_variables(seed=0):
    random = np.random.default_rng(seed)
    return {
        "model/0/dense/kernel": tf.Variable(random.normal(size=(3, 4)).astype(np.float32)),
        "model/1/dense/bias": tf.Variable(random.normal(size=4)),
        "optimizer/0/iteration": tf.Variable(int(random.integers(100)), dtype=tf.int64),
    }


def values(variables):
    return {name: variable.numpy().copy() for name, variable in variables.items()}


def assert_equal(received, expected):
    assert list(received) == list(expected)
    for name, value in expected.items():
        assert received[name].dtype == value.dtype
        np.testing.assert_array_equal(received[name], value, err_msg=name)


STATE = {"seconds": 2.5, "losses": np.float32([1, 0.5]), "evaluations": [{"step": 3}]}


def saved(folder, steps=(7,)):
    """Saves a checkpoint for each step, with the variables of the seed `step`."""
    variables = make_variables()
    checkpoints = Checkpoints(folder, variables, 1e9)
    for step in steps:
        for name, variable in make_variables(step).items():
            variables[name].assign(variable)
        checkpoints.save(step, STATE)
    checkpoints.finish()
    return variables


def test_saved_variables_are_restored_exactly(tmp_path):
    expected = values(saved(tmp_path))
    variables = make_variables(99)
    step, state = Checkpoints(tmp_path, variables, 1.0).restore()
    assert step == 7
    assert_equal(values(variables), expected)
    assert state["seconds"] == 2.5 and state["evaluations"] == [{"step": 3}]
    np.testing.assert_array_equal(state["losses"], STATE["losses"])


def test_without_a_checkpoint_nothing_changes(tmp_path):
    variables = make_variables()
    before = values(variables)
    assert Checkpoints(tmp_path / "none", variables, 1.0).restore() is None
    assert_equal(values(variables), before)


def test_the_last_two_checkpoints_are_kept(tmp_path):
    saved(tmp_path, steps=(1, 2, 30, 400))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000030", "step-000000400"]


def test_training_continues_while_a_checkpoint_is_written(tmp_path):
    """The saved values are those at the call, although the variables change meanwhile."""
    variables = make_variables()
    expected = values(variables)
    checkpoints = Checkpoints(tmp_path, variables, 1e9)
    checkpoints.save(5, {})
    for variable in variables.values():
        variable.assign_add(tf.ones_like(variable))
    checkpoints.finish()
    assert Checkpoints(tmp_path, variables, 1e9).restore()[0] == 5
    assert_equal(values(variables), expected)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


def edit(path):
    """Still JSON, or still an archive, of another step."""
    if path.suffix == ".json":
        path.write_text(path.read_text().replace('"step": 8', '"step": 9'))
    else:
        np.savez(path, np.zeros(3))


@pytest.mark.parametrize("file", [checkpoint.ARRAYS, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", [flip, cut, empty, delete, edit])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(
    tmp_path, caplog, file, damage
):
    saved(tmp_path, steps=(7, 8))
    damage(tmp_path / "step-000000008" / file)
    variables = make_variables(99)
    step, _ = Checkpoints(tmp_path, variables, 1.0).restore()
    assert step == 7
    assert_equal(values(variables), values(make_variables(7)))
    assert "step-000000008 is damaged" in caplog.text
    assert not (tmp_path / "step-000000008").exists()


def test_every_flipped_bit_is_detected(tmp_path):
    saved(tmp_path)
    random = np.random.default_rng(0)
    for path in sorted((tmp_path / "step-000000007").iterdir()):
        whole = path.read_bytes()
        for bit in random.choice(8 * (len(whole) - 1), 200, replace=False):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(damaged)
            with pytest.raises(ValueError):
                checkpoint.read(path.parent)
        path.write_bytes(whole)
    checkpoint.read(tmp_path / "step-000000007")


def test_a_checkpoint_of_other_variables_is_refused_and_kept(tmp_path):
    saved(tmp_path)
    other_variables = {**make_variables(), "model/1/dense/bias": tf.Variable(np.zeros(5))}
    with pytest.raises(UserError, match=r"has other variables .*: delete the folder"):
        Checkpoints(tmp_path, other_variables, 1.0).restore()
    assert Checkpoints(tmp_path, make_variables(), 1.0).restore()[0] == 7


def test_files_of_a_stopped_process_are_removed(tmp_path):
    saved(tmp_path)
    unfinished = tmp_path / "step-000000009.123.unfinished"
    unfinished.mkdir()
    (unfinished / checkpoint.ARRAYS).write_bytes(b"half")
    assert Checkpoints(tmp_path, make_variables(), 1.0).restore()[0] == 7
    assert not unfinished.exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    variables = make_variables()
    variables["model/1/dense/bias"].assign([0, np.nan, 0, 0])
    with pytest.raises(GenerationFailedError, match="dense/bias is not finite after step 3"):
        Checkpoints(tmp_path, variables, 1.0).save(3, {})
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("in the way")
    checkpoints = Checkpoints(tmp_path / "file", make_variables(), 1.0)
    with pytest.raises(OSError):
        checkpoints.save(1, {}, wait=True)


def test_checkpoints_are_as_frequent_as_a_hundredth_of_the_time_allows(tmp_path):
    """The time is that of saving and of writing."""
    checkpoints = Checkpoints(tmp_path, make_variables(), 1e9)
    assert checkpoints.interval == pytest.approx(checkpoint.FIRST_SECONDS)
    started = time.monotonic()
    checkpoints.save(1, {})
    checkpoints.finish()
    spent = time.monotonic() - started
    assert not checkpoints.is_due
    assert 0 < checkpoints.pause_seconds < spent
    assert 50 * spent < checkpoints.interval <= 100 * spent


def test_the_longest_time_between_checkpoints_wins_over_their_share_of_the_time(tmp_path):
    checkpoints = Checkpoints(tmp_path, make_variables(), 0.0)
    for step in (1, 2):
        assert checkpoints.is_due
        checkpoints.save(step, {}, wait=True)
    assert Checkpoints(tmp_path, make_variables(), 2.5).interval == 2.5


def test_no_checkpoint_is_due_while_one_is_written(tmp_path, monkeypatch):
    checkpoints, go_on = Checkpoints(tmp_path, make_variables(), 0.0), threading.Event()
    monkeypatch.setattr(checkpoint, "write", lambda *_: go_on.wait())
    checkpoints.save(1, {})
    assert not checkpoints.is_due
    go_on.set()
    checkpoints.finish()
    assert checkpoints.is_due


def test_a_manifest_is_readable(tmp_path):
    saved(tmp_path)
    text = (tmp_path / "step-000000007" / checkpoint.MANIFEST).read_text()
    manifest = json.loads(text[: text.rindex("\n", 0, -1)])
    assert manifest["step"] == 7
    assert manifest["variables"] == list(make_variables())
