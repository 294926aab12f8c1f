import hashlib

import numpy as np
import scipy.stats

from nsk.evaluation.corruptions.random_numbers import RandomNumbers

IDS = ["a", "b", "über/1.png", ""]


def draws(numbers):
    """A few numbers of every kind, one row for each image."""
    kinds = [
        numbers.normal((2, 3)),
        numbers.uniform(-2, 5),
        numbers.integers(-3, 3, (4,)),
        numbers.poisson(np.full((len(numbers), 2), 20.0)),
        numbers.normal(),
    ]
    return np.concatenate([kind.reshape(len(numbers), -1) for kind in kinds], axis=1)


def test_numbers_of_an_image_do_not_depend_on_the_batch():
    together = draws(RandomNumbers(0, IDS, "snow/3"))
    assert len(np.unique(together[:, 0])) == len(IDS)
    np.testing.assert_array_equal(draws(RandomNumbers(0, IDS[::-1], "snow/3")), together[::-1])
    for row, image_id in enumerate(IDS):
        np.testing.assert_array_equal(
            draws(RandomNumbers(0, [image_id], "snow/3")), together[[row]]
        )


def test_part_of_the_images_continues_their_streams():
    whole, parts = RandomNumbers(0, IDS, "x"), RandomNumbers(0, IDS, "x")
    for _ in range(2):
        expected = draws(whole)
        np.testing.assert_array_equal(draws(parts[:3]), expected[:3])
        np.testing.assert_array_equal(draws(parts[3:]), expected[3:])
    assert len(parts[1:3]) == 2
    assert len(parts) == 4


def test_seed_id_and_label_make_other_numbers():
    arguments = [(0, "a", "x"), (1, "a", "x"), (0, "b", "x"), (0, "a", "y"), (0, "a", "xa")]
    arguments += [(0, "", "xa"), (10, "a", "x"), (0, "\0a", "x"), (0, "a\0", "x")]
    streams = [RandomNumbers(seed, [id], label).normal((8,)) for seed, id, label in arguments]
    assert len(np.unique(streams)) == 8 * len(arguments)


def test_state_of_a_generator_is_a_hash():
    """So that no process, order or version of Python matters."""
    digest = hashlib.blake2b(b"7\0snow/3\0a", digest_size=24).digest()
    words = np.frombuffer(digest, "<u8")
    expected = np.random.SFC64(0)
    state = expected.state
    # SFC64 starts with the counter 1 and skips 12 numbers.
    state["state"]["state"] = np.append(words, np.uint64(1))
    expected.state = state
    expected.random_raw(12)
    uniform = np.random.Generator(expected).random(5)
    numbers = RandomNumbers(7, ["a"], "snow/3")
    np.testing.assert_array_equal(numbers.uniform(0, 1, (5,))[0], uniform)


def test_distributions():
    ids = [str(number) for number in range(500)]
    numbers = RandomNumbers(0, ids, "distributions")
    # 500 streams with 40 numbers each: neighbours in a stream and streams are independent.
    normal = numbers.normal((40,))
    assert scipy.stats.kstest(normal.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(normal[:, 0], normal[:, 1])[0, 1]) < 0.15
    assert abs(np.corrcoef(normal[0], normal[1])[0, 1]) < 0.5
    assert scipy.stats.kstest(normal[:, 0], "norm").pvalue > 1e-3
    uniform = numbers.uniform(-2, 5, (40,))
    assert scipy.stats.kstest((uniform.ravel() + 2) / 7, "uniform").pvalue > 1e-3
    assert -2 <= uniform.min() < uniform.max() < 5
    integers = numbers.integers(-2, 3, (40,))
    assert scipy.stats.chisquare(np.bincount(integers.ravel() + 2, minlength=5)).pvalue > 1e-3
    expected = np.tile([0.0, 0.5, 60.0], (500, 1))
    poisson = numbers.poisson(expected)
    np.testing.assert_allclose(poisson.mean(axis=0), [0, 0.5, 60], rtol=0.2)
    np.testing.assert_allclose(poisson.var(axis=0), [0, 0.5, 60], rtol=0.3)


def test_no_images():
    numbers = RandomNumbers(0, [], "x")
    assert numbers.normal((2, 3)).shape == (0, 2, 3)
    assert numbers.uniform(0, 1).shape == numbers.integers(0, 2).shape == (0,)
    assert numbers.poisson(np.zeros((0, 4))).shape == (0, 4)
