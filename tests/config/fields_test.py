"""Settings: conditions of use, values per generation, and what fingerprints depend on."""

import collections
import dataclasses
import json
import random

import pytest

from nsk.config.config import Config, settings
from nsk.config.fields import (
    ALWAYS,
    Condition,
    PerGeneration,
    Section,
    above_zero,
    equals,
    is_per_generation,
    per_generation,
    setting,
    starts_with,
    used_values,
)
from nsk.config.noise import NO_NOISE, NoiseConfig
from nsk.errors import UserError

# Conditions.


@pytest.mark.parametrize(
    ("condition", "text", "true", "false"),
    [
        (equals("policy", "gap"), "--policy=gap", {"policy": "gap"}, {"policy": "none"}),
        (
            equals("cache", "auto", "none"),
            "--cache=auto or --cache=none",
            {"cache": "none"},
            {"cache": "memory"},
        ),
        (above_zero("ratio"), "--ratio above 0", {"ratio": 0.5}, {"ratio": 0.0}),
        (
            starts_with("dataset", "tfds:"),
            "--dataset=tfds:...",
            {"dataset": "tfds:a"},
            {"dataset": ""},
        ),
    ],
)
def test_simple_conditions(condition, text, true, false):
    assert condition.text == text
    assert condition.holds(true) is True
    assert condition.holds(false) is False


A, B, C = (Condition(name, lambda values, name=name: values[name]) for name in "ABC")


def table(condition):
    """Truth table of a condition over A, B and C."""
    rows = [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)]
    return [condition.holds(dict(zip("ABC", row, strict=True))) for row in rows]


@pytest.mark.parametrize(
    ("condition", "text", "expected"),
    [
        (A & B, "A and B", lambda a, b, c: a and b),
        (A | B, "A or B", lambda a, b, c: a or b),
        ((A | B) & C, "(A or B) and C", lambda a, b, c: (a or b) and c),
        (C & (A | B), "C and (A or B)", lambda a, b, c: c and (a or b)),
        ((A & B) | C, "A and B or C", lambda a, b, c: (a and b) or c),
        (A & B & C, "A and B and C", lambda a, b, c: a and b and c),
    ],
)
def test_combined_conditions_and_their_text(condition, text, expected):
    rows = [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)]
    assert condition.text == text
    assert table(condition) == [expected(*row) for row in rows]


def test_always_holds():
    assert ALWAYS.holds({}) is True


# Sections.


@dataclasses.dataclass(frozen=True)
class Example(Section):
    policy: str = setting("gap", "Policy.", choices=("gap", "none"))
    margin: int = setting(5, "Margin.", minimum=0, used_if=equals("policy", "gap"))
    speed: int = setting(1, "Speed.", changes_results=False)
    rate: float = per_generation(0.1, 0.2, help="Rate.", minimum=0.0)
    ratio: float = per_generation(
        1.0,
        2.0,
        help="Ratio.",
        students_only=True,
        used_if=Condition("a student", lambda values: values["is_student"]),
    )


def test_a_section_has_the_values_of_a_generation():
    values = [(Example().at(number).rate, Example().at(number).ratio) for number in range(4)]
    assert values == [(0.1, 1.0), (0.2, 1.0), (0.2, 2.0), (0.2, 2.0)]
    assert list(Example().at(0).values()) == ["policy", "margin", "speed", "rate", "ratio"]


def test_with_values_is_a_copy_and_knows_its_settings():
    section = Example()
    changed = section.at(0).with_values(margin=9)
    assert (changed.margin, changed.rate, section.margin) == (9, 0.1, 5)
    with pytest.raises(ValueError, match="No such settings: magrin"):
        section.with_values(magrin=9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": "best"}, "--policy='best' is not known: expected one of gap, none"),
        ({"margin": -1}, "--margin=-1 is too small: at least 0"),
        ({"rate": PerGeneration((0.1, -0.5))}, "--rate=-0.5 is too small: at least 0"),
        ({"rate": PerGeneration((float("nan"),))}, "--rate=nan is not a number"),
        ({"rate": PerGeneration()}, "--rate is empty"),
    ],
)
def test_a_section_checks_its_values(values, message):
    with pytest.raises(UserError, match=message):
        Example(**values)


