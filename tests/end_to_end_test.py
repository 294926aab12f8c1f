"""The whole loop on real digits: it learns, is reproducible and reuses finished stages."""

import io
import itertools
import json
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits
from tensorflow.core.util import event_pb2

from nsk.commands.run import execute
from nsk.data.resident_images import load_images
from nsk.data.shards import ShardSet
from nsk.stages import training
from nsk.store.manifest import MANIFEST, write_manifest

BASE = {
    "dataset": "digits",
    "num_labeled": 100,
    "num_dev": 200,
    "models": ["convnet5", "convnet5", "convnet5"],
    "train_steps": [100, 60],
    "labeled_batch_size": [32, 16],
    "ratio": [3],
    "loss_normalization": "all",
    "learning_rate": [0.1],
    "randaugment_num_ops": [1],
    "randaugment_operations": "rotate,translate_x",
    "crop_padding": [0],
    "dropout_rate": [0.1],
    "ema_decay": 0.9,
    "evaluations": 2,
}


def run(workdir, **changes):
    workdir.mkdir(exist_ok=True)
    return execute({**BASE, **changes, "workdir": str(workdir)})


def stage_folders(workdir):
    """Folders of all finished stages by generation and kind, such as `gen1/student`."""
    folders = {}
    for manifest in sorted(workdir.rglob("stage.json")):
        if not manifest.parent.name.endswith(".partial"):
            kind = manifest.parent.relative_to(workdir).as_posix().rpartition("-")[0]
            folders.setdefault(kind, []).append(manifest.parent)
    return folders


