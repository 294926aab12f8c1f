"""Tests that move with the functions of `nsk.stages.pending`."""

import keras
import numpy as np

from nsk.data import pipeline
from nsk.evaluation.prediction_files import read_scores
from nsk.stages import ingestion, pending, training
from nsk.stages.runner import shard_set


def test_scores_may_be_the_mean_of_an_image_and_its_mirror_image(make_runner, tmp_path):
    def score(views):
        runner = make_runner(tmp_path, models=["convnet5"] * 2, flip="on", score_views=views)
        images = ingestion.ingest_images(runner)
        teacher = training.train(runner, 0, images)
        return images, teacher, pending.score(runner, 1, teacher, images)

    images, teacher, mirrored = score("mirror")
    batches = pipeline.clean_batches(shard_set(images, "unlabeled"), 8, 500)
    pixels = np.concatenate([batch["image"] for batch in batches]).astype(np.float32)
    model = keras.models.load_model(teacher.path / training.MODEL, compile=False)
    views = [keras.ops.softmax(model(view)) for view in (pixels, pixels[:, :, ::-1])]
    (path,) = (mirrored.path / "unlabeled").glob("*.parquet")
    scores = read_scores(path)
    expected = np.mean(views, axis=0)
    assert np.abs(views[0] - views[1]).max() > 0.01
    np.testing.assert_allclose(np.exp(scores.log_probabilities), expected, rtol=0.01, atol=1e-4)
    _, same_teacher, other = score("image")
    assert same_teacher.path == teacher.path and other.path != mirrored.path
