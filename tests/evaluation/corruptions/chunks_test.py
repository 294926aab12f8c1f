import numpy as np
import pytest

from nsk.evaluation.corruptions.chunks import chunks, in_chunks
from tests.evaluation.corruptions.photographs import numbers_of


@pytest.mark.parametrize(
    ("shape", "values", "sizes"),
    [((5, 2, 3), 12, [2, 2, 1]), ((3, 100), 10, [1, 1, 1]), ((0, 4), 10, []), ((2, 0), 10, [2])],
)
def test_every_image_is_in_one_chunk_of_the_size(shape, values, sizes):
    rows = [list(range(shape[0]))[part] for part in chunks(shape, values)]
    assert [len(part) for part in rows] == sizes
    assert [row for part in rows for row in part] == list(range(shape[0]))


def test_kernel_gets_parts_with_their_random_numbers():
    sizes = []

    @in_chunks
    def add_noise(images, numbers, scale):
        """Adds noise."""
        sizes.append(len(images))
        return (images + numbers.uniform(0, scale)[:, np.newaxis, np.newaxis]).astype(np.uint8)

    images = np.arange(5 * 128 * 128, dtype=np.uint8).reshape(5, 128, 128)
    corrupted = add_noise(images, numbers_of(images), 9)
    assert sizes == [2, 2, 1]
    noise = numbers_of(images).uniform(0, 9)[:, np.newaxis, np.newaxis]
    np.testing.assert_array_equal(corrupted, (images + noise).astype(np.uint8))
    assert add_noise(images[:0], numbers_of(images[:0]), 9).shape == (0, 128, 128)
    assert add_noise.__doc__ == "Adds noise."
