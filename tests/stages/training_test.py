"""What settings make of shard sets: streams, recipe, network and a trained model."""

import dataclasses
import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

from nsk import noise
from nsk.config.config import Config
from nsk.data import augment, crops, mixup, pipeline, records, shards
from nsk.data.augment import ImageNoise
from nsk.data.image_operations import RandAugmentOptions
from nsk.data.shard_stream import ShardStream
from nsk.data.streams import ResidentStream
from nsk.distributed import strategy as strategies
from nsk.errors import UserError
from nsk.evaluation import metrics
from nsk.evaluation.predictor import Predictor, collect
from nsk.stages import training as train_stage

KEY = noise.key(0, "train stage test")
PARTS = ("image", "target", "weight")
NAMES = [str(digit) for digit in range(10)]


def digits():
    data = load_digits()
    images = np.minimum(data.images * 16, 255).astype(np.uint8)
    return np.repeat(images[..., np.newaxis], 3, axis=-1), data.target


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pseudo_scores():
    """Log-probabilities (90, 10) and copies (90,) of the pseudo-labelled digits."""
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(10, 0.2), 90)
    return np.log(probabilities).astype(np.float16), random.integers(1, 4, 90)


@pytest.fixture(scope="module")
def shard_sets(tmp_path_factory):
    """60 labelled, 90 pseudo-labelled and 200 dev images."""
    folder = tmp_path_factory.mktemp("shards")
    images, labels = digits()
    for split, first, last in (("labeled", 0, 60), ("dev", 200, 400)):
        with shards.ShardWriter(folder / split, "images", NAMES, 100) as writer:
            for number in range(first, last):
                encoded = png(images[number])
                writer.write(records.image_example(f"{number}", encoded, labels[number]))
    log_probabilities, copies = pseudo_scores()
    with shards.ShardWriter(folder / "pseudo", "pseudo", NAMES, 50) as writer:
        for number, scores in enumerate(log_probabilities, start=60):
            label, confidence = scores.argmax(), np.exp(np.float32(scores.max()))
            row = (png(images[number]), label, confidence, scores, copies[number - 60])
            writer.write(records.pseudo_example(f"{number}", *row), copies[number - 60])
    splits = ("labeled", "dev", "pseudo")
    return {split: shards.ShardSet.load(folder / split) for split in splits}


def make_job(shard_sets, folder, generation=1, labeled_copies=None, **changes):
    """A student's job, or for generation 0 a teacher's, with `changes` of the settings."""
    values = {
        "models": ["convnet5"] * 3,
        "labeled_batch_size": [8],
        "ratio": [3],
        "train_steps": [40],
        "randaugment_num_ops": [0],
        "crop_padding": [0],
        "learning_rate": [0.1],
        "evaluations": 2,
        **changes,
    }
    if "train_images" in values or "train_epochs" in values:
        del values["train_steps"]
    config = Config.from_values(values)
    model = config.model.at(generation)
    del model["init_from"]
    kind = "student" if generation else "teacher"
    settings = {
        "name": f"gen{generation}/{kind}",
        "seed": config.run.seed,
        "architecture": model.pop("models"),
        "image_size": model.pop("image_size") or 8,
        "num_labeled": 60,
        "model": model,
        "noise": {
            **config.noise.at(generation),
            "flip": False,
        },
        "train": config.train.at(generation),
    }
    if generation:
        names = ("pseudo_label", "smooth_epsilon", "temperature")
        settings["targets"] = {name: config.pseudo.at(generation)[name] for name in names}
    resolved = train_stage.resolve_cache(
        settings,
        shard_sets["labeled"],
        shard_sets["dev"],
        shard_sets["pseudo"] if generation else None,
    )
    return train_stage.Job(
        settings=resolved,
        labeled=shard_sets["labeled"],
        dev=shard_sets["dev"],
        pseudo=shard_sets["pseudo"] if generation else None,
        labeled_copies=labeled_copies or {},
        initial=None,
        summary_folder=folder / "tensorboard",
        checkpoint_folder=folder / "checkpoints",
        checkpoint_seconds=1e9,
        eval_batch_size=64,
    )


# Streams.


