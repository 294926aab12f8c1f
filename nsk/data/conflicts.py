"""Images with the same pixels under several labels."""

from typing import Any

import numpy as np

from nsk.data.image_index import ImageIndex
from nsk.errors import list_names

NAMED_CONFLICTS = 100
KEEP, DROP = "keep", "drop"


def resolve_conflicts(
    index: ImageIndex, class_names: list[str], policy: str
) -> tuple[ImageIndex, dict[str, Any]]:
    """Finds images with the same pixels under several labels, and leaves some of them out.

    Images are left out only for a conflict within their pool: of two pools, such as dev and
    labeled, the later one loses images that the earlier one has, whatever their labels. Labels of
    the pool `unlabeled` are not used, so they are in no conflict. Images of the pool `test` are
    never left out, so that accuracies stay comparable with published ones.

    Args:
        index: all readable images.
        class_names: names of the classes.
        policy: "keep": all stay | "drop": all of them are left out | "majority": those with the
            most frequent label of these pixels stay; without one, none does.

    Returns:
        The index without the images that are left out, and a dict of `images`, how many are in a
        conflict, `dropped`, how many are left out, and `named`, the first conflicts in words.
    """
    pool_of = np.full(len(index.ids), "", object)
    for name, rows in index.pools.items():
        pool_of[rows] = name
    groups = _conflicts(index, np.flatnonzero((index.labels >= 0) & (pool_of != "unlabeled")))
    dropped = []
    for group in groups:
        for name in index.pools.keys() - {"test"}:
            dropped += _dropped(
                [row for row in group if pool_of[row] == name], index.labels, policy
            )
    is_kept = np.ones(len(index.ids), bool)
    is_kept[dropped] = False
    pools = {name: rows[is_kept[rows]] for name, rows in index.pools.items()}
    named = [
        list_names([f"{index.ids[row]} ({class_names[index.labels[row]]})" for row in group])
        for group in groups[:NAMED_CONFLICTS]
    ]
    counts = {"images": sum(map(len, groups)), "dropped": len(dropped), "named": named}
    return index.with_pools(pools), counts


def _conflicts(index, rows):
    """Lists of rows with the same pixels and at least two labels, in the order of the rows."""
    by_digest = {}
    for row in rows.tolist():
        by_digest.setdefault(index.digests[row], []).append(row)
    return [group for group in by_digest.values() if _num_labels(group, index.labels) > 1]


def _num_labels(rows, labels):
    return len(set(labels[rows].tolist()))


def _dropped(rows, labels, policy):
    """The rows of a pool with the same pixels that are left out."""
    if policy == KEEP or _num_labels(rows, labels) < 2:
        return []
    if policy == DROP:
        return rows
    found, counts = np.unique(labels[rows], return_counts=True)
    winners = found[counts == counts.max()]
    return [row for row in rows if len(winners) > 1 or labels[row] != winners[0]]
