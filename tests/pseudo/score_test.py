import io

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from nsk.data import pipeline, records
from nsk.data.shards import ShardSet, ShardWriter
from nsk.evaluation.predict import Predictions
from nsk.pseudo.score import score, score_file
from nsk.pseudo.scores import read_scores, read_table

NUM_IMAGES = 25


@pytest.fixture
def unlabeled(tmp_path):
    """25 handwritten digits in shards of 10, 10 and 5."""
    pixels = np.round(datasets.load_digits().images * (255 / 16)).astype(np.uint8)
    names = [str(digit) for digit in range(10)]
    with ShardWriter(tmp_path / "unlabeled", "images", names, 10) as writer:
        for number in range(NUM_IMAGES):
            buffer = io.BytesIO()
            Image.fromarray(pixels[number]).save(buffer, "PNG")
            writer.write(records.image_example(f"digits/{number:04d}", buffer.getvalue()))
    return ShardSet.load(tmp_path / "unlabeled")


def predict(images):
    """Log-probabilities that are a function of each image alone."""
    pixels = np.asarray(images, np.float64).reshape(len(images), -1)
    logits = pixels @ np.random.default_rng(0).normal(0, 0.01, (pixels.shape[1], 10))
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def predictions(unlabeled, batch_size):
    for batch in pipeline.clean_batches(unlabeled, 8, batch_size):
        ids = [one.decode() for one in batch["id"].numpy()]
        yield Predictions(ids, batch["label"].numpy(), predict(batch["image"]))


def run(unlabeled, folder, batch_size=4):
    folder.mkdir()
    return score(unlabeled, predictions(unlabeled, batch_size), folder)


@pytest.mark.parametrize("batch_size", [4, 5, 10, 12, 100])
def test_every_image_is_scored_once_row_for_row(unlabeled, tmp_path, batch_size):
    """Batches end before, at and after the ends of shards."""
    assert run(unlabeled, tmp_path / "scores", batch_size) == {"scored": NUM_IMAGES}
    images = pipeline.load_images(unlabeled, 8)
    expected = predict(images.images)

    files = sorted(path.name for path in (tmp_path / "scores").iterdir())
    assert files == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert files == [score_file(name) for name in unlabeled.names]
    ids = []
    for number, name in enumerate(files):
        scores = read_scores([tmp_path / "scores" / name])
        rows = expected[number * 10 :][:10]
        assert scores.ids == images.ids[number * 10 :][:10]
        np.testing.assert_array_equal(scores.log_probabilities, rows.astype(np.float16))
        np.testing.assert_array_equal(scores.labels, rows.argmax(axis=1))
        ids += scores.ids
    assert ids == [f"digits/{number:04d}" for number in range(NUM_IMAGES)]


def test_too_few_or_too_many_predictions_are_a_mistake_of_the_program(unlabeled, tmp_path):
    whole = list(predictions(unlabeled, 4))
    for number, (given, message) in enumerate(
        [
            (whole[:-1], "24 predictions of 25 images"),
            ([*whole, whole[0]], "more predictions than 25 images"),
            ([*whole[:-1], whole[0]], "more predictions than 25 images"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(ValueError, match=message):
            score(unlabeled, iter(given), folder)


def test_scores_say_nothing_of_the_truth(unlabeled, tmp_path):
    run(unlabeled, tmp_path / "scores")
    for path in (tmp_path / "scores").iterdir():
        assert "truth" not in read_table(path).column_names


def test_progress_ends_with_all_images(unlabeled, tmp_path, capsys):
    run(unlabeled, tmp_path / "scores")
    assert capsys.readouterr().err.splitlines()[-1].startswith("scoring: 25 images in ")
