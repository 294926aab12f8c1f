"""Write: the selected images with their pseudo-labels, as TFRecord shards."""

import shutil

from nsk.data import records, shards
from nsk.progress import Progress
from nsk.pseudo.score import score_file
from nsk.pseudo.scores import read_scores
from nsk.pseudo.select_stage import LABELED, read_copies

SHARDS = "shards"


def write(
    unlabeled,
    scores_folder,
    selection_folder,
    folder,
    *,
    shard_bytes=shards.SHARD_BYTES,
    title="writing",
):
    """Joins the unlabelled shards with their score and selection files, row for row.

    An image stands once, however many copies of it are shown.

    Args:
        unlabeled: the unlabelled `ShardSet`.
        scores_folder: the teacher's score files.
        selection_folder: files of `select_stage`, from these scores or an earlier teacher's.
        folder: where the shard set goes, into `shards/`; under the gap policy the labelled images'
            copies stand beside it.
        shard_bytes: int, a shard that has reached this size is full.
        title: name of the work on the progress line.

    Returns:
        dict: `images` and `copies`.
    """
    progress = Progress(title, unlabeled.num_records)
    images = copies_in_all = done = 0
    with shards.ShardWriter(
        folder / SHARDS, "pseudo", unlabeled.class_names, max(unlabeled.counts), shard_bytes
    ) as writer:
        for number, name in enumerate(unlabeled.names):
            scores = read_scores([scores_folder / score_file(name)])
            selected, copies = read_copies(selection_folder / score_file(name))
            rows = zip(read_images(unlabeled, number), scores.ids, selected, strict=True)
            for row, ((image_id, encoded), scored_id, selected_id) in enumerate(rows):
                if not image_id == scored_id == selected_id:
                    raise ValueError(
                        f"{name} row {row} is {image_id}, its score is of {scored_id} and its "
                        f"selection of {selected_id}: expected files of the same images."
                    )
                if copies[row]:
                    writer.write(
                        records.pseudo_example(
                            image_id,
                            encoded,
                            label=scores.labels[row],
                            confidence=scores.confidences[row],
                            log_probabilities=scores.log_probabilities[row],
                            copies=copies[row],
                        ),
                        copies[row],
                    )
                    images += 1
                    copies_in_all += int(copies[row])
            done += len(scores)
            progress.update(done)
    progress.close()
    if (selection_folder / LABELED).exists():
        shutil.copyfile(selection_folder / LABELED, folder / LABELED)
    return {"images": images, "copies": copies_in_all}


def read_labeled_copies(folder):
    """{id: copies in an epoch} of the labelled images, from `write`'s folder; {}: one each."""
    if not (folder / LABELED).exists():
        return {}
    ids, copies = read_copies(folder / LABELED)
    return dict(zip(ids, copies.tolist(), strict=True))


def read_images(shard_set, shard):
    """Yields (id, encoded bytes) of one shard's records."""
    with shard_set.naming_broken_shards():
        for batch in shard_set.read(shard).batch(256).map(records.parse_images).as_numpy_iterator():
            for image_id, encoded in zip(batch["id"], batch["encoded"], strict=True):
                yield image_id.decode(), encoded
