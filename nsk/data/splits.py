"""Assigns images to splits: pure decisions over ids, labels and pixel digests.

Splits are decided in the order test, dev, labeled, unlabeled. Each step first drops the images with
the same pixels as an image of an earlier split: no image is in two splits, and the requested
numbers are exact. All choices depend on hashes of the ids, so the order in which a source yields
its images does not matter.
"""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
from absl import logging

from nsk.config.data import DataConfig
from nsk.data.image_index import ImageIndex
from nsk.errors import UserError, list_names

FIXED_SEED = "fixed"  # The test split is the same for every seed.
NUMBER_FLAGS = {"dev": "--num_dev", "labeled": "--num_labeled"}
SHARE_FLAGS = {"dev": "--dev_fraction", "labeled": "--labeled_fraction"}
# What `choose_splits` and `choose_evaluation_splits` are.
Choice = tuple[dict[str, np.ndarray], dict[str, int], dict[str, int], dict[str, int]]
ChooseSplits = Callable[[ImageIndex, list[str], DataConfig, int], Choice]


def choose_splits(
    images: ImageIndex, class_names: list[str], config: DataConfig, split_seed: int
) -> Choice:
    """Assigns every image to at most one split.

    Args:
        images: the index of all images.
        class_names: list of strings.
        config: the requested numbers and fractions.
        split_seed: of the choice of labelled and dev images.

    Returns:
        dict from test, dev, labeled and unlabeled to their rows; dict from each split to the number
        of images that it left out, since an earlier one has their pixels or group; dict from each
        split to how many of these have other pixels; dict from each pool to the number of its
        unused images.

    Raises:
        UserError: there are not enough images for a split.
    """
    division = _Division(images, class_names)
    base = base_pool(images.pools)
    check_splits_are_given(config, images.pools)
    _take_test(division, base, config)
    pool, num_training = _take_dev(division, base, config, split_seed)
    _take_labeled(division, base, config, split_seed, pool, num_training)
    _take_unlabeled(division, base, config)
    return division.splits, division.removed, division.removed_by_group, division.unused()


def base_pool(pools: Iterable[str]) -> str:
    """The pool whose remaining images become unlabelled ones: train, or without it labeled."""
    return "train" if "train" in pools else "labeled"


def check_splits_are_given(config: DataConfig, pools: Iterable[str]) -> None:
    """UserError if no number or share of images is given for a split that there is no pool for.

    Args:
        config: the settings of the data.
        pools: names of the pools that there are.
    """
    pools = set(pools)
    if "dev" not in pools and not (config.num_dev or config.dev_fraction):
        raise UserError(
            f"No dev split: --dataset={config.dataset} has none, so give --num_dev or "
            "--dev_fraction, the labelled images held out to decide on."
        )
    if "labeled" not in pools and not (config.num_labeled or config.labeled_fraction):
        raise UserError(
            f"No labelled split: --dataset={config.dataset} has none, so give --num_labeled or "
            "--labeled_fraction, the labelled training images."
        )


def check_number(number: int, available: int, split: str) -> None:
    """UserError if more images are asked for than there are, of dev or labeled."""
    if number > available:
        raise UserError(
            f"{NUMBER_FLAGS[split]}={number} asks for more {split} images than the {available:,} "
            f"that are left to choose from: lower it, or give a share, as {SHARE_FLAGS[split]}=0.1."
        )


def choose_evaluation_splits(
    images: ImageIndex, class_names: list[str], config: DataConfig, split_seed: int
) -> Choice:
    """Like `choose_splits`, but only test and, if there is one, dev: the same images.

    Images that are in neither count as unused only if they can be in one.
    """
    division = _Division(images, class_names)
    base = base_pool(images.pools)
    _take_test(division, base, config)
    if "dev" in images.pools or config.num_dev or config.dev_fraction:
        _take_dev(division, base, config, split_seed)
    return division.splits, division.removed, division.removed_by_group, {}


def _take_test(division: "_Division", base: str, config: DataConfig) -> None:
    if "test" in division.images.pools:
        division.take("test", division.labelled("test", "test"))
        return
    rows = division.labelled("test", base)
    number = round(config.test_fraction * len(rows))
    division.take("test", division.choose(rows, number, "test", FIXED_SEED, "--test_fraction"))


def _take_dev(
    division: "_Division", base: str, config: DataConfig, split_seed: int
) -> tuple[str, int]:
    """Returns the pool that dev was taken from, and the number of images in it before."""
    pool = "dev" if "dev" in division.images.pools else base
    rows = division.labelled("dev", pool)
    num_training = len(rows)
    number = config.num_dev or round(config.dev_fraction * len(rows))
    if config.num_dev or config.dev_fraction:
        flag = "--num_dev" if config.num_dev else "--dev_fraction"
        rows = division.choose(rows, number, "dev", split_seed, flag)
    division.take("dev", rows)
    return pool, num_training


