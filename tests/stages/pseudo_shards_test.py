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

from nsk.config.selection import SelectionConfig
from nsk.data import records
from nsk.data.resident_images import load_images
from nsk.data.shards import ShardSet, ShardWriter
from nsk.errors import UserError
from nsk.evaluation.prediction_files import (
    make_stored_predictions,
    read_predictions,
    write_predictions,
)
from nsk.stages.pseudo_shards import SHARDS_FOLDER, plan_shards, write_pseudo_shards
from nsk.stages.score_files import score_file_name, score_paths
from nsk.stages.selection import read_labeled_copies, select_images
from nsk.store.files import changed_since_written

NUM_IMAGES = 23
NUM_CLASSES = 10
CLASS_NAMES = [str(digit) for digit in range(NUM_CLASSES)]
BASE = {"calibrate": False, "target_precision": 0.0}


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
    """Score files of random predictions; returns {id: log-probabilities}."""
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
        copies = [
            copies_of(int(image_id.removeprefix("digits/")))
            for image_id in ids_of(unlabeled, number)
        ]
        table = pa.table({"copies": pa.array(copies, pa.int32())})
        pq.write_table(table, folder / score_file_name(name))


def run(unlabeled, tmp_path, scores="scores", selection="selection", folder="pseudo", **settings):
    (tmp_path / folder).mkdir(exist_ok=True)
    counts = write_pseudo_shards(
        unlabeled, tmp_path / scores, tmp_path / selection, tmp_path / folder, **settings
    )
    return counts, ShardSet.load(tmp_path / folder / SHARDS_FOLDER)


def select(settings, unlabeled, tmp_path, labeled):
    """Writes selection files from the score files; dev has no influence."""
    dev = make_stored_predictions(["dev"], np.log(np.full((1, NUM_CLASSES), 0.1, np.float32)))
    write_predictions(tmp_path / "dev.parquet", dev, np.array([0]))
    (tmp_path / "selection").mkdir()
    return select_images(
        settings,
        0,
        score_paths(unlabeled, tmp_path / "scores"),
        tmp_path / "dev.parquet",
        labeled,
        tmp_path / "selection",
    )


def copies_in_shards(pseudo):
    """[{id: copies} of each shard], after a check that its ids are unique."""
    shards = []
    for shard in range(len(pseudo.names)):
        parsed = records.parse_copies(tf.constant(list(pseudo.records(shard)), tf.string))
        ids = [image_id.decode() for image_id in parsed["id"].numpy()]
        assert len(set(ids)) == len(ids)
        shards.append(dict(zip(ids, parsed["copies"].numpy().tolist(), strict=True)))
    return shards


def total_copies(shards):
    """{id: copies in all shards together}."""
    copies = {}
    for shard in shards:
        for image_id, count in shard.items():
            copies[image_id] = copies.get(image_id, 0) + count
    return copies


def test_selected_images_are_written_with_their_labels_and_pixels(unlabeled, tmp_path):
    predictions = make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: number % 3)
    counts, pseudo = run(unlabeled, tmp_path)

    expected = [f"digits/{number:04d}" for number in range(NUM_IMAGES) if number % 3]
    assert counts == {"images": len(expected), "copies": sum(n % 3 for n in range(NUM_IMAGES))}
    assert pseudo.kind == "pseudo" and pseudo.class_names == tuple(CLASS_NAMES)
    # They fit into a single shard, which holds each image once, whatever its copies.
    assert pseudo.counts == (len(expected),) and pseudo.num_images == len(expected)

    written = load_images(pseudo, 8)
    source = load_images(unlabeled, 8)
    pixels = dict(zip(source.ids, source.images.numpy(), strict=True))
    assert written.ids == expected
    assert written.copies.tolist() == [int(image_id[-4:]) % 3 for image_id in expected]
    for row, image_id in enumerate(written.ids):
        np.testing.assert_array_equal(written.images[row], pixels[image_id])
        np.testing.assert_array_equal(
            written.log_probabilities[row], predictions[image_id].astype(np.float32)
        )
        assert written.labels[row] == predictions[image_id].argmax()


def test_confidences_are_kept(unlabeled, tmp_path):
    predictions = make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: 1)
    _, pseudo = run(unlabeled, tmp_path)
    parse = records.parse_pseudo
    for batch in pseudo.read().batch(100).map(lambda records: parse(records, NUM_CLASSES)):
        expected = [
            np.exp(predictions[image_id.decode()].max()) for image_id in batch["id"].numpy()
        ]
        np.testing.assert_allclose(batch["confidence"], expected, rtol=2e-3)


