import io
import itertools

import keras
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn import datasets

from nsk import self_training
from nsk.data import pipeline, records
from nsk.data.image_subset import ImageSubset
from nsk.data.resident_images import load_images
from nsk.data.shards import ShardSet, ShardWriter
from nsk.errors import UserError
from nsk.evaluation.calibration import fit_temperature
from nsk.evaluation.prediction_files import read_predictions, read_table
from nsk.evaluation.predictor import Predictions
from nsk.pseudo.calibration import calibrated_confidences
from nsk.stages import comparison, ingestion, pseudo_shards, scoring, selection, training
from nsk.stages.runner import MODEL_FILE, shard_set
from nsk.stages.score_files import DEV_FILE, UNLABELED_FOLDER, score_file_name, score_paths
from nsk.stages.scoring import REFERENCES_FILE, TEMPERATURE_FILE, ScoringOptions, score_shards
from nsk.store.manifest import read_manifest

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
    """31 other digits with their labels."""
    return write_digits(tmp_path / "dev", range(FIRST_DEV, FIRST_DEV + 31), True, 12)


def predict_images(images):
    """Log-probabilities that are a function of each image."""
    pixels = np.asarray(images, np.float64).reshape(len(images), -1)
    logits = pixels @ np.random.default_rng(0).normal(0, 0.01, (pixels.shape[1], 10))
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


class Teacher:
    """The argument `load_predict`; records the shards of unlabelled images that it predicts.

    Its features, if they are known, are the pixels.
    """

    def __init__(self, batch_size=4, has_features=False):
        self.batch_size, self.predicted_shards = batch_size, []
        self.has_features = has_features

    def __call__(self):
        return self.predict

    def predict(self, shard_set, shards):
        if getattr(shard_set, "shard_set", shard_set).folder.name == "unlabeled":
            self.predicted_shards += shards
        for batch in pipeline.clean_batches(shard_set, 8, self.batch_size, shards):
            ids = [image_id.decode() for image_id in batch["id"].numpy()]
            pixels = batch["image"].numpy().reshape(len(ids), -1).astype(np.float32)
            features = pixels if self.has_features else None
            log_probabilities = predict_images(batch["image"])
            yield Predictions(ids, batch["label"].numpy(), log_probabilities, features)


def run(unlabeled, dev, folder, teacher=None, **settings):
    folder.mkdir(exist_ok=True)
    options = ScoringOptions(**settings)
    return score_shards(unlabeled, dev, teacher or Teacher(), folder, options)


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
    """With batches smaller than, equal to and larger than shards."""
    counts = run(unlabeled, dev, tmp_path / "scores", Teacher(batch_size), top_k=top_k)
    images = load_images(unlabeled, 8)
    expected = predict_images(images.images)
    assert counts["scored"] == NUM_IMAGES

    files = sorted(path.name for path in (tmp_path / "scores" / UNLABELED_FOLDER).iterdir())
    assert files == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert files == [score_file_name(name) for name in unlabeled.names]
    assert [path.name for path in score_paths(unlabeled, tmp_path / "scores")] == files
    ids = []
    for number, path in enumerate(score_paths(unlabeled, tmp_path / "scores")):
        predictions = read_predictions(path)
        rows = expected[number * 10 :][:10]
        assert predictions.ids == images.ids[number * 10 :][:10] and predictions.top_k == top_k
        if top_k:
            np.testing.assert_array_equal(predictions.classes[:, 0], rows.argmax(axis=1))
        else:
            np.testing.assert_array_equal(predictions.log_probabilities, rows.astype(np.float16))
        np.testing.assert_array_equal(predictions.labels, rows.argmax(axis=1))
        np.testing.assert_allclose(predictions.confidences, np.exp(rows.max(axis=1)), rtol=1e-6)
        np.testing.assert_array_equal(
            predictions.calibrated_confidences, calibrated_confidences(rows, counts["temperature"])
        )
        ids += predictions.ids
    assert ids == [f"digits/{number:04d}" for number in range(NUM_IMAGES)]


@pytest.mark.parametrize("top_k", [0, 3])
def test_dev_is_scored_with_its_labels_and_gives_the_temperature(unlabeled, dev, tmp_path, top_k):
    counts = run(unlabeled, dev, tmp_path / "scores", top_k=top_k)
    images = load_images(dev, 8)
    log_probabilities = predict_images(images.images)
    # Fitted on all classes, however many are stored.
    assert counts["temperature"] == fit_temperature(log_probabilities, images.labels)
    assert abs(counts["temperature"] - 1) > 0.1
    predictions = read_predictions(tmp_path / "scores" / DEV_FILE)
    assert predictions.ids == images.ids
    truth = read_table(tmp_path / "scores" / DEV_FILE)["truth"].to_pylist()
    assert truth == datasets.load_digits().target[FIRST_DEV:][:31].tolist()
    np.testing.assert_array_equal(
        predictions.calibrated_confidences,
        calibrated_confidences(log_probabilities, counts["temperature"]),
    )
    np.testing.assert_array_equal(
        predictions.confidences, np.exp(log_probabilities.max(axis=1)).clip(0, 1)
    )


