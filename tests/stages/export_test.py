"""The exported model is used in a new process that can import neither keras nor nsk."""

import io
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from nsk import models
from nsk.data.decoding import decode_image
from nsk.stages.export import export_model

SIZE = 12
NAMES = ["zero", "naïve class", "two", "3"]

CLEAN_PROCESS = """
import importlib.machinery, json, sys

class Blocker:
    # TensorFlow looks for the module without importing it: finding succeeds, importing fails.
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("keras", "tf_keras", "nsk"):
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        raise ImportError(f"{spec.name} is blocked")

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Blocker())
import numpy as np
import tensorflow as tf

for name in ("keras", "nsk"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} could be imported")

folder, files = sys.argv[1], sys.argv[2:]
encoded = [open(file, "rb").read() for file in files]
model = tf.saved_model.load(folder)
outputs = {}
for count in (0, 1, len(files)):
    batch = tf.constant(encoded[:count], tf.string, shape=[count])
    outputs[count] = model.signatures["serving_default"](encoded=batch)
pixels = np.load("pixels.npy")
for count in (0, 1, len(pixels)):
    outputs[f"pixels {count}"] = model.signatures["pixels"](images=tf.constant(pixels[:count]))
outputs["signatures"] = {"names": tf.constant(sorted(model.signatures))}

def plain(value):
    value = value.numpy()
    return np.char.decode(value.astype(bytes), "utf8").tolist() if value.dtype == object else (
        value.tolist())

print(json.dumps({
    str(call): {name: plain(value) for name, value in output.items()}
    for call, output in outputs.items()
}))
"""


def encode(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def real_images():
    """Encoded digits and photographs, of different sizes and formats."""
    digits = [np.minimum(image * 16, 255).astype(np.uint8) for image in load_digits().images[:3]]
    photograph = load_sample_image("china.jpg")
    return [
        encode(digits[0], "PNG"),
        encode(np.kron(digits[1], np.ones((4, 4), np.uint8)), "JPEG"),
        encode(photograph[100 : 100 + SIZE, 300 : 300 + SIZE], "PNG"),  # Not resized.
        encode(photograph[::3, ::5], "JPEG", quality=90),
        encode(photograph[30:200, 40:90], "PNG"),
        encode(np.kron(digits[2], np.ones((2, 3), np.uint8)), "BMP"),
        encode(digits[1], "GIF"),
    ]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of the export, its return value, outputs in the new process)."""
    folder = tmp_path_factory.mktemp("export")
    model = models.build_model(
        "resnet8",
        num_classes=len(NAMES),
        image_size=SIZE,
        dropout_rate=0.5,
        survival_probability=0.5,
        batch_norm_momentum=0.0,
        seed=3,
    )
    model(
        decoded().astype(np.float32), training=True
    )  # BatchNorm's statistics, so that outputs differ.
    returned = export_model(model, NAMES, folder)
    files = []
    for number, encoded in enumerate(real_images()):
        files.append(f"image{number}")
        (folder / files[-1]).write_bytes(encoded)
    np.save(folder / "pixels.npy", decoded().astype(np.float32))
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS, "saved_model", *files],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, returned, json.loads(done.stdout)


def decoded():
    return np.stack([decode_image(tf.constant(image), SIZE) for image in real_images()])


def expected_probabilities(folder):
    model = keras.models.load_model(folder / "model.keras", compile=False)
    return tf.nn.softmax(model(decoded().astype(np.float32), training=False)).numpy()


def test_the_saved_model_returns_the_probabilities_of_the_keras_model(exported):
    folder, _, outputs = exported
    expected = expected_probabilities(folder)
    assert len(set(expected.argmax(axis=1))) > 1
    assert np.ptp(expected) > 0.2
    for signature in ("", "pixels "):
        for count in (1, len(expected)):
            output = outputs[f"{signature}{count}"]
            np.testing.assert_allclose(output["probabilities"], expected[:count], atol=1e-5)
            expected_names = [NAMES[index] for index in expected[:count].argmax(axis=1)]
            assert output["class_names"] == expected_names
            assert output["labels"] == [NAMES] * count


def test_an_empty_batch_has_empty_outputs(exported):
    for call in ("0", "pixels 0"):
        assert exported[2][call] == {"probabilities": [], "class_names": [], "labels": []}


def test_an_empty_batch_keeps_its_shapes(exported):
    signatures = tf.saved_model.load(str(exported[0] / "saved_model")).signatures
    output = signatures["serving_default"](encoded=tf.zeros([0], tf.string))
    assert output["probabilities"].shape == (0, len(NAMES))
    assert output["labels"].shape == (0, len(NAMES))
    assert output["class_names"].shape == (0,)


def test_return_value_class_names_and_signatures(exported):
    folder, returned, outputs = exported
    assert returned == {"image_size": SIZE, "resize_mode": "crop", "significant_bits": None}
    assert (folder / "class_names.txt").read_text(encoding="utf-8").splitlines() == NAMES
    assert set(outputs["signatures"]["names"]) >= {"serving_default", "pixels"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", models.PRECISIONS)
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("convnet5", 8),
        ("resnet6", 8),
        ("resnet9", 8),
        ("resnet8", 8),
        ("wrn10_2", 8),
        ("imagenet_resnet18", 32),
        ("efficientnet_b0", 32),
        ("efficientnet_b0_small", 16),
    ],
)
def test_every_model_family_in_every_precision(name, side, precision, tmp_path):
    model = models.build_model(
        name,
        num_classes=len(NAMES),
        image_size=side,
        dropout_rate=0.5,
        batch_norm_momentum=0.5,
        precision=precision,
    )
    pixels = np.random.default_rng(0).uniform(0, 255, (4, side, side, 3)).astype(np.float32)
    model(pixels, training=True)
    export_model(model, NAMES, tmp_path)
    np.save(tmp_path / "pixels.npy", pixels)
    (tmp_path / "image").write_bytes(real_images()[0])
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS, "saved_model", "image"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    expected = tf.nn.softmax(loaded(pixels)).numpy()
    received = json.loads(done.stdout)["pixels 4"]["probabilities"]
    np.testing.assert_allclose(received, expected, atol=1e-5 if precision == "float32" else 0.02)
    assert np.ptp(expected, axis=0).max() > 1e-4
