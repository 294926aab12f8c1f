import dataclasses
import json
from pathlib import Path

import pytest

from nsk.config import config
from nsk.config.config import Config
from nsk.config.fields import is_per_generation
from nsk.config.noise import RANDAUGMENT_OPERATIONS
from nsk.errors import UserError


def make(**values):
    return Config.from_values({"train_steps": ["10"]} | values)


def test_defaults_pass_their_own_checks_with_a_budget():
    made = make()
    assert made.num_students == 1
    assert [made.model_name(generation) for generation in (0, 1)] == ["resnet20", "resnet26"]
    assert list(made.sections) == [field.name for field in dataclasses.fields(Config)]
    for section in made.sections.values():
        for generation in range(3):
            json.dumps(section.at(generation).values())  # As in manifests and config.json.


def test_every_setting_has_a_help_text_and_a_name_of_its_own():
    fields = config.settings()
    names = [field.name for field in fields]
    assert len(names) == len(set(names)) > 50
    for field in fields:
        help_text = field.metadata["help"]
        assert len(help_text) >= 20, field.name
        assert ("(list: " in help_text) == is_per_generation(field), field.name
        values = field.default if is_per_generation(field) else [field.default]
        assert field.type in (bool, int, float, str), field.name
        assert {type(value) for value in values} == {field.type}, field.name


def test_a_setting_that_does_not_exist_is_a_bug():
    with pytest.raises(ValueError, match="modles"):
        make(modles=["resnet20"])


def test_lists_start_with_the_teacher_and_their_last_value_is_repeated():
    made = make(models=["resnet20"] * 4, learning_rate=["0.1", "0.2"], train_steps=["5", "6", "7"])
    rates = [made.train.at(generation).learning_rate for generation in range(4)]
    assert rates == [0.1, 0.2, 0.2, 0.2]
    assert [made.train.at(generation).train_steps for generation in range(4)] == [5, 6, 7, 7]
    assert type(made.train.at(0).train_steps) is int


def test_lists_of_students_settings_start_with_the_first_student():
    made = make(models=["resnet20"] * 4, ratio=["1", "2"], min_confidence=["0.8", "0.7", "0.6"])
    assert [made.train.at(generation).ratio for generation in (1, 2, 3)] == [1.0, 2.0, 2.0]
    confidences = [made.selection.at(generation).min_confidence for generation in (1, 2, 3)]
    assert confidences == [0.8, 0.7, 0.6]
    for field in config.settings():
        is_for_students = field.metadata["first_generation"] == 1
        assert ("the first student first" in field.metadata["help"]) == is_for_students


def test_initial_weights_of_each_generation():
    made = make(models=["resnet20"] * 4, init_from=["~/a.keras", "scratch", "teacher"])
    home = Path("~/a.keras").expanduser()
    assert [made.init_from(generation) for generation in range(4)] == [
        home,
        "scratch",
        "teacher",
        "teacher",
    ]
    assert made.init_paths == [home]
    made = make(teacher="old.keras", init_from=["teacher", "b.h5", "c.h5", "b.h5", "d.h5"])
    assert made.init_paths == [Path("b.h5"), Path("c.h5")]  # Of the two students.
    assert make(teacher="old.keras", init_from=["teacher"]).init_from(1) == "teacher"


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        (["teacher"], "scratch,teacher"),
        (["teacher", "scratch"], "scratch,scratch"),
        (["teacher", "teacher", "a.h5"], "scratch,teacher,a.h5"),
    ],
)
def test_the_first_network_cannot_be_initialised_from_a_teacher(given, instead):
    with pytest.raises(UserError, match=f"write --init_from={instead}, or give a --teacher"):
        make(models=["resnet20"] * 3, init_from=given)
    with pytest.raises(UserError, match="--init_from has an empty value"):
        make(init_from=["scratch", ""])


def test_mirror_images_are_scored_only_by_networks_trained_on_them():
    assert make(dataset="tfds:cifar10", score_views="mirror").flips
    for values in ({"dataset": "digits"}, {"dataset": "tfds:cifar10", "flip": "off"}):
        with pytest.raises(UserError, match=r"--score_views=mirror of .* give --score_views=image"):
            make(score_views="mirror", **values)


