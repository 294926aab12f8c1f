"""Accuracy on other test sets, scored by hand: the first four levels of an image are its scores."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image

from nsk.errors import UserError
from nsk.evaluation.predictor import Predictions
from nsk.evaluation.suites import natural
from nsk.evaluation.suites.suite import SplitImages

NAMES = ["a", "b", "c", "d"]


class ScoresPredictor:
    batch_size = 3

    def __init__(self):
        self.images = 0

    def __call__(self, batches):
        for batch in batches:
            pixels = np.asarray(batch["image"])
            assert len(pixels) <= self.batch_size
            self.images += len(pixels)
            scores = pixels.reshape(len(pixels), -1)[:, :4] / np.float32(50)
            log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
            ids = [id.decode() for id in np.asarray(batch["id"])]
            labels = np.asarray(batch["label"]).astype(np.int32)
            yield Predictions(ids, labels, log_probabilities)


def image(*scores):
    """An image of 2 x 2 pixels with these scores."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels.flat[:4] = scores
    return pixels


def decode(encoded):
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            return np.asarray(opened)
    except OSError as error:
        raise ValueError("cut off") from error


# (label, scores): correct among all classes; only among b and d; not at all; correct, of a.
CLEAN = [(1, (9, 90, 9, 9)), (3, (90, 8, 9, 20)), (3, (0, 90, 0, 9)), (0, (90, 0, 0, 0))]


@pytest.fixture
def splits():
    rows = {
        "id": np.array([f"test/{row}".encode() for row in range(4)]),
        "label": np.array([label for label, _ in CLEAN]),
        "image": np.stack([image(*scores) for _, scores in CLEAN]),
    }
    return {"test": SplitImages("test", tf.data.Dataset.from_tensor_slices(rows).batch(3))}


@pytest.fixture
def paths(tmp_path):
    """A set of the classes b and d, numbered folders, and arrays of all classes."""
    files = {
        "shifted/b/1.png": image(9, 90, 0, 0),  # b: correct.
        "shifted/b/2.png": image(90, 80, 0, 0),  # a: correct among b and d.
        "shifted/d/1.png": image(0, 0, 90, 80),  # c: correct among b and d.
        "shifted/d/2.png": image(0, 90, 0, 80),  # b: wrong.
        "shifted/d/3.png": image(80, 90, 0, 0),  # b: wrong.
        "numbered/3/1.png": image(0, 0, 0, 9),
    }
    for name, pixels in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "shifted/b/0.png").write_bytes(b"\x89PNG")
    (tmp_path / "shifted/README.md").touch()
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays/images.npy", np.stack([image(9, 0, 0, 0), image(0, 0, 0, 9)]))
    np.save(tmp_path / "arrays/labels.npy", np.array([0, 2]))
    return {name: str(tmp_path / name) for name in ("shifted", "numbered", "arrays")}


def evaluate(predictor, splits, folder, paths):
    options = natural.Options(natural_sets=paths, class_names=NAMES, decode=decode)
    return natural.evaluate(predictor, splits, folder, options)


