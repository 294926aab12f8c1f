import io

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from nsk.data import pipeline, records
from nsk.data.shards import ShardSet, ShardWriter
from nsk.evaluation.prediction_files import read_predictions, read_table
from nsk.evaluation.predictor import Predictions
from nsk.pseudo.calibration import calibrated_confidences, fit_temperature
from nsk.stages.scoring import DEV, TEMPERATURE, UNLABELED, score, score_file_name, score_paths

NUM_IMAGES = 25
FIRST_DEV = 100


def write_digits(folder, rows, labelled, images_per_shard=10):
    digits = datasets.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    names = [str(digit) for digit in range(10)]
    with ShardWriter(folder, "images", names, images_per_shard) as writer:
        for row in rows:
            buffer = io.BytesIO()
            Image.fromarray(pixels[row]).save(buffer, "PNG")
            label = int(digits.target[row]) if labelled else None
            writer.write(records.image_example(f"digits/{row:04d}", buffer.getvalue(), label))
    return ShardSet.load(folder)


@pytest.fixture
def unlabeled(tmp_path):
    """25 handwritten digits in shards of 10, 10 and 5."""
    return write_digits(tmp_path / "unlabeled", range(NUM_IMAGES), labelled=False)


@pytest.fixture
def dev(tmp_path):
    """31 others with their labels."""
    return write_digits(tmp_path / "dev", range(FIRST_DEV, FIRST_DEV + 31), True, 12)


def predict_images(images):
    """Log-probabilities that are a function of each image alone."""
    pixels = np.asarray(images, np.float64).reshape(len(images), -1)
    logits = pixels @ np.random.default_rng(0).normal(0, 0.01, (pixels.shape[1], 10))
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


class Teacher:
    """What `score` calls, and the shards of unlabelled images that it has been asked for."""

    def __init__(self, batch_size=4):
        self.batch_size, self.asked = batch_size, []

    def __call__(self):
        return self.predict

    def predict(self, shard_set, shards):
        if shard_set.folder.name == "unlabeled":
            self.asked += shards
        for batch in pipeline.clean_batches(shard_set, 8, self.batch_size, shards):
            ids = [one.decode() for one in batch["id"].numpy()]
            yield Predictions(ids, batch["label"].numpy(), predict_images(batch["image"]))


def run(unlabeled, dev, folder, teacher=None, **settings):
    folder.mkdir(exist_ok=True)
    return score(unlabeled, dev, teacher or Teacher(), folder, **settings)