def test_distances_in_features_are_those_to_the_fifth_nearest_dev_image(unlabeled, dev, tmp_path):
    folder = tmp_path / "scores"
    run(unlabeled, dev, folder, Teacher(4, has_features=True))
    pools, references = (
        load_images(images, 8).images.numpy().reshape(images.num_records, -1).astype(float)
        for images in (unlabeled, dev)
    )
    scored = [read_predictions(path) for path in score_paths(unlabeled, folder)]
    received = np.concatenate([predictions.feature_distances for predictions in scored])
    expected = np.sort(cdist(pools, references, "cosine"), axis=1)[:, 4]
    np.testing.assert_allclose(received, expected, atol=1e-6)
    # Without the image itself, at a distance of 0.
    expected = np.sort(cdist(references, references, "cosine"), axis=1)[:, 5]
    received = read_predictions(folder / DEV_FILE).feature_distances
    np.testing.assert_allclose(received, expected, atol=1e-6)


def test_distances_do_not_depend_on_the_number_of_workers(unlabeled, dev, tmp_path):
    run(unlabeled, dev, tmp_path / "alone", Teacher(4, has_features=True))
    for worker in (1, 0):
        teacher = Teacher(4, has_features=True)
        run(unlabeled, dev, tmp_path / "shared", teacher, worker=worker, num_workers=2)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert REFERENCES_FILE in contents(tmp_path / "alone")


@pytest.mark.parametrize("num_dev", [19, 20])
def test_few_dev_images_give_no_distances(unlabeled, tmp_path, num_dev):
    dev = write_digits(tmp_path / "dev", range(FIRST_DEV, FIRST_DEV + num_dev), labelled=True)
    run(unlabeled, dev, tmp_path / "scores", Teacher(4, has_features=True))
    for path in (*score_paths(unlabeled, tmp_path / "scores"), tmp_path / "scores" / DEV_FILE):
        assert (read_predictions(path).feature_distances is not None) == (num_dev == 20)


def test_scores_of_a_shard_do_not_depend_on_the_other_shards(unlabeled, dev, tmp_path):
    """No batch has images of two shards: shards may be scored in any order, anywhere."""
    together = list(Teacher(7).predict(unlabeled, [0, 1, 2]))
    assert [len(batch.ids) for batch in together] == [5, 5, 5, 5, 5]
    single = [batch for shard in (0, 1, 2) for batch in Teacher(7).predict(unlabeled, [shard])]
    for batch, expected in zip(together, single, strict=True):
        assert batch.ids == expected.ids
        np.testing.assert_array_equal(batch.log_probabilities, expected.log_probabilities)


def constant_teacher(predictions):
    """The argument `load_predict` with fixed predictions of the unlabelled images."""

    def predict(shard_set, shards):
        if shard_set.folder.name == "unlabeled":
            return iter(predictions)
        return Teacher().predict(shard_set, shards)

    return lambda: predict


def test_missing_predictions_and_batches_across_shards_are_errors(unlabeled, dev, tmp_path):
    batches = list(Teacher(5).predict(unlabeled, [0, 1, 2]))
    across_shards = Predictions(
        batches[1].ids + batches[2].ids,
        np.concatenate([batches[1].labels, batches[2].labels]),
        np.concatenate([batches[1].log_probabilities, batches[2].log_probabilities]),
    )
    for number, (predictions, message) in enumerate(
        [
            (batches[:-1], r"0 predictions of 5 images in 00002\.tfrecord"),
            ([*batches[:3]], r"5 predictions of 10 images in 00001\.tfrecord"),
            ([batches[0], across_shards], r"15 predictions of 10 images in 00000\.tfrecord"),
            ([*batches[:-1], across_shards], r"10 predictions of 5 images in 00002\.tfrecord"),
        ]
    ):
        with pytest.raises(ValueError, match=message):
            run(unlabeled, dev, tmp_path / str(number), constant_teacher(predictions))


