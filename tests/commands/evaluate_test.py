"""The command evaluate on digits with an untrained network: results, resume and wrong inputs."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nsk import models
from nsk.commands import evaluate
from nsk.errors import UserError
from nsk.evaluation.suites import conditions, corruptions

VALUES = {
    "dataset": "digits",
    "num_dev": 100,
    "suites": "clean,calibration,corruptions,attacks",
    "corruptions": "fog,contrast",
    "fgsm_epsilons": "0,0.1",
    "evaluation_images": 40,
    "strategy": "one",
}
CONDITIONS = [f"{name}-{severity}" for name in ("fog", "contrast") for severity in range(1, 6)]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    models.build_model("convnet5", num_classes=10, image_size=8, seed=1).save(path)
    return str(path)


@pytest.fixture(scope="module")
def evaluated(model_path, tmp_path_factory):
    """(folder, returned content) of an evaluation."""
    folder = tmp_path_factory.mktemp("evaluation")
    values = {**VALUES, "model": model_path, "output": str(folder)}
    return folder, evaluate.execute(values)


def test_the_json_holds_everything_and_the_csv_the_same_numbers(evaluated):
    folder, content = evaluated
    assert json.loads((folder / "evaluation.json").read_text()) == content
    assert list(content["suites"]) == ["clean", "calibration", "corruptions", "attacks"]
    assert content["images"] == {"test": 359, "dev": 100} and content["classes"] == 10
    found = content["suites"]["corruptions"]
    assert list(found["errors"]) == ["fog", "contrast"] and found["images"] == 40
    assert content["suites"]["attacks"]["fgsm"]["epsilons"] == [0, 0.1]
    with open(folder / "evaluation.csv", newline="") as file:
        rows = {(row["suite"], row["metric"]): row["value"] for row in csv.DictReader(file)}
    assert float(rows["corruptions", "errors/fog/2"]) == found["errors"]["fog"][2]
    accuracy = content["suites"]["clean"]["test"]["accuracy"]
    assert float(rows["clean", "test/accuracy"]) == accuracy


def test_every_condition_has_every_image_once(evaluated):
    folder, content = evaluated
    suite = folder / content["stages"]["corruptions"]
    tables = [pq.read_table(suite / f"{name}.parquet") for name in ("clean", *CONDITIONS)]
    ids = tables[0]["id"].to_pylist()
    assert len(set(ids)) == len(ids) == 40
    assert all(table["id"].to_pylist() == ids for table in tables)
    clean = pq.read_table(folder / content["stages"]["clean"] / "test.parquet")
    assert set(ids) < set(clean["id"].to_pylist())


def test_a_second_call_reuses_everything(evaluated, model_path, monkeypatch):
    folder, content = evaluated
    monkeypatch.setattr(corruptions, "predict_condition", lambda *_: pytest.fail("predicted again"))
    values = {**VALUES, "model": model_path, "output": str(folder)}
    assert evaluate.execute(values) == content


def test_tables_are_printed(evaluated, model_path, capsys):
    folder, content = evaluated
    evaluate.execute({**VALUES, "model": model_path, "output": str(folder)})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    errors = content["suites"]["corruptions"]["errors"]["fog"]
    assert ["fog", *(f"{error:.4f}" for error in errors)] in lines
    attacked = content["suites"]["attacks"]["fgsm"]
    low, high = attacked["intervals"][1]
    assert ["0.1", f"{attacked['accuracy'][1]:.4f}", f"[{low:.4f},", f"{high:.4f}]"] in lines


def test_a_baseline_adds_relative_errors(evaluated, model_path, tmp_path):
    folder, _ = evaluated
    values = {**VALUES, "model": model_path, "output": str(tmp_path), "suites": "corruptions"}
    content = evaluate.execute({**values, "baseline": str(folder / "evaluation.json")})
    found = content["suites"]["corruptions"]
    assert found["mce"] == pytest.approx(100) and found["baseline"] == "convnet5"
    # The same model on the same images: no resample of both differs.
    assert found["mce_interval"] == pytest.approx([100, 100])


def test_an_interrupted_evaluation_ends_with_the_same_json(
    evaluated, model_path, tmp_path, monkeypatch
):
    _, expected = evaluated
    values = {**VALUES, "model": model_path, "output": str(tmp_path)}
    written = []

    def interrupt(path, *arguments, **options):
        if len(written) == 6:
            raise KeyboardInterrupt
        written.append(path.name)
        return write_predictions(path, *arguments, **options)

    write_predictions = conditions.write_predictions
    monkeypatch.setattr(conditions, "write_predictions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate.execute(values)
    assert written == [f"{name}.parquet" for name in ("clean", *CONDITIONS[:5])]
    monkeypatch.undo()
    assert evaluate.execute(values) == expected


def test_a_killed_evaluation_ends_with_the_same_json(evaluated, model_path, tmp_path):
    _, expected = evaluated
    command = [sys.executable, "-m", "nsk.main", "evaluate", f"--output={tmp_path}"]
    command += [f"--{name}={value}" for name, value in VALUES.items()]
    process = subprocess.Popen(
        [*command, f"--model={model_path}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("corruptions-*.partial/*.parquet"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "evaluation.json").exists()
    values = {**VALUES, "model": model_path, "output": str(tmp_path)}
    assert evaluate.execute(values) == expected


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": ""}, "--model is not given"),
        ({"output": ""}, "--output is not given"),
        ({"workdir": "runs/x"}, "--workdir is for runs"),
        ({"suites": ""}, "--suites is empty"),
        ({"suites": "clean,corruption"}, "'corruption' is not known"),
        ({"corruptions": "fogg"}, "'fogg' is not known"),
        ({"fgsm_epsilons": "0,-0.1"}, "'-0.1' is not a number from 0 to 1"),
        ({"fgsm_epsilons": "0,8"}, "8 of 255 levels are 0.0314"),
        ({"pgd_epsilons": "small"}, "'small' is not a number"),
        ({"pgd_epsilons": "0.1,0.10"}, "0.10 is given twice"),
        ({"corruptions": ","}, "--corruptions is empty"),
        ({"suites": "natural"}, "needs --natural_sets"),
        ({"baseline": "missing.json"}, "missing.json cannot be read"),
        ({"model": "missing.keras"}, "missing.keras"),
        ({"suites": "natural", "natural_sets": "/missing"}, "natural_sets: /missing does not"),
    ],
)
def test_wrong_settings_are_refused_before_images_are_ingested(
    model_path, tmp_path, changes, message
):
    output = tmp_path / "new"
    with pytest.raises(UserError, match=message):
        evaluate.execute({**VALUES, "model": model_path, "output": str(output), **changes})
    assert not list(output.glob("images-*"))


def test_an_output_that_is_a_file_is_an_error(model_path, tmp_path):
    (tmp_path / "file").write_text("")
    values = {**VALUES, "model": model_path, "output": str(tmp_path / "file")}
    with pytest.raises(UserError, match=r"Cannot create the folder .*/file .*another --output"):
        evaluate.execute(values)


def test_a_model_of_other_classes_is_an_error(tmp_path):
    path = tmp_path / "model.keras"
    models.build_model("convnet5", num_classes=7, image_size=8).save(path)
    values = {**VALUES, "model": str(path), "output": str(tmp_path / "new")}
    with pytest.raises(UserError, match="has 7 classes: expected 10"):
        evaluate.execute(values)


def test_a_model_with_its_classes_in_another_order_is_an_error(model_path, tmp_path):
    path = tmp_path / "model.keras"
    models.build_model("convnet5", num_classes=10, image_size=8).save(path)
    names = "\n".join([*map(str, range(8)), "9", "8"])
    (tmp_path / "class_names.txt").write_text(names)
    values = {**VALUES, "model": str(path), "output": str(tmp_path / "new")}
    with pytest.raises(UserError, match="its class 8 is '9', but that of the images is '8'"):
        evaluate.execute(values)


def test_a_test_set_alone_is_of_the_classes_of_the_model(tmp_path, caplog):
    """Without --dataset: its classes may be some of the model's, in the model's order."""
    path = tmp_path / "model.keras"
    models.build_model("convnet5", num_classes=3, image_size=8).save(path)
    (tmp_path / "class_names.txt").write_text("cow\nant\nbee\n")
    for number, name in enumerate(["bee", "cow", "cow"]):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    values = {"model": str(path), "suites": "clean", "strategy": "one"}
    values |= {"test_dataset": f"folder:{tmp_path}/photos", "output": str(tmp_path / "new")}
    with caplog.at_level("INFO", "absl"):
        content = evaluate.execute(values)
    assert content["images"] == {"test": 3} and content["classes"] == 3
    assert "matched by name with those of the model" in caplog.text
    assert "igits" not in caplog.text
    (clean,) = (tmp_path / "new").glob("clean-*/test.parquet")
    assert sorted(pq.read_table(clean)["truth"].to_pylist()) == [0, 0, 2]
    (tmp_path / "class_names.txt").write_text("cow\nant\nbug\n")
    with pytest.raises(UserError, match="has the classes bee, cow but the model has cow, ant, bug"):
        evaluate.execute({**values, "output": str(tmp_path / "other")})


def test_a_model_that_returns_probabilities_is_attacked(tmp_path):
    """The model is a function around the Keras model, with the logarithm and the scale."""
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(10, activation="sigmoid")(keras.layers.Flatten()(inputs))
    outputs = keras.layers.Lambda(lambda x: x / keras.ops.sum(x, -1, True))(outputs)
    path = tmp_path / "saved_model"
    keras.Model(inputs, outputs).export(path, verbose=False)
    values = {**VALUES, "model": str(path), "suites": "attacks", "pixels": "unit"}
    content = evaluate.execute({**values, "output": str(tmp_path / "new")})
    found = content["suites"]["attacks"]
    assert found["fgsm"]["accuracy"][0] == found["clean_accuracy"]


def test_a_subset_larger_than_the_test_images_is_an_error(model_path, tmp_path):
    values = {**VALUES, "model": model_path, "output": str(tmp_path), "evaluation_images": 4000}
    with pytest.raises(UserError, match="--evaluation_images=4000: the split test has 359 images"):
        evaluate.execute(values)


@pytest.mark.parametrize(
    "changes", [{"crop_fraction": 0.5}, {"interpolation": "bicubic"}, {"pixels": "255"}]
)
def test_what_a_model_sees_is_part_of_its_stage(evaluated, model_path, changes):
    folder, content = evaluated
    values = {**VALUES, "model": model_path, "output": str(folder), "suites": "clean", **changes}
    assert evaluate.execute(values)["stages"]["clean"] != content["stages"]["clean"]


def test_only_the_chief_reports(model_path, tmp_path, monkeypatch):
    def prepare_as_worker(*arguments):
        runner = prepare(*arguments)
        runner.workers.index = 1
        return runner

    prepare = evaluate.prepare
    monkeypatch.setattr(evaluate, "prepare", prepare_as_worker)
    values = {**VALUES, "model": model_path, "output": str(tmp_path), "suites": "clean"}
    assert evaluate.execute(values) is None
    assert not (tmp_path / "evaluation.json").exists()


def test_the_same_model_of_other_classes_is_another_stage(tmp_path):
    """Without names of its own, the model's classes are those of the images."""
    path = tmp_path / "model.keras"
    models.build_model("convnet5", num_classes=2, image_size=8).save(path)
    stages = []
    for names in (("cat", "dog"), ("dog", "eel")):
        photos = tmp_path / "-".join(names)
        for label, name in enumerate(names):
            (photos / "test" / name).mkdir(parents=True)
            for row in range(3):
                pixels = np.full((8, 8, 3), 90 * label + row, np.uint8)
                Image.fromarray(pixels).save(photos / "test" / name / f"{row}.png")
        content = evaluate.execute(
            {
                "dataset": f"folder:{photos}",
                "model": str(path),
                "output": str(tmp_path / "results"),
                "strategy": "one",
            }
        )
        assert content["model"]["class_names"] == list(names)
        stages.append(content["stages"]["clean"])
    assert stages[0] != stages[1]