def test_a_teacher_has_one_stream_of_smoothed_labels(shard_sets, tmp_path):
    job = make_job(shard_sets, tmp_path, generation=0, label_smoothing=0.1)
    (labeled,) = train_stage.make_streams(job)
    images, labels = digits()
    assert (labeled.name, labeled.batch_size, labeled.epoch_size) == ("labeled", 8, 60)
    np.testing.assert_array_equal(labeled.images, images[:60])
    expected = 0.9 * np.eye(10)[labels[:60]] + 0.01
    np.testing.assert_allclose(labeled.targets, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["soft", "hard", "smooth"])
def test_a_student_has_a_second_stream_of_pseudo_labels(shard_sets, tmp_path, kind):
    changes = {"temperature": 2.0, "smooth_epsilon": 0.18, "label_smoothing": 0.1}
    job = make_job(shard_sets, tmp_path, pseudo_label=kind, **changes)
    labeled, pseudo = train_stage.make_streams(job)
    log_probabilities, copies = pseudo_scores()
    assert (labeled.batch_size, pseudo.batch_size) == (8, 24)
    assert (labeled.name, pseudo.name) == ("labeled", "pseudo")
    np.testing.assert_array_equal(pseudo.images, digits()[0][60:150])
    np.testing.assert_array_equal(pseudo.copies, copies)
    first_choices = np.eye(10)[log_probabilities.argmax(axis=1)]
    roots = np.exp(log_probabilities.astype(np.float64) / 2)
    expected = {
        "soft": roots / roots.sum(axis=1, keepdims=True),
        "hard": 0.9 * first_choices + 0.01,
        "smooth": np.where(first_choices, 0.82, 0.02),
    }[kind]
    np.testing.assert_allclose(pseudo.targets, expected, rtol=1e-5)


def test_labelled_copies_go_by_id_and_count_in_the_epoch(shard_sets, tmp_path):
    job = make_job(shard_sets, tmp_path, labeled_copies={"0": 5, "59": 2})
    labeled, _ = train_stage.make_streams(job)
    np.testing.assert_array_equal(labeled.copies, [5, *[1] * 58, 2])
    assert train_stage.account(labeled, 100) == {
        "images": 60,
        "epoch": 65,
        "epochs": round(100 * 8 / 65, 2),
    }


def test_union_is_one_stream_of_the_same_size(shard_sets, tmp_path):
    job = make_job(
        shard_sets, tmp_path, labeled_copies={"7": 3}, mixing="union", loss_normalization="all"
    )
    (union,) = train_stage.make_streams(job)
    _, copies = pseudo_scores()
    assert (union.name, union.batch_size) == ("union", 32)
    assert union.epoch_size == 62 + copies.sum()
    np.testing.assert_array_equal(union.images, digits()[0][:150])


def test_what_does_not_fit_in_memory_is_read_from_its_shards(shard_sets, tmp_path):
    def kinds(**changes):
        job = make_job(shard_sets, tmp_path, **changes)
        return [type(stream) for stream in train_stage.make_streams(job)]

    in_memory, from_shards = [[kind] * 2 for kind in (ResidentStream, ShardStream)]
    assert kinds() == kinds(cache="memory", image_size=[1000]) == in_memory
    # 350 images of 100 x 100 x 3 bytes, dev's included, are 10.01 MiB.
    assert kinds(image_size=[100], cache_mebibytes=11) == in_memory
    assert kinds(image_size=[100], cache_mebibytes=10) == kinds(cache="none") == from_shards
    # For random resized crops encoded training images are kept, which are smaller: dev's are 5.7.
    assert kinds(image_size=[100], cache_mebibytes=6, min_crop_area=[0.5]) == in_memory
    assert kinds(image_size=[100], cache_mebibytes=5, min_crop_area=[0.5]) == from_shards


def test_windows_of_few_shards_are_told(shard_sets, tmp_path, monkeypatch, caplog):
    """Two shards of pseudo-labelled images in a window each; one window is no reason to warn."""
    for mebibyte, told in ((2**20, False), (2000, True)):
        monkeypatch.setattr(pipeline, "MEBIBYTE", mebibyte)
        job = make_job(shard_sets, tmp_path, cache="none", shuffle_mebibytes=1)
        caplog.clear()
        train_stage.make_streams(job)
        assert ("pseudo: about 1.0 shards are mixed at a time" in caplog.text) == told


