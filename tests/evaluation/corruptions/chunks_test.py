import pytest

from nsk.evaluation.corruptions.chunks import chunks


@pytest.mark.parametrize(
    ("shape", "values", "sizes"),
    [((5, 2, 3), 12, [2, 2, 1]), ((3, 100), 10, [1, 1, 1]), ((0, 4), 10, []), ((2, 0), 10, [2])],
)
def test_every_image_is_in_one_chunk_of_the_size(shape, values, sizes):
    rows = [list(range(shape[0]))[part] for part in chunks(shape, values)]
    assert [len(part) for part in rows] == sizes
    assert [row for part in rows for row in part] == list(range(shape[0]))
