import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image
from sklearn import datasets

from nsk.data import pipeline, records
from nsk.data.shards import ShardSet, ShardWriter
from nsk.errors import UserError
from nsk.evaluation.prediction_files import (
    make_stored_predictions,
    read_predictions,
    write_predictions,
)
from nsk.stages.pseudo_shards import SHARDS, plan_shards, write
from nsk.stages.scoring import score_file_name, score_paths
from nsk.stages.selection import read_labeled_copies, select_images

NUM_IMAGES = 23
NUM_CLASSES = 10
CLASS_NAMES = [str(digit) for digit in range(NUM_CLASSES)]
NONE = {"policy": "none", "calibrate": False, "target_precision": 0.0, "seed": 0}


def write_digits(folder, rows, labelled, images_per_shard=10):
    digits = datasets.load_digits()
    with ShardWriter(folder, "images", CLASS_NAMES, images_per_shard) as writer:
        for row in rows:
            buffer = io.BytesIO()
            pixels = np.round(digits.images[row] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG")
            label = int(digits.target[row]) if labelled else None
            example = records.image_example(f"digits/{row:04d}", buffer.getvalue(), label)
            writer.write(example)
    return ShardSet.load(folder)


@pytest.fixture
def unlabeled(tmp_path):
    """23 handwritten digits in shards of 10, 10 and 3."""
    return write_digits(tmp_path / "unlabeled", range(NUM_IMAGES), labelled=False)


@pytest.fixture
def many(tmp_path):
    """60 handwritten digits in 20 shards of 3."""
    return write_digits(tmp_path / "unlabeled", range(60), labelled=False, images_per_shard=3)


def ids_of(shard_set, number):
    """Ids of one shard of the first handwritten digits."""
    first = sum(shard_set.counts[:number])
    return [f"digits/{row:04d}" for row in range(first, first + shard_set.counts[number])]


def make_scores(folder, unlabeled, seed=0, top_k=0):
    """Score files of a teacher that knows nothing; returns {id: log-probabilities}."""
    (folder / "unlabeled").mkdir(parents=True)
    random = np.random.default_rng(seed)
    predictions = {}
    for number, path in enumerate(score_paths(unlabeled, folder)):
        ids = ids_of(unlabeled, number)
        logits = random.normal(0, 2, (len(ids), NUM_CLASSES))
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        write_predictions(
            path, make_stored_predictions(ids, log_probabilities.astype(np.float32), top_k)
        )
        predictions |= dict(zip(ids, log_probabilities.astype(np.float16), strict=True))
    return predictions


def make_selection(folder, unlabeled, copies_of):
    """Selection files; `copies_of` is a function of the image's number."""
    folder.mkdir()
    for number, name in enumerate(unlabeled.names):
        copies = [copies_of(int(one.removeprefix("digits/"))) for one in ids_of(unlabeled, number)]
        table = pa.table({"copies": pa.array(copies, pa.int32())})
        pq.write_table(table, folder / score_file_name(name))


def run(unlabeled, tmp_path, scores="scores", selection="selection", folder="pseudo", **settings):
    (tmp_path / folder).mkdir(exist_ok=True)
    counts = write(
        unlabeled, tmp_path / scores, tmp_path / selection, tmp_path / folder, **settings
    )
    return counts, ShardSet.load(tmp_path / folder / SHARDS)


def select(settings, unlabeled, tmp_path, labeled):
    """Selection files of the settings from the score files; dev decides nothing."""
    dev = make_stored_predictions(["dev"], np.log(np.full((1, NUM_CLASSES), 0.1, np.float32)))
    write_predictions(tmp_path / "dev.parquet", dev, np.array([0]))
    (tmp_path / "selection").mkdir()
    return select_images(
        settings,
        score_paths(unlabeled, tmp_path / "scores"),
        tmp_path / "dev.parquet",
        labeled,
        tmp_path / "selection",
    )


def held(pseudo):
    """[{id: copies} of each shard], after a check that an id stands once in it."""
    found = []
    for shard in range(len(pseudo.names)):
        parsed = records.parse_copies(tf.constant(list(pseudo.records(shard)), tf.string))
        ids = [one.decode() for one in parsed["id"].numpy()]
        assert len(set(ids)) == len(ids)
        found.append(dict(zip(ids, parsed["copies"].numpy().tolist(), strict=True)))
    return found


def summed(of_shards):
    """{id: copies in all shards together}."""
    copies = {}
    for one in of_shards:
        for image_id, count in one.items():
            copies[image_id] = copies.get(image_id, 0) + count
    return copies


def test_selected_images_are_written_with_their_labels_and_pixels(unlabeled, tmp_path):
    predictions = make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: number % 3)
    counts, pseudo = run(unlabeled, tmp_path)

    expected = [f"digits/{number:04d}" for number in range(NUM_IMAGES) if number % 3]
    assert counts == {"images": len(expected), "copies": sum(n % 3 for n in range(NUM_IMAGES))}
    assert pseudo.kind == "pseudo" and pseudo.class_names == tuple(CLASS_NAMES)
    # They fit into one shard, where an image stands once, however many copies of it are shown.
    assert pseudo.counts == (len(expected),) and pseudo.num_images == len(expected)

    written = pipeline.load_images(pseudo, 8)
    source = pipeline.load_images(unlabeled, 8)
    pixels = dict(zip(source.ids, source.images.numpy(), strict=True))
    assert written.ids == expected
    assert written.copies.tolist() == [int(one[-4:]) % 3 for one in expected]
    for row, one in enumerate(written.ids):
        np.testing.assert_array_equal(written.images[row], pixels[one])
        np.testing.assert_array_equal(
            written.log_probabilities[row], predictions[one].astype(np.float32)
        )
        assert written.labels[row] == predictions[one].argmax()


