import numpy as np
import pyarrow.parquet as pq
import pytest

from nsk.errors import UserError
from nsk.pseudo.scores import from_predictions, read_scores, read_table, write_scores
from nsk.pseudo.select import stable_key


def make_log_probabilities(num_images, num_classes=10, seed=0):
    logits = np.random.default_rng(seed).normal(0, 4, (num_images, num_classes))
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits.astype(np.float32)


def make_ids(num_images, first=0):
    return [f"photos/größe {number}.jpg" for number in range(first, first + num_images)]


def test_first_choice_and_confidence_come_from_the_predictions():
    log_probabilities = np.log(
        np.array([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05], [0.4, 0.4, 0.2]], np.float32)
    )
    scores = from_predictions(["a", "b", "c"], log_probabilities)
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
    confidences = from_predictions(["a", "b"], log_probabilities).confidences
    assert confidences[0] > np.float32(0.3)
    assert confidences[1] == 1


def test_files_give_back_what_was_written(tmp_path):
    scores = from_predictions(make_ids(7), make_log_probabilities(7))
    write_scores(tmp_path / "scores.parquet", scores)
    read = read_scores([tmp_path / "scores.parquet"])
    assert read.ids == scores.ids
    for name in ("keys", "labels", "confidences", "log_probabilities"):
        expected = getattr(scores, name)
        np.testing.assert_array_equal(getattr(read, name), expected)
        assert getattr(read, name).dtype == expected.dtype, name


def test_several_files_are_read_one_after_the_other(tmp_path):
    whole = from_predictions(make_ids(10), make_log_probabilities(10))
    log_probabilities = make_log_probabilities(10)
    paths = []
    for number, (first, last) in enumerate([(0, 4), (4, 5), (5, 10)]):
        paths.append(tmp_path / f"{number:05d}.parquet")
        part = from_predictions(make_ids(last - first, first), log_probabilities[first:last])
        write_scores(paths[-1], part)
    read = read_scores(paths)
    assert read.ids == whole.ids
    np.testing.assert_array_equal(read.keys, whole.keys)
    np.testing.assert_array_equal(read.log_probabilities, whole.log_probabilities)


def test_a_person_can_read_the_file_with_any_parquet_reader(tmp_path):
    scores = from_predictions(make_ids(3), make_log_probabilities(3, num_classes=4))
    write_scores(tmp_path / "dev.parquet", scores, truth=np.array([2, 0, 3], np.int32))
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
    write_scores(tmp_path / "a.parquet", from_predictions(make_ids(2), make_log_probabilities(2)))
    assert "truth" not in pq.read_schema(tmp_path / "a.parquet").names


@pytest.mark.parametrize("content", [None, b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_missing_and_damaged_files_are_user_errors(tmp_path, content):
    path = tmp_path / "00000.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"00000\.parquet cannot be read") as error:
        read_scores([path])
    assert "\n" not in str(error.value)


def test_a_cut_file_is_a_user_error(tmp_path):
    path = tmp_path / "00000.parquet"
    write_scores(path, from_predictions(make_ids(50), make_log_probabilities(50)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"00000\.parquet cannot be read"):
        read_table(path)
