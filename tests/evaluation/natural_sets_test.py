"""Other test sets: what is read, how classes are matched, and probabilities of some classes."""

import io
import unicodedata

import numpy as np
import pytest
from PIL import Image

from nsk.errors import UserError
from nsk.evaluation.natural_sets import map_classes, open_natural_set, restrict

SIDE = 6
PIXELS = np.random.default_rng(0).integers(0, 256, (9, SIDE, SIDE, 3)).astype(np.uint8)


def decode(encoded):
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))[:4, :4]
    except OSError as error:
        raise ValueError("no\nimage") from error


def write_folders(folder, names):
    """One PNG for each (class, name)."""
    for (class_name, name), image in zip(names, PIXELS, strict=False):
        path = folder / class_name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, "PNG")
    return folder


def rows_of(batches):
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.fixture
def folders(tmp_path):
    return write_folders(
        tmp_path, [("b", "2.png"), ("b", "1.JPEG"), ("ä", "x.png"), ("b", "deep/0.png")]
    )


def write_arrays(folder, name, count=9):
    np.save(folder / f"{name}_data.npy", PIXELS[:count])
    np.save(folder / f"{name}_labels.npy", np.arange(count) % 3)


def test_class_folders_are_read_in_order(folders):
    found = open_natural_set(folders)
    assert (found.class_names, found.num_images, found.skipped) == (["b", "ä"], 4, 0)
    batches = list(found.batches(3, decode))
    assert [len(batch["id"]) for batch in batches] == [3, 1]
    rows = rows_of(batches)
    ids = [id.decode() for id in rows["id"]]
    assert ids == found.ids == ["b/1", "b/2", "b/deep/0", "ä/x"]
    assert rows["label"].tolist() == found.labels.tolist() == [0, 0, 0, 1]
    np.testing.assert_array_equal(rows["image"], PIXELS[[1, 0, 3, 2], :4, :4])
    assert (found.unreadable, rows["label"].dtype) == ([], np.int64)


def test_litter_and_other_files_are_counted(folders):
    for name in (
        *(".DS_Store", "b/Thumbs.db", "b/desktop.ini", "README.txt", "b/notes.md", "b/.hidden.png"),
        *("__MACOSX/b/._1.JPEG", "b/__MACOSX/._2.png", "empty/.DS_Store", ".git/a/b.png"),
    ):
        (folders / name).parent.mkdir(parents=True, exist_ok=True)
        (folders / name).write_bytes(b"litter")
    found = open_natural_set(folders)
    assert (found.class_names, found.num_images, found.skipped) == (["b", "ä"], 4, 10)


def test_unreadable_images_are_named(folders):
    (folders / "b" / "1.JPEG").write_bytes(b"\xff\xd8")
    (folders / "ä" / "x.png").unlink()
    (folders / "ä" / "x.png").symlink_to("missing.png")
    found = open_natural_set(folders)
    for _ in range(2):  # They are not counted twice.
        rows = rows_of(found.batches(2, decode))
        assert rows["id"].tolist() == [b"b/2", b"b/deep/0"]
        assert found.unreadable == [("b/1", "no image"), ("ä/x", "No such file or directory")]


def test_numbers_are_in_numerical_order(tmp_path):
    names = [str(number) for number in (10, 9, 100, 0)]
    found = open_natural_set(write_folders(tmp_path, [(name, "a.png") for name in names]))
    assert found.class_names == ["0", "9", "10", "100"]

    rows = rows_of(found.batches(9, decode))
    np.testing.assert_array_equal(rows["image"], PIXELS[[3, 1, 0, 2], :4, :4])
    # Indices, unless they are names of the model's classes.
    np.testing.assert_array_equal(map_classes(found, ["cat"] * 101, 101), [0, 9, 10, 100])
    np.testing.assert_array_equal(map_classes(found, [], 101), [0, 9, 10, 100])
    in_order_of_text = sorted(map(str, range(101)))
    mapped = map_classes(found, in_order_of_text, 101)
    assert [in_order_of_text[index] for index in mapped] == found.class_names
    with pytest.raises(UserError, match=r"1 of 4 classes are not the model's: 100\. Expected"):
        map_classes(found, [], 100)