def test_confidences_are_kept(unlabeled, tmp_path):
    predictions = make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: 1)
    _, pseudo = run(unlabeled, tmp_path)
    parse = records.parse_pseudo
    for batch in pseudo.read().batch(100).map(lambda one: parse(one, NUM_CLASSES)):
        expected = [np.exp(predictions[one.decode()].max()) for one in batch["id"].numpy()]
        np.testing.assert_allclose(batch["confidence"], expected, rtol=2e-3)


@pytest.mark.parametrize("top_k", [1, 4])
def test_the_largest_log_probabilities_are_written_as_they_are_scored(unlabeled, tmp_path, top_k):
    make_scores(tmp_path / "scores", unlabeled, top_k=top_k)
    make_selection(tmp_path / "selection", unlabeled, lambda number: 1)
    _, pseudo = run(unlabeled, tmp_path)
    assert pseudo.top_k == top_k
    written = pipeline.load_images(pseudo, 8)
    expected = np.concatenate(
        [
            read_predictions(path).all_log_probabilities(NUM_CLASSES)
            for path in score_paths(unlabeled, tmp_path / "scores")
        ]
    )
    np.testing.assert_allclose(written.log_probabilities, expected, rtol=1e-6)


def test_encoded_bytes_are_those_of_the_source(unlabeled, tmp_path):
    make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: int(number == 12))
    _, pseudo = run(unlabeled, tmp_path)
    (written,) = (batch for batch in pseudo.read().batch(10).as_numpy_iterator())
    parsed = records.parse_pseudo(written, NUM_CLASSES)
    source = {
        one: encoded
        for batch in unlabeled.read().batch(100).map(records.parse_images).as_numpy_iterator()
        for one, encoded in zip(batch["id"], batch["encoded"], strict=True)
    }
    assert parsed["id"].numpy().tolist() == [b"digits/0012"]
    assert parsed["encoded"][0].numpy() == source[b"digits/0012"]


# Copies and shards.


def test_copies_of_an_image_stand_in_different_shards_behind_its_own(many, tmp_path):
    """0 to 29 copies over 20 shards, in a ring; what is over stands in the first of them."""
    copies_of = {f"digits/{number:04d}": number % 30 for number in range(60)}
    make_scores(tmp_path / "scores", many)
    make_selection(tmp_path / "selection", many, lambda number: number % 30)
    counts, pseudo = run(many, tmp_path, shard_bytes=1)
    assert len(pseudo.names) == 20
    of_shards = held(pseudo)
    assert summed(of_shards) == {one: copies for one, copies in copies_of.items() if copies}
    for one, copies in copies_of.items():
        own = int(one[-4:]) // 3
        received = [of_shards[(own + distance) % 20].get(one, 0) for distance in range(20)]
        shards, more = divmod(copies, min(copies, 20) or 1)
        expected = [shards + (distance < more) for distance in range(min(copies, 20))]
        assert received == expected + [0] * (20 - len(expected)), one
    assert counts == {"images": 58, "copies": sum(copies_of.values())}