@pytest.mark.parametrize("mixing", ["ratio", "union"])
def test_streams_from_shards_show_what_streams_in_memory_do(shard_sets, tmp_path, mixing):
    """An epoch of each has the same images with the same targets, as often."""

    def epoch(cache):
        job = make_job(
            shard_sets,
            tmp_path,
            labeled_copies={"7": 3},
            mixing=mixing,
            loss_normalization="all",
            label_smoothing=0.2,
            cache=cache,
        )
        seen = []
        for stream in train_stage.make_streams(job):
            one = dataclasses.replace(stream, batch_size=stream.epoch_size)
            perturb = train_stage.make_perturbation(job.settings)
            batches = pipeline.training_batches((one,), KEY, perturb, 8, 0, 1)
            (batch,) = batches.as_numpy_iterator()
            rows = [np.reshape(batch[0][part], [one.epoch_size, -1]) for part in PARTS]
            seen.append(sorted(map(tuple, np.concatenate(rows, axis=1))))
        return seen

    for ours, theirs in zip(epoch("none"), epoch("memory"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_student_at_ratio_zero_learns_from_labels_alone(shard_sets, tmp_path):
    (labeled,) = train_stage.make_streams(make_job(shard_sets, tmp_path, ratio=[0]))
    assert (labeled.name, labeled.batch_size) == ("labeled", 8)


@pytest.mark.parametrize(
    ("ratio", "mixing", "with_pseudo", "expected"),
    [
        (3.0, "ratio", True, (16, 48)),
        (3.0, "ratio", False, (16,)),
        (1.5, "ratio", True, (16, 24)),
        (14.0, "union", True, (240,)),
        (0.0, "ratio", True, (16,)),
    ],
)
def test_stream_batch_sizes(ratio, mixing, with_pseudo, expected):
    train = {"labeled_batch_size": 16, "ratio": ratio, "mixing": mixing}
    assert train_stage.stream_batch_sizes(train, with_pseudo) == expected


# Recipe.


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"train_steps": [7]}, 7),
        ({"train_images": [3200]}, 100),  # 32 images in a step
        ({"train_images": [10]}, 1),
        ({"train_epochs": [3]}, 22),  # 3 epochs * 60 labelled images / 8 in a step = 22.5
    ],
)
def test_budgets_in_steps_images_and_epochs(shard_sets, tmp_path, budget, expected):
    job = make_job(shard_sets, tmp_path, **budget)
    recipe = train_stage.make_recipe(job.settings, train_stage.make_streams(job))
    assert recipe.num_steps == expected


def test_durations_in_epochs_are_over_the_labelled_images(shard_sets, tmp_path):
    """60 labelled images at 8 in a step: 7.5 steps in an epoch, whatever the ratio."""
    job = make_job(
        shard_sets,
        tmp_path,
        schedule="exponential",
        learning_rate=[0.4],
        warmup_epochs=2,
        decay_epochs=3,
        decay_rate=0.5,
        train_steps=[60],
    )
    rates = train_stage.make_recipe(job.settings, train_stage.make_streams(job)).learning_rates
    steps = np.arange(60)
    expected = np.where(steps < 15, (steps + 1) / 15, 0.5 ** np.floor(steps / 22.5))
    np.testing.assert_allclose(rates, 0.4 * expected, rtol=1e-6)


