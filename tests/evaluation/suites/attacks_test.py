import json

import numpy as np
import pytest

from nsk.evaluation import attacks as library
from nsk.evaluation import bootstrap
from nsk.evaluation.attacks import PgdSettings
from nsk.evaluation.suites import attacks
from tests.evaluation.suites.small_classifier import COUNT, make_images, predictor

__all__ = ["predictor"]
EPSILONS = (0.0, 0.02, 0.1)


def evaluate(predictor, folder, images=None, **options):
    defaults = {
        "fgsm_epsilons": EPSILONS,
        "pgd_epsilons": (0.02,),
        "pgd_norm": "inf",
        "pgd_steps": 3,
        "pgd_step_size": 0.5,
        "pgd_restarts": 1,
        "evaluation_images": 0,
        "evaluation_seed": 5,
    }
    splits = {"test": images or make_images()[0]}
    chosen = attacks.Options(**{**defaults, **options})
    return attacks.evaluate(predictor, splits, folder, chosen)


def test_curves_of_all_attacks(predictor, tmp_path):
    _, pixels, labels, ids = make_images()
    found = evaluate(predictor, tmp_path)
    assert found["clean_accuracy"] == found["fgsm"]["accuracy"][0]
    for index, epsilon in enumerate(EPSILONS):
        adversarial = library.fgsm(predictor.model, pixels, labels, epsilon)
        correct = predictor.log_probabilities(adversarial).argmax(axis=1) == labels
        assert found["fgsm"]["accuracy"][index] == pytest.approx(correct.mean())
        interval = list(bootstrap.bootstrap_interval(correct))
        assert found["fgsm"]["intervals"][index] == interval
    curve = library.fgsm_curve(predictor.model, pixels, labels, EPSILONS, loss="logit")
    expected = curve.correct_before_and_unchanged.mean(axis=0)
    np.testing.assert_allclose(found["fgsm_logit"]["accuracy"], expected)
    settings = PgdSettings("inf", 0.5, 3, 1)
    adversarial = library.pgd(predictor.model, pixels, labels, 0.02, settings, ids=ids, seed=5)
    correct = predictor.log_probabilities(adversarial).argmax(axis=1) == labels
    assert found["pgd"]["accuracy"] == [pytest.approx(correct.mean())]
    assert found["pgd"]["accuracy"][0] <= found["fgsm"]["accuracy"][1]
    assert found["images"] == COUNT and found["warnings"] == []
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "clean.parquet",
        "fgsm.parquet",
        "fgsm_logit.parquet",
        "pgd-0.02.parquet",
        "checks.json",
    }


def test_an_interrupted_evaluation_resumes(predictor, tmp_path, monkeypatch):
    expected = evaluate(predictor, tmp_path)
    (tmp_path / "fgsm.parquet").unlink()
    monkeypatch.setattr(library, "pgd", lambda *_, **__: pytest.fail("PGD was repeated"))
    assert evaluate(predictor, tmp_path) == expected


def test_without_pgd_there_is_no_curve_of_it(predictor, tmp_path):
    found = evaluate(predictor, tmp_path, pgd_epsilons=())
    assert "pgd" not in found and "pgd_settings" not in found
    assert json.loads((tmp_path / "checks.json").read_text()) == []


def test_files_of_other_images_are_not_mixed(predictor, tmp_path):
    evaluate(predictor, tmp_path)
    (tmp_path / "clean.parquet").unlink()
    with pytest.raises(ValueError, match="other images than clean"):
        evaluate(predictor, tmp_path, make_images(seed=2)[0])
