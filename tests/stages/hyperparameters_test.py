"""Hyperparameters: batch sizes, budgets, fine-tuning, and what a stage's fingerprint depends on."""

import dataclasses
import json

import numpy as np
import pytest

from nsk.config.config import Config, settings
from nsk.errors import UserError
from nsk.stages.hyperparameters import (
    Hyperparameters,
    finetuning_hyperparameters,
    training_hyperparameters,
    training_image_size,
    training_parts,
)

COUNTS = {"images": {"labeled": 60}, "image_side": 8}


def make_config(**values):
    return Config.from_values({"models": ["convnet5"] * 2, "train_steps": ["4"], **values})


@pytest.mark.parametrize(
    ("values", "generation", "expected"),
    [
        ({"ratio": [3]}, 1, (16, 48)),
        ({"ratio": [3]}, 0, (16,)),
        ({"ratio": [1.5]}, 1, (16, 24)),
        ({"ratio": [14], "mixing": "union", "loss_normalization": "all"}, 1, (240,)),
        ({"ratio": [14], "mixing": "union", "loss_normalization": "all"}, 0, (16,)),
        ({"ratio": [0]}, 1, (16,)),
    ],
)
def test_batch_sizes_of_streams(make_settings, values, generation, expected):
    assert make_settings(generation, labeled_batch_size=[16], **values).batch_sizes == expected


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"train_steps": [7]}, 7),
        ({"train_images": [3200]}, 100),  # 32 images in a step
        ({"train_images": [10]}, 1),
        ({"train_epochs": [3]}, 22),  # 3 epochs * 60 labelled images / 8 in a step = 22.5
    ],
)
def test_budgets_in_steps_images_and_epochs(make_settings, budget, expected):
    assert make_settings(**budget).num_steps == expected


def test_a_generation_has_its_own_values():
    config = make_config(
        seed=5,
        models=["convnet5", "resnet9"],
        image_size=["8", "16"],
        dropout_rate=["0.1", "0.2"],
        crop_padding=["1", "2"],
        learning_rate=["0.3", "0.4"],
        init_from=["~/a.keras", "teacher"],
        flip="auto",
    )
    teacher, student = (training_hyperparameters(config, number, COUNTS) for number in (0, 1))
    assert (teacher.name, student.name) == ("gen0/teacher", "gen1/student")
    assert (teacher.architecture, student.architecture) == ("convnet5", "resnet9")
    assert (teacher.image_size, student.image_size) == (8, 16)
    assert (teacher.model.dropout_rate, student.model.dropout_rate) == (0.1, 0.2)
    assert (teacher.noise.crop_padding, student.noise.crop_padding) == (1, 2)
    assert (teacher.train.learning_rate, student.train.learning_rate) == (0.3, 0.4)
    assert (teacher.init_from, student.init_from) == (str(config.init_from(0)), "teacher")
    assert (teacher.is_student, student.is_student) == (False, True)
    assert teacher.noise.flip == "off"  # Digits.
    assert (teacher.seed, teacher.num_labeled, teacher.frozen_blocks) == (5, 60, 0)


def test_fine_tuning_has_clean_images_and_a_budget_and_learning_rate_of_its_own():
    config = make_config(
        flip="on",
        mixup_alpha=["0.2"],
        cutmix_alpha=["0.2"],
        min_crop_area=["0.5"],
        cutout_side=["2"],
        schedule="exponential",
        warmup_epochs=2.0,
        mixing="union",
        loss_normalization="all",
        finetune_resolution=["0", "16"],
        finetune_epochs=["1.5", "2"],
        finetune_learning_rate=["0.01", "0.02"],
        finetune_frozen_blocks=["1", "3"],
        init_from=["scratch", "teacher"],
    )
    assert finetuning_hyperparameters(config, 0, COUNTS) is None
    trained = training_hyperparameters(config, 1, COUNTS)
    tuned = finetuning_hyperparameters(config, 1, COUNTS)
    assert (tuned.name, tuned.image_size, tuned.frozen_blocks) == ("gen1/finetune", 16, 3)
    assert (tuned.init_from, tuned.architecture, tuned.model) == (
        "trained",
        trained.architecture,
        trained.model,
    )
    assert (tuned.is_student, tuned.mixes_images, tuned.stored_size) == (False, False, 16)
    changed = {
        name: value
        for name, value in tuned.noise.values().items()
        if value != getattr(trained.noise, name)
    }
    assert changed == {
        "randaugment_num_ops": 0,
        "crop_padding": 0,
        "min_crop_area": 0.0,
        "cutout_side": 0,
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
        "flip": "off",
    }
    changed = {
        name: value
        for name, value in tuned.train.values().items()
        if value != getattr(trained.train, name)
    }
    assert changed == {
        "train_steps": 0,
        "train_epochs": 2.0,
        "learning_rate": 0.02,
        "schedule": "cosine",
        "warmup_epochs": 0.0,
    }
    assert tuned.batch_sizes == (128,)


