import csv
import dataclasses
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nsk.config.config import Config
from nsk.decisions import Generation, Network
from nsk.errors import UserError
from nsk.evaluation.prediction_files import make_stored_predictions, write_predictions
from nsk.report import collect
from nsk.report.collect import RunResults
from nsk.report.run_report import report_run
from nsk.store.folders import StageFolder

NUM_IMAGES = {"labeled": 50, "unlabeled": 1047, "dev": 200, "test": 360}

# Unlabelled images as (true label or None, pseudo-label, copies), in two shards.
SHARDS = [
    [(0, 0, 1), (1, 0, 0), (1, 1, 3), (2, 1, 1)],
    [(None, 2, 1), (2, 2, 0), (0, 0, 2)],
]


CLASS_NAMES = ["cat", "dog", "emu"]
# Images of 3 classes by (true class, predicted class): recall 8/10, 1/4 and undefined.
TABLES = {
    "dev": {(0, 0): 8, (0, 2): 2, (1, 0): 3, (1, 1): 1},
    "test": {(0, 0): 1, (1, 1): 1, (2, 2): 1},
}
CLASS_METRICS = {
    "dev": {
        "balanced_accuracy": (8 / 10 + 1 / 4) / 2,
        "macro_f1": (16 / 21 + 2 / 5 + 0) / 3,
        "per_class": {
            "images": [10, 4, 0],
            "recall": [8 / 10, 1 / 4, None],
            "precision": [8 / 11, 1.0, 0.0],
        },
    },
    "test": {
        "balanced_accuracy": 1.0,
        "macro_f1": 1.0,
        "per_class": {"images": [1] * 3, "recall": [1.0] * 3, "precision": [1.0] * 3},
    },
}


def metrics(accuracy):
    return {
        "accuracy": accuracy,
        "top5": 0.99,
        "nll": 0.5,
        "ece": 0.02,
        "brier": 0.1,
        "images": 200,
    }


def make_stage(workdir, name, counts):
    path = workdir / f"{name}-0123456789"
    path.mkdir(parents=True)
    return StageFolder(path, "0123456789", counts)


def make_images(workdir, with_truth=True):
    images = make_stage(
        workdir,
        "data/images",
        {
            "class_names": CLASS_NAMES,
            "images": NUM_IMAGES,
            "corrupt": {"count": 2, "images": []},
            "duplicates_removed": {"test": 0, "dev": 1, "labeled": 0, "unlabeled": 4},
        },
    )
    if with_truth:
        truth = [
            (f"image/{number}/{row}", label)
            for number, rows in enumerate(SHARDS)
            for row, (label, _, _) in enumerate(rows)
            if label is not None
        ]
        (images.path / "sealed").mkdir()
        # Not in the order of the predictions.
        ids, labels = zip(*reversed(truth), strict=True)
        table = pa.table({"id": pa.array(ids), "label": pa.array(labels, pa.int32())})
        pq.write_table(table, images.path / "sealed" / "unlabeled_truth.parquet")
    return images


def make_generation(workdir, index, dev, test, adopted=False):
    folder, role = f"gen{index}", "student" if index else "teacher"
    trained = {"images_seen": 60000, "seconds": 75.0}
    counts = {"model": f"resnet{20 + 6 * index}", "parameters": 269818, "image_size": 8}
    model = make_stage(workdir, f"{folder}/{role}", counts | ({} if adopted else trained))
    measured = {
        split: {**metrics(accuracy), **CLASS_METRICS[split]}
        for split, accuracy in (("dev", dev), ("test", test))
    }
    for values in measured.values():
        del values["per_class"]  # Of the report alone.
    evaluation = make_stage(workdir, f"{folder}/evaluation", measured)
    for split, table in TABLES.items():
        truth, labels = np.repeat(list(table), list(table.values()), axis=0).T
        predictions = make_stored_predictions(
            [f"{number}" for number in range(len(truth))],
            np.log(np.where(np.eye(3)[labels], 0.8, 0.1)).astype(np.float32),
        )
        write_predictions(evaluation.path / f"{split}.parquet", predictions, truth)
    if not index:
        return Generation(model, model, evaluation)
    scores = make_stage(workdir, f"{folder}/scores", {"scored": 7, "temperature": 1.25})
    (scores.path / "unlabeled").mkdir()
    selection = make_stage(
        workdir,
        f"{folder}/selection",
        {"images": 5, "copies": 8, "per_class": {"candidates": [3, 2, 1], "copies": [3, 4, 1]}},
    )
    for number, rows in enumerate(SHARDS):
        ids = [f"image/{number}/{row}" for row in range(len(rows))]
        log_probabilities = np.full((len(rows), 3), np.log(0.1), np.float32)
        log_probabilities[np.arange(len(rows)), [label for _, label, _ in rows]] = np.log(0.8)
        name = f"{number:05d}.parquet"
        write_predictions(
            scores.path / "unlabeled" / name, make_stored_predictions(ids, log_probabilities)
        )
        copies = pa.array([copies for _, _, copies in rows], pa.int32())
        pq.write_table(pa.table({"copies": copies}), selection.path / name)
    pseudo_labels = make_stage(workdir, f"{folder}/pseudo", {"images": 5, "copies": 8})
    return Generation(model, model, evaluation, scores, selection, pseudo_labels)


