"""Published sets of corrupted images: written, read, and refused if they are not one."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nsk.errors import UserError
from nsk.evaluation.corruption_files import (
    open_corruption_files,
    write_image_folders,
    write_labels,
    write_npy_files,
)
from nsk.evaluation.corruptions import corrupt

COUNT, SIDE = 12, 8
DIGITS = load_digits()
IMAGES = np.repeat((DIGITS.images[:COUNT, ..., None] * 15).astype(np.uint8), 3, axis=-1)
LABELS = DIGITS.target[:COUNT]
NAMES = ("shot_noise", "fog")  # In the published order.


def decode(encoded):
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(str(error)) from error


def corrupted(name, severity, images=IMAGES):
    ids = [str(row) for row in range(len(images))]
    return corrupt(images, name, severity, ids, seed=3)


def in_batches(array, size=5):
    return [array[start : start + size] for start in range(0, len(array), size)]


def rows_of(batches):
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.fixture
def arrays(tmp_path):
    """A folder with two corruptions as arrays."""
    for name in reversed(NAMES):
        severities = (in_batches(corrupted(name, severity)) for severity in range(1, 6))
        write_npy_files(tmp_path, name, severities, COUNT, (SIDE, SIDE))
    write_labels(tmp_path, LABELS)
    return tmp_path


def write_folders(folder, name, severities=range(1, 6), images=IMAGES):
    for severity in severities:
        batches = zip(
            in_batches(LABELS[: len(images)]),
            in_batches(corrupted(name, severity, images)),
            strict=True,
        )
        write_image_folders(folder, name, severity, batches, [f"n{label}" for label in range(10)])


@pytest.fixture
def folders(tmp_path):
    """A folder with two corruptions as folders, one of them below a group."""
    write_folders(tmp_path / "weather", "fog")
    write_folders(tmp_path, "shot_noise")
    return tmp_path


def test_arrays_are_read_as_they_were_written(arrays):
    raw = np.load(arrays / f"{NAMES[1]}.npy")
    assert (raw.shape, raw.dtype) == ((5 * COUNT, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_array_equal(np.load(arrays / "labels.npy"), np.tile(LABELS, 5))
    files = open_corruption_files(arrays, num_classes=10)
    assert (files.names, files.num_images, files.class_folders) == (NAMES, COUNT, None)
    for name in NAMES:
        files.check(name)
        for severity in range(1, 6):
            batches = list(files.batches(name, severity, 5))
            assert [len(batch["id"]) for batch in batches] == [5, 5, 2]
            rows = rows_of(batches)
            assert [id.decode() for id in rows["id"]] == [f"{row:05d}" for row in range(COUNT)]
            np.testing.assert_array_equal(rows["label"], LABELS)
            np.testing.assert_array_equal(rows["image"], corrupted(name, severity))
            block = np.load(arrays / f"{name}.npy")[(severity - 1) * COUNT :][:COUNT]
            np.testing.assert_array_equal(block, rows["image"])
            assert (rows["label"].dtype, rows["image"].dtype) == (np.int64, np.uint8)


def test_labels_may_be_given_once_and_arrays_may_be_decoded_and_chosen(arrays):
    np.save(arrays / "labels.npy", LABELS.astype(np.uint8))
    files = open_corruption_files(arrays)
    np.testing.assert_array_equal(files.labels, LABELS)
    classes = np.arange(10)[::-1]
    batches = files.batches(
        "fog", 2, 3, lambda encoded: decode(encoded)[:4, :4], classes, rows=[1, 4, 6, 7]
    )
    rows = rows_of(batches)
    np.testing.assert_array_equal(rows["image"], corrupted("fog", 2)[[1, 4, 6, 7], :4, :4])
    np.testing.assert_array_equal(rows["label"], 9 - LABELS[[1, 4, 6, 7]])
    assert rows["id"].tolist() == [b"00001", b"00004", b"00006", b"00007"]


def test_folders_are_read_as_they_were_written(folders):
    files = open_corruption_files(folders, num_classes=10)
    order = np.lexsort((np.arange(COUNT), LABELS))
    assert (files.names, files.num_images) == (NAMES, COUNT)
    assert files.class_folders == [f"n{label}" for label in sorted(set(LABELS))]
    classes = np.array(sorted(set(LABELS)))
    for name in NAMES:
        files.check(name)
        rows = rows_of(files.batches(name, 4, 5, decode, classes))
        np.testing.assert_array_equal(rows["label"], LABELS[order])
        expected = [f"n{LABELS[row]}/{row:05d}" for row in order]
        assert [id.decode() for id in rows["id"]] == expected
        for image, original in zip(rows["image"], corrupted(name, 4)[order], strict=True):
            buffer = io.BytesIO()
            Image.fromarray(original).save(buffer, "JPEG", quality=85)
            np.testing.assert_array_equal(image, decode(buffer.getvalue()))
    with pytest.raises(ValueError, match="decode=None"):
        next(files.batches("fog", 1, 5))


def interrupted():
    yield from ()
    raise KeyboardInterrupt


def test_an_interrupted_writer_leaves_no_result(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_npy_files(tmp_path, "fog", interrupted(), COUNT, (SIDE, SIDE))
    assert list(tmp_path.iterdir()) == []

    def batches():
        yield LABELS[:2], IMAGES[:2]
        raise KeyboardInterrupt

    names = [f"n{label}" for label in range(10)]
    with pytest.raises(KeyboardInterrupt):
        write_image_folders(tmp_path, "fog", 1, batches(), names)
    assert not (tmp_path / "fog" / "1").exists()
    write_image_folders(tmp_path, "fog", 1, [(LABELS[2:3], IMAGES[2:3])], names)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / "fog" / "1" / f"n{LABELS[2]}" / "00000.JPEG"]


def test_what_is_written_is_kept(arrays):
    write_folders(arrays, "fog", [1])
    write_npy_files(arrays, "fog", interrupted(), COUNT, (SIDE, SIDE))
    write_image_folders(arrays, "fog", 1, interrupted(), ["n0"])


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([[IMAGES]] * 4, "48 images: expected 60, 5 severities"),
        ([[IMAGES[:5]]] * 5, "5 images: expected 12"),
        ([[IMAGES, IMAGES[:1]]] * 5, "expected 12 of uint8"),
        ([[IMAGES.astype(int)]] * 5, "int64 images"),
    ],
)
def test_other_numbers_of_images_are_not_written(tmp_path, blocks, message):
    with pytest.raises(ValueError, match=message):
        write_npy_files(tmp_path, "fog", blocks, COUNT, (SIDE, SIDE))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a/b", ".a", "", "a\n"])
def test_classes_need_names_of_folders(tmp_path, name):
    with pytest.raises(UserError, match="cannot be folders: give --layout=npy"):
        write_image_folders(tmp_path, "fog", 1, [], [name])


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("labels.npy", LABELS[:7], r"labels.npy has 7 labels: expected 12, .* or 60"),
        ("labels.npy", np.r_[np.tile(LABELS, 4), LABELS[::-1]], "severity 5 are not those"),
        ("labels.npy", LABELS + 1, "row 9 is 10: expected 0 to 9"),
        ("labels.npy", LABELS - 1, "row 0 is -1: expected 0 to 9"),
        ("labels.npy", LABELS * 1.0, r"float64 \(12,\): expected integers"),
        ("labels.npy", None, "labels.npy does not exist"),
        ("shot_noise.npy", np.zeros((61, 8, 8, 3), np.uint8), "61 images: expected a multiple"),
        ("shot_noise.npy", np.zeros((60, 8, 8, 3)), r"float64 \(60, 8, 8, 3\): expected uint8"),
        ("shot_noise.npy", np.zeros((60, 8, 8), np.uint8), r"\(60, 8, 8\): expected uint8"),
    ],
)
def test_wrong_arrays_are_refused(arrays, file, array, message):
    (arrays / file).unlink()
    if array is not None:
        np.save(arrays / file, array)
    with pytest.raises(UserError, match=message) as raised:
        open_corruption_files(arrays, num_classes=10)
    assert "\n" not in str(raised.value)


def test_conditions_with_other_images_are_refused(arrays):
    files = open_corruption_files(arrays)
    np.save(arrays / "fog.npy", np.zeros((50, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"fog.npy has 50 images, but shot_noise.npy has 60"):
        files.check("fog")
    with pytest.raises(UserError, match="has no corruption snow: choose of shot_noise, fog"):
        files.check("snow")


def test_wrong_folders_are_refused(folders):
    files = open_corruption_files(folders)
    image = next((folders / "weather/fog/3").glob("*/*.JPEG"))
    content = image.read_bytes()
    image.write_bytes(content[:99])
    with pytest.raises(UserError, match=rf"{image.name} is not a readable image"):
        list(files.batches("fog", 3, 5, decode))
    image.rename(image.with_stem("other"))
    with pytest.raises(UserError, match=r"fog/3 has other images than shot_noise/1: 1 more and 1"):
        files.check("fog")
    with pytest.raises(UserError, match="has 10 class folders: expected at most 9"):
        open_corruption_files(folders, num_classes=9)
    (folders / "weather/fog/3").rename(folders / "weather/fog/6")
    with pytest.raises(UserError, match=r"fog has the severities 1, 2, 4, 5: expected"):
        open_corruption_files(folders)
    write_folders(folders / "other", "fog")
    with pytest.raises(UserError, match="several folders fog, in other, weather"):
        open_corruption_files(folders)


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(UserError, match=r"no corruptions: expected .* It holds holiday\."):
        open_corruption_files(tmp_path)
    with pytest.raises(UserError, match="It holds nothing"):
        open_corruption_files(tmp_path / "holiday")
    with pytest.raises(UserError, match="cannot be listed"):
        open_corruption_files(tmp_path / "missing")
