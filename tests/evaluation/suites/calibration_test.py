import numpy as np
import pytest

from nsk.evaluation import calibration as library
from nsk.evaluation.predictor import collect
from nsk.evaluation.suites import calibration
from tests.evaluation.suites.small_classifier import COUNT, make_images, predictor

__all__ = ["predictor"]


def test_metrics_before_and_after_the_temperature_that_dev_gives(predictor, tmp_path):
    test, dev = make_images()[0], make_images(20, seed=1, split="dev")[0]
    found = calibration.evaluate(predictor, {"test": test, "dev": dev}, tmp_path)
    of_test, of_dev = (collect(predictor(split.batches)) for split in (test, dev))
    temperature = library.fit_temperature(of_dev.log_probabilities, of_dev.labels)
    assert found["temperature"] == pytest.approx(temperature)
    before = library.calibration_metrics(of_test.log_probabilities, of_test.labels)
    scaled = library.apply_temperature(of_test.log_probabilities, temperature)
    after = library.calibration_metrics(scaled, of_test.labels)
    for name in before:
        assert found[name] == pytest.approx(before[name], rel=1e-5)
        assert found[f"scaled_{name}"] == pytest.approx(after[name], rel=1e-5)
    assert before["nll"] != pytest.approx(after["nll"], rel=1e-3)
    assert (found["images"], found["dev_images"]) == (COUNT, 20)
    assert sum(row["count"] for row in found["reliability"]) == COUNT
    assert found["reliability"] != found["scaled_reliability"]


def test_without_dev_there_is_no_temperature(predictor, tmp_path):
    found = calibration.evaluate(predictor, {"test": make_images()[0]}, tmp_path)
    assert found["temperature"] is None
    assert not any(name.startswith("scaled_") for name in found)
    assert np.isfinite(found["ece"]) and list(tmp_path.iterdir()) == []
