"""Learning rates against values computed by hand."""

import numpy as np
import pytest

from nsk.training.schedules import SCHEDULES, learning_rates


def test_paper_schedule():
    """0.128, times 0.97 every 2.4 epochs, 5 epochs of warm-up, of 350; 100 steps an epoch."""
    rates = learning_rates(
        "exponential", 0.128, 35_000, warmup_steps=500, decay_steps=240.0, decay_rate=0.97
    )
    assert rates.shape == (35_000,) and rates.dtype == np.float32
    assert rates[0] == pytest.approx(0.128 / 500)
    assert rates[249] == pytest.approx(0.064)
    assert rates[499] == pytest.approx(0.128)
    # Warm-up ends on the third stair, since stairs are counted from step 0.
    assert rates[500] == pytest.approx(0.128 * 0.97**2)
    assert rates[719] == pytest.approx(0.128 * 0.97**2)
    assert rates[720] == pytest.approx(0.128 * 0.97**3)
    assert rates[-1] == pytest.approx(0.128 * 0.97**145)  # 34,999 / 240 = 145.8


def test_fractional_stairs():
    # Stairs of 2.4 steps start at 0, 2.4, 4.8, 7.2, 9.6, 12.
    rates = learning_rates("exponential", 1.0, 14, decay_steps=2.4, decay_rate=0.5)
    powers = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5]
    np.testing.assert_allclose(rates, 0.5 ** np.array(powers), rtol=1e-6)


def test_a_stair_that_divides_exactly_is_not_late():
    # 3 / (3 * 0.1) is 9.999999999999998 in floating point.
    rates = learning_rates("exponential", 1.0, 4, decay_steps=3 * 0.1, decay_rate=0.5)
    assert rates[3] == 0.5**10


def test_multistep():
    rates = learning_rates("multistep", 0.1, 8)
    np.testing.assert_allclose(rates, [0.1] * 4 + [0.01] * 2 + [0.001] * 2, rtol=1e-6)
    # 0.07 * 100 is 7.000000000000001 in floating point.
    rates = learning_rates("multistep", 1.0, 100, multistep_fractions=(0.07,), multistep_factor=0.5)
    np.testing.assert_allclose(rates, [1.0] * 7 + [0.5] * 93)


def test_cosine():
    rates = learning_rates("cosine", 2.0, 4)
    np.testing.assert_allclose(rates, [2, 1 + np.sqrt(0.5), 1, 1 - np.sqrt(0.5)], rtol=1e-6)
    rates = learning_rates("cosine", 2.0, 6, warmup_steps=2)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(rates, [1, 2, 2, 1 + half, 1, 1 - half], rtol=1e-6)
    long = learning_rates("cosine", 1.0, 1000, warmup_steps=100)
    assert np.all(np.diff(long[100:]) < 0) and 0 < long[-1] < 1e-5


def test_constant_with_warmup():
    rates = learning_rates("constant", 0.4, 6, warmup_steps=4)
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_replaces_the_schedule_and_may_be_longer_than_the_stage(schedule):
    plain = learning_rates(schedule, 0.3, 40, decay_steps=7)
    assert np.all(plain > 0) and plain[0] == np.float32(0.3) and plain.max() == plain[0]
    for warmup_steps in (39, 40, 80):
        rates = learning_rates(schedule, 0.3, 40, warmup_steps=warmup_steps, decay_steps=7)
        expected = 0.3 * np.arange(1, 40) / warmup_steps
        np.testing.assert_allclose(rates[:39], expected, rtol=1e-6)
        assert np.isfinite(rates).all()


def test_multistep_drops_are_at_fractions_of_all_steps_with_warmup():
    rates = learning_rates("multistep", 1.0, 10, warmup_steps=2)
    np.testing.assert_allclose(rates, [0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"schedule": "cosin"},
        {"num_steps": 0},
        {"warmup_steps": -1},
        {"decay_steps": 0.0},
        {"decay_steps": float("nan")},
    ],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="expected"):
        learning_rates(**{"schedule": "cosine", "peak": 0.1, "num_steps": 5} | arguments)
