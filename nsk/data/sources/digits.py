"""scikit-learn's handwritten digits as a source of images."""

import importlib.metadata
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from nsk.data.content import ContentDigests
from nsk.data.sources.source import Source, SourceImage

NUM_DIGITS = 1797


class DigitsSource(Source):
    """The 1,797 handwritten digits of 8 x 8 pixels that are bundled with scikit-learn."""

    splits = ("train",)
    ids_reveal_labels = False
    label_hint = ""
    notes = (f"Digits bundled with scikit-learn: {NUM_DIGITS:,} images of 10 classes.",)

    def __init__(self):
        self.class_names = [str(digit) for digit in range(10)]

    def count(self, split: str) -> int:
        """Number of digits."""
        return NUM_DIGITS

    def content(self, digests: ContentDigests) -> dict:
        """The version of scikit-learn, which determines the images."""
        return {"sklearn": importlib.metadata.version("scikit-learn")}

    def images(self, split: str) -> Iterator[SourceImage]:
        """All digits as PNG files, in the order of scikit-learn."""
        from sklearn import datasets

        digits = datasets.load_digits()
        # Levels 0..16 become 0..255.
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
        for number, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            yield SourceImage(f"digits/{number:04d}", buffer.getvalue(), int(label))