def load_weights(folder):
    return keras.models.load_model(folder / "model.keras", compile=False).get_weights()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Workdir and summary of a teacher and two students; tests only change copies of it."""
    workdir = tmp_path_factory.mktemp("base")
    return workdir, run(workdir)


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "copy")


def test_the_chain_learns_and_is_summarised(finished):
    workdir, summary = finished
    assert json.loads((workdir / "summary.json").read_text()) == summary
    counts = summary["num_images"]
    assert counts["labeled"] == 100
    assert counts["dev"] == 200
    assert sum(counts.values()) == 1797
    assert summary["seed"] == 0

    teacher, *students = summary["generations"]
    assert [generation["index"] for generation in summary["generations"]] == [0, 1, 2]
    roles = [generation["role"] for generation in summary["generations"]]
    assert roles == ["teacher", "student", "student"]
    assert teacher["images_seen"] == 100 * 32
    for generation in summary["generations"]:
        assert generation["model"] == "convnet5"
        assert generation["parameters"] == 104_042
        assert generation["seconds"] > 0
        for split in ("dev", "test"):
            metrics = generation[split]
            assert metrics["images"] == counts[split]
            assert set(metrics) >= {"accuracy", "top5", "nll", "ece", "brier"}
            assert metrics["accuracy"] > 0.6
    for student in students:
        assert student["images_seen"] == 60 * 64
        pseudo = student["pseudo"]
        assert pseudo["scored"] == counts["unlabeled"]
        assert 0 < pseudo["kept"] <= pseudo["scored"]
        assert pseudo["copies"] == sum(pseudo["per_class_copies"]) >= pseudo["kept"]
        assert len(set(pseudo["per_class_copies"])) == 1  # The paper's policy balances classes.
        assert pseudo["precision"] > 0.6
    assert summary["best"]["index"] in (0, 1, 2)


def test_the_loss_falls_in_every_generation(finished):
    workdir, _ = finished
    folders = sorted((workdir / "tensorboard").glob("gen[0-9]/*"))
    assert [folder.parent.name for folder in folders] == ["gen0", "gen1", "gen2"]
    for folder in folders:
        losses, accuracies = [], []
        for path in folder.iterdir():
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                for value in event_pb2.Event.FromString(record).summary.value:
                    if value.tag == "train/loss":
                        losses.append(float(tf.make_ndarray(value.tensor)))
                    elif value.tag == "dev/accuracy":
                        accuracies.append(float(tf.make_ndarray(value.tensor)))
        assert losses[-1] < 0.8 * losses[0]
        assert len(accuracies) == 2


def test_the_best_generation_is_exported(finished):
    workdir, summary = finished
    export = workdir / summary["export"]
    best = workdir / summary["generations"][summary["best"]["index"]]["stage"]
    for exported, trained in zip(load_weights(export), load_weights(best), strict=True):
        np.testing.assert_array_equal(exported, trained)
    buffer = io.BytesIO()
    Image.fromarray(np.minimum(load_digits().images[0] * 16, 255).astype(np.uint8)).save(
        buffer, "PNG"
    )
    signature = tf.saved_model.load(str(export / "saved_model")).signatures["serving_default"]
    answer = signature(encoded=tf.constant([buffer.getvalue()]))
    assert answer["class_names"].numpy() == [b"0"]


def test_a_second_run_reuses_every_stage_and_reports_it(finished, capsys):
    workdir, summary = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*/*-*/**/*")}
    assert run(workdir) == summary
    assert "Every stage was finished before: nothing was done." in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*/*-*/**/*")} == before


def test_another_policy_and_mixing_reuse_teacher_and_scores(finished, copied, capsys):
    """The gap policy and batches from the union of streams rebuild only what depends on them."""
    changes = {"policy": "gap", "min_confidence": [0.5], "gap_floor": 90, "gap_margin": 30}
    summary = run(copied, mixing="union", models=["convnet5"] * 2, **changes)
    assert "nothing was done" not in capsys.readouterr().out
    folders = stage_folders(copied)
    for kind in ("data/images", "gen0/teacher", "gen0/evaluation", "gen1/scores"):
        assert len(folders[kind]) == 1, kind
    for kind in ("gen1/selection", "gen1/pseudo", "gen1/student"):
        assert len(folders[kind]) == 2, kind
    assert summary["generations"][0] == finished[1]["generations"][0]

    student = summary["generations"][1]
    assert student["stage"] != finished[1]["generations"][1]["stage"]
    assert student["dev"]["accuracy"] > 0.6
    streams = json.loads((copied / student["stage"] / "stage.json").read_text())["counts"][
        "streams"
    ]
    labeled_copies = pq.read_table(
        next(path for path in copied.glob("gen1/pseudo-*/labeled.parquet"))
    )["copies"]
    assert list(streams) == ["union"]
    assert streams["union"]["images"] == student["pseudo"]["kept"] + 100
    assert streams["union"]["epoch"] == student["pseudo"]["copies"] + sum(
        labeled_copies.to_pylist()
    )


def unseal(images):
    """Deletes the true labels of unlabelled images from an ingested stage."""
    shutil.rmtree(images / "sealed")
    manifest = json.loads((images / MANIFEST).read_text())
    del manifest["files"]["sealed/unlabeled_truth.parquet"]
    write_manifest(images, {key: value for key, value in manifest.items() if key != "seal"})


def test_a_killed_run_resumes_to_the_same_students_without_the_sealed_truth(
    finished, copied, monkeypatch
):
    """Training never reads the true labels of unlabelled images: only the precision does."""
    workdir, summary = finished
    for folder in itertools.chain(copied.glob("gen2/*"), copied.glob("export-*")):
        shutil.rmtree(folder)
    (copied / "summary.json").unlink()
    unseal(next(copied.glob("data/images-*")))

    def stop(job, runtime, model_path):
        model_path.write_bytes(b"half a model")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "train_model", stop)
        run(copied)
    assert "gen2/pseudo" in stage_folders(copied)
    assert "gen2/student" not in stage_folders(copied)
    resumed = run(copied)

    for received, expected in zip(resumed["generations"], summary["generations"], strict=True):
        expected = {**expected, "seconds": received["seconds"]}
        if "pseudo" in expected:
            expected["pseudo"] = {**expected["pseudo"], "precision": None}
        assert received == expected
    stage = resumed["generations"][2]["stage"]
    received, expected = load_weights(copied / stage), load_weights(workdir / stage)
    for received_array, expected_array in zip(received, expected, strict=True):
        np.testing.assert_array_equal(received_array, expected_array)


def test_a_given_teacher_starts_the_chain_and_all_students_share_a_selection(finished, tmp_path):
    workdir, summary = finished
    teacher = workdir / summary["generations"][0]["stage"] / "model.keras"
    adopted = run(
        tmp_path,
        teacher=str(teacher),
        models=["convnet5", "convnet6"],
        select="once",
        pseudo_label="hard",
        train_steps=[15],
    )
    first, *students = adopted["generations"]
    assert first["dev"] == summary["generations"][0]["dev"]
    assert first["seconds"] is None
    assert [student["model"] for student in students] == ["convnet5", "convnet6"]
    assert students[0]["pseudo"] == summary["generations"][1]["pseudo"]
    folders = stage_folders(tmp_path)
    assert "gen2/selection" not in folders
    first_images, second_images = (
        load_images(ShardSet.load(folders[f"gen{generation}/pseudo"][0] / "shards"), 8)
        for generation in (1, 2)
    )
    assert first_images.ids == second_images.ids
    np.testing.assert_array_equal(first_images.copies, second_images.copies)
    assert np.any(first_images.log_probabilities != second_images.log_probabilities)


def test_students_that_do_not_improve_end_the_chain(copied):
    """A student of a single step is worse than its teacher."""
    summary = run(copied, patience=1, train_steps=[100, 1])
    assert len(summary["generations"]) == 2
    assert (
        summary["generations"][1]["dev"]["accuracy"] < summary["generations"][0]["dev"]["accuracy"]
    )
    assert summary["best"]["index"] == 0


def test_two_devices_train_the_same_student(finished, copied):
    """Up to rounding errors, which ReLUs may amplify."""
    for name in ("gen1", "gen2"):
        shutil.rmtree(copied / name)
    teacher, student = run(copied, strategy="mirrored", models=["convnet5"] * 2)["generations"]
    assert teacher == finished[1]["generations"][0]
    expected = finished[1]["generations"][1]
    for name in ("stage", "images_seen", "pseudo"):
        assert student[name] == expected[name]
    for split in ("dev", "test"):
        accuracy, nll = (expected[split][name] for name in ("accuracy", "nll"))
        assert student[split]["accuracy"] == pytest.approx(accuracy, abs=0.03)
        assert student[split]["nll"] == pytest.approx(nll, rel=0.1)


# Image files.


def write_picture(path, pixels, number):
    """Writes a digit in one of many formats; every 60th file is broken."""
    gray = Image.fromarray(np.kron(pixels, np.ones((2, 2), np.uint8)))
    formats = {
        ".png": gray,
        ".jpg": gray.convert("RGB"),
        ".jpeg": gray,
        ".bmp": gray.convert("P"),
        ".gif": gray,
        ".palette.png": gray.convert("RGB").quantize(16),
        ".transparent.png": gray.convert("RGBA"),
        ".deep.png": Image.fromarray(np.asarray(gray).astype(np.uint16) * 257),
        ".bilevel.bmp": gray.convert("1"),
    }
    suffix, picture = list(formats.items())[number % len(formats)]
    path = path.with_name(path.name + suffix)
    picture.save(path)
    if number % 60 == 59:
        path.write_bytes(path.read_bytes()[:40])


def test_folders_of_mixed_formats_with_broken_files(tmp_path):
    data = load_digits()
    images = np.minimum(data.images[:700] * 16, 255).astype(np.uint8)
    for number, (pixels, label) in enumerate(zip(images, data.target, strict=False)):
        folder = tmp_path / "pictures" / f"digit {label}"
        folder.mkdir(parents=True, exist_ok=True)
        write_picture(folder / f"{number}", pixels, number)
    summary = run(
        tmp_path / "run",
        dataset=f"folder:{tmp_path / 'pictures'}",
        image_size=[8],
        num_labeled=200,
        num_dev=100,
        flip="off",
        models=["convnet5"] * 2,
        max_corrupt_fraction=0.05,
    )
    assert sum(summary["num_images"].values()) == 700 - 11
    counts = json.loads(next((tmp_path / "run").glob("data/images-*/stage.json")).read_text())[
        "counts"
    ]
    assert counts["corrupt"]["count"] == 11
    assert counts["class_names"] == [f"digit {label}" for label in range(10)]
    assert counts["reencoded"] > 200
    for generation in summary["generations"]:
        assert generation["test"]["accuracy"] > 0.5
    names = (tmp_path / "run" / summary["export"] / "class_names.txt").read_text().splitlines()
    assert names == counts["class_names"]


# Only if there is a prepared copy of CIFAR-10.
if Path(os.environ.get("TFDS_DATA_DIR", "/nowhere"), "cifar10").is_dir():

    def test_a_subset_of_cifar10(tmp_path):
        summary = run(
            tmp_path,
            dataset="tfds:cifar10",
            train_split="train[:1500]",
            test_split="test[:300]",
            num_labeled=500,
            num_dev=200,
            models=["convnet5"] * 2,
            min_confidence=[0.1],
            train_steps=[60, 10],
        )
        counts = {"labeled": 500, "unlabeled": 800, "dev": 200, "test": 300}
        assert summary["num_images"] == counts
        assert summary["generations"][0]["dev"]["accuracy"] > 0.15
