"""Weights in files of Keras 2 and 3, and files that are not safe to read."""

import zipfile

import h5py
import keras
import numpy as np
import pytest

from nsk.errors import UserError
from nsk.models import weight_assignment, weights
from tests.models.checkpoint_files import assert_reads

# NumPy 2 warns of the way in which Keras 3.15 reads variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "model.h5", "weights.h5"])
def test_files_of_keras_applications(name, reference, network, tmp_path):
    save = reference[0].save_weights if "weights" in name else reference[0].save
    if name == "weights.h5":
        write_keras_2(tmp_path / name, reference[0])
    else:
        save(tmp_path / name)
    read = assert_reads(tmp_path / name, network, reference, averaged=0, ignored=0)
    assert read.normalization is not None
    assert not weight_assignment.describe_pixel_mismatch(network, read)


def write_keras_2(path, model):
    """Weights as Keras 2 wrote them, and as those for ImageNet are published."""
    with h5py.File(path, "w") as file:
        for layer in model.layers:
            group = file.create_group(layer.name)
            for variable in layer.weights:
                name = variable.name
                if isinstance(layer, keras.layers.DepthwiseConv2D):
                    name = f"depthwise_{name}"
                group[f"{layer.name}/{name}:0"] = variable.numpy()


def test_weights_of_the_optimizer_are_ignored(tmp_path):
    inputs = keras.Input((8, 8, 3))
    features = keras.layers.Dropout(0.5)(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(features))
    model.compile("adam", "mse")
    model.fit(np.ones((2, 8, 8, 3)), np.ones((2, 3)), verbose=0)
    for name in ("model.keras", "model.h5", "model.weights.h5"):
        (model.save_weights if "weights" in name else model.save)(tmp_path / name)
        read = weights.read(tmp_path / name)
        assert list(read.layers) == ["logits"] and read.ignored >= 6
        arrays = sorted(read.layers["logits"].values(), key=np.size, reverse=True)
        for array, expected in zip(arrays, model.layers[-1].get_weights(), strict=True):
            np.testing.assert_array_equal(array, expected)


def test_zip_bombs_are_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "zip.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", b" " * 2**24)
    with h5py.File(tmp_path / "shape.h5", "w") as file:
        file.create_dataset("logits/logits/kernel:0", (2**20, 2**20), "f4", chunks=(64, 64))
    with h5py.File(tmp_path / "packed.h5", "w") as file:
        zeros = np.zeros(2**22, np.float32)
        file.create_dataset("logits/logits/kernel:0", data=zeros, compression="gzip")
    with pytest.raises(UserError, match="it unpacks to 16,777,216 bytes, expected"):
        weights.read(tmp_path / "zip.keras")
    for name in ("shape.h5", "packed.h5"):
        with pytest.raises(UserError, match=r"it claims [0-9,]* bytes, expected [0-9,]* at most"):
            weights.read(tmp_path / name)


def test_references_to_other_files_are_not_followed(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel"] = np.ones(4, np.float32)
    (tmp_path / "secret.bin").write_bytes(np.ones(4, np.float32).tobytes())
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["logits/logits/bias:0"] = np.ones(4, np.float32)
        file["logits/logits/kernel:0"] = h5py.ExternalLink("secret.h5", "/kernel")
        file["logits/logits/cycle"] = file["logits"]
    assert list(weights.read(tmp_path / "link.h5").layers["logits"]) == ["bias"]
    with h5py.File(tmp_path / "external.h5", "w") as file:
        stored = [(str(tmp_path / "secret.bin"), 0, 16)]
        file.create_dataset("logits/logits/kernel:0", (4,), "f4", external=stored)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "kernel", (4,))
        file.create_virtual_dataset("logits/logits/kernel:0", layout)
    for name in ("external.h5", "virtual.h5"):
        with pytest.raises(UserError, match="it refers to other files"):
            weights.read(tmp_path / name)


def test_layers_without_names_or_with_equal_names_are_refused(tmp_path):
    with h5py.File(tmp_path / "early.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones(4, np.float32)
    with pytest.raises(UserError, match="it does not name its layers, as files of early Keras 3"):
        weights.read(tmp_path / "early.weights.h5")
    with h5py.File(tmp_path / "twice.weights.h5", "w") as file:
        for group in ("dense", "dense_1"):
            file[f"layers/{group}/vars/0"] = np.ones(4, np.float32)
            file[f"layers/{group}/vars"].attrs["name"] = "logits"
    with pytest.raises(UserError, match="two of its layers have the name 'logits'"):
        weights.read(tmp_path / "twice.weights.h5")
