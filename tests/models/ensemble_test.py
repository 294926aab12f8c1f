"""Ensembles: the mean of the members' probabilities as one network."""

import keras
import numpy as np
from scipy import special

from nsk import models
from nsk.models.ensemble import average
from nsk.models.features import with_features
from nsk.models.layers import LogMeanProbability
from nsk.models.model_files import load_model

IMAGES = np.random.default_rng(0).uniform(0, 255, (5, 8, 8, 3)).astype(np.float32)


def test_the_log_of_the_mean_probability_is_that_of_double_precision():
    """Also for logits whose probabilities are 0 and 1 in float32."""
    logits = (
        np.random.default_rng(0).normal(0, 1, (3, 6, 4)) * np.array([1, 300, 1e4])[:, None, None]
    )
    expected = special.logsumexp(special.log_softmax(logits, axis=2), axis=0, b=1 / 3)
    received = LogMeanProbability()([member.astype(np.float32) for member in logits]).numpy()
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.exp(received).sum(axis=1), 1, rtol=1e-5)


def test_a_saved_ensemble_has_the_mean_probabilities_and_the_features_of_its_first_member(tmp_path):
    members = [
        models.build_model("resnet8", num_classes=4, image_size=8, seed=seed) for seed in range(3)
    ]
    expected = np.mean([special.softmax(member(IMAGES).numpy(), axis=1) for member in members], 0)
    features = with_features(members[0])(IMAGES)[1].numpy()
    size = sum(member.count_params() for member in members)
    average(members).save(tmp_path / "ensemble.keras")
    loaded = load_model(tmp_path / "ensemble.keras")
    assert loaded.count_params() == size
    np.testing.assert_allclose(np.exp(loaded(IMAGES)), expected, rtol=1e-5)
    outputs, received = with_features(loaded)(IMAGES)
    np.testing.assert_array_equal(received, features)
    np.testing.assert_array_equal(outputs, loaded(IMAGES))
    assert isinstance(loaded, keras.Model)
