"""The exported model is used in a new process that can import neither keras nor nsk."""

import io
import json
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from nsk import models, self_training
from nsk.data import records
from nsk.data.decoding import decode_image
from nsk.data.normalization import EXIF_ORIENTATION, normalize_image
from nsk.evaluation.calibration import fit_temperature
from nsk.evaluation.prediction_files import read_table
from nsk.stages.export import export, export_model
from nsk.stages.runner import shard_set

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
        expected = {"probabilities": [], "class_names": [], "labels": []}
        readable = {"is_readable": []} if call == "0" else {}
        assert exported[2][call] == expected | readable


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


def sideways(pixels, orientation):
    """A photograph as a camera stores it that was turned by 90 degrees."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return encode(pixels, "JPEG", exif=exif)


def test_photographs_are_served_as_they_are_ingested(exported):
    photograph = load_sample_image("flower.jpg")[::7, ::9]
    transparent = np.dstack([photograph, np.linspace(0, 255, photograph[..., 0].size).astype(int)
                             .reshape(photograph.shape[:2])]).astype(np.uint8)  # fmt: skip
    files = [sideways(photograph, orientation) for orientation in range(1, 9)]
    files += [encode(transparent, "PNG"), encode(photograph, "PNG")]
    folder = exported[0]
    serve = tf.saved_model.load(str(folder / "saved_model")).signatures["serving_default"]
    outputs = serve(encoded=tf.constant(files))
    assert outputs["is_readable"].numpy().all()
    ingested = [decode_image(tf.constant(normalize_image(file).encoded), SIZE) for file in files]
    model = keras.models.load_model(folder / "model.keras", compile=False)
    logits = model(tf.cast(tf.stack(ingested), tf.float32), training=False)
    np.testing.assert_allclose(outputs["probabilities"], tf.nn.softmax(logits), atol=1e-5)
    assert len({tuple(row) for row in np.round(outputs["probabilities"].numpy(), 4)}) >= 9


def test_one_bad_file_does_not_fail_the_others(exported):
    folder, _, alone = exported
    good = real_images()
    files = [b"no image", good[0], good[3][:-200], good[1], b"", good[2]]
    serve = tf.saved_model.load(str(folder / "saved_model")).signatures["serving_default"]
    outputs = serve(encoded=tf.constant(files))
    assert outputs["is_readable"].numpy().tolist() == [False, True, False, True, False, True]
    expected = np.zeros((6, len(NAMES)))
    expected[[1, 3, 5]] = alone[str(len(good))]["probabilities"][:3]
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
    names = [name.decode() for name in outputs["class_names"].numpy()]
    assert [names[row] for row in (0, 2, 4)] == ["", "", ""]
    assert names[1::2] == alone[str(len(good))]["class_names"][:3]
    only_bad = serve(encoded=tf.constant([b"no image"]))
    assert only_bad["probabilities"].shape == (1, len(NAMES)) and not only_bad["is_readable"][0]


def test_three_formats_agree_on_500_images(make_runner, tmp_path):
    values = {"models": ["convnet5"], "train_steps": ["30"], "num_dev": 500}
    runner = make_runner(tmp_path, **values, export_formats="saved_model,tflite")
    images, (teacher,) = self_training.train_chain(runner)
    stage = export(runner, teacher.model, images, teacher.evaluation)
    assert stage.counts["tflite_difference"] < 1e-4
    dev = list(records.parse_images(tf.constant(list(
        shard_set(images, "dev").read().as_numpy_iterator())))["encoded"].numpy())  # fmt: skip
    serve = tf.saved_model.load(str(stage.path / "saved_model")).signatures["serving_default"]
    served = serve(encoded=tf.constant(dev))["probabilities"].numpy()
    model = keras.models.load_model(stage.path / "model.keras", compile=False)
    pixels = np.stack([decode_image(tf.constant(file), 8) for file in dev]).astype(np.float32)
    expected = tf.nn.softmax(model(pixels, training=False)).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(str(stage.path / "model.tflite"))
    run = interpreter.get_signature_runner()
    lite = np.concatenate([run(images=image[np.newaxis])["probabilities"] for image in pixels])
    assert len(dev) == 500 and expected.max() > 0.5
    np.testing.assert_allclose(served, expected, atol=1e-5)
    np.testing.assert_allclose(lite, expected, atol=1e-4)
    # The temperature is the one that fits dev.
    found = json.loads((stage.path / "calibration.json").read_text())
    truth = read_table(teacher.evaluation.path / "dev.parquet", ["truth"])["truth"].to_numpy()
    fitted = fit_temperature(np.log(expected), truth)
    order = {name: row for row, name in enumerate(
        read_table(teacher.evaluation.path / "dev.parquet", ["id"])["id"].to_pylist())}  # fmt: skip
    assert len(order) == found["dev_images"] == 500
    assert abs(found["temperature"] / fitted - 1) < 0.01


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
