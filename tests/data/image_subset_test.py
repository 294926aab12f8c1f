import hashlib

import numpy as np
import pytest

from nsk.data import records
from nsk.data.image_subset import ImageSubset
from nsk.data.shards import ShardSet, ShardWriter

IDS = [f"image-{number}" for number in range(4000)]


def hash_of(seed, image_id):
    """The hash that decides, in [0, 1)."""
    text = f"{seed}\x1funlabeled_fraction\x1f{image_id}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.999])
def test_the_images_with_the_smallest_hashes(fraction):
    expected = [hash_of(3, image_id) < fraction for image_id in IDS]
    contained = ImageSubset(fraction, 3).contains(IDS)
    assert contained.tolist() == expected
    # Four standard deviations of the binomial distribution.
    assert abs(contained.mean() - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / len(IDS))


def test_fractions_are_nested_and_seeds_are_independent():
    small, large = (ImageSubset(fraction, 0).contains(IDS) for fraction in (0.1, 0.5))
    assert not (small & ~large).any() and small.sum() < large.sum()
    other = ImageSubset(0.5, 1).contains(IDS)
    assert abs((large & other).mean() - 0.25) < 0.03


def test_an_image_does_not_depend_on_the_others():
    subset = ImageSubset(0.3, 5)
    whole = subset.contains(IDS)
    assert subset.contains(IDS[::-1]).tolist() == whole[::-1].tolist()
    assert subset.contains([]).shape == (0,)


def test_shards_are_read_without_the_other_images(tmp_path):
    with ShardWriter(tmp_path, "images", ["a", "b"], 7) as writer:
        for image_id in IDS[:40]:
            writer.write(records.image_example(image_id, b"encoded"))
    shard_set, subset = ShardSet.load(tmp_path), ImageSubset(0.3, 2)
    shards = [4, 1, 5]
    used = subset.of(shard_set, shards)
    expected = {
        shard: [id for id in IDS[7 * shard : min(40, 7 * shard + 7)] if hash_of(2, id) < 0.3]
        for shard in shards
    }
    assert used.counts == {shard: len(ids) for shard, ids in expected.items()}
    read = [
        records.parse_ids([record])[0].numpy().decode()
        for record in used.read(shards).as_numpy_iterator()
    ]
    assert read == [id for shard in shards for id in expected[shard]]