def test_more_predictions_than_images_are_an_error(unlabeled, dev, tmp_path):
    batches = list(Teacher(5).predict(unlabeled, [0, 1, 2]))
    with pytest.raises(ValueError, match="predictions"):
        run(unlabeled, dev, tmp_path / "scores", constant_teacher([*batches, batches[0]]))


def test_a_stopped_scoring_resumes_with_the_missing_shards(unlabeled, dev, tmp_path):
    folder = tmp_path / "scores"
    counts = run(unlabeled, dev, folder)
    complete = contents(folder)
    paths = score_paths(unlabeled, folder)
    for missing in ([0], [1], [2], [0, 2], [1, 2], [0, 1, 2], []):
        for shard in missing:
            paths[shard].unlink()
        kept = {path: path.stat().st_mtime_ns for path in paths if path.exists()}
        teacher = Teacher()
        assert run(unlabeled, dev, folder, teacher) == counts
        assert teacher.predicted_shards == missing
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert contents(folder) == complete


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
@pytest.mark.parametrize("num_workers", [2, 3, 5])
def test_several_workers_write_the_same_files_as_a_single_worker(
    unlabeled, dev, tmp_path, order, num_workers
):
    counts = run(unlabeled, dev, tmp_path / "alone")
    folder, scored = tmp_path / "shared", []
    order = [worker for worker in order if worker < num_workers] + list(range(3, num_workers))
    for worker in order:
        teacher = Teacher()
        received = run(unlabeled, dev, folder, teacher, worker=worker, num_workers=num_workers)
        assert teacher.predicted_shards == list(range(worker, 3, num_workers))
        scored += teacher.predicted_shards
        is_complete = len(scored) == 3
        assert received == (counts if is_complete else None)
    assert sorted(scored) == [0, 1, 2]
    assert contents(folder) == contents(tmp_path / "alone")


def test_all_processes_calibrate_with_the_temperature_of_the_first(unlabeled, dev, tmp_path):
    """Another machine may round differently, but its confidences must be comparable."""
    folder = tmp_path / "scores"
    folder.mkdir()
    (folder / TEMPERATURE_FILE).write_text("1.75")
    assert run(unlabeled, dev, folder)["temperature"] == 1.75
    for path in (*score_paths(unlabeled, folder), folder / DEV_FILE):
        predictions = read_predictions(path)
        expected = calibrated_confidences(predictions.log_probabilities.astype(np.float32), 1.75)
        np.testing.assert_allclose(predictions.calibrated_confidences, expected, rtol=2e-3)


def test_a_failing_shard_leaves_the_files_before_it_and_no_partial_file(unlabeled, dev, tmp_path):
    def fail_at(number):
        def predict(shard_set, shards):
            for count, batch in enumerate(Teacher(5).predict(shard_set, shards)):
                if shard_set.folder.name == "unlabeled" and count == number:
                    raise KeyboardInterrupt
                yield batch

        return lambda: predict

    for number, files in ((0, 0), (1, 0), (2, 1), (3, 1), (4, 2)):
        folder = tmp_path / str(number)
        with pytest.raises(KeyboardInterrupt):
            run(unlabeled, dev, folder, fail_at(number))
        assert set(contents(folder)) == {DEV_FILE, TEMPERATURE_FILE} | {
            f"{UNLABELED_FOLDER}/{shard:05d}.parquet" for shard in range(files)
        }


def test_score_files_have_no_true_labels(unlabeled, dev, tmp_path):
    run(unlabeled, dev, tmp_path / "scores")
    for path in score_paths(unlabeled, tmp_path / "scores"):
        assert "truth" not in read_table(path).column_names


def test_progress_ends_with_all_images(unlabeled, dev, tmp_path, capsys):
    run(unlabeled, dev, tmp_path / "scores", title="gen1/scores")
    assert capsys.readouterr().err.splitlines()[-1].startswith("gen1/scores: 25 images in ")


def test_scores_may_be_the_mean_of_an_image_and_its_mirror_image(make_runner, tmp_path):
    def score(views):
        runner = make_runner(tmp_path, models=["convnet5"] * 2, flip="on", score_views=views)
        images = ingestion.ingest_images(runner)
        teacher = training.train(runner, 0, images)
        return images, teacher, scoring.score(runner, 1, teacher, images)

    images, teacher, mirrored = score("mirror")
    batches = pipeline.clean_batches(shard_set(images, "unlabeled"), 8, 500)
    pixels = np.concatenate([batch["image"] for batch in batches]).astype(np.float32)
    model = keras.models.load_model(teacher.path / MODEL_FILE, compile=False)
    views = [keras.ops.softmax(model(view)) for view in (pixels, pixels[:, :, ::-1])]
    (path,) = (mirrored.path / UNLABELED_FOLDER).glob("*.parquet")
    scores = read_predictions(path)
    expected = np.mean(views, axis=0)
    assert np.abs(views[0] - views[1]).max() > 0.01
    np.testing.assert_allclose(np.exp(scores.log_probabilities), expected, rtol=0.01, atol=1e-4)
    _, same_teacher, clean = score("image")
    assert same_teacher.path == teacher.path and clean.path != mirrored.path