def report(workdir, *, images=None, chain=None, best=1, all_reused=False, suites=None, **settings):
    images = images or make_images(workdir)
    chain = chain or [
        make_generation(workdir, 0, 0.8125, 0.7777),
        make_generation(workdir, 1, 0.9125, 0.8888),
    ]
    export = make_stage(workdir, "export", {"image_size": 16})
    config = Config.from_values(
        {"train_steps": ["10"], "workdir": str(workdir), "seed": 7, **settings}
    )
    results = RunResults(images, chain, best, export, suites or {})
    return report_run(config, results, all_reused)


def test_the_unlabelled_images_that_are_used_are_counted(tmp_path, capsys):
    written = report(tmp_path, unlabeled_fraction=0.5)
    assert written["unlabeled_used"] == 7 and written["num_images"] == NUM_IMAGES
    assert "50 labelled, 7 of 1,047 unlabelled, 200 dev" in capsys.readouterr().out


def test_pre_training_is_part_of_a_student(tmp_path):
    """Its images and time count, and dev's metrics after it are shown."""
    chain = [make_generation(tmp_path, 0, 0.8125, 0.7777), make_generation(tmp_path, 1, 0.9, 0.8)]
    first = make_stage(tmp_path, "gen1/pretraining", {"images_seen": 500, "seconds": 5.0})
    after = {"accuracy": 0.7}
    chain[1].trained.counts["dev_before"] = after
    chain[1] = dataclasses.replace(chain[1], pretrained=first)
    student = report(tmp_path, chain=chain)["generations"][1]
    assert (student["images_seen"], student["seconds"]) == (60500, 80.0)
    stage = {"stage": "gen1/pretraining-0123456789", "images_seen": 500, "dev": after}
    assert student["pretrained"] == stage


def test_summary_has_the_documented_fields(tmp_path):
    returned = report(tmp_path)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == returned

    assert set(written) >= {"generations", "best", "export", "environment", "seed", "num_images"}
    assert written["best"] == {"index": 1} and written["seed"] == 7
    assert (written["decide_by"], written["class_names"]) == ("accuracy", CLASS_NAMES)
    assert written["export"] == "export-0123456789"
    # Labels for training and dev are counted separately.
    assert written["num_images"] == NUM_IMAGES
    assert written["left_out"] == {"corrupt": 2, "duplicates": 5}
    assert re.fullmatch(r"\d+\.\d+.*", written["environment"]["tensorflow"])

    teacher, student = written["generations"]
    expected = {
        "index": 0,
        "role": "teacher",
        "model": "resnet20",
        "parameters": 269818,
        "image_size": 8,
        "images_seen": 60000,
        "seconds": 75.0,
        "stage": "gen0/teacher-0123456789",
        "dev": {**metrics(0.8125), **CLASS_METRICS["dev"]},
        "test": {**metrics(0.7777), **CLASS_METRICS["test"]},
    }
    assert teacher == expected
    assert (student["index"], student["role"], student["model"]) == (1, "student", "resnet26")
    assert student["test"] == {**metrics(0.8888), **CLASS_METRICS["test"]}
    assert student["pseudo"] == {
        "scored": 7,
        "temperature": 1.25,
        "kept": 5,
        "copies": 8,
        "precision": 0.75,
        "per_class_candidates": [3, 2, 1],
        "per_class_copies": [3, 4, 1],
    }


