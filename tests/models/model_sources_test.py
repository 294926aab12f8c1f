"""Models of every form, and messages for what is none of them."""

import os
import shutil

import keras
import numpy as np
import pytest

from nsk.errors import UserError
from nsk.models import build_model, model_sources, saved_models, weights
from nsk.stages.export import export_model
from tests.models.checkpoint_files import write_checkpoint

# NumPy 2 warns of the way in which Keras 3.15 reads variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def network():
    return build_model("convnet5", num_classes=3, image_size=8)


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "best"
    folder.mkdir()
    export_model(network, NAMES, folder)
    return folder


def test_a_folder_is_that_of_its_keras_file(exported):
    sources = [model_sources.read_path(str(exported / end)) for end in ("", "model.keras")]
    for source in sources:
        assert source.is_keras and source.weights_format == "keras"
        assert source.name == "convnet5" and source.class_names == NAMES
        assert source.sha256 == weights.sha256(exported / "model.keras")


def test_a_savedmodel_has_the_name_of_its_folder(network, exported, tmp_path):
    source = model_sources.read_path(str(exported / "saved_model"))
    assert not source.is_keras and source.weights_format == "saved_model"
    assert source.name == "best" and source.class_names == NAMES
    assert source.sha256 == saved_models.sha256(exported / "saved_model")
    with_other_names = shutil.copytree(exported, tmp_path / "copy")
    (with_other_names / "class_names.txt").write_text("x\ny\nz\n")
    source = model_sources.read_path(str(with_other_names / "saved_model"))
    assert source.class_names == NAMES  # Those in the model count.
    network.export(tmp_path / "keras", verbose=False)
    (tmp_path / "class_names.txt").write_text("x\ny\nz\n")
    source = model_sources.read_path(str(tmp_path / "keras"))
    assert source.name == "keras" and source.class_names == ["x", "y", "z"]


def test_a_whole_model_in_hdf5(network, tmp_path):
    network.save(tmp_path / "model.h5")
    source = model_sources.read_path(str(tmp_path / "model.h5"))
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    np.testing.assert_array_equal(source.model(images), network(images))
    assert source.sha256 == weights.sha256(tmp_path / "model.h5")


def test_networks_of_keras_applications_are_known_by_their_classifier(tmp_path):
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(3, name="predictions")(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs, name="resnet50").save(tmp_path / "m.keras")
    source = model_sources.read_path(str(tmp_path / "m.keras"))
    assert (source.name, source.weights_format) == ("resnet50", "keras.applications")


def test_a_network_by_name(exported):
    source = model_sources.read_network("convnet5", exported, 0)
    assert (source.name, source.weights_format) == ("convnet5", "nsk")
    assert source.class_names == NAMES and source.input_shape == (None, 8, 8, 3)
    assert source.sha256 == weights.sha256(exported)


def test_what_is_no_model_is_named(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("checkpoint")
    write_checkpoint(tmp_path / "checkpoint" / "model", {"a": np.ones(3, np.float32)})
    network.save_weights("model.weights.h5")
    (tmp_path / "model.pt").write_text("torch")
    (tmp_path / "broken.h5").write_text("not HDF5")
    cases = {
        "checkpoint": "The folder checkpoint holds neither model.keras nor saved_model.pb: give a "
        r"\.keras file .* name the network: --model=NAME --weights=checkpoint",
        "model.pt": r"The file model\.pt is in no format that can be loaded: give a \.keras file",
        "missing.keras": r"--model=missing\.keras: no such file or folder, and unknown network",
        "resnet8": "--model=resnet8 is the name of a network: give its weights, too: --weights",
        "model.weights.h5": r"holds weights alone: .* --model=NAME --weights=model\.weights\.h5",
        "broken.h5": r"The model broken\.h5 cannot be loaded \(",
    }
    for given, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            model_sources.read_path(given)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"--model=resnet7 --weights=m\.h5: unknown network 'res"):
        model_sources.read_network("resnet7", tmp_path.__class__("m.h5"), 0)
