import numpy as np
import pytest
from PIL import Image

from nsk.evaluation import perturbations as library
from nsk.evaluation import robustness
from nsk.evaluation.prediction_files import read_classes
from nsk.evaluation.suites import frames, perturbations
from tests.evaluation.suites.small_classifier import (
    COUNT,
    SIDE,
    CountingPredictor,
    make_images,
    predictor,
)

__all__ = ["predictor"]


def resize(frame):
    return np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def not_needed(*_):
    pytest.fail("called")


def evaluate(predictor, folder, images=None, **options):
    defaults = {
        "perturbations": ("tilt", "gaussian_noise"),
        "corruption_constants": "auto",
        "perturbation_files": "",
        "evaluation_images": 0,
        "evaluation_seed": 5,
        "decode_uncropped": not_needed,
        "resize": not_needed,
    }
    splits = {"test": images or make_images()[0]}
    chosen = perturbations.Options(**{**defaults, **options})
    return perturbations.evaluate(predictor, splits, folder, chosen)


def test_flips_of_every_set(predictor, tmp_path):
    _, pixels, _, ids = make_images()
    found = evaluate(predictor, tmp_path)
    assert list(found["flip_probability"]) == ["gaussian_noise", "tilt"]
    shares = []
    for name, is_noise in (("gaussian_noise", True), ("tilt", False)):
        frames = library.perturb(pixels, name, ids, seed=5, constants="cifar")
        log_probabilities = np.stack(
            [predictor.log_probabilities(frame) for frame in frames], axis=1
        )
        classes = np.argsort(-log_probabilities, axis=2, kind="stable")[..., :5]
        found_ids, stored = read_classes(tmp_path / f"{name}.parquet")
        assert found_ids == ids
        assert stored.shape == (COUNT, 31, 5)
        np.testing.assert_array_equal(stored, classes)
        shares.append(robustness.flip_shares(classes[..., 0], is_noise))
        assert found["flip_probability"][name] == pytest.approx(shares[-1].mean())
        against_first = robustness.flip_probability_against_first(classes[..., 0])
        assert found["flip_probability_against_first"][name] == pytest.approx(against_first)
        distance = robustness.top5_distance(classes, is_noise)
        assert found["top5_distance"][name] == pytest.approx(distance)
    assert found["mean_flip_probability"] == pytest.approx(np.mean(shares))
    assert found["images"] == COUNT


def test_an_interrupted_evaluation_resumes_with_the_missing_sets(predictor, tmp_path):
    expected = evaluate(predictor, tmp_path)
    (tmp_path / "tilt.parquet").unlink()
    counting = CountingPredictor(predictor)
    assert evaluate(counting, tmp_path) == expected
    assert counting.images == 31 * COUNT


def test_small_parts_of_a_batch_give_the_same(predictor, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    expected = evaluate(predictor, tmp_path / "a")
    monkeypatch.setattr(frames, "MAX_BYTES_OF_FRAMES", 1)
    assert evaluate(predictor, tmp_path / "b") == expected


def test_files_of_other_images_are_not_mixed(predictor, tmp_path):
    evaluate(predictor, tmp_path)
    (tmp_path / "tilt.parquet").unlink()
    with pytest.raises(ValueError, match="other images than the first set"):
        evaluate(predictor, tmp_path, make_images(seed=2)[0])