def test_a_workdir_inside_the_images_is_rejected(tmp_path):
    folder = f"folder:{tmp_path}/photos"
    for flag in ("dataset", "unlabeled_dataset"):
        for workdir in ("photos", "photos/runs/first"):
            with pytest.raises(UserError, match=f"--workdir=.* is inside --{flag}=folder:"):
                make(**{flag: folder}, workdir=str(tmp_path / workdir))
        make(**{flag: folder}, workdir=str(tmp_path / "photos-runs"))


def test_with_a_given_teacher_the_models_are_the_students():
    made = make(models=["resnet26", "resnet32"], teacher="old.keras")
    assert made.num_students == 2
    assert [made.model_name(generation) for generation in (1, 2)] == ["resnet26", "resnet32"]


def test_published_weights_are_those_of_the_first_model():
    made = make(models=["efficientnet_b0", "resnet32"], teacher="b0.h5")
    assert made.num_students == 1 and list(made.trained_generations) == [1]
    assert [made.model_name(generation) for generation in range(2)] == [
        "efficientnet_b0",
        "resnet32",
    ]


def test_a_list_longer_than_the_chain_triggers_a_warning():
    values = {"learning_rate": ["0.1", "0.2", "0.3"]}
    expected = (
        "--learning_rate=0.1,0.2,0.3 has 3 values for a chain of 2 networks, which uses 2: the "
        "others are ignored."
    )
    assert make(**values).unused_settings() == [expected]
    assert not make(models=["resnet20"] * 3, **values).unused_settings()
    # The first value stays that of the teacher if one is given.
    assert not make(models=["resnet20"] * 2, teacher="old.keras", **values).unused_settings()

    (line,) = make(ratio=["1", "2"]).unused_settings()
    assert line.startswith("--ratio=1.0,2.0 has 2 values for a chain of 2 networks, which uses 1:")
    # One value is for all generations, and defaults are for any chain.
    assert not make(models=["resnet20"], ratio=["1"]).unused_settings()


