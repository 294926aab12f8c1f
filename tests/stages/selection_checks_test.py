"""Warnings about selections: each with its figures, by counting; none for the project's recipes."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from nsk.config.config import Config, settings
from nsk.config.fields import is_per_generation
from nsk.config.selection import SelectionConfig
from nsk.pseudo.policies import gap_rows, paper_rows
from nsk.stages.hyperparameters import training_hyperparameters
from nsk.stages.input_streams import describe_stream, make_streams
from nsk.stages.selection_checks import SelectionFigures, describe_problems, describe_shortage

FLAGS = Path(__file__).parents[2] / "flags"
POLICY = {"policy": "paper", "min_confidence": 0.5, "calibrate": False, "target_precision": 0.0}


def make_training(num_labeled, **values):
    values = {"models": ["convnet5"] * 2, "labeled_batch_size": [10], **values}
    counts = {"images": {"labeled": num_labeled}, "image_side": 8}
    return training_hyperparameters(Config.from_values(values), 1, counts)


def make_figures(candidates, scored=1000, labeled=10, *, selection=(), **training):
    """Figures of a selection by the paper policy; `labeled` images of every class."""
    chosen = SelectionConfig(**{**POLICY, **dict(selection)})
    candidates = np.array(candidates)
    rows = {
        "paper": lambda: paper_rows(candidates, images_per_class=chosen.images_per_class),
        "none": lambda: candidates,
    }[chosen.policy]()
    num_labeled = labeled * len(candidates)
    return SelectionFigures(
        generation=1,
        class_names=[f"class {label}" for label in range(len(candidates))],
        scored=scored,
        candidates=candidates,
        kept=np.minimum(candidates, rows),
        copies=rows,
        thresholds=np.full(len(candidates), 0.5),
        labeled=np.full(len(candidates), labeled),
        labeled_rows=num_labeled,
        settings=chosen,
        training=make_training(num_labeled, **{"train_steps": [100], "ratio": [1], **training}),
        classes_file="gen1/selection-0123456789/classes.csv",
    )


def only_line(figures):
    (line,) = describe_problems(figures)
    assert "\n" not in line
    return line


def test_a_selection_like_the_labels_has_no_problems():
    assert not list(describe_problems(make_figures([80, 100, 60, 90])))


# Few images.


def test_few_images_are_told_with_the_setting_that_keeps_more():
    figures = make_figures([12] * 4, labeled=3)
    assert only_line(figures) == (
        "Few images are kept, 48 of 1,000 unlabelled images (4.8 %; 48 reach the minimum "
        "confidence of their class): lower --min_confidence, or train a better teacher."
    )
    assert not list(describe_problems(make_figures([13] * 4, labeled=3)))
    by_policy = make_figures([100] * 4, labeled=3, selection={"images_per_class": 5})
    assert only_line(by_policy).endswith(
        "(2 %; 400 reach the minimum confidence of their class): raise --images_per_class=5."
    )
    precise = make_figures([12] * 4, labeled=3, selection={"target_precision": 0.9})
    assert "lower --min_confidence or --target_precision, or" in only_line(precise)


def test_the_gap_policy_keeps_more_with_a_larger_margin():
    figures = make_figures([100] * 4, labeled=3, selection={"images_per_class": 5})
    gap = SelectionConfig(**{**POLICY, "policy": "gap", "gap_margin": 2})
    figures = dataclasses.replace(figures, settings=gap)
    assert only_line(figures).endswith("raise --gap_margin=2.")


# A student that cannot gain.


@pytest.mark.parametrize(
    ("kept", "scored", "minimum", "too_small"),
    [
        (33, 92_991, 0.001, True),  # The weak teacher that the default is for.
        (93, 92_991, 0.001, False),  # 92.991
        (92, 92_991, 0.001, True),
        (1, 1_000, 0.001, False),
        (1, 1_001, 0.001, True),
        (1, 10**6, 0.0, False),
        (10, 10, 1.0, False),
        (9, 10, 1.0, True),
    ],
)
def test_the_smallest_share_to_keep(kept, scored, minimum, too_small):
    selection = {"min_kept_fraction": minimum}
    figures = make_figures([kept, 0], scored, selection=selection)
    assert figures.num_kept == kept and figures.is_too_small == too_small
    # Told once: as a warning, or as the error.
    assert any("Few" in line for line in describe_problems(figures)) == (
        not too_small and kept / scored < 0.05
    )


def test_too_few_images_are_told_with_the_settings():
    counts = np.zeros(200, int)
    counts[[3, 50, 90, 120, 150, 170, 199]] = [6, 6, 6, 6, 6, 2, 1]
    figures = make_figures(counts, 92_991, selection={"images_per_class": 6})
    assert SelectionConfig().min_kept_fraction == 0.001
    assert describe_shortage(figures) == (
        "33 of 92,991 unlabelled images (0.035 %; 33 reach the minimum confidence of their class); "
        "--min_kept_fraction=0.001 asks for 93: student 1 cannot gain from so few: lower "
        "--min_confidence, or train a better teacher. A lower --min_kept_fraction trains it "
        "nevertheless."
    )


# Empty classes.


def test_most_classes_empty_are_counted_and_cut_at_ten():
    counts = np.zeros(200, int)
    counts[10:20] = 60
    line = only_line(make_figures(counts))
    assert line.startswith("190 of 200 classes have no pseudo-labels with the minimum confidence: ")
    assert "class 0 (0.5), class 1 (0.5)," in line and "class 9 (0.5) and 180 more (all" in line
    assert "class 20" not in line and "gen1/selection-0123456789/classes.csv" in line
    assert line.endswith("lower --min_confidence, or train a better teacher.")
    assert len(line) < 500


def test_a_minority_of_empty_classes_is_named():
    assert only_line(make_figures([60, 0, 70, 80])) == (
        "No image is labelled class 1 (0.5) with the minimum confidence: students see it only with "
        "true labels."
    )
    # Exactly half is not most.
    half = only_line(make_figures([60, 0, 70, 0]))
    assert "labelled class 1 (0.5), class 3 (0.5) with" in half and "see them only" in half
    assert only_line(make_figures([200, 0, 0, 70, 200, 0, 0])).startswith("4 of 7 classes have no")
    many = only_line(make_figures([0] * 12 + [30] * 28, labeled=2))
    assert "class 9 (0.5) and 2 more (all classes: gen1/selection-0123456789/classes.csv)" in many


# Images that are seen far more often than labelled ones.


def deal(copies, rows):
    """How often each image is seen in a number of rows, by dealing them out one by one."""
    epoch = [image for image, number in enumerate(copies) for _ in range(number)]
    seen = [0] * len(copies)
    for row in range(rows):
        seen[epoch[row % len(epoch)]] += 1
    return np.array(seen)


@pytest.mark.parametrize("mixing", ["ratio", "union"])
def test_times_seen_by_dealing_out_the_rows(mixing):
    """Two classes, of 3 and 2 kept images in 12 and 8 rows, beside 10 labelled images."""
    figures = dataclasses.replace(
        make_figures([5, 2], labeled=5),
        kept=np.array([3, 2]),
        copies=np.array([12, 8]),
        training=make_training(
            10,
            train_steps=[12],
            ratio=[2],
            mixing=mixing,
            loss_normalization="all",
        ),
    )
    pseudo_copies = [4, 4, 4, 4, 4]
    if mixing == "union":  # 12 steps of 30 images: 12 epochs of 10 + 20 rows.
        seen = deal([1] * 10 + pseudo_copies, 12 * 30)
        labeled, pseudo = seen[:10], seen[10:]
    else:
        labeled, pseudo = deal([1] * 10, 12 * 10), deal(pseudo_copies, 12 * 20)
    times, by_class = figures.times_seen()
    assert times == labeled.mean() == 12
    np.testing.assert_allclose(by_class, [pseudo[:3].mean(), pseudo[3:].mean()])


@pytest.mark.parametrize("mixing", ["ratio", "union"])
@pytest.mark.parametrize(
    "budget", [{"train_steps": [40]}, {"train_images": [700]}, {"train_epochs": [3.0]}]
)
def test_times_seen_are_those_of_the_streams(make_settings, shard_sets, mixing, budget):
    changes = {"mixing": mixing, "loss_normalization": "all", "ratio": [2], **budget}
    training = make_settings(**changes)
    pseudo = shard_sets["pseudo"]
    streams = make_streams(training, shard_sets["labeled"], pseudo, {})
    described = [describe_stream(stream, training.num_steps) for stream in streams]
    num_labeled, copies = shard_sets["labeled"].num_images, sum(pseudo.copies)
    figures = dataclasses.replace(
        make_figures([pseudo.num_images, 0]),
        kept=np.array([pseudo.num_images, 0]),
        copies=np.array([copies, 0]),
        labeled=np.array([num_labeled, 0]),
        labeled_rows=num_labeled,
        training=training,
    )
    labeled, by_class = figures.times_seen()
    assert labeled == pytest.approx(described[0]["epochs"], abs=0.006)
    mean_copies = copies / pseudo.num_images
    assert by_class[0] == pytest.approx(described[-1]["epochs"] * mean_copies, abs=0.02)
    assert by_class[1] == 0


def test_labelled_images_that_the_gap_policy_repeats_are_seen_more_often():
    figures = make_figures([10, 10], labeled=5, train_steps=[30])
    assert figures.times_seen()[0] == 30
    repeated = dataclasses.replace(figures, labeled_rows=20)
    assert repeated.times_seen()[0] == 30  # Twice in an epoch, of which there are half as many.
    union = make_training(10, train_steps=[30], mixing="union", loss_normalization="all", ratio=[1])
    assert dataclasses.replace(figures, training=union).times_seen()[0] == 20  # Of 10 + 20 rows.
    repeated = dataclasses.replace(repeated, training=union)
    assert repeated.times_seen()[0] == 30  # Two of 20 + 20 rows.


def test_images_seen_far_more_often_on_average():
    """40 labelled images 5 times in 20 steps of 10; 60 kept ones 20 x 200 / 60 = 66.7 times."""
    training = {"train_steps": [20], "ratio": [20]}
    line = only_line(make_figures([15] * 4, **training))
    assert line == (
        "Student 1 would see each of the 60 kept images 66.7 times on average, a labelled one 5 "
        "times (under --train_steps=20): lower --ratio=20, or lower --min_confidence, or train a "
        "better teacher."
    )
    # 20 x 150 / 60 = 50 times is not more than ten times as often.
    assert not list(describe_problems(make_figures([15] * 4, train_steps=[20], ratio=[15])))
    # All images are kept already.
    line = only_line(make_figures([15] * 4, scored=60, **training))
    assert line.endswith("lower --ratio=20, or give more unlabelled images.")


def test_images_of_small_classes_that_are_seen_far_more_often():
    """Four classes of ceil(303 / 4) = 76 rows: one image of the second, three of the third."""
    figures = make_figures([150, 1, 3, 149], ratio=[2])
    labeled, row = 100 * 10 / 40, 100 * 20 / (4 * 76)
    assert 76 / 3 * row < 10 * labeled < 76 * row
    line = only_line(figures)
    assert line == (
        "Student 1 would see 1 of 156 kept images more than 10 times as often as a labelled one "
        "(25 times under --train_steps=100), by class (images, times each): class 1 (1, "
        f"{76 * row:.0f} times). Give an --images_per_class below 76."
    )
    assert not list(describe_problems(make_figures([149, 3, 3, 148], ratio=[2])))
    gap = SelectionConfig(**{**POLICY, "policy": "gap", "gap_floor": 76})
    line = only_line(dataclasses.replace(figures, settings=gap))
    assert line.endswith("Lower --gap_floor=76.")


def test_small_classes_are_cut_at_ten_with_the_most_repeated_first():
    counts = np.r_[np.full(20, 600), np.full(15, 2), [1]]
    line = only_line(make_figures(counts, scored=20_000, ratio=[3]))
    assert re.search(r"each\): class 35 \(1, .* times\), class 20 \(2, .* and 6 more\. Give", line)
    assert "class 28 (2" in line and "class 29" not in line
    assert "would see 31 of 6,731 kept images" in line


# One class that takes most.


def test_a_class_that_takes_most_is_compared_with_its_labels():
    line = only_line(make_figures([600, 50, 50, 50], labeled=40))
    assert line == (
        "'class 0' takes 80.0% of 750 pseudo-labels with the minimum confidence and 55.6% of those "
        "kept, but 25.0% of 160 labels: the unlabelled images are not like the labelled ones, or "
        "the teacher favours the class; raise --min_confidence or give --target_precision."
    )
    unbalanced = make_figures([600, 50, 50, 50], labeled=40, selection={"policy": "none"})
    assert "80.0% of those kept" in only_line(unbalanced)
    assert only_line(unbalanced).endswith(
        "--policy=paper gives all classes the same number of images."
    )


@pytest.mark.parametrize(
    ("candidates", "labeled", "takes_most"),
    [
        ([624, 126, 125, 125], [40] * 4, False),  # Odds of 1.66, 4.98 times 1/3.
        ([626, 125, 125, 124], [40] * 4, True),
        ([833, 167], [40, 40], False),  # Odds of 4.99, of two classes.
        ([834, 166], [40, 40], True),
        ([950, 50], [90, 10], False),  # Odds of 19, 2.1 times 9.
        ([979, 21], [90, 10], True),
        ([500] + [50] * 10, [4] * 11, False),  # Half is not most.
        ([501] + [50] * 9 + [49], [4] * 11, True),
        ([1000, 0], [40, 40], True),
        ([1000, 0], [80, 0], False),  # As among the labels.
    ],
)
def test_which_class_takes_most(candidates, labeled, takes_most):
    figures = make_figures(candidates, 1000, selection={"policy": "none"})
    figures = dataclasses.replace(figures, labeled=np.array(labeled), labeled_rows=sum(labeled))
    share, of_labels = np.array(candidates) / sum(candidates), np.array(labeled) / sum(labeled)
    with np.errstate(divide="ignore", invalid="ignore"):
        odds_rise = share[0] / (1 - share[0]) / (of_labels[0] / (1 - of_labels[0]))
    assert takes_most == bool(share[0] > 0.5 and odds_rise > 5)
    assert any("takes" in line for line in describe_problems(figures)) == takes_most


# Settings that are known to work.


def read_flagfile(path):
    """Values of settings by name."""
    types = {field.name: str if is_per_generation(field) else field.type for field in settings()}
    values = {}
    for line in path.read_text().splitlines():
        name, _, value = line.removeprefix("--").partition("=")
        if line.startswith("--flagfile"):
            values |= read_flagfile(FLAGS.parent / value)
        elif line.startswith("--"):
            is_list = is_per_generation(next(f for f in settings() if f.name == name))
            values[name] = value.split(",") if is_list else types[name](value or True)
    return values


def published_imagenet():
    """130 million rows of 81 million images: 300 classes of K or more, the others fewer."""
    return np.r_[np.full(300, 200_000), np.geomspace(130_000, 20_250, 700).astype(int)]


# Candidates of the selections of finished runs: seeds 0, 1 and 2, students 1 and 2.
QUICKSTART = [
    [116, 83, 117, 111, 123, 108, 131, 116, 131, 93],
    [117, 86, 127, 117, 125, 120, 129, 123, 136, 105],
    [117, 89, 112, 112, 106, 123, 114, 109, 128, 102],
    [117, 89, 132, 119, 114, 125, 121, 114, 136, 115],
    [119, 134, 116, 122, 116, 91, 115, 111, 95, 107],
    [117, 126, 117, 120, 121, 117, 120, 118, 113, 118],
]
CIFAR10_SMALL = [
    [4044, 4110, 4039, 3795, 3717, 4292, 3977, 4129, 4148, 4276],
    [4004, 4146, 3993, 3565, 3812, 4058, 4018, 4094, 4191, 4273],
]
# Published numbers above the threshold, less the 500 labelled images of each class.
CIFAR10 = [
    [3736, 4173, 3801, 3748, 3930, 3121, 3813, 3726, 4191, 4008],
    [2426, 2499, 1610, 1259, 1363, 1203, 976, 1536, 2842, 2353],
    [1318, 367, 483, 497, 250, 204, 113, 111, 1358, 322],
]
KNOWN = [
    *(("quickstart", 1188, [5] * 10, counts) for counts in QUICKSTART),
    *(("cifar10_small", 43_000, [500] * 10, counts) for counts in CIFAR10_SMALL),
    *(("cifar10", 45_000, [500] * 10, counts) for counts in CIFAR10),
    ("svhn", 531_131, [6926] * 10, [53_113] * 10),
    *(
        (f"imagenet_{name}", 300_000_000, [1271] * 1000, published_imagenet())
        for name in ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "l2")
    ),
]


@pytest.mark.parametrize(("name", "scored", "labeled", "candidates"), KNOWN)
def test_settings_that_are_known_to_work_have_no_problems(name, scored, labeled, candidates):
    config = Config.from_values(read_flagfile(FLAGS / f"{name}.flags"))
    candidates, labeled = np.array(candidates), np.array(labeled)
    counts = {"images": {"labeled": labeled.sum()}, "image_side": 32}
    for generation in range(1, config.num_students + 1):
        chosen, labeled_rows = config.selection.at(generation), labeled
        if chosen.policy == "paper":
            rows = paper_rows(candidates, images_per_class=chosen.images_per_class)
            kept = np.minimum(candidates, rows)
        else:  # Labelled images come first, and share the rows with the candidates.
            rows = gap_rows(candidates, labeled, floor=chosen.gap_floor, margin=chosen.gap_margin)
            labeled_rows = np.maximum(labeled, rows * labeled // (labeled + candidates))
            kept, rows = np.minimum(candidates, rows - labeled_rows), rows - labeled_rows
        figures = SelectionFigures(
            generation=generation,
            class_names=[str(label) for label in range(len(candidates))],
            scored=scored,
            candidates=candidates,
            kept=kept,
            copies=rows,
            thresholds=np.full(len(candidates), 0.3),
            labeled=labeled,
            labeled_rows=labeled_rows.sum(),
            settings=chosen,
            training=training_hyperparameters(config, generation, counts),
            classes_file="classes.csv",
        )
        assert not list(describe_problems(figures))
        assert figures.num_kept > 100 * figures.settings.min_kept_fraction * scored
    if name == "imagenet_l2":
        assert figures.num_kept == pytest.approx(81e6, rel=0.02) and rows.sum() == 130_000_000