def test_used_values_are_those_that_can_change_results():
    used = used_values([Example().at(0)], is_student=False)
    assert used == {"policy": "gap", "margin": 5, "rate": 0.1}
    used = used_values([Example(policy="none").at(1)], is_student=True)
    assert used == {"policy": "none", "rate": 0.2, "ratio": 1.0}


# All settings of a run. The conditions below are written independently of the declarations.


def has_pseudo_labels(v):
    return v["is_student"] and v["ratio"] > 0


def has_distillation(v):
    return v["is_student"] and v["distillation_alpha"] > 0


def has_pseudo_targets(v):
    return has_pseudo_labels(v) and not has_distillation(v)


def has_randaugment(v):
    return v["randaugment_num_ops"] > 0


def has_suite(values, *names):
    given = f"{values['evaluate']},{values['suites']}".replace(" ", "").split(",")
    return bool(set(names) & set(given))


def has_pgd(values):
    return has_suite(values, "attacks") and values["pgd_epsilons"] != ""


def has_records(values):
    return "tfrecord:" in values["dataset"] + values["unlabeled_dataset"] + values["test_dataset"]


def has_label_table(values):
    return values["dataset"].startswith("folder:") and bool(values["labels"])


CONDITIONS = {
    "compilation_cache": lambda v: v["jit_compile"] != "off",
    "test_fraction": lambda v: not v["test_dataset"],
    "tpu": lambda v: v["strategy"] == "tpu",
    "beam_options": lambda v: v["engine"] == "beam",
    "train_split": lambda v: v["dataset"].startswith("tfds:"),
    "test_split": lambda v: v["dataset"].startswith("tfds:"),
    "unlabeled_split": lambda v: v["unlabeled_dataset"].startswith("tfds:"),
    "first_label": has_records,
    "image_key": has_records,
    "label_key": has_records,
    "id_key": has_records,
    "labels": lambda v: v["dataset"].startswith("folder:"),
    "path_column": lambda v: has_label_table(v) or bool(v["images"]),
    "label_column": has_label_table,
    "split_column": has_label_table,
    "group_column": has_label_table,
    "randaugment_magnitude": has_randaugment,
    "randaugment_max_level": has_randaugment,
    "randaugment_profile": has_randaugment,
    "randaugment_operations": has_randaugment,
    "magnitude_mode": has_randaugment,
    "translate_share": lambda v: has_randaugment(v) and v["randaugment_profile"] == "increasing",
    "fill": lambda v: (
        (has_randaugment(v) and v["randaugment_profile"] != "linear") or v["cutout_side"] > 0
    ),
    "crop_mode": lambda v: v["crop_padding"] > 0,
    "ratio": lambda v: v["is_student"],
    "cache_mebibytes": lambda v: v["cache"] == "auto",
    "shuffle_mebibytes": lambda v: v["cache"] != "memory",
    "mixing": has_pseudo_labels,
    "labeled_learning_rate": lambda v: has_pseudo_labels(v) and v["mixing"] == "pretrain",
    "loss_normalization": lambda v: has_pseudo_labels(v) and v["mixing"] != "pretrain",
    "nesterov": lambda v: v["optimizer"] == "sgd",
    "decay_epochs": lambda v: v["schedule"] == "exponential",
    "decay_rate": lambda v: v["schedule"] == "exponential",
    "multistep_fractions": lambda v: v["schedule"] == "multistep",
    "multistep_factor": lambda v: v["schedule"] == "multistep",
    "finetune_epochs": lambda v: v["finetune_resolution"] > 0,
    "finetune_learning_rate": lambda v: v["finetune_resolution"] > 0,
    "finetune_frozen_blocks": lambda v: v["finetune_resolution"] > 0,
    "images_per_class": lambda v: v["policy"] in ("paper", "labeled_shares"),
    "gap_floor": lambda v: v["policy"] == "gap",
    "gap_margin": lambda v: v["policy"] == "gap",
    "pseudo_label": has_pseudo_targets,
    "smooth_epsilon": lambda v: has_pseudo_targets(v) and v["pseudo_label"] == "smooth",
    "temperature": lambda v: has_pseudo_targets(v) and v["pseudo_label"] == "soft",
    "distillation_alpha": has_distillation,  # So 0 is in no fingerprint.
    "distillation_temperature": has_distillation,
    "evaluate_models": lambda v: v["evaluate"] != "",
    "evaluation_images": lambda v: has_suite(v, "corruptions", "perturbations", "attacks"),
    "corruptions": lambda v: has_suite(v, "corruptions"),
    "corruption_constants": lambda v: has_suite(v, "corruptions", "perturbations"),
    "corruption_files": lambda v: has_suite(v, "corruptions"),
    "frost_textures": lambda v: has_suite(v, "corruptions"),
    "perturbations": lambda v: has_suite(v, "perturbations"),
    "perturbation_files": lambda v: has_suite(v, "perturbations"),
    "fgsm_epsilons": lambda v: has_suite(v, "attacks"),
    "pgd_epsilons": lambda v: has_suite(v, "attacks"),
    "pgd_norm": has_pgd,
    "pgd_steps": has_pgd,
    "pgd_step_size": has_pgd,
    "pgd_restarts": has_pgd,
    "natural_sets": lambda v: has_suite(v, "natural"),
}
# Other values of settings without choices; numbers are drawn from their range.
TEXTS = {
    "dataset": ("digits", "tfds:cifar10", "folder:photos", "tfrecord:*.tfrecord"),
    "unlabeled_dataset": ("", "tfds:cifar10", "folder:photos", "tfrecord:*.tfrecord"),
    "test_dataset": ("", "tfds:cifar10", "folder:photos", "tfrecord:*.tfrecord"),
    "randaugment_operations": ("all", "rotate,invert"),
    "multistep_fractions": ("0.5,0.75", "0.1"),
    "tpu": ("local", "mine"),
    "train_split": ("train", "train[:9]"),
    "test_split": ("test", "validation"),
    "unlabeled_split": ("", "extra"),
    "labels": ("", "labels.csv"),
    "path_column": ("path", "image"),
    "label_column": ("label", "class"),
    "split_column": ("split", "set"),
    "group_column": ("group", "patient"),
    "image_key": ("image/encoded", "jpeg"),
    "label_key": ("image/class/label", "cls"),
    "id_key": ("id", "name"),
    "beam_options": ("", "--runner=DirectRunner"),
    "compilation_cache": ("", "cache"),
    "evaluate": ("", "calibration,corruptions", "perturbations", "attacks", "natural"),
    "suites": ("clean", "clean, corruptions", "perturbations,attacks", "natural"),
    "model": ("", "model.keras"),
    "weights": ("", "weights.h5"),
    "output": ("", "results"),
    "baseline": ("", "alexnet"),
    "corruptions": ("benchmark", "all", "fog,snow"),
    "corruption_files": ("", "CIFAR-10-C"),
    "frost_textures": ("", "frost"),
    "perturbations": ("all", "tilt,scale"),
    "perturbation_files": ("", "CIFAR-10-P"),
    "fgsm_epsilons": ("0,0.1", "0.05"),
    "pgd_epsilons": ("", "0.01,0.03"),
    "natural_sets": ("a=photos", "photos"),
}
# Settings that conditions ask for.
CONTROLS = (
    "strategy",
    "engine",
    "jit_compile",
    "dataset",
    "unlabeled_dataset",
    "test_dataset",
    "randaugment_num_ops",
    "cutout_side",
    "crop_padding",
    "cache",
    "optimizer",
    "schedule",
    "finetune_resolution",
    "policy",
    "evaluate",
    "suites",
)
CONDITIONAL = {field.name: field for field in settings() if field.metadata["used_if"] is not ALWAYS}
FIELDS = {field.name: field for field in settings()}