def _take_labeled(
    division: "_Division",
    base: str,
    config: DataConfig,
    split_seed: int,
    dev_pool: str,
    num_training: int,
) -> None:
    pool = "labeled" if "labeled" in division.images.pools else base
    rows = division.labelled("labeled", pool)
    # Both fractions are of the same images: those without test, but with dev.
    share = config.labeled_fraction * (num_training if pool == dev_pool else len(rows))
    number = config.num_labeled or round(share)
    if config.labeled_fraction == 1.0:  # All that dev leaves.
        number = len(rows)
    if config.num_labeled or config.labeled_fraction:
        flag = "--num_labeled" if config.num_labeled else "--labeled_fraction"
        is_balanced = bool(config.num_labeled)
        rows = division.choose(rows, number, "labeled", split_seed, flag, is_balanced)
    division.take("labeled", rows)


def _take_unlabeled(division: "_Division", base: str, config: DataConfig) -> None:
    pools = division.images.pools
    if "unlabeled" not in pools:
        division.take("unlabeled", division.remaining("unlabeled", base))
        return
    rows = np.zeros(0, np.int64)
    if config.keep_remaining:
        rows = division.remaining("unlabeled", base)
    others = division.remaining("unlabeled", "unlabeled")
    division.take("unlabeled", np.concatenate([rows, division.without_pixels_of(rows, others)]))