def test_the_recipe_takes_every_setting(shard_sets, tmp_path):
    changes = {
        "optimizer": "sgd",
        "momentum": 0.7,
        "nesterov": True,
        "gradient_clip_norm": 3.0,
        "loss_normalization": "all",
        "ema_decay": 0.99,
    }
    job = make_job(
        shard_sets,
        tmp_path,
        weight_decay=[0.1, 0.2, 0.3],
        schedule="multistep",
        multistep_fractions="0.5,0.75",
        multistep_factor=0.1,
        **changes,
    )
    recipe = train_stage.make_recipe(job.settings, train_stage.make_streams(job))
    assert recipe.batch_sizes == {"labeled": 8, "pseudo": 24}
    assert recipe.weight_decay == 0.2
    assert {name: getattr(recipe, name) for name in changes} == changes
    expected = np.repeat([0.1, 0.01, 0.001], [20, 10, 10])
    np.testing.assert_allclose(recipe.learning_rates, expected, rtol=1e-6)
    job = make_job(shard_sets, tmp_path, optimizer="rmsprop")
    recipe = train_stage.make_recipe(job.settings, train_stage.make_streams(job))
    assert (recipe.optimizer, recipe.loss_normalization) == ("rmsprop", "labelled")


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_perturbation_takes_every_setting(shard_sets, tmp_path, kind):
    job = make_job(
        shard_sets,
        tmp_path,
        **{f"{kind}_alpha": [0.7]},
        min_crop_area=[0.3],
        crop_padding=[2],
        crop_mode="reflect",
        cutout_side=[3],
        randaugment_num_ops=[3],
        randaugment_magnitude=[7],
        randaugment_max_level=10.0,
        randaugment_profile="reference",
        randaugment_operations="rotate,invert,cutout",
        magnitude_mode="uniform",
        translate_share=0.2,
        fill=9,
    )
    job.settings["noise"]["flip"] = True
    targets, key = tf.one_hot(tf.range(40) % 10, 10), noise.key(0)
    encoded = tf.constant([png(image) for image in digits()[0][:40]])
    augmented = augment.augment(
        crops.random_resized_crop(encoded, key, 8, 0.3),
        key,
        ImageNoise(
            crop_padding=2,
            crop_mode="reflect",
            flip=True,
            cutout_side=3,
            rand_augment=RandAugmentOptions(
                num_ops=3,
                magnitude=7.0,
                max_level=10.0,
                profile="reference",
                operations=("rotate", "invert", "cutout"),
                magnitude_mode="uniform",
                translate_share=0.2,
                fill=9,
            ),
        ),
    )
    expected = getattr(mixup, kind)(augmented, targets, key, 0.7)
    received = train_stage.make_perturbation(job.settings)(encoded, targets, key)
    for ours, theirs in zip(received, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.any(received[0] != augmented)


# Network.


def test_initial_weights_depend_on_the_seed_and_the_stage_alone(shard_sets, tmp_path):
    def initial(name="gen1/student", synchronized=False, **changes):
        settings = {**make_job(shard_sets, tmp_path, **changes).settings, "name": name}
        return train_stage.build_model(settings, 10, synchronized).get_weights()

    first = initial()
    for same in (initial(synchronized=True), initial(dropout_rate=[0.9])):
        for ours, theirs in zip(first, same, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for other in (initial(name="gen2/student"), initial(seed=1)):
        assert np.any(first[0] != other[0])


def test_the_network_takes_its_noise_from_the_settings(shard_sets, tmp_path):
    job = make_job(
        shard_sets,
        tmp_path,
        models=["resnet8"] * 2,
        dropout_rate=[0.1, 0.4],
        survival_probability=[1, 0.7],
        batch_norm_momentum=0.8,
    )
    model = train_stage.build_model(job.settings, 10, synchronized=False)
    assert model.get_layer("dropout").rate == 0.4
    assert model.get_layer("stage3_block1_depth").survival_probability == pytest.approx(0.8)
    assert model.get_layer("final_bn").momentum == 0.8


# A whole stage.


def test_a_stage_learns_saves_its_average_and_repeats_itself(shard_sets, tmp_path):
    """The `.keras` file predicts what was reported, and a second time is equal bit for bit."""
    changes = {"pseudo_label": "soft", "ratio": [1], "ema_decay": 0.8, "dropout_rate": [0.2]}
    outcomes = []
    for turn in ("first", "second"):
        folder = tmp_path / turn
        folder.mkdir()
        job = make_job(shard_sets, folder, randaugment_num_ops=[1], **changes)
        job.settings["noise"]["randaugment_operations"] = ["rotate", "brightness"]
        counts = train_stage.train(job, strategies.make_strategy("one"), folder / "model.keras")
        model = keras.models.load_model(folder / "model.keras", compile=False)
        outcomes.append((counts, model))
    (counts, model), (again, other) = outcomes
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert {**again, "seconds": 0} == {**counts, "seconds": 0}

    again = collect(Predictor(model, 64)(pipeline.clean_batches(shard_sets["dev"], 8, 64)))
    assert metrics.summarize(again.log_probabilities, again.labels) == counts["dev"]
    assert counts["dev"]["accuracy"] > 0.3
    _, copies = pseudo_scores()
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


def test_a_batch_that_does_not_divide_over_the_replicas_is_refused(shard_sets, tmp_path):
    job = make_job(shard_sets, tmp_path, labeled_batch_size=[6], ratio=[1.5])
    with pytest.raises(UserError, match="pseudo batch of 9 images"):
        train_stage.train(job, strategies.make_strategy("mirrored"), tmp_path / "model.keras")


# Fingerprints.


def settings_of(shard_sets, generation, **values):
    config = Config.from_values({"train_steps": ["4"], "models": ["convnet5"] * 2, **values})
    settings = {
        "image_size": 1000,
        "noise": config.noise.at(generation),
        "train": config.train.at(generation),
    }
    if generation:
        settings["targets"] = {
            name: config.pseudo.at(generation)[name]
            for name in ("pseudo_label", "smooth_epsilon", "temperature")
        }
    resolved = train_stage.resolve_cache(
        settings,
        shard_sets["labeled"],
        shard_sets["dev"],
        shard_sets["pseudo"] if generation else None,
    )
    return train_stage.relevant(resolved)


@pytest.mark.parametrize(
    ("base", "changed", "same"),
    [
        ({}, {"evaluations": 3}, {0: True, 1: True}),
        ({}, {"ratio": ["5"]}, {0: True, 1: False}),
        ({}, {"loss_normalization": "all"}, {0: True, 1: False}),
        ({}, {"decay_rate": 0.5}, {0: True, 1: True}),
        ({"schedule": "exponential"}, {"decay_rate": 0.5}, {0: False, 1: False}),
        ({"schedule": "multistep"}, {"multistep_fractions": "0.1"}, {0: False, 1: False}),
        ({"randaugment_num_ops": ["0"]}, {"fill": 3}, {0: True, 1: True}),
        ({"randaugment_num_ops": ["0", "1"]}, {"fill": 3}, {0: True, 1: False}),
        ({}, {"temperature": 2.0}, {0: True, 1: False}),
        ({"pseudo_label": "hard"}, {"temperature": 2.0}, {0: True, 1: True}),
        ({"pseudo_label": "smooth"}, {"smooth_epsilon": 0.3}, {0: True, 1: False}),
        ({}, {"learning_rate": ["0.3"]}, {0: False, 1: False}),
        ({}, {"crop_padding": ["1"]}, {0: False, 1: False}),
        ({}, {"mixup_alpha": ["1"]}, {0: False, 1: False}),
        ({}, {"cutmix_alpha": ["1"]}, {0: False, 1: False}),
        ({}, {"min_crop_area": ["0.5"]}, {0: False, 1: False}),
        ({}, {"cutout_side": ["4"]}, {0: False, 1: False}),
        ({}, {"flip": "on"}, {0: False, 1: False}),
        ({}, {"crop_mode": "reflect"}, {0: False, 1: False}),
        ({"crop_padding": ["0", "4"]}, {"crop_mode": "reflect"}, {0: True, 1: False}),
        (
            {"randaugment_num_ops": ["0"], "cutout_side": ["0", "2"]},
            {"fill": 3},
            {0: True, 1: False},
        ),
        # 260 images of a teacher, dev's included, are 744 MiB; 350 of a student 1,002.
        ({}, {"cache_mebibytes": 1100}, {0: True, 1: True}),
        ({}, {"cache_mebibytes": 900}, {0: True, 1: False}),
        ({}, {"cache_mebibytes": 3}, {0: False, 1: False}),
        ({}, {"cache": "memory"}, {0: True, 1: True}),
        ({"cache_mebibytes": 3}, {"cache": "none"}, {0: True, 1: True}),
        ({"cache": "none"}, {"cache_mebibytes": 3}, {0: True, 1: True}),
        ({"cache": "none"}, {"shuffle_mebibytes": 3}, {0: False, 1: False}),
        ({"cache": "memory"}, {"shuffle_mebibytes": 3}, {0: True, 1: True}),
        ({}, {"shuffle_mebibytes": 3}, {0: True, 1: True}),
        ({}, {"translate_share": 0.2}, {0: False, 1: False}),
        ({"randaugment_profile": "reference"}, {"translate_share": 0.2}, {0: True, 1: True}),
        ({"ratio": ["0"]}, {"temperature": 2.0}, {1: True}),
        ({"ratio": ["0"]}, {"loss_normalization": "all"}, {1: True}),
        ({"ratio": ["0"]}, {"mixing": "union", "loss_normalization": "all"}, {1: True}),
    ],
)
def test_only_what_can_change_the_result_is_in_the_fingerprint(shard_sets, base, changed, same):
    for generation, equal in same.items():
        before = settings_of(shard_sets, generation, **base)
        after = settings_of(shard_sets, generation, **base, **changed)
        assert (before == after) == equal