def possible_values(field):
    """Some allowed values of a setting, its default first."""
    default = field.default[0] if is_per_generation(field) else field.default
    rules = field.metadata
    if field.type is bool:
        return (default, not default)
    if rules["choices"] is not None:
        return (default, *rules["choices"])
    if field.type is str:
        return TEXTS[field.name]
    largest = min(default + 1, rules["maximum"] if rules["maximum"] is not None else default + 1)
    return (default, field.type(rules["minimum"]), field.type(largest))


def random_values(source):
    """Values of all settings with a condition and of those that conditions ask for."""
    values = {"train_steps": [10], "models": ["resnet8"] * 3}
    for name in {**CONDITIONAL, **dict.fromkeys(CONTROLS)}:
        field = FIELDS[name]
        if is_per_generation(field):
            count = source.choice((1, 2))
            values[name] = [source.choice(possible_values(field)) for _ in range(count)]
        else:
            values[name] = source.choice(possible_values(field))
    return values


def random_configs(count):
    source, configs = random.Random(0), []
    while len(configs) < count:
        try:
            configs.append(Config.from_values(random_values(source)))
        except UserError:
            continue  # Values that exclude each other.
    return configs


@pytest.fixture(scope="module")
def configs():
    return random_configs(400)


# Sections whose settings are in the fingerprint of a stage of one kind.
STAGE_SECTIONS = [
    ("data",),
    ("scoring",),
    ("selection",),
    ("model", "noise", "train"),
    ("model", "noise", "train", "targets"),
    ("model", "noise", "train", "finetune"),
]


