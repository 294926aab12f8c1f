import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nsk.errors import UserError
from nsk.evaluation.prediction_files import (
    make_stored_predictions,
    read_predictions,
    read_table,
    write_predictions,
)
from nsk.pseudo.radix_selection import stable_key


def make_log_probabilities(num_images, num_classes=10, seed=0):
    logits = np.random.default_rng(seed).normal(0, 4, (num_images, num_classes))
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits.astype(np.float32)


def make_ids(num_images, first=0):
    return [f"photos/größe {number}.jpg" for number in range(first, first + num_images)]


def assert_equal(read, written):
    assert read.ids == written.ids
    for name in [field.name for field in dataclasses.fields(written) if field.name != "ids"]:
        expected = getattr(written, name)
        if expected is None:
            assert getattr(read, name) is None, name
        else:
            np.testing.assert_array_equal(getattr(read, name), expected)
            assert getattr(read, name).dtype == expected.dtype, name


def test_first_choice_and_confidence_come_from_the_predictions():
    log_probabilities = np.log(
        np.array([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05], [0.4, 0.4, 0.2]], np.float32)
    )
    scores = make_stored_predictions(["a", "b", "c"], log_probabilities)
    assert len(scores) == 3
    assert scores.labels.tolist() == [1, 0, 0]
    np.testing.assert_allclose(scores.confidences, [0.5, 0.9, 0.4], rtol=1e-6)
    assert scores.keys.tolist() == [int(stable_key(one)) for one in "abc"]
    assert (scores.labels.dtype, scores.confidences.dtype) == (np.int32, np.float32)
    assert (scores.keys.dtype, scores.log_probabilities.dtype) == (np.uint64, np.float16)
    np.testing.assert_array_equal(scores.log_probabilities, log_probabilities.astype(np.float16))


def test_confidence_keeps_float32_and_never_exceeds_1():
    # 0.3000001 and 0.3 are equal in float16, and rounding may lift a logarithm above 0.
    log_probabilities = np.array([[np.log(0.3000001), -2], [1e-6, -15]], np.float32)
    confidences = make_stored_predictions(["a", "b"], log_probabilities).confidences
    assert confidences[0] > np.float32(0.3)
    assert confidences[1] == 1


def test_files_give_back_what_was_written(tmp_path):
    scores = make_stored_predictions(make_ids(7), make_log_probabilities(7))
    write_predictions(tmp_path / "scores.parquet", scores)
    read = read_predictions(tmp_path / "scores.parquet")
    assert read.ids == scores.ids
    assert_equal(read, scores)
    assert read.classes is None and read.remaining is None and read.top_k == 0
    assert read.calibrated_confidences is None
    np.testing.assert_array_equal(
        read.all_log_probabilities(10), scores.log_probabilities.astype(np.float32)
    )


def test_what_is_beyond_float16_stays_finite():
    """As the outputs of a network that diverged: no infinity, which no mean survives."""
    scores = make_stored_predictions(["a"], np.array([[0.0, -1e9]], np.float32))
    assert scores.log_probabilities.tolist() == [[0.0, -65504.0]]


def test_a_person_can_read_the_file_with_any_parquet_reader(tmp_path):
    scores = make_stored_predictions(make_ids(3), make_log_probabilities(3, num_classes=4))
    write_predictions(tmp_path / "dev.parquet", scores, truth=np.array([2, 0, 3], np.int32))
    schema = pq.read_schema(tmp_path / "dev.parquet")
    types = {name: str(schema.field(name).type) for name in schema.names}
    log_probabilities = types.pop("log_probabilities")
    assert log_probabilities.startswith("fixed_size_list<") and "halffloat" in log_probabilities
    assert types == {
        "id": "string",
        "key": "uint64",
        "label": "int32",
        "confidence": "float",
        "truth": "int32",
    }
    table = read_table(tmp_path / "dev.parquet", ["truth"])
    assert table.column_names == ["truth"] and table["truth"].to_pylist() == [2, 0, 3]


def test_truth_stands_only_where_it_is_given(tmp_path):
    write_predictions(
        tmp_path / "a.parquet", make_stored_predictions(make_ids(2), make_log_probabilities(2))
    )
    assert "truth" not in pq.read_schema(tmp_path / "a.parquet").names