def test_the_image_size_is_that_of_the_images_unless_it_is_given():
    assert training_image_size(make_config(), 0, COUNTS) == 8
    assert training_image_size(make_config(image_size=["16", "32"]), 1, COUNTS) == 32
    several = {"image_side": None, "image_sizes": {"smallest": 20, "largest": 500}}
    with pytest.raises(UserError, match="shorter sides are 20 to 500 pixels: give --image_size"):
        training_image_size(make_config(), 0, several)


# Fingerprints. `tests/config/fields_test.py` covers the condition of every setting.


@pytest.mark.parametrize("generation", [0, 1])
def test_a_fingerprint_holds_every_hyperparameter_once(make_settings, generation):
    hyperparameters = make_settings(generation)
    fingerprint = hyperparameters.for_fingerprint()
    sections = [hyperparameters.model, hyperparameters.noise, hyperparameters.train]
    names = [name for section in sections for name in section.values()]
    names += [field.name for field in dataclasses.fields(Hyperparameters)]
    assert len(names) == len(set(names)), "a setting would hide another one"
    own = {field.name for field in dataclasses.fields(Hyperparameters)}
    usual = {"resize_mode", "significant_bits"}  # Left out as long as images are decoded as usual.
    usual |= {"is_pretraining"}  # The name says it.
    assert own - {"model", "noise", "train", "targets", "finetune"} - usual <= set(fingerprint)
    assert not usual & set(fingerprint)
    assert fingerprint["learning_rate"] == 0.1 and ("ratio" in fingerprint) == bool(generation)
    unused = {field.name for field in settings() if not field.metadata["changes_results"]}
    assert not unused & set(fingerprint)
    json.dumps(fingerprint)


def test_unusual_decoding_is_in_the_fingerprint(make_settings):
    assert make_settings(resize_mode="pad").for_fingerprint()["resize_mode"] == "pad"
    settings = make_settings()
    for bits, expected in ((12, 12), (16, None), (None, None)):
        deep = dataclasses.replace(settings, significant_bits=bits)
        assert deep.for_fingerprint().get("significant_bits") == expected
    config = Config.from_values({"train_steps": [1]})
    found = training_hyperparameters(config, 0, COUNTS | {"significant_bits": 12})
    assert (found.resize_mode, found.significant_bits) == ("crop", 12)