class _Division:
    """The splits decided so far, and the images that are still available.

    Attributes:
        splits: dict from a decided split to its rows.
        removed: dict from a split to the number of images that it left out, since an earlier split
            has their pixels or their group.
        removed_by_group: dict from a split to how many of these have other pixels.
    """

    def __init__(self, images: ImageIndex, class_names: list[str]):
        self.images = images
        self.class_names = class_names
        self.splits = {}
        self.removed, self.removed_by_group = {}, {}
        self._is_used = np.zeros(len(images.ids), bool)
        self._kin, self._kin_names = join_kin(images)
        self._taken, self._taken_digests = set(), set()

    def remaining(self, split: str, pool: str) -> np.ndarray:
        """The available rows of a pool; drops and counts the kin of earlier splits' images."""
        rows = self.images.pools[pool]
        rows = rows[~self._is_used[rows]]
        is_kin = np.array([self._kin[row] in self._taken for row in rows.tolist()], bool)
        self._is_used[rows[is_kin]] = True
        others = 0
        if self._kin_names:
            kin = rows[is_kin].tolist()
            others = sum(self.images.digests[row] not in self._taken_digests for row in kin)
        self.removed_by_group[split] = self.removed_by_group.get(split, 0) + others
        self.removed[split] = self.removed.get(split, 0) + int(is_kin.sum())
        return rows[~is_kin]

    def without_pixels_of(self, others: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Rows of unlabelled images without the pixels of others; drops and counts the rest."""
        digests = {self.images.digests[row] for row in others.tolist()}
        is_same = np.array([self.images.digests[row] in digests for row in rows.tolist()], bool)
        self._is_used[rows[is_same]] = True
        self.removed["unlabeled"] += int(is_same.sum())
        return rows[~is_same]

    def labelled(self, split: str, pool: str) -> np.ndarray:
        """The available rows of a pool with a known label."""
        rows = self.remaining(split, pool)
        labelled = rows[self.images.labels[rows] >= 0]
        if not len(labelled):
            raise UserError(
                f"No {split} images: of the {len(rows)} to take them from, without "
                f"{self.removed[split]} duplicates of earlier splits or of their groups, none has "
                "a label: add some."
            )
        return labelled

    def take(self, split: str, rows: np.ndarray) -> None:
        self.splits[split] = rows
        self._is_used[rows] = True
        self._taken.update(self._kin[row] for row in rows.tolist())
        if self._kin_names:
            self._taken_digests.update(self.images.digests[row] for row in rows.tolist())

    def unused(self) -> dict[str, int]:
        """Number of images of each pool that are in no split, without the kin of others."""
        is_used = self._is_used
        return {pool: int((~is_used[rows]).sum()) for pool, rows in self.images.pools.items()}

    def choose(
        self,
        rows: np.ndarray,
        number: int,
        split: str,
        seed: int | str,
        flag: str,
        is_balanced: bool = False,
    ) -> np.ndarray:
        """Chooses `number` of the rows, class by class in the order of their hashes."""
        labels = self.images.labels[rows]
        available = np.bincount(labels, minlength=len(self.class_names))
        is_number = flag in NUMBER_FLAGS.values()
        if number > len(rows):
            raise UserError(
                f"{flag} asks for {number} {split} images but only {len(rows)} labelled ones are "
                "left to choose from: lower it"
                + (f", or give a share, as {SHARE_FLAGS[split]}=0.1." if is_number else ".")
            )
        if number == 0:
            raise UserError(f"{flag} leaves no {split} image of {len(rows)}: raise it.")
        quotas = (balanced_quotas if is_balanced else proportional_quotas)(number, available)
        short = np.flatnonzero(quotas > available)
        if len(short):
            worst = short[np.argmin(available[short])]
            raise UserError(
                f"{flag}={number} needs {quotas[worst]} {split} images of class "
                f"{self.class_names[worst]!r} but only {available[worst]} are left: lower it to "
                f"{available[worst] * np.count_nonzero(available)} or less."
            )
        if split == "labeled":
            quotas = self._with_every_class(quotas, available, flag)
        hashes = hash_ids(seed, split, self.images.ids, rows)
        order = np.lexsort((hashes, self._hash_groups(seed, split, hashes, rows), labels))
        ordered = rows[order]
        starts = np.cumsum(available) - available
        return np.concatenate(
            [ordered[start : start + quota] for start, quota in zip(starts, quotas, strict=True)]
        )

    def _hash_groups(self, seed, split, hashes, rows):
        """A hash for each row, the same for all images of a group: few groups are divided then."""
        if not self._kin_names:
            return hashes
        names = [self._kin_names.get(self._kin[row], "") for row in rows.tolist()]
        grouped = hash_ids(seed, f"{split}/group", names, np.arange(len(names)))
        return np.where(np.array(names) == "", hashes, grouped)

    def _with_every_class(self, quotas, available, flag):
        """Quotas with at least one image of every class; UserError if there are too few images."""
        missing = np.flatnonzero((quotas == 0) & (available > 0))
        if not len(missing):
            return quotas
        if quotas.sum() < np.count_nonzero(available):
            raise UserError(
                f"{flag} gives {quotas.sum()} labelled images but none of class "
                f"{self.class_names[missing[0]]!r}: raise it, every class needs one."
            )
        names = [self.class_names[index] for index in missing]
        logging.info(
            "%s: one labelled image each of %s, which the share would leave without any, in place "
            "of one of the largest class.",
            flag,
            list_names(names),
        )
        return quotas_with_every_class(quotas, available)


def join_kin(images: ImageIndex) -> tuple[list[bytes | str], dict[bytes | str, str]]:
    """Finds images that must not stand in two splits: of one group, or with the same pixels.

    Both are joined: if an image of one group has the pixels of an image of another one, all images
    of both are kin.

    Args:
        images: the index of all images.

    Returns:
        A key for each image, equal for kin; dict from the keys of kin in groups to the first of the
        groups' names.
    """
    keys = list(images.digests)
    if not images.groups:
        return keys, {}
    parents = {}

    def find(key):
        while parents.setdefault(key, key) != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for row, group in images.groups.items():
        parents[find(keys[row])] = find(group)
    keys = [find(key) if key in parents else key for key in keys]
    names = {}
    for row, group in images.groups.items():
        names[keys[row]] = min(group, names.get(keys[row], group))
    return keys, names


def balanced_quotas(number: int, available: np.ndarray) -> np.ndarray:
    """Divides `number` as equally as possible; the remainder goes to the first classes.

    Args:
        number: int.
        available: int array of shape (num_classes,); classes without images get nothing.

    Returns:
        int array of shape (num_classes,), which may exceed `available`.
    """
    present = np.flatnonzero(available)
    quotas = np.zeros(len(available), np.int64)
    quotas[present] = number // len(present)
    quotas[present[: number % len(present)]] += 1
    return quotas


def proportional_quotas(number: int, available: np.ndarray) -> np.ndarray:
    """Divides `number` in proportion to `available`, by the largest remainder.

    Args:
        number: int, at most the sum of `available`.
        available: int array of shape (num_classes,).

    Returns:
        int array of shape (num_classes,), never above `available`.
    """
    quotas, remainders = np.divmod(available.astype(np.int64) * number, available.sum())
    largest = np.argsort(-remainders, kind="stable")[: number - quotas.sum()]
    quotas[largest] += 1
    return quotas


def quotas_with_every_class(quotas: np.ndarray, available: np.ndarray) -> np.ndarray:
    """Gives every class with images at least one, each taken from the largest quota of all.

    Args:
        quotas: int array of shape (num_classes,), with a sum of at least the number of classes that
            have images.
        available: int array of shape (num_classes,).

    Returns:
        int array of shape (num_classes,) with the same sum.

    Raises:
        ValueError: the sum is too small.
    """
    missing = np.flatnonzero((quotas == 0) & (available > 0))
    if quotas.sum() < np.count_nonzero(available):
        raise ValueError(f"{quotas.sum()} images: expected one for each class.")
    quotas = quotas.copy()
    for label in missing:
        quotas[np.argmax(quotas)] -= 1
        quotas[label] = 1
    return quotas


def hash_ids(seed: int | str, purpose: str, ids: list[str], rows: np.ndarray) -> np.ndarray:
    """Hashes the ids of images, to sort them in random order; a function of seed, purpose and id.

    Args:
        seed: int or string.
        purpose: string that distinguishes this use from others.
        ids: list of strings.
        rows: int array, indices into `ids`.

    Returns:
        uint64 array of the shape of `rows`.
    """
    prefix = f"{seed}\x1f{purpose}\x1f"
    keys = (
        hashlib.blake2b((prefix + ids[row]).encode(), digest_size=8).digest()
        for row in rows.tolist()
    )
    return np.frombuffer(b"".join(keys), ">u8")
