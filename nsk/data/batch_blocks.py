"""How many images are decoded and perturbed together: blocks of steps, and pieces of batches.

Most of an operation's cost on a few small images is that of calling it, so that small batches are
perturbed a block of steps at a time; large batches are cut into pieces, to limit the memory.
"""

import math
from collections.abc import Sequence

from nsk.data import parallel_map
from nsk.distributed.batch_share import WHOLE, Share

# The most images and pixels of a block of several steps.
BLOCK_IMAGES = 512
BLOCK_PIXELS = 2**23


def images_in_block(image_size: int) -> int:
    """How many images are processed together by default, at least 1."""
    return max(1, min(BLOCK_IMAGES, BLOCK_PIXELS // image_size**2))


def steps_in_block(batch_size: int, image_size: int) -> int:
    """How many steps are perturbed together, so that a block's images take little memory.

    Args:
        batch_size: images of all streams in a step.
        image_size: side of the images, pixels.
    """
    return max(1, images_in_block(image_size) // batch_size)


def pieces_of_batch(batch_sizes: Sequence[int], image_size: int, share: Share = WHOLE) -> int:
    """Into how many pieces a worker's part of a batch of large images is cut.

    A piece belongs to one replica and has as many images of each stream as every other piece. So
    the number of pieces must divide the sizes; of its possible values, that is chosen for which a
    piece is nearest to the pixels that a block may have.

    Args:
        batch_sizes: images of each stream in a step.
        image_size: side of the images, pixels.
        share: the worker's part.

    Returns:
        1, or a multiple of the worker's replicas.
    """
    replica_sizes = [size // share.replicas for size in share.sizes(batch_sizes)]
    common, max_images = math.gcd(*replica_sizes), max(1, BLOCK_PIXELS // image_size**2)
    if sum(replica_sizes) * share.replicas <= max_images:
        return 1
    divisors = [number for number in range(1, common + 1) if common % number == 0]

    def distance(pieces):
        return abs(math.log(sum(replica_sizes) / pieces / max_images))

    return share.replicas * min(divisors, key=distance)


def bytes_of_batches(
    batch_sizes: Sequence[int], image_size: int, share: Share = WHOLE, mixes: bool = False
) -> int:
    """Estimates the main memory of the images of `pipeline.training_batches`, prefetched included.

    The temporary memory of the noise is not included.

    Args:
        batch_sizes: images of each stream in a step.
        image_size: side of the images, pixels.
        share: the worker's part of a batch.
        mixes: whether images of a batch are mixed with each other.
    """
    steps = steps_in_block(sum(batch_sizes), image_size)
    pieces = 1 if mixes else pieces_of_batch(batch_sizes, image_size, share)
    batch = sum(share.sizes(batch_sizes))
    element = (sum(batch_sizes) if mixes else batch) * steps // pieces
    # One batch is in use and one is ready; one that comes in pieces is collected and concatenated.
    held = 4 * batch if pieces > 1 else 2 * batch * steps
    elements = parallel_map.PARALLEL_CALLS + parallel_map.PREFETCHED
    return (elements * element + held) * image_size**2 * 3


def equal_parts(count: int, max_size: int) -> list[int]:
    """Sizes of the fewest parts of at most `max_size`, which differ by at most 1."""
    parts = -(-count // max_size)
    return [(count + part) // parts for part in range(parts)]
