import numpy as np
import pytest

from nsk.training import curves


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (11, 2, 8), (90, 8, 8)]
)
def test_a_sheet_shows_the_first_images_row_by_row(count, rows, columns):
    images = np.random.default_rng(0).integers(1, 256, (count, 2, 5, 3)).astype(np.uint8)
    sheet = curves.sheet(images).numpy()
    assert sheet.shape == (rows * 2, columns * 5, 3)
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        cell = sheet[row * 2 : row * 2 + 2, column * 5 : column * 5 + 5]
        np.testing.assert_array_equal(cell, images[number] if number < count else 0 * cell)


def test_a_sheet_of_large_images_shows_fewer():
    for side, shown in ((128, 8), (224, 4), (600, 1), (2000, 1)):
        sheet = curves.sheet(np.ones([70, side, side, 3], np.uint8)).numpy()
        assert sheet.shape == (shown * side, shown * side, 3)
