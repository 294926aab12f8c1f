import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nsk.config.config import Config
from nsk.decisions import Generation
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
    evaluation = make_stage(
        workdir, f"{folder}/evaluation", {"dev": metrics(dev), "test": metrics(test)}
    )
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


def report(workdir, *, images=None, chain=None, best=1, all_reused=False, suites=None):
    images = images or make_images(workdir)
    chain = chain or [
        make_generation(workdir, 0, 0.8125, 0.7777),
        make_generation(workdir, 1, 0.9125, 0.8888),
    ]
    export = make_stage(workdir, "export", {"image_size": 16})
    config = Config.from_values({"train_steps": ["10"], "workdir": str(workdir), "seed": 7})
    results = RunResults(images, chain, best, export, suites or {})
    return report_run(config, results, all_reused)


def test_summary_has_the_documented_fields(tmp_path):
    returned = report(tmp_path)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == returned

    assert set(written) >= {"generations", "best", "export", "environment", "seed", "num_images"}
    assert written["best"] == {"index": 1} and written["seed"] == 7
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
        "dev": metrics(0.8125),
        "test": metrics(0.7777),
    }
    assert teacher == expected
    assert (student["index"], student["role"], student["model"]) == (1, "student", "resnet26")
    assert student["test"] == metrics(0.8888)
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