def test_select_once_uses_one_confidence_threshold():
    values = {"models": ["resnet20"] * 3, "min_confidence": ["0.8", "0.7"]}
    assert not make(**values).unused_settings()
    (line,) = make(**values, select="once").unused_settings()
    assert line == (
        "--min_confidence=0.8,0.7 has 2 values for a chain of 3 networks, which uses 1 with "
        "--select=once: the others are ignored."
    )


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"policy": "none", "images_per_class": 20},
            "--images_per_class=20 has no effect: it needs --policy=paper or "
            "--policy=labeled_shares.",
        ),
        (
            {"finetune_epochs": ["5"]},
            "--finetune_epochs=5.0 has no effect: it needs --finetune_resolution above 0.",
        ),
        (
            {"first_label": 1},
            "--first_label=1 has no effect: it needs --dataset=tfrecord:... or "
            "--unlabeled_dataset=tfrecord:... or --test_dataset=tfrecord:....",
        ),
        (
            # The network of generation 0 is given.
            {"teacher": "old.keras", "finetune_resolution": ["8", "0"], "finetune_epochs": ["5"]},
            "--finetune_epochs=5.0 has no effect: it needs --finetune_resolution above 0.",
        ),
        ({"policy": "gap", "gap_floor": 20}, None),
        ({"finetune_epochs": ["5"], "finetune_resolution": ["0", "64"]}, None),
        ({"first_label": 1, "test_dataset": "tfrecord:*.tfrecord"}, None),
        ({"temperature": 2.0, "models": ["resnet20"]}, None),  # As from a flagfile with students.
    ],
)
def test_a_value_without_effect_triggers_a_warning(values, line):
    assert make(**values).unused_settings() == ([line] if line else [])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": []}, "--models is empty"),
        ({"learning_rate": ["fast"]}, "--learning_rate=fast: expected a number, or a comma list"),
        ({"train_steps": ["1.5"]}, "--train_steps=1.5: expected a whole number, or"),
        ({"learning_rate": ["nan"]}, "--learning_rate=nan is not a number"),
        (
            {
                "first_scores": "records",
                "unlabeled_dataset": "tfrecord:a",
                "keep_remaining": True,
            },
            "--first_scores=records with --keep_remaining: the remaining images .* no stored",
        ),
        ({"learning_rate": ["inf"]}, "--learning_rate=inf is not a number"),
        ({"temperature": float("nan")}, "--temperature=nan is not a number"),
        ({"learning_rate": ["0.1", "-1"]}, "--learning_rate=-1.0 is too small: at least 0"),
        ({"seed": -1}, "--seed=-1 is too small"),
        ({"patience": -1}, "--patience=-1 is too small"),
        ({"eval_batch_size": 0}, "--eval_batch_size=0 is too small"),
        ({"labeled_batch_size": ["0"]}, "--labeled_batch_size=0 is too small"),
        ({"min_confidence": ["1.1"]}, "--min_confidence=1.1 is too large: at most 1"),
        ({"labeled_fraction": 1.5}, "--labeled_fraction=1.5 is too large"),
        ({"dev_fraction": 1.0}, "--dev_fraction=1.0 is too large"),
        ({"test_fraction": 1.0}, "--test_fraction=1.0 is too large"),
        ({"policy": "best"}, "--policy='best' is not known: expected one of paper, labeled_shares"),
        ({"strategy": "two"}, "--strategy='two' is not known"),
        ({"num_labeled": 10, "labeled_fraction": 0.1}, "--num_labeled=10 and --labeled_fraction"),
        ({"num_dev": 10, "dev_fraction": 0.1}, "--num_dev=10 and --dev_fraction=0.1"),
        ({"dataset": ""}, "--dataset='' is not a data source"),
        ({"dataset": "mnist"}, "--dataset='mnist' is not a data source.*tfds:NAME"),
        ({"dataset": "folder:"}, "--dataset='folder:' is not a data source"),
        ({"unlabeled_dataset": "http://x"}, "--unlabeled_dataset='http://x' is not"),
        ({"test_dataset": "csv:x"}, "--test_dataset='csv:x' is not"),
        ({"randaugment_operations": ""}, "--randaugment_operations is empty"),
        ({"randaugment_operations": "rotate,"}, "--randaugment_operations names ''"),
        ({"randaugment_operations": "rotate,twist"}, "names 'twist': expected .*rotate"),
        ({"randaugment_magnitude": ["31"]}, "=31.0 is above --randaugment_max_level=30.0"),
        (
            {"randaugment_magnitude": ["31"], "randaugment_profile": "linear"},
            "=31.0 is above --randaugment_max_level=30.0",
        ),
        ({"multistep_fractions": ""}, "--multistep_fractions='' is not a comma list"),
        ({"multistep_fractions": "0.5,2"}, "--multistep_fractions='0.5,2' is not a comma list"),
        ({"nesterov": True, "optimizer": "adamw"}, "--nesterov is for --optimizer=sgd, not adamw"),
        ({"mixing": "union"}, "--mixing=union .*--loss_normalization=all"),
    ],
)
def test_wrong_values_are_rejected_in_one_line_that_names_the_flag(values, message):
    with pytest.raises(UserError, match=message) as error:
        make(**values)
    assert "\n" not in str(error.value)


def test_exactly_one_budget_is_needed():
    with pytest.raises(UserError, match=r"^No budget was given: give exactly one of "):
        Config.from_values({})
    with pytest.raises(
        UserError, match=r"--train_images and --train_steps were given: give exactly"
    ):
        make(train_images=["100"])
    with pytest.raises(UserError, match="--train_steps: every value must be above 0"):
        make(train_steps=["10", "0"])
    for budget in ("train_images", "train_steps", "train_epochs"):
        Config.from_values({budget: ["10"]})


def test_a_ratio_that_rounds_to_no_pseudo_labels_is_rejected():
    with pytest.raises(UserError, match=r"--ratio=0.4 of --labeled_batch_size=1 .*student 1"):
        make(labeled_batch_size=["1"], ratio=["0.4"])
    # Only the second student: its ratio is combined with the last batch size.
    with pytest.raises(UserError, match=r"--ratio=0.01 of --labeled_batch_size=10 .*student 2"):
        make(models=["resnet20"] * 3, labeled_batch_size=["100", "10"], ratio=["1", "0.01"])
    make(labeled_batch_size=["1"], ratio=["0"])
    make(labeled_batch_size=["1"], ratio=["0.4"], mixing="union", loss_normalization="all")


def test_settings_that_are_allowed():
    make(mixing="union", loss_normalization="all")
    make(randaugment_magnitude=["31"], randaugment_profile="reference")
    make(labeled_fraction=1.0, unlabeled_dataset="folder:photos")
    make(nesterov=True)
    for dataset in ("digits", "tfds:cifar10", "tfds:a/b", "folder:/photos", "tfrecord:/a/*.tfr"):
        make(dataset=dataset)