def test_the_manifest_counts_what_the_files_hold(many, tmp_path):
    random = np.random.default_rng(0)
    make_scores(tmp_path / "scores", many)
    for number, (most, kept, shard_bytes) in enumerate(
        [(1, 0.05, 1), (1, 1.0, 1500), (2, 0.5, 1), (3, 0.7, 1500), (50, 0.1, 1), (50, 0.5, 4000)]
    ):
        copies = random.integers(1, most + 1, 60) * (random.random(60) < kept)
        copies[17] = most
        selection, folder = f"selection {number}", f"pseudo {number}"
        make_selection(tmp_path / selection, many, lambda row: int(copies[row]))  # noqa: B023
        counts, pseudo = run(
            many, tmp_path, selection=selection, folder=folder, shard_bytes=shard_bytes
        )
        of_shards = held(pseudo)
        assert pseudo.counts == tuple(map(len, of_shards))
        assert pseudo.copies == tuple(sum(one.values()) for one in of_shards)
        everything = summed(of_shards)
        assert everything == {f"digits/{row:04d}": int(copies[row]) for row in copies.nonzero()[0]}
        assert pseudo.num_images == len(everything) == counts["images"]
        assert counts["copies"] == copies.sum()
        # "images" are those whose own shard it is: each image counts in one.
        manifest = json.loads((pseudo.folder / "manifest.json").read_text())
        assert sum(file["images"] for file in manifest["files"]) == len(everything)
        assert all(0 <= file["images"] <= file["records"] for file in manifest["files"])
        pseudo.verify()
        assert {path.name for path in pseudo.folder.iterdir()} == {
            "manifest.json",
            *pseudo.names,
        }


def test_shards_are_grouped_where_few_images_are_kept(many, tmp_path):
    """Output shards are about as large as asked for, whatever the share of images in them."""
    make_scores(tmp_path / "scores", many)
    size = sum(path.stat().st_size for path in many.paths) / 20
    for number, (share, shards) in enumerate([(1, 20), (3, 7)]):
        # One image in 1 or 3: three input shards of which a third is kept are as large as one.
        make_selection(
            tmp_path / f"selection {number}",
            many,
            lambda row, share=share: int(row % share == 0),
        )
        plan = plan_shards(many, tmp_path / f"selection {number}", 1.1 * size)
        assert len(plan.groups) == shards
        assert [one for group in plan.groups for one in group] == list(range(20))
        _, pseudo = run(
            many,
            tmp_path,
            selection=f"selection {number}",
            folder=f"pseudo {number}",
            shard_bytes=1.1 * size,
        )
        assert len(pseudo.names) == shards
        assert pseudo.counts[:-1] == (3,) * (shards - 1)


def test_input_shards_of_which_nothing_is_kept_make_no_trouble(many, tmp_path):
    make_scores(tmp_path / "scores", many)
    make_selection(tmp_path / "selection", many, lambda number: 5 * (number in (7, 31)))
    for number, shard_bytes in enumerate((1, 2**20)):
        _, pseudo = run(many, tmp_path, folder=f"{number}", shard_bytes=shard_bytes)
        assert summed(held(pseudo)) == {"digits/0007": 5, "digits/0031": 5}
        images = pipeline.load_images(pseudo, 8)
        assert images.copies.sum() == 10 and set(images.ids) == {"digits/0007", "digits/0031"}


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize(("copies", "shard_bytes"), [(1, 1), (3, 1), (20, 1), (4, 1000)])
def test_shards_that_are_missing_are_written_anew_with_the_same_bytes(
    tmp_path, copies, shard_bytes
):
    """Whichever are missing, and whatever the order in which they are written."""
    random = np.random.default_rng(0)
    few = write_digits(tmp_path / "few", range(21), labelled=False, images_per_shard=3)
    make_scores(tmp_path / "scores", few, top_k=3)
    numbers = random.integers(0, copies + 1, 21).tolist()
    make_selection(tmp_path / "selection", few, lambda number: numbers[number])
    counts, pseudo = run(few, tmp_path, shard_bytes=shard_bytes)
    whole = digests(pseudo.folder)
    names = list(pseudo.names)
    assert len(names) > 2
    for some in ([names[0]], [names[-1]], names[1::2], names):
        for name in (*some, "manifest.json"):
            (pseudo.folder / name).unlink()
        kept = {path: path.stat().st_mtime_ns for path in pseudo.folder.glob("*.tfrecord")}
        assert run(few, tmp_path, shard_bytes=shard_bytes)[0] == counts
        assert digests(pseudo.folder) == whole
        assert {path: path.stat().st_mtime_ns for path in kept} == kept

    class Shuffled:
        """An engine that writes the shards one by one in any order."""

        def each(self, items, make):
            for item in random.permutation(items).tolist():
                make()([item])

    class Backwards:
        """An engine that writes the shards backwards, by one writer."""

        def each(self, items, make):
            make()(items[::-1])

    for number, engine in enumerate((Shuffled(), Backwards())):
        _, again = run(
            few, tmp_path, folder=f"again {number}", shard_bytes=shard_bytes, engine=engine
        )
        assert digests(again.folder) == whole