@pytest.mark.parametrize("top_k", [1, 4])
def test_the_top_k_log_probabilities_are_written(unlabeled, tmp_path, top_k):
    make_scores(tmp_path / "scores", unlabeled, top_k=top_k)
    make_selection(tmp_path / "selection", unlabeled, lambda number: 1)
    _, pseudo = run(unlabeled, tmp_path)
    assert pseudo.top_k == top_k
    written = load_images(pseudo, 8)
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
        image_id: encoded
        for batch in unlabeled.read().batch(100).map(records.parse_images).as_numpy_iterator()
        for image_id, encoded in zip(batch["id"], batch["encoded"], strict=True)
    }
    assert parsed["id"].numpy().tolist() == [b"digits/0012"]
    assert parsed["encoded"][0].numpy() == source[b"digits/0012"]


# Copies and shards.


def test_copies_of_an_image_are_spread_over_its_own_and_the_next_shards(many, tmp_path):
    """0 to 29 copies over 20 shards, in a ring; the remainder is in the first of them."""
    copies_of = {f"digits/{number:04d}": number % 30 for number in range(60)}
    make_scores(tmp_path / "scores", many)
    make_selection(tmp_path / "selection", many, lambda number: number % 30)
    counts, pseudo = run(many, tmp_path, shard_bytes=1)
    assert len(pseudo.names) == 20
    shards_copies = copies_in_shards(pseudo)
    assert total_copies(shards_copies) == {
        image_id: copies for image_id, copies in copies_of.items() if copies
    }
    for image_id, copies in copies_of.items():
        own = int(image_id[-4:]) // 3
        received = [shards_copies[(own + distance) % 20].get(image_id, 0) for distance in range(20)]
        quotient, remainder = divmod(copies, min(copies, 20) or 1)
        expected = [quotient + (distance < remainder) for distance in range(min(copies, 20))]
        assert received == expected + [0] * (20 - len(expected)), image_id
    assert counts == {"images": 58, "copies": sum(copies_of.values())}


def test_the_manifest_counts_match_the_files(many, tmp_path):
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
        shards_copies = copies_in_shards(pseudo)
        assert pseudo.counts == tuple(map(len, shards_copies))
        assert pseudo.copies == tuple(sum(shard.values()) for shard in shards_copies)
        all_copies = total_copies(shards_copies)
        assert all_copies == {f"digits/{row:04d}": int(copies[row]) for row in copies.nonzero()[0]}
        assert pseudo.num_images == len(all_copies) == counts["images"]
        assert counts["copies"] == copies.sum()
        # Each image counts in "images" of its own shard only.
        manifest = json.loads((pseudo.folder / "manifest.json").read_text())
        assert sum(file["images"] for file in manifest["files"]) == len(all_copies)
        assert all(0 <= file["images"] <= file["records"] for file in manifest["files"])
        pseudo.verify()
        assert {path.name for path in pseudo.folder.iterdir()} == {
            "manifest.json",
            *pseudo.names,
        }


def test_shards_are_grouped_if_few_images_are_selected(many, tmp_path):
    """Output shards have about the requested size, whatever the share of selected images."""
    make_scores(tmp_path / "scores", many)
    size = sum(path.stat().st_size for path in many.paths) / 20
    for number, (share, shards) in enumerate([(1, 20), (3, 7)]):
        # Three input shards with a third of their images are as large as a single one.
        make_selection(
            tmp_path / f"selection {number}",
            many,
            lambda row, share=share: int(row % share == 0),
        )
        plan = plan_shards(many, tmp_path / f"selection {number}", 1.1 * size)
        assert len(plan.groups) == shards
        assert [shard for group in plan.groups for shard in group] == list(range(20))
        _, pseudo = run(
            many,
            tmp_path,
            selection=f"selection {number}",
            folder=f"pseudo {number}",
            shard_bytes=1.1 * size,
        )
        assert len(pseudo.names) == shards
        assert pseudo.counts[:-1] == (3,) * (shards - 1)


