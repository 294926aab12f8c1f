"""Training: recipe, network, trained model, and what a chain's networks are initialised from."""

import json

import h5py
import keras
import numpy as np
import pytest

from nsk import models, self_training
from nsk.data import pipeline
from nsk.distributed.runtime import Runtime
from nsk.distributed.strategy import make_strategy
from nsk.errors import UserError
from nsk.evaluation import metrics
from nsk.evaluation.predictor import Predictor, collect
from nsk.models.model_files import load_model
from nsk.stages import ingestion, training
from nsk.stages.input_streams import make_streams
from nsk.stages.runner import MODEL_FILE
from nsk.stages.validation import check_chain
from nsk.store.folders import StageFolder
from nsk.store.manifest import MANIFEST


@pytest.fixture
def make_job(shard_sets, make_settings, tmp_path):
    """Function that makes the job of a student, with `changes` of the settings."""

    def make(folder=tmp_path, **changes):
        return training.Job(
            settings=make_settings(**changes),
            labeled=shard_sets["labeled"],
            dev=shard_sets["dev"],
            pseudo=shard_sets["pseudo"],
            labeled_copies={},
            initial_weights=None,
            summary_folder=folder / "tensorboard",
            checkpoint_folder=folder / "checkpoints",
            checkpoint_seconds=1e9,
            eval_batch_size=64,
        )

    return make


# Recipe.


@pytest.fixture
def make_recipe(shard_sets, make_settings):
    """Function that makes the recipe of a student, with `changes` of the settings."""

    def make(**changes):
        settings = make_settings(**changes)
        streams = make_streams(settings, shard_sets["labeled"], shard_sets["pseudo"], {})
        return training.make_recipe(settings, streams)

    return make


def test_durations_in_epochs_are_over_the_labelled_images(make_recipe):
    """60 labelled images at 8 in a step: 7.5 steps in an epoch, whatever the ratio."""
    recipe = make_recipe(
        schedule="exponential",
        learning_rate=[0.4],
        warmup_epochs=2,
        decay_epochs=3,
        decay_rate=0.5,
        train_steps=[60],
    )
    steps = np.arange(60)
    expected = np.where(steps < 15, (steps + 1) / 15, 0.5 ** np.floor(steps / 22.5))
    np.testing.assert_allclose(recipe.learning_rates, 0.4 * expected, rtol=1e-6)


def test_the_recipe_uses_every_setting(make_recipe):
    changes = {
        "optimizer": "sgd",
        "momentum": 0.7,
        "nesterov": True,
        "gradient_clip_norm": 3.0,
        "loss_normalization": "all",
        "ema_decay": 0.99,
        "rematerialize": True,
    }
    recipe = make_recipe(
        weight_decay=[0.1, 0.2, 0.3],
        accumulation_steps=[1, 2],
        schedule="multistep",
        multistep_fractions="0.5,0.75",
        multistep_factor=0.1,
        **changes,
    )
    assert recipe.batch_sizes == {"labeled": 8, "pseudo": 24}
    assert (recipe.weight_decay, recipe.accumulation_steps) == (0.2, 2)
    assert {name: getattr(recipe, name) for name in changes} == changes
    expected = np.repeat([0.1, 0.01, 0.001], [20, 10, 10])
    np.testing.assert_allclose(recipe.learning_rates, expected, rtol=1e-6)
    recipe = make_recipe(optimizer="rmsprop")
    assert (recipe.optimizer, recipe.loss_normalization) == ("rmsprop", "labelled")


# Network.


def test_random_initial_weights_depend_only_on_the_seed_and_the_stage(make_settings):
    def initial(generation=1, synchronized=False, **changes):
        settings = make_settings(generation, **changes)
        return training.build_network(settings, 10, synchronized).get_weights()

    first = initial()
    for same in (initial(synchronized=True), initial(dropout_rate=[0.9])):
        for first_array, same_array in zip(first, same, strict=True):
            np.testing.assert_array_equal(first_array, same_array)
    for different in (initial(generation=2), initial(seed=1)):
        assert np.any(first[0] != different[0])


def test_the_network_uses_the_settings_of_its_noise(make_settings):
    settings = make_settings(
        models=["resnet8"] * 2,
        dropout_rate=[0.1, 0.4],
        survival_probability=[1, 0.7],
        batch_norm_momentum=0.8,
    )
    model = training.build_network(settings, 10, synchronized=False)
    assert model.get_layer("dropout").rate == 0.4
    assert model.get_layer("stage3_block1_depth").survival_probability == pytest.approx(0.8)
    assert model.get_layer("final_bn").momentum == 0.8


# A whole training.