def test_operations():
    without_identity = tuple(name for name in RANDAUGMENT_OPERATIONS if name != "identity")
    assert len(without_identity) == 16
    for profile in ("increasing", "reference"):
        assert make(randaugment_profile=profile).noise.operations == without_identity
    assert make(randaugment_profile="linear").noise.operations == RANDAUGMENT_OPERATIONS
    made = make(randaugment_operations="rotate, shear_x")
    assert made.noise.operations == ("rotate", "shear_x")


def test_flips_are_off_for_data_sets_whose_classes_change_under_mirroring():
    assert not make(dataset="digits").flips
    assert not make(dataset="tfds:svhn_cropped").flips
    assert make(dataset="tfds:cifar10").flips
    assert make(dataset="digits", flip="on").flips
    assert not make(dataset="tfds:cifar10", flip="off").flips


def test_split_seed_is_the_seed_unless_it_is_given():
    assert make(seed=7).split_seed == 7
    assert make(seed=7, split_seed=0).split_seed == 0


def test_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().run.seed = 1


@pytest.mark.parametrize("text", ["9", "9,9", "9,9,9,9", "9,9,nine", "9,9,-9", "1e3,9,9", "9, 9,9"])
def test_placeholder_counts_that_are_not_three_numbers_are_rejected(text):
    with pytest.raises(UserError, match=r"--plan_images=.* expected three whole numbers"):
        make(plan_images=text, image_size=["32"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"plan_images": "0,9,9"}, "at least 1 labelled"),
        ({"plan_images": "9,0,9"}, "1 unlabelled image for students"),
        ({"plan_images": "9,9,1"}, "2 classes"),
        ({"plan_images": "9,9,9", "image_size": ["0"]}, "give --image_size"),
        ({"plan_images": "9,9,9", "teacher": "t.keras"}, "--teacher=t.keras"),
    ],
)
def test_placeholder_counts_that_allow_no_plan_are_rejected(values, message):
    with pytest.raises(UserError, match=message):
        make(**{"image_size": ["32"], **values})


def test_placeholder_counts():
    made = make(plan_images="1281167,130000000,1000", image_size=["224"])
    assert made.command.placeholder_counts == (1_281_167, 130_000_000, 1000)
    assert make(plan_images="9,0,9", image_size=["32"], models=["resnet20"]).num_students == 0


def test_distillation_without_pseudo_labelled_images_needs_no_unlabelled_ones():
    def learns(**values):
        made = make(models=["resnet20"] * 3, **values)
        return [made.learns_unlabeled(number) for number in (1, 2)], made.needs_unlabeled

    assert learns() == learns(ratio=["0"]) == ([True, True], True)
    assert learns(distillation_alpha=["0.5"]) == ([True, True], True)
    assert learns(ratio=["0"], distillation_alpha=["0.5"]) == ([False, False], False)
    assert learns(ratio=["0", "3"], distillation_alpha=["0.5"]) == ([False, True], True)
    assert learns(ratio=["0"], distillation_alpha=["0.5", "0"]) == ([False, True], True)
    assert not make(models=["resnet20"]).needs_unlabeled
    with pytest.raises(UserError, match="--generation=1: this student learns from the labelled"):
        make(ratio=["0"], distillation_alpha=["0.5"], generation=1).check_generation()


def test_distillation_that_is_impossible_is_rejected():
    records = {"first_scores": "records", "unlabeled_dataset": "tfrecord:*.tfrecord"}
    with pytest.raises(UserError, match=r"--distillation_alpha=0\.5 with --first_scores=records"):
        make(distillation_alpha=["0.5"], **records)
    make(models=["resnet20"] * 3, distillation_alpha=["0", "0.5"], **records)
    once = {"select": "once", "distillation_alpha": ["0.5"], "models": ["resnet20"] * 3}
    with pytest.raises(UserError, match="--select=once keeps the first student's selection"):
        make(ratio=["0", "3"], **once)
    make(ratio=["3", "0"], **once)


def test_a_given_teacher_is_no_ensemble():
    with pytest.raises(UserError, match=r"--num_teachers=2 with --teacher=old\.keras"):
        make(num_teachers=2, teacher="old.keras")
