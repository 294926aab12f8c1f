"""What ingest remembers of every image while the pixels are on disk."""

import dataclasses
from typing import BinaryIO, Self

import numpy as np


@dataclasses.dataclass
class ImageIndex:
    """Ids, labels, digests and file offsets of all readable images, row by row.

    Attributes:
        ids: list of strings.
        labels: int32 array (n,), -1 if the label is unknown.
        digests: list of bytes, equal for images with equal pixels.
        spans: int64 array (n, 2), offset and length of the encoded image in the spool.
        sides: int32 array (n, 2), the shorter and the longer side in pixels.
        pools: dict from the split of a source to its rows.
        groups: names of the groups, by row, of images that belong to one, such as a patient.
        external_teacher: dict from a row to the number of bytes of an external teacher's scores,
            which follow the image in the spool.
    """

    ids: list[str]
    labels: np.ndarray
    digests: list[bytes]
    spans: np.ndarray
    sides: np.ndarray
    pools: dict[str, np.ndarray]
    groups: dict[int, str] = dataclasses.field(default_factory=dict)
    external_teacher: dict[int, int] = dataclasses.field(default_factory=dict)

    def with_pools(self, pools: dict[str, np.ndarray]) -> Self:
        """The same images with other rows in the pools."""
        return dataclasses.replace(self, pools=pools)


def read_image(spool: BinaryIO, index: ImageIndex, row: int) -> bytes:
    """The encoded image of a row."""
    offset, length = index.spans[row]
    return read_span(spool, offset, length)


def read_external_teacher(spool: BinaryIO, index: ImageIndex, row: int) -> bytes:
    """The external teacher's scores of a row; b"" for none."""
    if row not in index.external_teacher:
        return b""
    return read_span(spool, sum(index.spans[row]), index.external_teacher[row])


def read_span(spool: BinaryIO, offset: int, length: int) -> bytes:
    """Bytes of the spool."""
    spool.seek(int(offset))
    return spool.read(int(length))
