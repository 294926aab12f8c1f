"""Sets of labels: every image has all classes that are right for it, as in ImageNet's ReaL labels.

The file of ReaL labels, `real.json`, is a list of 50,000 lists of classes, those of ImageNet's
validation images in the order of their numbers: the first list is of
`ILSVRC2012_val_00000001.JPEG`. An empty list says that the image shows none of the classes; such
images are left out of the accuracy.

Reference:
    [Beyer et al., 2020](https://arxiv.org/abs/2006.07159)
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nsk.errors import UserError, list_names

MAX_BYTES = 2**28
IMAGE_NUMBER = re.compile(r"(?:^|/)ILSVRC2012_val_(\d{8})(?:\.\w+)?$")


@dataclasses.dataclass(frozen=True)
class LabelSets:
    """The right classes of n images.

    Attributes:
        path: the file.
        is_right: bool array (n, num_classes), whether a class is right for an image.
    """

    path: Path
    is_right: np.ndarray

    @property
    def is_labeled(self) -> np.ndarray:
        """Bool (n,): whether any class is right. Other images are left out."""
        return self.is_right.any(axis=1)

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Finds images by the numbers in their ids.

        Args:
            ids: strings (m,) that end with names of ImageNet's validation images, such as
                "test/n01440764/ILSVRC2012_val_00000293.JPEG", with or without the suffix.

        Returns:
            int64 array (m,), rows of `is_right`.

        Raises:
            UserError: an id is no such name, or its number is not one of the file's.
        """
        matches = [IMAGE_NUMBER.search(image_id) for image_id in ids]
        rows = [int(match[1]) - 1 if match else -1 for match in matches]
        unknown = [
            image_id
            for image_id, row in zip(ids, rows, strict=True)
            if not 0 <= row < len(self.is_right)
        ]
        if unknown:
            raise UserError(
                f"{self.path} has labels of {len(self.is_right)} images, but {len(unknown)} of "
                f"{len(ids)} test images are not among them: {list_names(unknown)}. Expected names "
                "such as ILSVRC2012_val_00000001.JPEG: give folder:PATH of ImageNet's validation "
                "images with their original names."
            )
        return np.array(rows, np.int64)

    def correct(self, rows: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Which predictions are right.

        Args:
            rows: int (m,), see `rows`.
            predicted: int (m,), predicted classes.

        Returns:
            bool array (k,), of the k of the m images that have a label, in their order: whether the
            predicted class is one of the right ones.
        """
        rows, predicted = np.asarray(rows), np.asarray(predicted)
        is_labeled = self.is_labeled[rows]
        return self.is_right[rows, predicted][is_labeled]


def read_label_sets(path: str | Path, num_classes: int) -> LabelSets:
    """Reads a JSON file of a list of lists of classes, such as `real.json`.

    Args:
        path: the file.
        num_classes: number of classes of the model.

    Raises:
        UserError: there is no such file, it holds something else, a class is not in 0 to
            num_classes - 1, or no image has a label.
    """
    path = Path(path)
    label_sets = _read_json(path)
    if not isinstance(label_sets, list) or not all(isinstance(part, list) for part in label_sets):
        raise UserError(
            f"{path} is not a list of lists: expected the classes of every image, as in real.json."
        )
    is_right = np.zeros((len(label_sets), num_classes), bool)
    for row, labels in enumerate(label_sets):
        for label in labels:
            # True is an int, too.
            if type(label) is not int or not 0 <= label < num_classes:
                raise UserError(
                    f"{path}: list {row} has the class {json.dumps(label)[:40]}: expected integers "
                    f"from 0 to {num_classes - 1}, the model's classes. Is it a model of other "
                    "classes?"
                )
        is_right[row, labels] = True
    if not is_right.any():
        raise UserError(f"{path} has no labels in {len(label_sets)} lists: download it again.")
    return LabelSets(path, is_right)


def _read_json(path):
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES:,} bytes: expected a real.json.")
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the path of a real.json.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a JSON file.") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path} is not a JSON file ({reason}): download it again.") from None
