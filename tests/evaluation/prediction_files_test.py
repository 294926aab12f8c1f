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
from nsk.hashing import stable_key


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


def test_label_and_confidence_are_those_of_the_most_probable_class():
    log_probabilities = np.log(
        np.array([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05], [0.4, 0.4, 0.2]], np.float32)
    )
    predictions = make_stored_predictions(["a", "b", "c"], log_probabilities)
    assert len(predictions) == 3
    assert predictions.labels.tolist() == [1, 0, 0]
    np.testing.assert_allclose(predictions.confidences, [0.5, 0.9, 0.4], rtol=1e-6)
    assert predictions.keys.tolist() == [int(stable_key(image_id)) for image_id in "abc"]
    assert (predictions.labels.dtype, predictions.confidences.dtype) == (np.int32, np.float32)
    assert (predictions.keys.dtype, predictions.log_probabilities.dtype) == (np.uint64, np.float16)
    np.testing.assert_array_equal(
        predictions.log_probabilities, log_probabilities.astype(np.float16)
    )


def test_confidence_keeps_float32_and_never_exceeds_1():
    # 0.3000001 and 0.3 are equal in float16, and rounding may lift a logarithm above 0.
    log_probabilities = np.array([[np.log(0.3000001), -2], [1e-6, -15]], np.float32)
    confidences = make_stored_predictions(["a", "b"], log_probabilities).confidences
    assert confidences[0] > np.float32(0.3)
    assert confidences[1] == 1


def test_a_file_round_trips(tmp_path):
    predictions = make_stored_predictions(make_ids(7), make_log_probabilities(7))
    write_predictions(tmp_path / "scores.parquet", predictions)
    read = read_predictions(tmp_path / "scores.parquet")
    assert read.ids == predictions.ids
    assert_equal(read, predictions)
    assert read.classes is None and read.remaining is None and read.top_k == 0
    assert read.calibrated_confidences is None
    np.testing.assert_array_equal(
        read.all_log_probabilities(10), predictions.log_probabilities.astype(np.float32)
    )


def test_log_probabilities_below_the_range_of_float16_stay_finite():
    """As of a network that diverged: an infinity would spread to every mean."""
    predictions = make_stored_predictions(["a"], np.array([[0.0, -1e9]], np.float32))
    assert predictions.log_probabilities.tolist() == [[0.0, -65504.0]]


def test_column_types_are_readable_by_any_parquet_reader(tmp_path):
    predictions = make_stored_predictions(make_ids(3), make_log_probabilities(3, num_classes=4))
    write_predictions(tmp_path / "dev.parquet", predictions, truth=np.array([2, 0, 3], np.int32))
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


def test_truth_is_written_only_if_it_is_given(tmp_path):
    write_predictions(
        tmp_path / "a.parquet", make_stored_predictions(make_ids(2), make_log_probabilities(2))
    )
    assert "truth" not in pq.read_schema(tmp_path / "a.parquet").names


@pytest.mark.parametrize("top_k", [1, 3, 9])
def test_the_top_k_log_probabilities_round_trip(tmp_path, top_k):
    log_probabilities = make_log_probabilities(7)
    calibrated = np.linspace(0, 1, 7, dtype=np.float32)
    predictions = make_stored_predictions(make_ids(7), log_probabilities, top_k, calibrated)
    assert predictions.top_k == top_k and predictions.log_probabilities.shape == (7, top_k)
    assert predictions.classes.dtype == np.int32 and predictions.remaining.dtype == np.float32
    write_predictions(tmp_path / "scores.parquet", predictions)
    read = read_predictions(tmp_path / "scores.parquet")
    assert_equal(read, predictions)
    for row in range(7):
        order = sorted(range(10), key=lambda label: -log_probabilities[row, label])
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
def test_the_remaining_probability_is_shared_equally_by_the_other_classes(top_k):
    log_probabilities = make_log_probabilities(50)
    predictions = make_stored_predictions(make_ids(50), log_probabilities, top_k)
    dense = predictions.all_log_probabilities(10)
    assert dense.dtype == np.float32 and dense.shape == (50, 10)
    np.testing.assert_allclose(np.exp(dense).sum(axis=1), 1, atol=2e-3)  # float16 of up to -20.
    for row in range(50):
        stored = predictions.classes[row]
        others = np.setdiff1d(np.arange(10), stored)
        np.testing.assert_array_equal(
            dense[row, stored], log_probabilities[row, stored].astype(np.float16)
        )
        assert len(set(dense[row, others].tolist())) == 1
        np.testing.assert_allclose(
            np.exp(dense[row, others]).sum(),
            np.exp(log_probabilities[row, others].astype(np.float64)).sum(),
            rtol=1e-4,
            atol=1e-9,
        )
    assert (dense.argmax(axis=1) == predictions.labels).all()


def test_a_remaining_probability_of_0_has_a_finite_logarithm():
    log_probabilities = np.full((1, 5), -200, np.float32)
    log_probabilities[0, 2] = 0
    dense = make_stored_predictions(["a"], log_probabilities, 1).all_log_probabilities(5)
    assert np.isfinite(dense).all() and dense[0, 2] == 0
    assert np.exp(dense[0, [0, 1, 3, 4]]).max() < 1e-9


@pytest.mark.parametrize("top_k", [0, 10, 11])
def test_all_classes_are_stored_with_top_k_0_or_at_least_their_number(top_k):
    predictions = make_stored_predictions(make_ids(4), make_log_probabilities(4), top_k)
    assert predictions.top_k == 0 and predictions.classes is None and predictions.remaining is None
    assert predictions.log_probabilities.shape == (4, 10)


def test_ties_go_to_the_first_classes():
    log_probabilities = np.log(np.float32([[0.1, 0.3, 0.3, 0.3], [0.25, 0.25, 0.25, 0.25]]))
    predictions = make_stored_predictions(["a", "b"], log_probabilities, 2)
    assert predictions.classes.tolist() == [[1, 2], [0, 1]]
    assert predictions.labels.tolist() == [1, 0]


def test_a_write_that_fails_leaves_no_file(tmp_path):
    predictions = make_stored_predictions(make_ids(3), make_log_probabilities(3))
    with pytest.raises(pa.ArrowInvalid):
        write_predictions(
            tmp_path / "scores.parquet", dataclasses.replace(predictions, ids=make_ids(2))
        )
    assert list(tmp_path.iterdir()) == []


def test_equal_predictions_make_equal_bytes(tmp_path):
    predictions = make_stored_predictions(make_ids(30), make_log_probabilities(30), 4)
    for name in ("first", "second"):
        write_predictions(tmp_path / name, predictions)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_missing_and_damaged_files_are_user_errors(tmp_path, content):
    path = tmp_path / "00000.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"00000\.parquet cannot be read") as error:
        read_predictions(path)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_a_user_error(tmp_path):
    path = tmp_path / "00000.parquet"
    write_predictions(path, make_stored_predictions(make_ids(50), make_log_probabilities(50)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"00000\.parquet cannot be read"):
        read_table(path)
