import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from nsk.evaluation.corruptions.random_numbers import RandomNumbers

IDS = ["a", "b", "ü/3.jpg", ""]
DRAWS = {
    "normal": lambda numbers: numbers.normal((5, 2)),
    "uniform": lambda numbers: numbers.uniform(-2, 3, (7,)),
    "integers": lambda numbers: numbers.integers(-3, 3, (4,)),
    "poisson": lambda numbers: numbers.poisson(np.full((len(numbers), 6), 2.5)),
    "scalar": lambda numbers: numbers.uniform(0, 1),
}


@pytest.mark.parametrize("name", DRAWS)
def test_numbers_depend_on_seed_id_and_label_not_on_the_batch(name):
    draw = DRAWS[name]
    whole = draw(RandomNumbers(7, IDS, "snow/3"))
    for row, image_id in enumerate(IDS):
        np.testing.assert_array_equal(draw(RandomNumbers(7, [image_id], "snow/3"))[0], whole[row])
    np.testing.assert_array_equal(draw(RandomNumbers(7, IDS[::-1], "snow/3")), whole[::-1])
    assert len({row.tobytes() for row in whole}) == len(IDS)
    for other in (RandomNumbers(8, IDS, "snow/3"), RandomNumbers(7, IDS, "snow/4")):
        assert (draw(other).reshape(4, -1) != whole.reshape(4, -1)).any(axis=1).all()
    assert draw(RandomNumbers(7, [], "snow/3")).shape == (0, *whole.shape[1:])


def test_the_parts_of_a_key_are_separated():
    draws = {
        RandomNumbers(*key).uniform(0, 1).item()
        for key in [(1, ["2"], "3"), (12, ["3"], ""), (1, ["3"], "2"), (1, [""], "23")]
    }
    assert len(draws) == 4


def test_calls_continue_a_stream():
    numbers = RandomNumbers(0, IDS, "x")
    first, second = numbers.normal((100,)), numbers.normal((100,))
    np.testing.assert_array_equal(
        np.concatenate([first, second], axis=1), RandomNumbers(0, IDS, "x").normal((200,))
    )
    assert (first != second).all()


def test_numbers_have_their_distributions():
    numbers = RandomNumbers(0, [str(index) for index in range(200)], "x")
    assert scipy.stats.kstest(numbers.normal((50,)).ravel(), "norm").pvalue > 0.001
    uniform = numbers.uniform(-45, 45, (50,)).ravel()
    assert scipy.stats.kstest(uniform, "uniform", (-45, 90)).pvalue > 0.001
    _, counts = np.unique(numbers.integers(-2, 2, (50,)), return_counts=True)
    assert len(counts) == 4
    assert scipy.stats.chisquare(counts).pvalue > 0.001
    poisson = numbers.poisson(np.full((200, 50), 3.0)).ravel()
    counts = np.bincount(poisson.clip(0, 9), minlength=10)
    expected = scipy.stats.poisson.pmf(np.arange(9), 3) * len(poisson)
    expected = np.append(expected, len(poisson) - expected.sum())
    assert scipy.stats.chisquare(counts, expected).pvalue > 0.001
    first = RandomNumbers(0, [str(index) for index in range(5000)], "y").uniform(0, 1)
    assert scipy.stats.kstest(first, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.05


def test_numbers_are_the_same_in_another_process():
    code = (
        "from nsk.evaluation.corruptions.random_numbers import RandomNumbers\n"
        "print(RandomNumbers(3, ['image'], 'fog/1').normal((4,)).tobytes().hex())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    expected = RandomNumbers(3, ["image"], "fog/1").normal((4,)).tobytes().hex()
    assert printed.strip() == expected
