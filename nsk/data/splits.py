"""Which image goes into which split: pure decisions over ids, labels and pixel digests.

Splits are decided in the order test, dev, labeled, unlabeled. Each step first drops the images
whose pixels already stand in an earlier split: no image is in two splits, and the requested numbers
stay exact. All choices go by hashes of the ids, so the order in which a source yields its images
does not matter.
"""

import dataclasses
import hashlib

import numpy as np

from nsk.errors import UserError

FIXED_SEED = "fixed"  # The test split is the same for every seed.


@dataclasses.dataclass
class Images:
    """What is remembered of every readable image.

    Attributes:
        ids: list of strings.
        labels: int32 array, -1 where the label is not known.
        digests: list of bytes, equal where the pixels are.
        spans: int64 array of shape (images, 2), offset and length in the spool.
        sides: int32 array, the shorter side in pixels.
        pools: dict from the split of a source to the rows that it gave.
        taught: dict from a row to its bytes in the spool, behind the image: what a teacher
            elsewhere says of it.
    """

    ids: list[str]
    labels: np.ndarray
    digests: list[bytes]
    spans: np.ndarray
    sides: np.ndarray
    pools: dict[str, np.ndarray]
    taught: dict[int, int] = dataclasses.field(default_factory=dict)


def choose_splits(images, class_names, config, split_seed):
    """Decides which image goes where.

    Args:
        images: `Images`.
        class_names: list of strings.
        config: a `DataConfig`.
        split_seed: int.

    Returns:
        dict from test, dev, labeled and unlabeled to their rows, a dict of how many duplicates each
        of them left out, and a dict from the pools to how many of their images serve as nothing.

    Raises:
        UserError: there are not enough images for a split.
    """
    division = _Division(images, class_names)
    base = "train" if "train" in images.pools else "labeled"

    if "test" in images.pools:
        division.take("test", division.labelled("test", "test"))
    else:
        rows = division.labelled("test", base)
        number = round(config.test_fraction * len(rows))
        division.take("test", division.choose(rows, number, "test", FIXED_SEED, "--test_fraction"))

    pool = "dev" if "dev" in images.pools else base
    rows = division.labelled("dev", pool)
    training_images = len(rows)
    number = config.num_dev or round(config.dev_fraction * len(rows))
    if config.num_dev or config.dev_fraction:
        flag = "--num_dev" if config.num_dev else "--dev_fraction"
        rows = division.choose(rows, number, "dev", split_seed, flag)
    elif pool != "dev":
        raise UserError(
            f"No dev split: --dataset={config.dataset} has none of its own, so give --num_dev or "
            "--dev_fraction, the labelled images held out to decide on."
        )
    division.take("dev", rows)

    dev_pool, pool = pool, "labeled" if "labeled" in images.pools else base
    rows = division.labelled("labeled", pool)
    # Both fractions are of the same images: those without test, but with dev.
    share = config.labeled_fraction * (training_images if pool == dev_pool else len(rows))
    number = config.num_labeled or round(share)
    if config.labeled_fraction == 1.0:  # All that there are: those that dev leaves.
        number = len(rows)
    if config.num_labeled or config.labeled_fraction:
        flag = "--num_labeled" if config.num_labeled else "--labeled_fraction"
        balanced = bool(config.num_labeled)
        rows = division.choose(rows, number, "labeled", split_seed, flag, balanced)
    elif pool != "labeled":
        raise UserError(
            f"No labelled split: --dataset={config.dataset} has none of its own, so give "
            "--num_labeled or --labeled_fraction, the labelled training images."
        )
    division.take("labeled", rows)

    rows = division.fresh("unlabeled", "unlabeled" if "unlabeled" in images.pools else base)
    division.take("unlabeled", rows)
    return division.splits, division.removed, division.unused()