@pytest.mark.parametrize("given", ["folder", "file"])
def test_cifar_10_1_is_read(tmp_path, given):
    name = "cifar10.1_v6"
    write_arrays(tmp_path, name)
    found = open_natural_set(tmp_path if given == "folder" else tmp_path / f"{name}_data.npy")
    assert (found.class_names, found.num_images) == (None, 9)
    rows = rows_of(found.batches(4, decode))
    np.testing.assert_array_equal(rows["image"], PIXELS[:, :4, :4])
    np.testing.assert_array_equal(rows["label"], np.arange(9) % 3)
    assert rows["id"].tolist() == [f"{row:05d}".encode() for row in range(9)]
    np.testing.assert_array_equal(map_classes(found, ["a", "b", "c", "d"], 4), range(4))
    with pytest.raises(UserError, match="has the label 2: expected 0 to 1"):
        map_classes(found, ["a", "b"], 2)


def test_images_and_labels_are_read(tmp_path):
    np.save(tmp_path / "images.npy", PIXELS)
    np.save(tmp_path / "labels.npy", np.arange(9))
    assert open_natural_set(tmp_path).num_images == 9
    np.save(tmp_path / "labels.npy", np.arange(8))
    with pytest.raises(UserError, match=r"has 9 images, but labels.npy has 8 labels"):
        open_natural_set(tmp_path)


def test_other_arrays_are_refused(tmp_path):
    write_arrays(tmp_path, "cifar10.1_v4", 5)
    write_arrays(tmp_path, "cifar10.1_v6")
    with pytest.raises(UserError, match=r"several sets: cifar10.1_v4_data.npy, cifar10.1_v6_data"):
        open_natural_set(tmp_path)
    found = open_natural_set(tmp_path / "cifar10.1_v4_data.npy")
    assert found.num_images == 5
    with pytest.raises(UserError, match=r"cifar10.1_v4_labels.npy is not named NAME_data.npy"):
        open_natural_set(tmp_path / "cifar10.1_v4_labels.npy")
    for path in tmp_path.glob("*_data.npy"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds cifar10.1_v4_labels.npy, cifar10.1_v6_labels.npy"):
        open_natural_set(tmp_path)
    with pytest.raises(UserError, match="does not exist: give a folder"):
        open_natural_set(tmp_path / "missing")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"no folders of images: expected a folder for each class. It holds nothing"),
        ([("", "a.png")], "no folders of images: .* It holds a.png"),
        ([("1", "a.png"), ("01", "a.png")], "several class folders have the number 1, such as"),
        ([("b", "a.png"), ("b", "a.jpg")], "several files are named b/a, with different suffixes"),
    ],
)
def test_other_folders_are_refused(tmp_path, names, message):
    with pytest.raises(UserError, match=message) as raised:
        open_natural_set(write_folders(tmp_path, names))
    assert "\n" not in str(raised.value)


def test_names_are_compared_in_one_normal_form(tmp_path):
    composed = unicodedata.normalize("NFC", "ä")
    decomposed = unicodedata.normalize("NFD", "ä")
    assert composed != decomposed
    found = open_natural_set(write_folders(tmp_path, [(decomposed, "a.png"), ("b", "a.png")]))
    assert found.class_names == [decomposed, "b"]
    np.testing.assert_array_equal(map_classes(found, ["x", "b", composed], 3), [2, 1])
    write_folders(tmp_path, [(composed, "a.png")])
    if len(list(tmp_path.iterdir())) == 3:  # Some file systems normalise names.
        with pytest.raises(UserError, match="same name in different encodings: ä: merge"):
            map_classes(open_natural_set(tmp_path), ["x", "b", composed], 3)


def test_unknown_classes_are_named_in_one_line(tmp_path):
    names = [f"n{number:02d}" for number in range(9)]
    found = open_natural_set(write_folders(tmp_path, [(name, "a.png") for name in names]))
    with pytest.raises(UserError, match=r"8 of 9 classes .* n01, n02, .*, n08\. Exp") as raised:
        map_classes(found, ["n00", *(f"m{number}" for number in range(13))], 14)
    assert "m8 and 4 more)" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_probabilities_are_renormalised():
    probabilities = np.array([[0.1, 0.2, 0.3, 0.4], [0.97, 0.01, 0.01, 0.01]])
    restricted = restrict(np.log(probabilities), np.array([3, 1]))
    np.testing.assert_allclose(np.exp(restricted), [[2 / 3, 1 / 3], [0.5, 0.5]])
    tiny = restrict(np.array([[0.0, -2000.0, -2000.0 + np.log(3)]]), np.array([1, 2]))
    np.testing.assert_allclose(np.exp(tiny), [[0.25, 0.75]])
