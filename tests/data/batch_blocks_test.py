"""How many steps, images and pieces are processed together, and their memory."""

import pytest

from nsk.data import batch_blocks, parallel_map
from nsk.distributed.batch_share import WHOLE, Share


@pytest.mark.parametrize("max_size", [1, 3, 7, 100])
def test_equal_parts_are_the_fewest_and_nearly_equal(max_size):
    for count in range(50):
        parts = batch_blocks.equal_parts(count, max_size)
        assert sum(parts) == count and len(parts) == -(-count // max_size)
        assert all(0 < part <= max_size for part in parts)
        assert not parts or max(parts) - min(parts) <= 1


@pytest.mark.parametrize(
    ("batch_size", "image_size", "expected"),
    [
        (128, 32, 4),
        (129, 32, 3),
        (1000, 32, 1),
        (512, 64, 1),
        (10, 224, 16),
        (23, 600, 1),
        (11, 600, 2),
    ],
)
def test_a_block_has_fewer_images_if_they_are_large(batch_size, image_size, expected):
    assert batch_blocks.steps_in_block(batch_size, image_size) == expected


@pytest.mark.parametrize(
    ("sizes", "image_size", "share", "expected"),
    [
        ([2048, 6144], 32, WHOLE, 1),
        ([64, 192], 224, WHOLE, 2),  # At most 167 images of this size in a piece.
        ([64, 192], 224, Share(0, 1, 2), 2),
        ([64, 192], 224, Share(1, 2, 1), 1),
        ([256, 1024], 224, Share(0, 1, 8), 8),
        ([512, 2048], 224, Share(1, 2, 4), 8),
        (
            [512, 7168],
            600,
            WHOLE,
            256,
        ),  # 30 images each, or 15: the limit is 23.
        ([24], 600, WHOLE, 1),
        ([173], 224, WHOLE, 1),
        ([400], 224, WHOLE, 2),
        ([1024, 1009], 224, WHOLE, 1),
    ],
)
def test_a_large_batch_is_cut_into_equal_pieces(sizes, image_size, share, expected):
    assert batch_blocks.pieces_of_batch(sizes, image_size, share) == expected


def test_bytes_of_batches_are_for_one_worker():
    pixels, calls = 224 * 224 * 3, parallel_map.PARALLEL_CALLS + parallel_map.PREFETCHED
    cases = [
        # A replica has a quarter of 512 images: 128 in one piece.
        (Share(1, 2, 2), False, calls * 128 + 4 * 256),
        (Share(1, 2, 2), True, calls * 512 + 2 * 256),
        (WHOLE, False, calls * 128 + 4 * 512),
    ]
    for share, mixes, images in cases:
        assert batch_blocks.bytes_of_batches([128, 384], 224, share, mixes) == images * pixels
    small = 32 * 32 * 3 * 64 * 8  # Eight steps in a block.
    assert batch_blocks.bytes_of_batches([16, 48], 32) == (calls + 2) * small
    assert batch_blocks.bytes_of_batches([16, 48], 32, Share(0, 2, 1)) == (calls + 2) * small // 2