def test_precision_counts_selected_images_with_a_known_label(tmp_path):
    # Selected: 0 as 0, 1 as 1, 2 as 1, unknown as 2, 0 as 0. Copies count once, the unknown is
    # left out.
    student = report(tmp_path)["generations"][1]
    assert student["pseudo"]["precision"] == 3 / 4


def test_precision_is_none_if_no_label_is_known(tmp_path, capsys):
    images = make_images(tmp_path, with_truth=False)
    student = report(tmp_path, images=images)["generations"][1]
    assert student["pseudo"]["precision"] is None
    assert json.loads((tmp_path / "summary.json").read_text())["generations"][1] == student
    row = next(line for line in capsys.readouterr().out.splitlines() if "student" in line)
    assert row.split()[-2] == "-"


def test_suites_are_added_to_the_test_metrics_relative_to_the_teacher(tmp_path, monkeypatch):
    chain = [make_generation(tmp_path, 0, 0.8125, 0.7777), make_generation(tmp_path, 1, 0.9, 0.8)]
    found = {"images": 40, "warnings": [], "fgsm": {"accuracy": [0.5]}}
    suites = {
        index: {"attacks": make_stage(tmp_path, f"gen{index}/attacks", {**found, "value": index})}
        for index in range(2)
    }
    compared = []

    def compare(name, folder, result, baseline):
        compared.append((name, folder, baseline and baseline.name))
        return {"mce": 50.0 * result["value"]}

    monkeypatch.setattr(collect.relative, "compare", compare)
    differences = []

    def paired_differences(*arguments):
        differences.append(arguments)
        return {"mean": 0.25}

    monkeypatch.setattr(collect.relative, "paired_differences", paired_differences)
    teacher, student = report(tmp_path, chain=chain, suites=suites)["generations"]
    teacher_name = chain[0].model.name
    assert compared == [
        ("attacks", suites[index]["attacks"].path, teacher_name) for index in range(2)
    ]
    # Student minus teacher.
    assert differences == [("attacks", *(suites[index]["attacks"].path for index in (1, 0)))]
    assert student["suites"]["attacks"]["fgsm"] == {"accuracy": [0.5]}
    added = {name: value for name, value in student["test"].items() if "/" in name}
    assert added == {
        "attacks/images": 40,
        "attacks/value": 1,
        "attacks/mce": 50.0,
        "attacks/difference_to_teacher_mean": 0.25,
    }
    assert "attacks/difference_to_teacher_mean" not in teacher["test"]


def test_an_adopted_teacher_has_neither_images_seen_nor_time(tmp_path, capsys):
    chain = [make_generation(tmp_path, 0, 0.8, 0.7, adopted=True)]
    (teacher,) = report(tmp_path, chain=chain, best=0)["generations"]
    assert teacher["images_seen"] is None and teacher["seconds"] is None
    row = next(line for line in capsys.readouterr().out.splitlines() if "resnet20" in line)
    assert row.split()[-1] == "-"


def test_closing_table_shows_the_numbers_and_marks_the_best(tmp_path, capsys):
    report(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if "resnet" in line]
    assert rows == [
        ["0", "teacher", "resnet20", "269,818", "81.25%", "77.77%", "-", "-", "1:15"],
        ["1*", "student", "resnet26", "269,818", "91.25%", "88.88%", "5", "75.00%", "1:15"],
    ]
    header = next(line for line in lines if line.startswith("gen"))
    # Right-aligned columns end where their header ends.
    student = next(line for line in lines if line.startswith("1*"))
    for title, cell in (("dev", "91.25%"), ("test", "88.88%"), ("precision", "75.00%")):
        assert header.index(title) + len(title) == student.index(cell) + len(cell)

    text = "\n".join(lines)
    assert "50 labelled, 1,047 unlabelled, 200 dev and 360 test images; seed 7" in text
    assert f"Model: {tmp_path}/export-0123456789/saved_model" in text
    assert f"tensorboard --logdir={tmp_path}/tensorboard" in text
    assert "nothing was done" not in text