def contents(folder):
    """{path within a folder: bytes} of all files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("batch_size", [4, 5, 10, 12, 100])
@pytest.mark.parametrize("top_k", [0, 3])
def test_every_image_is_scored_once_row_for_row(unlabeled, dev, tmp_path, batch_size, top_k):
    """Batches end before, at and after the ends of shards."""
    counts = run(unlabeled, dev, tmp_path / "scores", Teacher(batch_size), top_k=top_k)
    images = pipeline.load_images(unlabeled, 8)
    expected = predict_images(images.images)
    assert counts["scored"] == NUM_IMAGES

    files = sorted(path.name for path in (tmp_path / "scores" / UNLABELED).iterdir())
    assert files == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert files == [score_file_name(name) for name in unlabeled.names]
    assert [path.name for path in score_paths(unlabeled, tmp_path / "scores")] == files
    ids = []
    for number, path in enumerate(score_paths(unlabeled, tmp_path / "scores")):
        scores = read_predictions(path)
        rows = expected[number * 10 :][:10]
        assert scores.ids == images.ids[number * 10 :][:10] and scores.top_k == top_k
        if top_k:
            np.testing.assert_array_equal(scores.classes[:, 0], rows.argmax(axis=1))
        else:
            np.testing.assert_array_equal(scores.log_probabilities, rows.astype(np.float16))
        np.testing.assert_array_equal(scores.labels, rows.argmax(axis=1))
        np.testing.assert_allclose(scores.confidences, np.exp(rows.max(axis=1)), rtol=1e-6)
        np.testing.assert_array_equal(
            scores.calibrated_confidences, calibrated_confidences(rows, counts["temperature"])
        )
        ids += scores.ids
    assert ids == [f"digits/{number:04d}" for number in range(NUM_IMAGES)]


@pytest.mark.parametrize("top_k", [0, 3])
def test_dev_is_scored_with_its_labels_and_gives_the_temperature(unlabeled, dev, tmp_path, top_k):
    counts = run(unlabeled, dev, tmp_path / "scores", top_k=top_k)
    images = pipeline.load_images(dev, 8)
    log_probabilities = predict_images(images.images)
    # Of all classes, however many are stored.
    assert counts["temperature"] == fit_temperature(log_probabilities, images.labels)
    assert abs(counts["temperature"] - 1) > 0.1
    scores = read_predictions(tmp_path / "scores" / DEV)
    assert scores.ids == images.ids
    truth = read_table(tmp_path / "scores" / DEV)["truth"].to_pylist()
    assert truth == datasets.load_digits().target[FIRST_DEV:][:31].tolist()
    np.testing.assert_array_equal(
        scores.calibrated_confidences,
        calibrated_confidences(log_probabilities, counts["temperature"]),
    )
    np.testing.assert_array_equal(
        scores.confidences, np.exp(log_probabilities.max(axis=1)).clip(0, 1)
    )


def test_what_a_shard_is_scored_does_not_depend_on_the_others(unlabeled, dev, tmp_path):
    """No batch has images of two shards: so the shards may be scored in any order, anywhere."""
    whole = list(Teacher(7).predict(unlabeled, [0, 1, 2]))
    assert [len(one.ids) for one in whole] == [5, 5, 5, 5, 5]
    apart = [one for shard in (0, 1, 2) for one in Teacher(7).predict(unlabeled, [shard])]
    for one, other in zip(whole, apart, strict=True):
        assert one.ids == other.ids
        np.testing.assert_array_equal(one.log_probabilities, other.log_probabilities)


def given(predictions):
    """What `score` calls, for a list of predictions of the unlabelled images."""

    def predict(shard_set, shards):
        if shard_set.folder.name == "unlabeled":
            return iter(predictions)
        return Teacher().predict(shard_set, shards)

    return lambda: predict


def test_too_few_predictions_or_those_of_two_shards_are_a_mistake_of_the_program(
    unlabeled, dev, tmp_path
):
    whole = list(Teacher(5).predict(unlabeled, [0, 1, 2]))
    of_two = Predictions(
        whole[1].ids + whole[2].ids,
        np.concatenate([whole[1].labels, whole[2].labels]),
        np.concatenate([whole[1].log_probabilities, whole[2].log_probabilities]),
    )
    for number, (predictions, message) in enumerate(
        [
            (whole[:-1], r"0 predictions of 5 images in 00002\.tfrecord"),
            ([*whole[:3]], r"5 predictions of 10 images in 00001\.tfrecord"),
            ([whole[0], of_two], r"15 predictions of 10 images in 00000\.tfrecord"),
            ([*whole[:-1], of_two], r"10 predictions of 5 images in 00002\.tfrecord"),
        ]
    ):
        with pytest.raises(ValueError, match=message):
            run(unlabeled, dev, tmp_path / str(number), given(predictions))


def test_more_predictions_than_images_are_a_mistake_of_the_program(unlabeled, dev, tmp_path):
    whole = list(Teacher(5).predict(unlabeled, [0, 1, 2]))
    with pytest.raises(ValueError, match="predictions"):
        run(unlabeled, dev, tmp_path / "scores", given([*whole, whole[0]]))


def test_a_stopped_scoring_goes_on_with_the_shards_that_are_missing(unlabeled, dev, tmp_path):
    folder = tmp_path / "scores"
    counts = run(unlabeled, dev, folder)
    whole = contents(folder)
    paths = score_paths(unlabeled, folder)
    for missing in ([0], [1], [2], [0, 2], [1, 2], [0, 1, 2], []):
        for shard in missing:
            paths[shard].unlink()
        kept = {path: path.stat().st_mtime_ns for path in paths if path.exists()}
        teacher = Teacher()
        assert run(unlabeled, dev, folder, teacher) == counts
        assert teacher.asked == missing
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert contents(folder) == whole


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
@pytest.mark.parametrize("num_workers", [2, 3, 5])
def test_workers_together_write_the_files_of_one(unlabeled, dev, tmp_path, order, num_workers):
    counts = run(unlabeled, dev, tmp_path / "alone")
    folder, asked = tmp_path / "shared", []
    order = [worker for worker in order if worker < num_workers] + list(range(3, num_workers))
    for worker in order:
        teacher = Teacher()
        made = run(unlabeled, dev, folder, teacher, worker=worker, num_workers=num_workers)
        assert teacher.asked == list(range(worker, 3, num_workers))
        asked += teacher.asked
        complete = len(asked) == 3
        assert made == (counts if complete else None)
    assert sorted(asked) == [0, 1, 2]
    assert contents(folder) == contents(tmp_path / "alone")


def test_all_processes_calibrate_with_the_temperature_of_the_first(unlabeled, dev, tmp_path):
    """Another machine may round differently, and its shards must compare with the others."""
    folder = tmp_path / "scores"
    folder.mkdir()
    (folder / TEMPERATURE).write_text("1.75")
    assert run(unlabeled, dev, folder)["temperature"] == 1.75
    for path in (*score_paths(unlabeled, folder), folder / DEV):
        scores = read_predictions(path)
        expected = calibrated_confidences(scores.log_probabilities.astype(np.float32), 1.75)
        np.testing.assert_allclose(scores.calibrated_confidences, expected, rtol=2e-3)


def test_a_shard_that_fails_leaves_those_before_it_and_no_half_file(unlabeled, dev, tmp_path):
    def fail_at(number):
        def predict(shard_set, shards):
            for count, one in enumerate(Teacher(5).predict(shard_set, shards)):
                if shard_set.folder.name == "unlabeled" and count == number:
                    raise KeyboardInterrupt
                yield one

        return lambda: predict

    for number, files in ((0, 0), (1, 0), (2, 1), (3, 1), (4, 2)):
        folder = tmp_path / str(number)
        with pytest.raises(KeyboardInterrupt):
            run(unlabeled, dev, folder, fail_at(number))
        assert set(contents(folder)) == {DEV, TEMPERATURE} | {
            f"{UNLABELED}/{shard:05d}.parquet" for shard in range(files)
        }


def test_scores_say_nothing_of_the_truth(unlabeled, dev, tmp_path):
    run(unlabeled, dev, tmp_path / "scores")
    for path in score_paths(unlabeled, tmp_path / "scores"):
        assert "truth" not in read_table(path).column_names


def test_progress_ends_with_all_images(unlabeled, dev, tmp_path, capsys):
    run(unlabeled, dev, tmp_path / "scores", title="gen1/scores")
    assert capsys.readouterr().err.splitlines()[-1].startswith("gen1/scores: 25 images in ")
