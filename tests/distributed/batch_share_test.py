"""Every row of a global batch belongs to one replica of one worker."""

import numpy as np
import pytest
import tensorflow as tf

from nsk.distributed.batch_share import WHOLE, Share

BATCH_SIZES = (12, 24)


def all_positions(shares):
    """Positions of several shares: for each stream an array (shares, rows)."""
    positions = [share.positions(BATCH_SIZES) for share in shares]
    return [np.stack(rows) for rows in zip(*positions, strict=True)]


def test_the_whole_batch_is_the_share_of_a_single_worker():
    assert WHOLE.is_whole and WHOLE.sizes(BATCH_SIZES) == [12, 24]
    labeled, pseudo = WHOLE.positions(BATCH_SIZES)
    np.testing.assert_array_equal(labeled, np.arange(12))
    np.testing.assert_array_equal(pseudo, 12 + np.arange(24))
    assert labeled.dtype == pseudo.dtype == np.int32


@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_workers_divide_each_stream_in_order(num_workers):
    shares = [Share(worker, num_workers) for worker in range(num_workers)]
    assert not any(share.is_whole for share in shares)
    assert shares[0].sizes(BATCH_SIZES) == [size // num_workers for size in BATCH_SIZES]
    for rows, expected in zip(all_positions(shares), WHOLE.positions(BATCH_SIZES), strict=True):
        np.testing.assert_array_equal(rows.reshape(-1), expected)


def test_pieces_divide_the_share_of_a_worker():
    share = Share(1, 2)
    pieces = [share.piece(number, 3) for number in range(3)]
    for rows, expected in zip(all_positions(pieces), share.positions(BATCH_SIZES), strict=True):
        np.testing.assert_array_equal(rows.reshape(-1), expected)


def test_the_index_of_a_piece_may_be_a_tensor():
    @tf.function
    def positions(number):
        return Share(0, 1, 3).piece(number, 3).positions(BATCH_SIZES)

    for number in range(3):
        expected = Share(number, 3).positions(BATCH_SIZES)
        for received, rows in zip(positions(tf.constant(number)), expected, strict=True):
            assert received.dtype == tf.int32
            np.testing.assert_array_equal(received, rows)
