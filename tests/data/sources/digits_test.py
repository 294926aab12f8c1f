import io

import numpy as np
from PIL import Image

from nsk.data import sources


def test_digits():
    source = sources.open_source("digits")
    images = list(source.images("train"))
    assert source.splits == ("train",)
    assert source.class_names == [str(digit) for digit in range(10)]
    assert len(images) == len({image.id for image in images}) == 1797
    assert images == list(source.images("train"))
    assert {image.label for image in images} == set(range(10))
    first = np.asarray(Image.open(io.BytesIO(images[0].encoded)))
    assert first.shape == (8, 8)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image.encoded))) for image in images])
    assert (pixels.min(), pixels.max(), len(np.unique(pixels))) == (0, 255, 17)
    # The first digit is a 0, its first row has levels 0 0 5 13 9 1 0 0 of 16.
    assert images[0].label == 0
    assert first[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