def test_accuracies_are_those_among_all_classes_and_among_the_classes_of_the_set(
    tmp_path, splits, paths
):
    predictor = ScoresPredictor()
    result = evaluate(predictor, splits, tmp_path, paths)["sets"]
    shifted = result["shifted"]
    assert shifted["accuracy"] == pytest.approx(1 / 5)
    assert shifted["accuracy_among_classes"] == pytest.approx(3 / 5)
    assert shifted["clean_accuracy"] == pytest.approx(1 / 3)
    assert shifted["clean_accuracy_among_classes"] == pytest.approx(2 / 3)
    counts = {"images": 5, "clean_images": 3, "classes": 2, "skipped": 1, "unreadable": 1}
    assert {name: shifted[name] for name in counts} == counts
    assert shifted["unreadable_images"] == ["b/0"]
    lower, upper = shifted["accuracy_among_classes_interval"]
    assert 0 <= lower < 3 / 5 < upper <= 1
    assert result["numbered"]["accuracy_among_classes"] == 1
    assert result["numbered"]["clean_images"] == 2
    assert (result["arrays"]["accuracy"], result["arrays"]["classes"]) == (0.5, 2)
    assert result["arrays"]["clean_accuracy"] == 1  # One image, of class 0.

    table = pq.read_table(tmp_path / "shifted.parquet")
    assert table["id"].to_pylist() == ["b/1", "b/2", "d/1", "d/2", "d/3"]
    assert table["truth"].to_pylist() == [1, 1, 3, 3, 3]
    assert table["label"].to_pylist() == [1, 0, 2, 1, 1]
    assert table["label_among_shifted"].to_pylist() == [1, 1, 3, 1, 1]

    # Predictions of an interrupted evaluation are used again, with the same result.
    assert predictor.images == 4 + 5 + 1 + 2
    (tmp_path / "numbered.parquet").unlink()
    assert evaluate(predictor, splits, tmp_path, paths)["sets"] == result
    assert predictor.images == 4 + 5 + 1 + 2 + 1


def test_a_class_without_clean_images_has_no_clean_accuracy(tmp_path, splits):
    path = tmp_path / "set" / "c"
    path.mkdir(parents=True)
    Image.fromarray(image(0, 0, 9, 0)).save(path / "1.png")
    (found,) = evaluate(ScoresPredictor(), splits, tmp_path, {"s": str(path.parent)})[
        "sets"
    ].values()
    assert (found["accuracy"], found["clean_accuracy"], found["clean_images"]) == (1, None, 0)
    assert found["clean_accuracy_interval"] == [None, None]


def test_all_sets_are_checked_before_anything_is_predicted(tmp_path, splits, paths):
    (tmp_path / "other" / "tiger").mkdir(parents=True)
    Image.fromarray(image(0, 0, 0, 0)).save(tmp_path / "other" / "tiger" / "1.png")
    predictor = ScoresPredictor()
    with pytest.raises(UserError, match="1 of 1 classes are not the model's: tiger"):
        evaluate(predictor, splits, tmp_path, {**paths, "other": str(tmp_path / "other")})
    assert predictor.images == 0


def test_a_set_without_readable_images_is_refused(tmp_path, splits):
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "1.png").touch()
    with pytest.raises(UserError, match=r"none of 1 images is readable, .* cut off"):
        evaluate(ScoresPredictor(), splits, tmp_path, {"s": str(tmp_path / "set")})


def test_label_sets_judge_the_test_images(tmp_path, splits, paths):
    rows = next(splits["test"].batches.unbatch().batch(9).as_numpy_iterator())
    numbers = (5, 1, 2, 3)  # Of the images.
    rows["id"] = np.array(
        [f"test/x/ILSVRC2012_val_{number:08d}.JPEG".encode() for number in numbers]
    )
    splits = {"test": SplitImages("test", tf.data.Dataset.from_tensor_slices(rows).batch(3))}
    # Predicted are b, a, b and a.
    sets = [[0, 3], [], [1], [2], [0, 1]]
    (tmp_path / "real.json").write_text(json.dumps(sets))
    given = {"real": str(tmp_path / "real.json"), "arrays": paths["arrays"]}
    result = evaluate(ScoresPredictor(), splits, tmp_path, given)["sets"]
    assert list(result) == ["real", "arrays"]
    assert result["real"].pop("accuracy_interval") == [0, 1]
    assert result["real"] == {"accuracy": 2 / 3, "images": 3, "unlabeled_images": 1}

    (tmp_path / "real.json").write_text("[[], [], [], [1], []]")
    with pytest.raises(UserError, match=r"real\.json has no label of any of 4 test images"):
        evaluate(ScoresPredictor(), splits, tmp_path, given)
    (tmp_path / "real.json").write_text("[[4]]")
    with pytest.raises(UserError, match="has the class 4: expected integers from 0 to 3"):
        evaluate(ScoresPredictor(), splits, tmp_path, given)
