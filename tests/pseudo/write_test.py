import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn import datasets

from nsk.data import pipeline, records
from nsk.data.shards import ShardSet, ShardWriter
from nsk.errors import UserError
from nsk.pseudo.scores import from_predictions, write_scores
from nsk.pseudo.select_stage import select_images
from nsk.pseudo.write import SHARDS, read_labeled_copies, write

NUM_IMAGES = 23
NUM_CLASSES = 10
CLASS_NAMES = [str(digit) for digit in range(NUM_CLASSES)]


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


def ids_of(shard_set, number):
    """Ids of one shard of the first handwritten digits."""
    first = sum(shard_set.counts[:number])
    return [f"digits/{row:04d}" for row in range(first, first + shard_set.counts[number])]


def make_scores(folder, unlabeled, seed=0):
    """Score files of a teacher that knows nothing; returns {id: log-probabilities}."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    predictions = {}
    for number, name in enumerate(unlabeled.names):
        ids = ids_of(unlabeled, number)
        logits = random.normal(0, 2, (len(ids), NUM_CLASSES))
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        write_scores(
            folder / name.replace(".tfrecord", ".parquet"),
            from_predictions(ids, log_probabilities.astype(np.float32)),
        )
        predictions |= dict(zip(ids, log_probabilities.astype(np.float16), strict=True))
    return predictions


def make_selection(folder, unlabeled, copies_of):
    """Selection files; `copies_of` is a function of the image's number."""
    folder.mkdir()
    for number, name in enumerate(unlabeled.names):
        ids = ids_of(unlabeled, number)
        copies = [copies_of(int(one.removeprefix("digits/"))) for one in ids]
        columns = {"id": pa.array(ids), "copies": pa.array(copies, pa.int32())}
        pq.write_table(pa.table(columns), folder / name.replace(".tfrecord", ".parquet"))


def run(unlabeled, tmp_path, scores="scores", selection="selection", folder="pseudo"):
    (tmp_path / folder).mkdir()
    counts = write(unlabeled, tmp_path / scores, tmp_path / selection, tmp_path / folder)
    return counts, ShardSet.load(tmp_path / folder / SHARDS)


def test_selected_images_are_written_with_their_labels_and_pixels(unlabeled, tmp_path):
    predictions = make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: number % 3)
    counts, pseudo = run(unlabeled, tmp_path)

    expected = [f"digits/{number:04d}" for number in range(NUM_IMAGES) if number % 3]
    assert counts == {"images": len(expected), "copies": sum(n % 3 for n in range(NUM_IMAGES))}
    assert pseudo.kind == "pseudo" and pseudo.class_names == tuple(CLASS_NAMES)
    # An image stands once, however many copies of it are shown.
    assert pseudo.num_records == len(expected) and max(pseudo.counts) <= 10

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


def test_select_once_relabels_the_first_selection_with_a_later_teacher(unlabeled, tmp_path):
    first = make_scores(tmp_path / "scores", unlabeled, seed=0)
    later = make_scores(tmp_path / "later scores", unlabeled, seed=1)
    labeled = write_digits(tmp_path / "labeled", range(100, 110), labelled=True)
    settings = {"policy": "none", "min_confidence": 0.6, "seed": 0}
    (tmp_path / "selection").mkdir()
    chosen = select_images(settings, tmp_path / "scores", labeled, tmp_path / "selection")

    counts, pseudo = run(unlabeled, tmp_path, scores="later scores")
    written = pipeline.load_images(pseudo, 8)
    kept = [one for one, value in first.items() if np.exp(value.astype(np.float32).max()) >= 0.6]
    assert written.ids == kept and counts["images"] == chosen["images"] == len(kept)
    assert written.labels.tolist() == [later[one].argmax() for one in kept]
    assert written.labels.tolist() != [first[one].argmax() for one in kept]


def test_copies_of_labelled_images_come_along_under_the_gap_policy(unlabeled, tmp_path):
    make_scores(tmp_path / "scores", unlabeled)
    labeled = write_digits(tmp_path / "labeled", range(100, 120), labelled=True)
    settings = {"policy": "gap", "min_confidence": 0.3, "gap_floor": 12, "gap_margin": 5, "seed": 0}
    (tmp_path / "selection").mkdir()
    select_images(settings, tmp_path / "scores", labeled, tmp_path / "selection")
    run(unlabeled, tmp_path)
    copies = read_labeled_copies(tmp_path / "pseudo")
    assert set(copies) == {f"digits/{row:04d}" for row in range(100, 120)}
    assert min(copies.values()) >= 1 and max(copies.values()) > 1


def test_without_copies_of_labelled_images_each_stands_once(unlabeled, tmp_path):
    make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: 1)
    run(unlabeled, tmp_path)
    assert read_labeled_copies(tmp_path / "pseudo") == {}


@pytest.mark.parametrize("which", ["scores", "selection"])
def test_files_of_other_images_are_never_joined(unlabeled, tmp_path, which):
    make_scores(tmp_path / "scores", unlabeled)
    make_selection(tmp_path / "selection", unlabeled, lambda number: 1)
    # Swaps the files of the two shards that have as many images.
    folder = tmp_path / which
    (folder / "00000.parquet").rename(folder / "swapped")
    (folder / "00001.parquet").rename(folder / "00000.parquet")
    (folder / "swapped").rename(folder / "00001.parquet")
    with pytest.raises(ValueError, match=r"row 0 is digits/0000.*digits/0010"):
        run(unlabeled, tmp_path)


@pytest.mark.parametrize("which", ["scores", "selection"])
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