class _Division:
    """The splits decided so far, and what of the images is still free."""

    def __init__(self, images, class_names):
        self.images = images
        self.class_names = class_names
        self.splits = {}
        self.removed = {}
        self._gone = np.zeros(len(images.ids), bool)
        self._taken_digests = set()

    def fresh(self, split, pool):
        """The free rows of a pool; drops and counts those with the pixels of an earlier split."""
        digests = self.images.digests
        rows = self.images.pools[pool]
        rows = rows[~self._gone[rows]]
        duplicate = np.array([digests[row] in self._taken_digests for row in rows.tolist()], bool)
        self._gone[rows[duplicate]] = True
        self.removed[split] = int(duplicate.sum())
        return rows[~duplicate]

    def labelled(self, split, pool):
        """The free rows of a pool whose label is known."""
        rows = self.fresh(split, pool)
        labelled = rows[self.images.labels[rows] >= 0]
        if not len(labelled):
            raise UserError(
                f"No {split} images: of the {len(rows)} to take them from, without "
                f"{self.removed[split]} duplicates of earlier splits, none has a label: add some."
            )
        return labelled

    def take(self, split, rows):
        self.splits[split] = rows
        self._gone[rows] = True
        self._taken_digests.update(self.images.digests[row] for row in rows.tolist())

    def unused(self):
        """dict from each pool to the number of its images that are in no split, nor duplicates."""
        gone = self._gone
        return {pool: int((~gone[rows]).sum()) for pool, rows in self.images.pools.items()}

    def choose(self, rows, number, split, seed, flag, balanced=False):
        """`number` of the rows, class by class in the order of their hashes."""
        labels = self.images.labels[rows]
        available = np.bincount(labels, minlength=len(self.class_names))
        if number > len(rows):
            raise UserError(
                f"{flag} asks for {number} {split} images but only {len(rows)} labelled ones are "
                "left to choose from: lower it."
            )
        if number == 0:
            raise UserError(f"{flag} leaves no {split} image of {len(rows)}: raise it.")
        quotas = (balanced_quotas if balanced else proportional_quotas)(number, available)
        short = np.flatnonzero(quotas > available)
        if len(short):
            worst = short[np.argmin(available[short])]
            raise UserError(
                f"{flag}={number} needs {quotas[worst]} {split} images of class "
                f"{self.class_names[worst]!r} but only {available[worst]} are left: lower it to "
                f"{available[worst] * np.count_nonzero(available)} or less."
            )
        missing = np.flatnonzero((quotas == 0) & (available > 0))
        if split == "labeled" and len(missing):
            raise UserError(
                f"{flag} gives {number} labelled images but none of class "
                f"{self.class_names[missing[0]]!r}: raise it, every class needs one."
            )
        order = np.lexsort((hash_keys(seed, split, self.images.ids, rows), labels))
        ordered = rows[order]
        starts = np.cumsum(available) - available
        return np.concatenate(
            [ordered[start : start + quota] for start, quota in zip(starts, quotas, strict=True)]
        )


def balanced_quotas(number, available):
    """Divides `number` as equally as possible; what is left over goes to the first classes.

    Args:
        number: int.
        available: int array of shape (num_classes,); classes without images take no part.

    Returns:
        int array of shape (num_classes,), which may exceed `available`.
    """
    present = np.flatnonzero(available)
    quotas = np.zeros(len(available), np.int64)
    quotas[present] = number // len(present)
    quotas[present[: number % len(present)]] += 1
    return quotas


def proportional_quotas(number, available):
    """Divides `number` in proportion to `available`, by the largest remainder.

    Args:
        number: int, at most the sum of `available`.
        available: int array of shape (num_classes,).

    Returns:
        int array of shape (num_classes,), nowhere above `available`.
    """
    quotas, remainders = np.divmod(available.astype(np.int64) * number, available.sum())
    largest = np.argsort(-remainders, kind="stable")[: number - quotas.sum()]
    quotas[largest] += 1
    return quotas


def hash_keys(seed, purpose, ids, rows):
    """Numbers to sort images by: random-looking, and a function of seed, purpose and id alone.

    Args:
        seed: int or string.
        purpose: string that tells this use from every other.
        ids: list of strings.
        rows: int array, the ids that are wanted.

    Returns:
        uint64 array of the shape of `rows`.
    """
    prefix = f"{seed}\x1f{purpose}\x1f"
    keys = (
        hashlib.blake2b((prefix + ids[row]).encode(), digest_size=8).digest()
        for row in rows.tolist()
    )
    return np.frombuffer(b"".join(keys), ">u8")
