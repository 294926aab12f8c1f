"""Reading weights of every format from paths, and errors for what cannot be read."""

import re
import shutil

import h5py
import numpy as np
import pytest

from nsk.errors import UserError
from nsk.models import build_model, weight_assignment, weights
from tests.models.checkpoint_files import write_checkpoint

# NumPy 2 warns of the way in which Keras 3.15 reads variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
FILES = ("model.keras", "model.h5", "model.weights.h5", "model.index")


@pytest.fixture
def folder(tmp_path):
    """Folder of a small network's files in every format."""
    model = build_model("convnet5", num_classes=3, image_size=8)
    model.save(tmp_path / "model.keras")
    model.save(tmp_path / "model.h5")
    model.save_weights(tmp_path / "model.weights.h5")
    tensors = {f"stem/conv2d/{name}": np.ones(999, np.float32) for name in ("kernel", "bias")}
    for number in range(16):
        tensors[f"blocks_{number}/conv2d/kernel"] = np.ones(99, np.float32)
    write_checkpoint(tmp_path / "model", tensors)
    return tmp_path


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def test_the_folder_of_a_stage_is_a_path_of_its_model(network, tmp_path):
    (tmp_path / "teacher-0123456789").mkdir()
    network.save(tmp_path / "teacher-0123456789" / "model.keras")
    read = weights.read(tmp_path / "teacher-0123456789")
    assert not weight_assignment.assign(network, read)
    assert weights.sha256(read.path) == weights.sha256(read.path / "model.keras")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_floats_of_any_precision_are_converted_to_float32(dtype, tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["logits/logits/bias:0"] = np.array([1, 2.5], dtype)
    (variables,) = weights.read(tmp_path / "weights.h5").layers.values()
    assert variables["bias"].dtype == np.float32 and variables["bias"].tolist() == [1, 2.5]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1, np.nan], np.float32), "logits/bias has values that are not finite"),
        (np.array([1, 1e300]), "logits/bias has values that are not finite"),
        (np.array([1, 2]), "logits/bias is int64, expected floats"),
        (np.array([b"cats", b"dogs"]), "logits/bias is .S4, expected floats"),
    ],
)
def test_arrays_of_anything_but_finite_floats_are_refused(array, message, tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["logits/logits/bias:0"] = array
    with pytest.raises(UserError, match=message):
        weights.read(tmp_path / "weights.h5")


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_and_files_of_another_kind_are_refused(name, folder):
    assert weights.read(folder / name).layers
    content = (folder / name).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no weights at all", b"\0" * 5000):
        (folder / name).write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{re.escape(name)} cannot be read \(") as error:
            weights.read(folder / name)
        assert "\n" not in str(error.value)


def test_a_flipped_bit_is_detected_by_the_formats_with_checksums(folder):
    (data,) = folder.glob("model.data-*")
    flip_bit(data, 100)
    with pytest.raises(UserError, match=r"model\.index cannot be read .*[Cc]hecksum"):
        weights.read(folder / "model.index")
    flip_bit(folder / "model.keras", (folder / "model.keras").stat().st_size // 2)
    with pytest.raises(UserError, match="CRC"):
        weights.read(folder / "model.keras")


def test_paths_without_weights_are_refused(folder):
    (folder / "notes.txt").write_text("none")
    (folder / "two").mkdir()
    for name in ("a.index", "b.index"):
        shutil.copy(folder / "model.index", folder / "two" / name)
    cases = {
        "nothing.keras": "There are no weights at",
        "notes.txt": r"notes\.txt is not supported: give the path of a \.keras file",
        "two": r"has 2 files \*\.index: a\.index, b\.index; expected the one",
        "two/a": r"a\.index lacks its data: put a\.data-00000-of-00001 beside it",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            weights.read(folder / name)


def test_a_checkpoint_that_claims_more_bytes_than_it_has_is_refused(folder):
    (data,) = folder.glob("model.data-*")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"it claims [0-9,]* bytes, expected 1,000 at most"):
        weights.read(folder / "model.index")


def test_the_digest_depends_only_on_the_content(folder, tmp_path_factory):
    copies = tmp_path_factory.mktemp("copies")
    for path in folder.iterdir():
        shutil.copy(path, copies / path.name.replace("model", "renamed"))
    for name in FILES:
        path = copies / name.replace("model", "renamed")
        digest = weights.sha256(folder / name)
        assert weights.sha256(path) == digest and re.fullmatch("[0-9a-f]{64}", digest)
        flip_bit(next(copies.glob("renamed.data-*")) if name == "model.index" else path, 100)
        assert weights.sha256(path) != digest
    assert weights.sha256(folder / "model") == weights.sha256(folder / "model.index")