@pytest.mark.parametrize("names", STAGE_SECTIONS, ids=" ".join)
def test_conditions_of_a_stage_need_no_other_section(names):
    config = Config.from_values({"train_steps": [10], "models": ["resnet8"] * 2})
    sections = [config.sections[name].at(1) for name in names]
    assert used_values(sections, is_student=True)


def test_all_image_noise_can_be_switched_off():
    """A new kind of noise needs a value in NO_NOISE; details of a kind have a condition."""
    for field in dataclasses.fields(NoiseConfig):
        assert field.name in NO_NOISE or field.metadata["used_if"] is not ALWAYS, field.name
    clean = Config.from_values({"train_steps": [10]}).noise.at(1).without_noise()
    assert {name: clean.values()[name] for name in NO_NOISE} == NO_NOISE


def test_the_tested_conditions_are_those_of_all_settings():
    assert set(CONDITIONAL) == set(CONDITIONS)


def used_in(config, generation):
    """Names of all settings that count in a generation."""
    sections = [section.at(generation) for section in config.sections.values()]
    return used_values(sections, is_student=generation > 0)


def test_a_value_is_in_the_fingerprint_if_and_only_if_its_condition_holds(configs):
    outcomes = collections.defaultdict(set)
    for config in configs:
        for generation in range(3):
            values, used = config.values_at(generation), used_in(config, generation)
            for name, field in FIELDS.items():
                expected = CONDITIONS.get(name, lambda values: True)(values)
                outcomes[name].add(expected)
                expected &= field.metadata["changes_results"]
                assert (name in used) == expected, (name, values)
                if expected:
                    assert used[name] == values[name]
    for name in CONDITIONAL:
        assert outcomes[name] == {True, False}, f"{name}: not both outcomes were tested"


def test_settings_that_change_no_result_are_never_in_a_fingerprint(configs):
    names = {name for name, field in FIELDS.items() if not field.metadata["changes_results"]}
    assert names >= {"evaluations", "rematerialize", "patience", "workdir", "eval_batch_size"}
    assert not any(
        names & set(used_in(config, number)) for config in configs for number in range(3)
    )


def test_values_of_fingerprints_are_json(configs):
    json.dumps([used_in(config, number) for config in configs[:20] for number in range(3)])


def test_a_value_without_effect_triggers_exactly_one_warning(configs):
    warned = collections.Counter()
    for config in configs:
        generations = [config.values_at(generation) for generation in range(3)]
        given = {
            name
            for section in config.sections.values()
            for name, value in section.values().items()
            if value != FIELDS[name].default
        }
        expected = [
            name
            for name, holds in CONDITIONS.items()
            if name in given and not any(map(holds, generations))
        ]
        lines = config.unused_settings()
        assert [line.partition("=")[0] for line in lines] == [
            f"--{name}" for name in FIELDS if name in expected
        ]
        for line in lines:
            name = line.removeprefix("--").partition("=")[0]
            assert line.endswith(
                f" has no effect: it needs {FIELDS[name].metadata['used_if'].text}."
            )
        warned.update(expected)
    # A chain without students is no reason to warn; Nesterov with another optimizer is an error.
    assert set(CONDITIONS) - set(warned) == {"ratio", "nesterov"}


def test_defaults_without_effect_trigger_no_warning():
    """Only the settings that conditions ask for are given."""
    for given in (
        {"randaugment_num_ops": [0], "crop_padding": [0], "ratio": [0], "policy": "none"},
        {"cache": "memory", "optimizer": "adamw", "schedule": "constant"},
        {"models": ["resnet8"]},
    ):
        assert Config.from_values({"train_steps": [10], **given}).unused_settings() == []