def test_a_training_learns_saves_its_average_and_is_reproducible(
    make_job, shard_sets, pseudo_scores, tmp_path
):
    """The `.keras` file predicts what was reported, and a repetition is equal bit for bit."""
    runtime, outcomes = Runtime.from_strategy(make_strategy("one")), []
    for attempt in ("first", "second"):
        folder = tmp_path / attempt
        folder.mkdir()
        job = make_job(
            folder,
            ratio=[1],
            ema_decay=0.8,
            dropout_rate=[0.2],
            randaugment_num_ops=[1],
            randaugment_operations="rotate,brightness",
        )
        counts = training.train_model(job, runtime, folder / "model.keras")
        model = keras.models.load_model(folder / "model.keras", compile=False)
        outcomes.append((counts, model))
    (counts, model), (repeated_counts, repeated_model) = outcomes
    for first, second in zip(model.get_weights(), repeated_model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert {**repeated_counts, "seconds": 0} == {**counts, "seconds": 0}

    predictions = collect(Predictor(model, 64)(pipeline.clean_batches(shard_sets["dev"], 8, 64)))
    assert metrics.summarize(predictions.log_probabilities, predictions.labels) == counts["dev"]
    assert counts["dev"]["accuracy"] > 0.3
    _, copies = pseudo_scores
    assert counts["streams"] == {
        "labeled": {"images": 60, "epoch": 60, "epochs": round(40 * 8 / 60, 2)},
        "pseudo": {
            "images": 90,
            "epoch": int(copies.sum()),
            "epochs": round(40 * 8 / copies.sum(), 2),
        },
    }
    assert counts["model"] == "convnet5"
    assert counts["parameters"] == 104_042
    assert (counts["steps"], counts["images_seen"]) == (40, 40 * 16)
    assert list((tmp_path / "first" / "tensorboard").iterdir())


def test_a_batch_that_does_not_divide_over_the_replicas_is_rejected(make_job, tmp_path):
    runtime = Runtime.from_strategy(make_strategy("mirrored"))
    job = make_job(labeled_batch_size=[6], ratio=[1.5])
    with pytest.raises(UserError, match="pseudo batch of 9 images"):
        training.train_model(job, runtime, tmp_path / "model.keras")


# Initial weights. At a learning rate of 0, trained weights equal them.


def trained_weights(stage):
    return load_model(stage.path / MODEL_FILE).trainable_weights


def assert_same_weights(first, second):
    for first_array, second_array in zip(first, second, strict=True):
        np.testing.assert_array_equal(first_array, second_array)


def test_a_student_is_initialised_from_its_teacher_or_at_random(make_runner, tmp_path):
    runner = make_runner(
        tmp_path / "run",
        models=["convnet5"] * 3,
        learning_rate=["0.1", "0"],
        ratio=["0"],
        init_from=["scratch", "teacher", "scratch"],
    )
    images = ingestion.ingest_images(runner)
    pseudo_labels = StageFolder(tmp_path, "0123456789", {})  # None, at a ratio of 0.
    teacher = training.train(runner, 0, images)
    warm, fresh = (
        training.train(runner, generation, images, pseudo_labels, teacher) for generation in (1, 2)
    )
    assert_same_weights(trained_weights(warm), trained_weights(teacher))
    assert np.any(trained_weights(fresh)[0] != trained_weights(teacher)[0])
    roles = [json.loads((stage.path / MANIFEST).read_text())["inputs"] for stage in (warm, fresh)]
    assert ["teacher" in inputs for inputs in roles] == [True, False]


def test_a_teacher_is_initialised_from_a_file(make_runner, tmp_path, monkeypatch, caplog):
    """The stage depends on the content of the file, not on its name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model = models.build_model("convnet5", num_classes=10, image_size=16, seed=5)
    model.save(tmp_path / "first.keras")

    def train(path):
        values = {"models": ["convnet5"], "learning_rate": ["0"], "init_from": [path]}
        runner = make_runner(tmp_path / "run", **values)
        images = ingestion.ingest_images(runner)
        check_chain(runner, images.counts)
        return training.train(runner, 0, images)

    with caplog.at_level("INFO", logger="absl"):
        first = train("~/first.keras")
    assert f"Generation 0 is initialised from {tmp_path}/first.keras: 22 tensors." in caplog.text
    assert_same_weights(trained_weights(first), model.trainable_weights)
    (tmp_path / "first.keras").rename(tmp_path / "second.keras")
    second = train(str(tmp_path / "second.keras"))
    assert second.reused and second.path == first.path
    model.set_weights([array + 1 for array in model.get_weights()])
    model.save(tmp_path / "second.keras")
    third = train(str(tmp_path / "second.keras"))
    assert not third.reused and third.path != first.path
    assert_same_weights(trained_weights(third), model.trainable_weights)
    manifest = json.loads((third.path / MANIFEST).read_text())
    assert list(manifest["settings"]["init_from"]) == ["sha256"]


def test_a_student_is_initialised_from_a_file_for_other_classes(make_runner, tmp_path, caplog):
    """All weights but the classifier's are used."""
    model = models.build_model("convnet5", num_classes=3, image_size=8, seed=5)
    model.save_weights(tmp_path / "first.weights.h5")
    with h5py.File(tmp_path / "first.weights.h5", "a") as file:
        file["normalization/normalization/mean:0"] = [0.0] * 3
        file["normalization/normalization/variance:0"] = [1.0] * 3
    runner = make_runner(
        tmp_path / "run",
        models=["convnet5"] * 2,
        learning_rate=["0"],
        ratio=["0"],
        init_from=["scratch", str(tmp_path / "first.weights.h5")],
    )
    with caplog.at_level("INFO", logger="absl"):
        images = ingestion.ingest_images(runner)
        check_chain(runner, images.counts)
    assert "Generation 1 is initialised from" in caplog.text
    assert ": 20 tensors, new classifier for 10 classes." in caplog.text
    assert caplog.text.count("expects pixels of mean 0.000, 0.000, 0.000 and") == 1
    no_pseudo_labels = StageFolder(tmp_path, "0123456789", {})
    student = training.train(runner, 1, images, no_pseudo_labels)
    trained = load_model(student.path / MODEL_FILE)
    for received, given in zip(trained.trainable_variables, model.trainable_variables, strict=True):
        if received.path.startswith("logits"):
            assert received.shape[-1] == 10
        else:
            np.testing.assert_array_equal(received, given)


def test_a_student_at_ratio_zero_depends_only_on_copies_of_labelled_images(
    make_runner, tmp_path, monkeypatch
):
    """The gap policy repeats labelled images; otherwise the settings of the filter do not count."""
    stages, original = {}, training.run_training

    def run_training(runner, settings, images, inputs, *args):
        """Trains the teacher; for a student, records the roles of its inputs."""
        if not settings.is_student:
            stages["teacher"] = original(runner, settings, images, inputs, *args)
            return stages["teacher"]
        stages["student"] = set(inputs)
        return stages["teacher"]

    monkeypatch.setattr(training, "run_training", run_training)
    values = {"models": ["convnet5"] * 2, "min_confidence": ["0"], "chance_p_value": 1.0}
    for policy, ratio, roles in (
        ({"policy": "paper"}, "0", set()),
        ({"policy": "gap", "gap_floor": 20}, "0", {"pseudo_labels"}),
        ({"policy": "paper"}, "1", {"pseudo_labels"}),
    ):
        self_training.train_chain(make_runner(tmp_path, **values, **policy, ratio=[ratio]))
        assert stages["student"] == roles


def test_the_checkpoints_of_a_finished_training_are_deleted(make_runner, tmp_path):
    runner = make_runner(tmp_path, models=["convnet5"], checkpoint_minutes=0.0)
    stage = training.train(runner, 0, ingestion.ingest_images(runner))
    assert stage.path.is_dir()
    assert [path.name for path in (tmp_path / "gen0").iterdir() if path.is_dir()] == [
        stage.path.name
    ]


def test_weighted_classes_train_as_keras_does_with_class_weight(make_job, digits):
    """SGD on the same batches: Keras multiplies the losses by weights and takes their mean."""
    changes = {"ratio": [0], "weight_decay": [0], "train_steps": [5], "dropout_rate": [0]}
    job = make_job(class_weights="balanced", **changes)
    trainer = training.make_trainer(
        job, job.open_streams(), Runtime.from_strategy(make_strategy("one"))
    )
    make_batches = training.make_batches(job.settings, job.open_streams())
    losses, _ = trainer.call_steps(trainer.iterate(make_batches, 0, 5), 0, 5)

    model = training.build_network(job.settings, 10, synchronized=False)
    optimizer = keras.optimizers.SGD(momentum=0.9)
    model.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True))
    class_weight = dict(enumerate(60 / (10 * np.bincount(digits[1][:60]))))
    batches = make_batches(0, 5).as_numpy_iterator()
    for (batch,), rate, loss in zip(batches, trainer.recipe.learning_rates, losses, strict=True):
        optimizer.learning_rate = rate
        images, targets = batch["image"].astype(np.float32), batch["target"]
        model.reset_metrics()
        expected = model.train_on_batch(images, targets, class_weight=class_weight)
        assert loss == pytest.approx(expected, rel=1e-4)
    for variable, expected in zip(trainer.model.variables, model.variables, strict=True):
        np.testing.assert_allclose(variable.numpy(), expected.numpy(), atol=1e-4)