@pytest.mark.parametrize("top_k", [1, 3, 9])
def test_the_largest_log_probabilities_come_back_from_a_file(tmp_path, top_k):
    log_probabilities = make_log_probabilities(7)
    calibrated = np.linspace(0, 1, 7, dtype=np.float32)
    scores = make_stored_predictions(make_ids(7), log_probabilities, top_k, calibrated)
    assert scores.top_k == top_k and scores.log_probabilities.shape == (7, top_k)
    assert scores.classes.dtype == np.int32 and scores.remaining.dtype == np.float32
    write_predictions(tmp_path / "scores.parquet", scores)
    read = read_predictions(tmp_path / "scores.parquet")
    assert_equal(read, scores)
    for row in range(7):
        order = sorted(range(10), key=lambda one: -log_probabilities[row, one])
        assert read.classes[row].tolist() == order[:top_k]
        np.testing.assert_array_equal(
            read.log_probabilities[row], log_probabilities[row, order[:top_k]].astype(np.float16)
        )
        assert read.remaining[row] == pytest.approx(
            np.exp(log_probabilities[row, order[top_k:]]).sum(), rel=1e-5
        )
    np.testing.assert_array_equal(read.labels, log_probabilities.argmax(axis=1))
    np.testing.assert_array_equal(
        read.confidences, make_stored_predictions(make_ids(7), log_probabilities).confidences
    )


@pytest.mark.parametrize("top_k", [1, 3, 9])
def test_what_remains_is_spread_evenly_over_the_other_classes(top_k):
    log_probabilities = make_log_probabilities(50)
    scores = make_stored_predictions(make_ids(50), log_probabilities, top_k)
    dense = scores.all_log_probabilities(10)
    assert dense.dtype == np.float32 and dense.shape == (50, 10)
    np.testing.assert_allclose(np.exp(dense).sum(axis=1), 1, atol=2e-3)  # float16 of up to -20.
    for row in range(50):
        held = scores.classes[row]
        others = np.setdiff1d(np.arange(10), held)
        np.testing.assert_array_equal(
            dense[row, held], log_probabilities[row, held].astype(np.float16)
        )
        assert len(set(dense[row, others].tolist())) == 1
        np.testing.assert_allclose(
            np.exp(dense[row, others]).sum(),
            np.exp(log_probabilities[row, others].astype(np.float64)).sum(),
            rtol=1e-4,
            atol=1e-9,
        )
    assert (dense.argmax(axis=1) == scores.labels).all()


def test_nothing_that_remains_is_a_small_number_and_no_infinite_logarithm():
    log_probabilities = np.full((1, 5), -200, np.float32)
    log_probabilities[0, 2] = 0
    dense = make_stored_predictions(["a"], log_probabilities, 1).all_log_probabilities(5)
    assert np.isfinite(dense).all() and dense[0, 2] == 0
    assert np.exp(dense[0, [0, 1, 3, 4]]).max() < 1e-9


@pytest.mark.parametrize("top_k", [0, 10, 11])
def test_all_classes_are_held_where_so_many_are_asked_for(top_k):
    scores = make_stored_predictions(make_ids(4), make_log_probabilities(4), top_k)
    assert scores.top_k == 0 and scores.classes is None and scores.remaining is None
    assert scores.log_probabilities.shape == (4, 10)


def test_of_equal_log_probabilities_the_first_classes_are_held():
    log_probabilities = np.log(np.float32([[0.1, 0.3, 0.3, 0.3], [0.25, 0.25, 0.25, 0.25]]))
    scores = make_stored_predictions(["a", "b"], log_probabilities, 2)
    assert scores.classes.tolist() == [[1, 2], [0, 1]]
    assert scores.labels.tolist() == [1, 0]


def test_a_write_that_fails_leaves_no_file(tmp_path):
    scores = make_stored_predictions(make_ids(3), make_log_probabilities(3))
    with pytest.raises(pa.ArrowInvalid):
        write_predictions(tmp_path / "scores.parquet", dataclasses.replace(scores, ids=make_ids(2)))
    assert list(tmp_path.iterdir()) == []


def test_the_same_scores_make_the_same_bytes(tmp_path):
    scores = make_stored_predictions(make_ids(30), make_log_probabilities(30), 4)
    for name in ("one", "other"):
        write_predictions(tmp_path / name, scores)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_missing_and_damaged_files_are_user_errors(tmp_path, content):
    path = tmp_path / "00000.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"00000\.parquet cannot be read") as error:
        read_predictions(path)
    assert "\n" not in str(error.value)


def test_a_cut_file_is_a_user_error(tmp_path):
    path = tmp_path / "00000.parquet"
    write_predictions(path, make_stored_predictions(make_ids(50), make_log_probabilities(50)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"00000\.parquet cannot be read"):
        read_table(path)