@pytest.mark.parametrize(
    ("base", "changed", "same"),
    [
        ({}, {"evaluations": 3}, {0: True, 1: True}),
        ({}, {"rematerialize": True}, {0: True, 1: True}),
        ({}, {"ratio": ["5"]}, {0: True, 1: False}),
        ({}, {"loss_normalization": "all"}, {0: True, 1: False}),
        ({}, {"decay_rate": 0.5}, {0: True, 1: True}),
        ({"schedule": "exponential"}, {"decay_rate": 0.5}, {0: False, 1: False}),
        ({"schedule": "multistep"}, {"multistep_fractions": "0.1"}, {0: False, 1: False}),
        ({"schedule": "multistep"}, {"multistep_fractions": "0.50, 0.75"}, {0: True, 1: True}),
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
        ({}, {"flip": "off"}, {0: True, 1: True}),  # As auto, for digits.
        ({}, {"crop_mode": "reflect"}, {0: False, 1: False}),
        ({"crop_padding": ["0", "4"]}, {"crop_mode": "reflect"}, {0: True, 1: False}),
        (
            {"randaugment_num_ops": ["0"], "cutout_side": ["0", "2"]},
            {"fill": 3},
            {0: True, 1: False},
        ),
        (
            {"randaugment_operations": "rotate,invert"},
            {"randaugment_operations": "rotate, invert"},
            {0: True, 1: True},
        ),
        ({}, {"randaugment_operations": "rotate,invert"}, {0: False, 1: False}),
        # 260 images of a teacher, including dev, are 744 MiB; 350 of a student 1,002 MiB.
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
def test_a_fingerprint_depends_only_on_what_can_change_the_result(
    make_settings, base, changed, same
):
    for generation, is_same in same.items():
        common = {
            "image_size": [1000],
            "randaugment_num_ops": [2],
            "crop_padding": [4],
            **base,
        }
        before = make_settings(generation, **common).for_fingerprint()
        after = make_settings(generation, **{**common, **changed}).for_fingerprint()
        assert (before == after) == is_same


def test_members_of_an_ensemble_differ_in_their_random_numbers_alone():
    config = make_config(finetune_resolution=[16])
    for make, name in (
        (training_hyperparameters, "gen0/teacher"),
        (finetuning_hyperparameters, "gen0/finetune"),
    ):
        alone, first, second = (
            make(config, 0, COUNTS),
            *(make(config, 0, COUNTS, k) for k in (1, 2)),
        )
        assert first == alone and (alone.name, second.name) == (name, f"{name}2")
        assert dataclasses.replace(second, name=name) == alone
        assert (second.noise_key != alone.noise_key).any()


# Pre-training.


def parts_of(**values):
    config = make_config(mixing="pretrain", **values)
    return training_hyperparameters(config, 1, COUNTS), training_parts(config, 1, COUNTS)


@pytest.mark.parametrize(
    ("ratio", "batch", "steps", "expected"),
    [
        (3, 8, 40, (30, 10)),
        (3, 8, 50, (38, 12)),  # 37.5
        (1.5, 16, 41, (25, 16)),  # 24 of 40 images: 24.6
        (0.5, 8, 2, (1, 1)),  # 0.67
        (7, 8, 2, (1, 1)),  # 1.75, but one is for the labelled images.
        (0.125, 8, 3, (1, 2)),  # 0.33
    ],
)
def test_both_parts_have_the_images_of_the_joint_training(ratio, batch, steps, expected):
    joint, parts = parts_of(ratio=[ratio], labeled_batch_size=[batch], train_steps=[steps])
    size = round(batch * (1 + ratio))
    assert [part.batch_sizes for part in parts] == [(size,), (size,)]
    assert tuple(part.num_steps for part in parts) == expected
    assert sum(part.num_steps for part in parts) * size == joint.num_steps * sum(joint.batch_sizes)


@pytest.mark.parametrize("budget", [{"train_images": [1024]}, {"train_epochs": [4.3]}])
def test_other_budgets_are_divided_too(budget):
    joint, parts = parts_of(ratio=[3], labeled_batch_size=[8], **{"train_steps": [0], **budget})
    assert sum(part.num_steps for part in parts) == joint.num_steps == 32
    assert parts[0].num_steps == 24


def test_each_part_has_its_streams_its_learning_rate_and_its_whole_schedule():
    values = {
        "ratio": [3],
        "labeled_batch_size": [8],
        "train_steps": [80],
        "learning_rate": [0.4],
        "warmup_epochs": 2.0,
        "schedule": "exponential",
        "decay_epochs": 1.6,
        "init_from": ["scratch", "teacher"],
    }
    joint, (pretraining, training) = parts_of(**values)
    assert (pretraining.name, training.name) == ("gen1/pretraining", "gen1/student")
    assert (pretraining.init_from, training.init_from) == ("teacher", "pretrained")
    assert (pretraining.learns_pseudo_labels, training.learns_pseudo_labels) == (True, False)
    assert pretraining.train.learning_rate == 0.4
    assert training.train.learning_rate == pytest.approx(0.04)
    _, (_, training) = parts_of(**values, labeled_learning_rate=["0.25"])
    assert training.train.learning_rate == 0.25
    # Warm-up and stairs have the same share of the steps of each.
    shares = [
        (
            part.train.warmup_epochs * part.steps_per_epoch / part.num_steps,
            part.train.decay_epochs * part.steps_per_epoch / part.num_steps,
        )
        for part in (joint, pretraining, training)
    ]
    np.testing.assert_allclose(shares, [shares[0]] * 3)
    assert shares[0][0] == pytest.approx(2 * 7.5 / 80)


def test_without_pseudo_labels_there_is_no_pre_training():
    assert len(parts_of(ratio=[0])[1]) == 1
    config = make_config(mixing="pretrain")
    assert training_parts(config, 0, COUNTS) == (training_hyperparameters(config, 0, COUNTS),)
    config = make_config()
    assert training_parts(config, 1, COUNTS) == (training_hyperparameters(config, 1, COUNTS),)


def test_both_parts_are_distilled():
    """The labelled images have the teacher's predictions, too."""
    _, parts = parts_of(distillation_alpha=["0.3"])
    assert [part.distillation["distillation_alpha"] for part in parts] == [0.3, 0.3]


def test_a_single_step_cannot_be_divided():
    with pytest.raises(UserError, match="--mixing=pretrain: the budget of student 1 is a single"):
        parts_of(train_steps=[1])


def test_parts_depend_on_their_own_settings():
    """The learning rate and the class weights of the second part do not rebuild the first."""
    first = [part.for_fingerprint() for part in parts_of()[1]]
    changes = {"labeled_learning_rate": ["0.3"], "class_weights": "balanced"}
    second = [part.for_fingerprint() for part in parts_of(**changes)[1]]
    assert first[0] == second[0] and first[1] != second[1]
    third = [part.for_fingerprint() for part in parts_of(pseudo_label="hard")[1]]
    assert first[0] != third[0] and first[1] == third[1]
    fourth = [part.for_fingerprint() for part in parts_of(loss_normalization="all")[1]]
    assert first == fourth