# Other selections, other files.


def test_select_once_relabels_the_first_selection_with_a_later_teacher(unlabeled, tmp_path):
    first = make_scores(tmp_path / "scores", unlabeled, seed=0)
    later = make_scores(tmp_path / "later scores", unlabeled, seed=1)
    labeled = write_digits(tmp_path / "labeled", range(100, 110), labelled=True)
    chosen = select(NONE | {"min_confidence": 0.6}, unlabeled, tmp_path, labeled)

    counts, pseudo = run(unlabeled, tmp_path, scores="later scores")
    written = pipeline.load_images(pseudo, 8)
    kept = [one for one, value in first.items() if np.exp(value.astype(np.float32).max()) >= 0.6]
    assert written.ids == kept and counts["images"] == chosen["images"] == len(kept)
    assert written.labels.tolist() == [later[one].argmax() for one in kept]
    assert written.labels.tolist() != [first[one].argmax() for one in kept]


def test_copies_of_labelled_images_come_along_under_the_gap_policy(unlabeled, tmp_path):
    make_scores(tmp_path / "scores", unlabeled)
    labeled = write_digits(tmp_path / "labeled", range(100, 120), labelled=True)
    settings = NONE | {"policy": "gap", "min_confidence": 0.3, "floor": 12, "margin": 5}
    select(settings, unlabeled, tmp_path, labeled)
    run(unlabeled, tmp_path)
    copies = read_labeled_copies(tmp_path / "pseudo")
    assert set(copies) == {f"digits/{row:04d}" for row in range(100, 120)}
    assert min(copies.values()) >= 1 and max(copies.values()) > 1


def test_without_copies_of_labelled_images_each_stands_once(unlabeled, tmp_path):
    make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: 1)
    run(unlabeled, tmp_path)
    assert read_labeled_copies(tmp_path / "pseudo") == {}


def test_scores_of_other_images_are_never_joined(unlabeled, tmp_path):
    make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: 1)
    # Swaps the files of the two shards that have as many images.
    one, other, _ = score_paths(unlabeled, tmp_path / "scores")
    one.rename(tmp_path / "swapped")
    other.rename(one)
    (tmp_path / "swapped").rename(other)
    with pytest.raises(ValueError, match=r"row 0 is digits/0000.*digits/0010"):
        run(unlabeled, tmp_path)
    assert not list((tmp_path / "pseudo").rglob("*.tfrecord*"))


@pytest.mark.parametrize("which", ["scores", "selection"])
@pytest.mark.parametrize("longer", [True, False])
def test_files_of_another_number_of_images_are_never_joined(unlabeled, tmp_path, which, longer):
    make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: 1)
    short, long = "00002.parquet", "00001.parquet"
    folder = tmp_path / ("scores/unlabeled" if which == "scores" else which)
    source, target = (long, short) if longer else (short, long)
    (folder / target).write_bytes((folder / source).read_bytes())
    with pytest.raises(ValueError):
        run(unlabeled, tmp_path)


@pytest.mark.parametrize("which", ["scores/unlabeled", "selection"])
def test_a_missing_file_is_a_user_error(unlabeled, tmp_path, which):
    make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: 1)
    (tmp_path / which / "00002.parquet").unlink()
    with pytest.raises(UserError, match=r"00002\.parquet cannot be read"):
        run(unlabeled, tmp_path)


def test_a_broken_shard_of_images_is_named(unlabeled, tmp_path):
    make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: 1)
    content = bytearray(unlabeled.paths[1].read_bytes())
    content[len(content) // 2] ^= 1
    unlabeled.paths[1].write_bytes(content)
    with pytest.raises(UserError, match=r"00001\.tfrecord"):
        run(unlabeled, tmp_path)
