"""Small image files, for the tests of folders and files of images."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from nsk.evaluation.class_folders import list_class_folders
from nsk.evaluation.image_files import decode_files


@pytest.fixture
def fill(tmp_path):
    """Function of names of files: writes an image into each and lists the class folders."""

    def fill(*names):
        for name in names:
            path = os.path.join(os.fsencode(tmp_path), name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            buffer = io.BytesIO()
            Image.new("RGB", (2, 2)).save(buffer, "PNG")
            with open(path, "wb") as file:
                file.write(buffer.getvalue())
        return list_class_folders(tmp_path)

    return fill


def decode(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image)


def unreadable(found):
    rows = [row for batch in decode_files(found.files, decode, 2) for row in batch]
    return {file.id: reason for file, reason in rows if isinstance(reason, str)}