def test_metrics_of_classes_are_tables_and_a_file(tmp_path, capsys):
    report(tmp_path)
    output = capsys.readouterr().out
    lines = [line.split() for line in output.splitlines()]
    assert ["1", "52.50%", "100.00%", "38.73%", "100.00%"] in lines
    # Half of the accuracy on dev, 91.25 %, is above the recall of the second class alone.
    assert "1 of 3 classes with a recall below half of the accuracy on dev (generation 1)" in output
    assert ["dog", "4", "25.00%", "100.00%", "1", "100.00%", "100.00%"] in lines
    assert not any(line[:1] in (["cat"], ["emu"]) for line in lines)
    assert "best on dev by accuracy." in output and "NLL" not in output
    with open(tmp_path / "classes.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["generation", "split", "class", "images", "recall", "precision"]
    assert len(rows) == 2 * 2 * 3
    assert rows[:3] == [
        ["0", "dev", "cat", "10", "0.8", str(8 / 11)],
        ["0", "dev", "dog", "4", "0.25", "1.0"],
        ["0", "dev", "emu", "0", "", "0.0"],
    ]


def test_words_for_classes_are_in_table_file_and_tensorboard(tmp_path, capsys):
    words = tmp_path / "words.txt"
    words.write_text("dog\thound, domestic dog\nyak\tox\n")
    summary = report(tmp_path, class_descriptions=str(words))
    assert summary["class_descriptions"] == {"dog": "hound, domestic dog"}
    assert summary["class_names"] == CLASS_NAMES
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("dog (hound)  ") for line in lines) == 1
    with open(tmp_path / "classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows[:3]] == CLASS_NAMES
    assert [row["description"] for row in rows[:3]] == ["", "hound, domestic dog", ""]
    events = b"".join(path.read_bytes() for path in tmp_path.glob("tensorboard/generations/*"))
    assert b"dev_recall/dog (hound)" in events and b"dev_recall/cat" in events


def test_what_decides_is_named_and_shown(tmp_path, capsys):
    assert report(tmp_path, decide_by="nll")["decide_by"] == "nll"
    output = capsys.readouterr().out
    assert "best on dev by NLL." in output and "dev NLL  test NLL" in output
    assert ["1", "52.50%", "100.00%", "38.73%", "100.00%", "0.5000", "0.5000"] in [
        line.split() for line in output.splitlines()
    ]


def test_the_best_generation_may_be_an_earlier_one(tmp_path, capsys):
    assert report(tmp_path, best=0)["best"] == {"index": 0}
    starts = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "resnet" in line]
    assert starts == ["0*", "1"]


def test_a_run_with_only_finished_stages_says_so(tmp_path, capsys):
    report(tmp_path, all_reused=True)
    assert "Every stage was finished before: nothing was done." in capsys.readouterr().out


def test_a_package_that_is_not_installed_has_no_version(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "PACKAGES", ("numpy", "tensorflow-of-nobody"))
    environment = report(tmp_path)["environment"]
    assert environment["numpy"] == np.__version__
    assert environment["tensorflow-of-nobody"] is None


def test_a_missing_selection_file_is_an_error(tmp_path):
    chain = [make_generation(tmp_path, 0, 0.8, 0.7), make_generation(tmp_path, 1, 0.8, 0.7)]
    (chain[1].selection.path / "00001.parquet").unlink()
    with pytest.raises(UserError, match=r"00001\.parquet cannot be read"):
        report(tmp_path, chain=chain)


def test_the_members_of_an_ensemble_are_added_up_and_named(tmp_path):
    generation = make_generation(tmp_path, 0, 0.8, 0.8)
    members = []
    for name in ("teacher", "teacher2"):
        trained = {"image_size": 8, "images_seen": 100, "seconds": 3.0}
        tuned = {"images_seen": 10, "seconds": 1.0, "dev_before": {}, "dev": {"accuracy": 0.75}}
        stages = [make_stage(tmp_path, f"gen0/{name}-a", trained)]
        stages.append(make_stage(tmp_path, f"gen0/{name}-finetuned", tuned))
        members.append(Network(*stages))
    chain = [dataclasses.replace(generation, trained=members[0].trained, members=tuple(members))]
    (described,) = report(tmp_path, chain=chain, best=0)["generations"]
    assert (described["images_seen"], described["seconds"]) == (220, 8.0)
    assert described["finetuned_from"]["stage"] == members[0].trained.name
    assert described["members"] == [
        {"stage": member.model.name, "dev": {"accuracy": 0.75}} for member in members
    ]
    assert described["stage"] == generation.model.name
