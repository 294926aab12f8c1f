"""What a whole chain needs is checked before its first stage trains."""

import json

import h5py
import keras
import numpy as np
import pytest

from nsk import models, self_training
from nsk.config.config import Config
from nsk.data import pipeline
from nsk.data.shards import ShardSet
from nsk.errors import GenerationFailedError, UserError
from nsk.evaluation.prediction_files import read_predictions


def make_config(workdir, **values):
    return Config.from_values(
        {
            "workdir": str(workdir),
            "num_labeled": 50,
            "num_dev": 100,
            "models": ["convnet5", "resnet9"],
            "train_steps": ["2"],
            "randaugment_num_ops": ["0"],  # Tracing it takes seconds.
            **values,
        }
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"strategy": "mirrored", "labeled_batch_size": ["2", "3"]},
            "labeled batch of 3 images does not divide over 2 replicas",
        ),
        ({"finetune_resolution": [0, 4]}, "--finetune_resolution=4 is too small"),
        (
            {"finetune_resolution": [8], "finetune_frozen_blocks": [0, 9]},
            "--finetune_frozen_blocks=9 of",
        ),
        ({"image_size": [4], "models": ["resnet20", "resnet9"]}, "--image_size=4 is too small"),
        ({"num_labeled": 0, "labeled_fraction": 1.0}, "No unlabelled images are left"),
        ({"crop_mode": "reflect", "crop_padding": ["1", "8"]}, "--crop_padding=8 of .* 8 pixels"),
        ({"cutout_side": ["0", "8"]}, "--cutout_side=8 of images of 8 pixels"),
        (
            {"train_steps": ["0"], "train_images": ["500", "127"], "labeled_batch_size": ["32"]},
            "--train_images=127 of generation 1 is less than its batch of 128 images",
        ),
        (
            {"init_from": ["scratch", "teacher"]},
            "student 1 is a resnet9, which cannot take the weights",
        ),
    ],
)
def test_a_student_that_cannot_be_trained_is_told_before_the_teacher_is(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        self_training.run(make_config(tmp_path / "run", **values))
    assert not (tmp_path / "run" / "gen0").exists()


def test_a_student_begins_with_its_teachers_weights_or_with_its_own(tmp_path):
    """At a learning rate of 0 the weights stay what they began with."""
    values = {"models": ["convnet5"] * 3, "learning_rate": ["0.1", "0"], "min_confidence": ["0"]}
    config = make_config(
        tmp_path, **values, init_from=["scratch", "teacher", "scratch"], chance_p_value=1.0
    )
    self_training.run(config)
    kernels = []
    for kind in ("gen0/teacher", "gen1/student", "gen2/student"):
        (path,) = tmp_path.glob(f"{kind}-*/model.keras")
        kernels.append(keras.models.load_model(path, compile=False).trainable_weights)
    teacher, warm, fresh = kernels
    for ours, theirs in zip(warm, teacher, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.any(fresh[0] != teacher[0])


def weights_of(folder, kind):
    """Weights of each model of a kind, `gen0/teacher`, in a workdir."""
    paths = folder.glob(f"{kind}-*/model.keras")
    return [keras.models.load_model(path, compile=False).get_weights() for path in paths]


def test_a_chain_begins_with_weights_that_exist(tmp_path, monkeypatch, caplog):
    """At a learning rate of 0 they stay; the stage goes by what the file holds, not by its name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model = models.build_model("convnet5", num_classes=10, image_size=16, seed=5)
    model.save(tmp_path / "first.keras")

    def run(path):
        values = {"models": ["convnet5"], "learning_rate": ["0"], "init_from": [path]}
        return self_training.run(make_config(tmp_path / "run", **values))

    with caplog.at_level("INFO", logger="absl"):
        run("~/first.keras")
    assert f"Generation 0 begins with {tmp_path}/first.keras: 22 tensors." in caplog.text
    (received,) = weights_of(tmp_path / "run", "gen0/teacher")
    trained = [number for number, one in enumerate(model.weights) if one.trainable]
    for number in trained:
        np.testing.assert_array_equal(received[number], model.get_weights()[number])
    (tmp_path / "first.keras").rename(tmp_path / "second.keras")
    summary = run(str(tmp_path / "second.keras"))
    assert len(weights_of(tmp_path / "run", "gen0/teacher")) == 1
    model.set_weights([one + 1 for one in model.get_weights()])
    model.save(tmp_path / "second.keras")
    assert run(str(tmp_path / "second.keras"))["generations"][0] != summary["generations"][0]
    assert len(weights_of(tmp_path / "run", "gen0/teacher")) == 2
    (manifest, _) = tmp_path.glob("run/gen0/teacher-*/stage.json")
    assert list(json.loads(manifest.read_text())["settings"]["init_from"]) == ["sha256"]


def test_a_student_may_begin_with_weights_for_other_classes(tmp_path, caplog):
    """All of them but the classifier's."""
    model = models.build_model("convnet5", num_classes=3, image_size=8, seed=5)
    model.save_weights(tmp_path / "first.weights.h5")
    with h5py.File(tmp_path / "first.weights.h5", "a") as file:
        file["normalization/normalization/mean:0"] = [0.0] * 3
        file["normalization/normalization/variance:0"] = [1.0] * 3
    values = {"models": ["convnet5"] * 2, "learning_rate": ["0.1", "0"]}
    values |= {"min_confidence": ["0"], "chance_p_value": 1.0}
    begins = ["scratch", str(tmp_path / "first.weights.h5")]
    with caplog.at_level("INFO", logger="absl"):
        self_training.run(make_config(tmp_path / "run", **values, init_from=begins))
    assert "Generation 1 begins with" in caplog.text
    assert ": 20 tensors, fresh classifier for 10 classes." in caplog.text
    assert caplog.text.count("expects pixels of mean 0.000, 0.000, 0.000 and") == 1
    (received,) = weights_of(tmp_path / "run", "gen1/student")
    paths = [one.path for one in model.weights]
    for path, ours, theirs in zip(paths, received, model.get_weights(), strict=True):
        if path.startswith("logits"):
            assert ours.shape[-1] == 10
        elif "moving" not in path:
            np.testing.assert_array_equal(ours, theirs)


def test_weights_that_do_not_fit_are_told_before_anything_is_trained(tmp_path):
    models.build_model("convnet5", num_classes=10, image_size=8).save(tmp_path / "first.keras")
    begins = ["scratch", str(tmp_path / "first.keras")]
    with pytest.raises(UserError, match=r"first\.keras do not fit resnet9: .* more layers"):
        self_training.run(make_config(tmp_path / "run", init_from=begins))
    (tmp_path / "first.keras").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"first\.keras cannot be read"):
        self_training.run(make_config(tmp_path / "run", init_from=begins))
    assert not (tmp_path / "run" / "gen0").exists()


def test_a_teacher_may_label_the_mean_of_an_image_and_its_mirror_image(tmp_path):
    values = {"flip": "on", "min_confidence": ["0"], "chance_p_value": 1.0}
    config = make_config(tmp_path, score_views="mirror", **values)
    self_training.run(config)
    (path,) = tmp_path.glob("gen0/teacher-*/model.keras")
    (split,) = tmp_path.glob("data/images-*/unlabeled")
    batches = pipeline.clean_batches(ShardSet.load(split), 8, 500)
    pixels = np.concatenate([batch["image"] for batch in batches]).astype(np.float32)
    model = keras.models.load_model(path, compile=False)
    views = [keras.ops.softmax(model(view)) for view in (pixels, pixels[:, :, ::-1])]
    (path,) = tmp_path.glob("gen1/scores-*/unlabeled/*.parquet")
    scores = read_predictions(path)
    expected = np.mean(views, axis=0)
    assert np.abs(views[0] - views[1]).max() > 0.01
    np.testing.assert_allclose(np.exp(scores.log_probabilities), expected, rtol=0.01, atol=1e-4)
    self_training.run(make_config(tmp_path, score_views="image", **values))
    assert len(list(tmp_path.glob("gen1/scores-*"))) == 2
    assert len(list(tmp_path.glob("gen0/teacher-*"))) == 1


@pytest.mark.parametrize(("policy", "depends"), [("paper", False), ("gap", True)])
def test_a_student_at_ratio_zero_depends_on_labelled_copies_alone(tmp_path, policy, depends):
    """The gap policy repeats labelled images; else the filter's settings retrain nothing."""
    values = {"policy": policy, "min_confidence": ["0"], "ratio": ["0"], "chance_p_value": 1.0}
    self_training.run(make_config(tmp_path, **values, gap_floor=20))
    (path,) = tmp_path.glob("gen1/student-*/stage.json")
    assert ("pseudo_labels" in json.loads(path.read_text())["inputs"]) == depends


def test_a_teacher_alone_may_take_every_label(tmp_path):
    summary = self_training.run(
        make_config(tmp_path / "run", models=["convnet5"], num_labeled=0, labeled_fraction=1.0)
    )
    assert summary["num_images"]["unlabeled"] == 0 and summary["best"]["index"] == 0


def test_the_resolved_configuration_is_saved(tmp_path):
    self_training.run(make_config(tmp_path / "run", models=["convnet5"], temperature=0.5))
    self_training.plan(make_config(tmp_path / "run", models=["convnet5"], temperature=0.7))
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert saved["pseudo"]["temperature"] == 0.5 and saved["train"]["momentum"] == 0.9


def test_a_later_generation_that_cannot_be_taught_ends_the_chain_alone(tmp_path, monkeypatch):
    config = make_config(tmp_path / "run", models=["convnet5"] * 3, min_confidence=["0"])

    def refuse(generation):
        def check(teacher, p_value):
            if teacher.model.path.parent.name == f"gen{generation}":
                raise GenerationFailedError("no better than chance")

        monkeypatch.setattr(self_training.deciding, "refuse_chance", check)

    refuse(1)
    summary = self_training.run(config)
    assert [one["index"] for one in summary["generations"]] == [0, 1]
    assert (tmp_path / "run" / summary["export"] / "saved_model").is_dir()
    refuse(0)
    with pytest.raises(GenerationFailedError):
        self_training.run(config)


def teacher_with(path, *, softmax=False, width=8, num_classes=10):
    inputs = keras.Input((8, width, 3))
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    outputs = keras.layers.Dense(num_classes)(features)
    if softmax:
        outputs = keras.layers.Softmax()(outputs)
    keras.Model(inputs, outputs).save(path)


@pytest.mark.parametrize(
    ("model", "class_names", "message"),
    [
        ({"softmax": True}, None, "returns probabilities; expected logits"),
        ({"width": 4}, None, r"takes images of \(8, 4, 3\): expected"),
        ({"num_classes": 9}, None, "knows 9 classes; the run has 10:"),
        ({}, [*"1023456789"], "was trained on the classes 1, 0, 2"),
    ],
)
def test_a_teacher_that_does_not_fit_is_told_by_plan_already(tmp_path, model, class_names, message):
    path = tmp_path / "teacher.keras"
    teacher_with(path, **model)
    if class_names:
        (tmp_path / "class_names.txt").write_text("\n".join(class_names) + "\n")
    with pytest.raises(UserError, match=message):
        self_training.plan(make_config(tmp_path / "run", teacher=str(path), models=["convnet5"]))


def test_an_adopted_teacher_of_another_network_gives_no_weights(tmp_path):
    teacher_with(tmp_path / "teacher.keras")
    teacher = {"teacher": str(tmp_path / "teacher.keras"), "models": ["convnet5"]}
    self_training.plan(make_config(tmp_path / "run", **teacher))
    with pytest.raises(UserError, match="do not fit convnet5: layer1_conv is missing"):
        self_training.plan(make_config(tmp_path / "run", **teacher, init_from=["teacher"]))


def test_a_damaged_teacher_is_named(tmp_path):
    path = tmp_path / "teacher.keras"
    teacher_with(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (content, content[:1000], b"not a model"):
        path.write_bytes(bytes(damaged))
        with pytest.raises(UserError, match=r"teacher\.keras cannot be loaded"):
            self_training.plan(make_config(tmp_path / "run", teacher=str(path)))
