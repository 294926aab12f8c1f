"""Loading models from `.keras` files."""

import json
import subprocess
import sys

import keras
import pytest

import nsk
from nsk import models
from nsk.errors import UserError
from nsk.models.model_files import (
    KnownDecoding,
    load_hdf5_model,
    load_model,
    read_class_names,
    read_decoding,
    read_temperature,
)

# NumPy 2 warns of the way in which Keras 3.15 reads variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_custom_layers_are_registered_in_a_process_that_only_loads_models(tmp_path):
    """A worker of Beam imports little else."""
    model = models.build_model("resnet8", num_classes=3, image_size=8, survival_probability=0.5)
    model.save(tmp_path / "model.keras")
    program = (
        "import pathlib; from nsk.models.model_files import load_model; "
        f"print(load_model(pathlib.Path({str(tmp_path / 'model.keras')!r})).count_params())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == str(model.count_params()), done.stderr


def test_models_that_are_not_image_classifiers_are_refused(tmp_path):
    inputs = keras.Input((7,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "dense.keras")
    with pytest.raises(UserError, match=r"takes \(None, 7\) and returns \(None, 2\): expected"):
        load_model(tmp_path / "dense.keras")
    (tmp_path / "model.h5").touch()
    for name in ("model.h5", "missing.keras"):
        with pytest.raises(UserError, match=rf"{name} is not a \.keras file"):
            load_model(tmp_path / name)


def test_hdf5_files_are_loaded_without_executing_code_in_them(tmp_path):
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "model.h5")
    assert load_hdf5_model(tmp_path / "model.h5").output_shape == (None, 2)
    shifted = keras.layers.Lambda(lambda x: x + 1)(outputs)
    keras.Model(inputs, shifted).save(tmp_path / "lambda.h5")
    with pytest.raises(UserError, match=r"lambda\.h5 cannot be loaded \(.*[Ll]ambda"):
        load_hdf5_model(tmp_path / "lambda.h5")
    keras.Model(inputs, shifted).save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(UserError, match=r"weights\.h5 holds weights alone: name the network, too"):
        load_hdf5_model(tmp_path / "m.weights.h5")


def test_class_names_are_read_from_the_text_file_beside_the_model(tmp_path):
    assert read_class_names(tmp_path / "model.keras") is None
    (tmp_path / "class_names.txt").write_text("cat\nüdog\n", encoding="utf-8")
    assert read_class_names(tmp_path / "model.keras") == ["cat", "üdog"]


def test_what_is_beside_a_model_is_found_through_links(tmp_path):
    """Beside the link itself, or beside the file that it leads to."""
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.keras").touch()
    (export / "class_names.txt").write_text("cat\ndog\n")
    (export / "calibration.json").write_text('{"temperature": 2.0}')
    decoding = {"resize_mode": "pad", "significant_bits": 12}
    (export / "decoding.json").write_text(json.dumps(decoding))
    link = tmp_path / "best" / "model.keras"
    link.parent.mkdir()
    link.symlink_to(export / "model.keras")
    for path in (export / "model.keras", link):
        assert read_class_names(path) == ["cat", "dog"] and read_temperature(path) == 2.0
        assert read_decoding(path) == KnownDecoding("pad", 12)
    (link.parent / "class_names.txt").write_text("ant\nbee\n")
    assert read_class_names(link) == ["ant", "bee"]


def test_the_package_loads_models(tmp_path):
    models.build_model("convnet5", num_classes=3, image_size=8).save(tmp_path / "model.keras")
    assert nsk.load_model(str(tmp_path / "model.keras")).output_shape == (None, 3)