def test_input_shards_without_selected_images_are_allowed(many, tmp_path):
    make_scores(tmp_path / "scores", many)
    make_selection(tmp_path / "selection", many, lambda number: 5 * (number in (7, 31)))
    for number, shard_bytes in enumerate((1, 2**20)):
        _, pseudo = run(many, tmp_path, folder=f"{number}", shard_bytes=shard_bytes)
        assert total_copies(copies_in_shards(pseudo)) == {"digits/0007": 5, "digits/0031": 5}
        images = load_images(pseudo, 8)
        assert images.copies.sum() == 10 and set(images.ids) == {"digits/0007", "digits/0031"}


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize(("copies", "shard_bytes"), [(1, 1), (3, 1), (20, 1), (4, 1000)])
def test_missing_shards_are_rewritten_with_the_same_bytes(tmp_path, copies, shard_bytes):
    """Whichever are missing, and in any order of writing."""
    random = np.random.default_rng(0)
    few = write_digits(tmp_path / "few", range(21), labelled=False, images_per_shard=3)
    make_scores(tmp_path / "scores", few, top_k=3)
    numbers = random.integers(0, copies + 1, 21).tolist()
    make_selection(tmp_path / "selection", few, lambda number: numbers[number])
    counts, pseudo = run(few, tmp_path, shard_bytes=shard_bytes)
    expected = digests(pseudo.folder)
    names = list(pseudo.names)
    assert len(names) > 2
    for missing in ([names[0]], [names[-1]], names[1::2], names):
        for name in (*missing, "manifest.json"):
            (pseudo.folder / name).unlink()
        kept = {path: path.stat().st_mtime_ns for path in pseudo.folder.glob("*.tfrecord")}
        assert run(few, tmp_path, shard_bytes=shard_bytes)[0] == counts
        assert digests(pseudo.folder) == expected
        assert {path: path.stat().st_mtime_ns for path in kept} == kept

    class Shuffled:
        """An engine that writes single shards in random order."""

        def run(self, items, make_function):
            for item in random.permutation(items).tolist():
                make_function()([item])

    class Backwards:
        """An engine that writes the shards in descending order."""

        def run(self, items, make_function):
            make_function()(items[::-1])

    for number, engine in enumerate((Shuffled(), Backwards())):
        _, again = run(
            few, tmp_path, folder=f"again {number}", shard_bytes=shard_bytes, engine=engine
        )
        assert digests(again.folder) == expected


# Other selections and mismatched files.


def test_select_once_relabels_the_first_selection_with_a_later_teacher(unlabeled, tmp_path):
    first = make_scores(tmp_path / "scores", unlabeled, seed=0)
    later = make_scores(tmp_path / "later scores", unlabeled, seed=1)
    labeled = write_digits(tmp_path / "labeled", range(100, 110), labelled=True)
    selected = select(
        SelectionConfig(policy="none", min_confidence=0.6, **BASE), unlabeled, tmp_path, labeled
    )

    counts, pseudo = run(unlabeled, tmp_path, scores="later scores")
    written = load_images(pseudo, 8)
    kept = [
        image_id
        for image_id, log_probabilities in first.items()
        if np.exp(log_probabilities.astype(np.float32).max()) >= 0.6
    ]
    assert written.ids == kept and counts["images"] == selected["images"] == len(kept)
    assert written.labels.tolist() == [later[image_id].argmax() for image_id in kept]
    assert written.labels.tolist() != [first[image_id].argmax() for image_id in kept]


def test_the_gap_policy_also_writes_copies_of_labelled_images(unlabeled, tmp_path):
    make_scores(tmp_path / "scores", unlabeled)
    labeled = write_digits(tmp_path / "labeled", range(100, 120), labelled=True)
    settings = SelectionConfig(policy="gap", min_confidence=0.3, gap_floor=12, gap_margin=5, **BASE)
    select(settings, unlabeled, tmp_path, labeled)
    run(unlabeled, tmp_path, folder="pseudo.partial")
    assert changed_since_written(tmp_path / "pseudo.partial") == []  # Files are whole or absent.
    copies = read_labeled_copies(tmp_path / "pseudo.partial")
    assert set(copies) == {f"digits/{row:04d}" for row in range(100, 120)}
    assert min(copies.values()) >= 1 and max(copies.values()) > 1


def test_other_policies_write_no_copies_of_labelled_images(unlabeled, tmp_path):
    make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: 1)
    run(unlabeled, tmp_path)
    assert read_labeled_copies(tmp_path / "pseudo") == {}


def test_scores_of_other_images_are_an_error(unlabeled, tmp_path):
    make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: 1)
    # Swaps the files of the two shards of equal size.
    first, second, _ = score_paths(unlabeled, tmp_path / "scores")
    first.rename(tmp_path / "swapped")
    second.rename(first)
    (tmp_path / "swapped").rename(second)
    with pytest.raises(ValueError, match=r"row 0 .* is of digits/0010, which"):
        run(unlabeled, tmp_path)
    assert not list((tmp_path / "pseudo").rglob("*.tfrecord*"))


@pytest.mark.parametrize("which", ["scores", "selection"])
@pytest.mark.parametrize("longer", [True, False])
def test_files_with_another_number_of_images_are_an_error(unlabeled, tmp_path, which, longer):
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