def test_a_subset_is_scored_as_part_of_the_whole(unlabeled, dev, tmp_path, monkeypatch):
    """Its rows are those of all scores, without the others; also those of shards without any."""
    monkeypatch.setattr(scoring, "SHARDS_IN_GROUP", 2)
    counts = run(unlabeled, dev, tmp_path / "all", Teacher(has_features=True))
    subset = ImageSubset(0.2, 2)
    teacher = Teacher(has_features=True)
    used = run(unlabeled, dev, tmp_path / "some", teacher, subset=subset)
    assert used["temperature"] == counts["temperature"] and used["scored"] == 4
    num_rows = []
    for all_path, path in zip(
        score_paths(unlabeled, tmp_path / "all"),
        score_paths(unlabeled, tmp_path / "some"),
        strict=True,
    ):
        table = read_table(all_path)
        expected = table.filter(subset.contains(table["id"].to_pylist()))
        num_rows.append(len(expected))
        # The distances may be rounded differently in batches of another size.
        columns = [name for name in table.column_names if name != "feature_distance"]
        assert read_table(path).select(columns).equals(expected.select(columns))
        np.testing.assert_allclose(
            read_table(path)["feature_distance"], expected["feature_distance"], atol=1e-6
        )
    assert num_rows == [0, 3, 1]


def test_a_fraction_of_the_unlabelled_images_is_used_by_a_student(tmp_path, make_runner, caplog):
    """Its pseudo-labels are of it alone; the teacher and the images are those of all fractions."""
    teachers, scores, written = [], [], []
    for fraction in (1.0, 0.4):
        runner = make_runner(
            tmp_path, unlabeled_fraction=fraction, min_confidence=[0.0], policy="none"
        )
        with caplog.at_level("INFO", logger="absl"):
            images, (teacher,) = self_training.start_chain(runner)
            scored = scoring.score(runner, 1, teacher.model, images)
        selected = selection.select(runner, 1, scored, images)
        pseudo_labels = pseudo_shards.write(runner, 1, images, scored, selected)
        pseudo = shard_set(pseudo_labels, pseudo_shards.SHARDS_FOLDER).records(0)
        written.append([records.parse_ids([record])[0].numpy().decode() for record in pseudo])
        teachers.append(teacher.model)
        scores.append(scored)
    assert teachers[1].reused and teachers[1].path == teachers[0].path
    ids, used = written
    assert used == [*itertools.compress(ids, ImageSubset(0.4, 0).contains(ids))]
    assert (scores[0].counts["scored"], scores[1].counts["scored"]) == (len(ids), len(used))
    assert f"{len(used)} of {len(ids):,} unlabelled images are used" in caplog.text

    runner = make_runner(tmp_path, unlabeled_fraction=1e-9)
    with pytest.raises(UserError, match=r"--unlabeled_fraction=1e-09 of .* is none of them: raise"):
        scoring.score(runner, 1, teacher.model, images)


def test_labels_with_the_noise_of_the_student(tmp_path, make_runner):
    """Dev stays clean, so its scores and the temperature do; the noise is in the fingerprint."""
    rates = {"dropout_rate": ["0", "0.5"], "crop_padding": ["0", "2"]}
    runner = make_runner(tmp_path, **rates)
    images, (teacher,) = self_training.start_chain(runner)
    clean = scoring.score(runner, 1, teacher.model, images)
    runner = make_runner(tmp_path, label_with_noise=True, **rates)
    noisy = scoring.score(runner, 1, teacher.model, images)
    assert comparison.compare(runner, 1, noisy, images) is None
    assert noisy.counts == clean.counts
    assert read_table(noisy.path / DEV_FILE).equals(read_table(clean.path / DEV_FILE))
    unlabeled = shard_set(images, "unlabeled")
    first, second = (read_table(score_paths(unlabeled, stage.path)[0]) for stage in (clean, noisy))
    assert first["id"].equals(second["id"]) and "feature_distance" not in second.column_names
    assert not first["confidence"].equals(second["confidence"])
    noise_settings = read_manifest(noisy.path)["settings"]["noise"]
    assert (noise_settings["dropout_rate"], noise_settings["crop_padding"]) == (0.5, 2)
