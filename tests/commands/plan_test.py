"""The command plan: estimates of a run, compared with those computed by hand."""

import itertools

import pytest

from nsk import models
from nsk.commands import plan
from nsk.data.batch_blocks import bytes_of_batches
from nsk.data.sources.digits import DigitsSource
from nsk.distributed.batch_share import Share
from nsk.errors import UserError
from nsk.models import blocks
from nsk.models.cost import estimate_cost


def run_plan(workdir, **values):
    """The plan of a small run on handwritten digits."""
    return plan.execute(
        {
            "workdir": str(workdir),
            "dataset": "digits",
            "num_labeled": 50,
            "num_dev": 100,
            "models": ["convnet5", "resnet9"],
            "labeled_batch_size": ["25", "16"],
            "ratio": ["3"],
            "train_images": ["1000", "3200"],
            **values,
        }
    )


def plan_placeholders(tmp_path, **settings):
    """The plan of a run on a data set that does not exist, with placeholder counts."""
    return run_plan(
        tmp_path / "run",
        **{
            "dataset": f"folder:{tmp_path}/missing",
            "image_size": ["32"],
            "plan_images": "2000,30000,7",
            **settings,
        },
    )


def test_steps_batches_epochs_and_disk(tmp_path, capsys):
    plan = run_plan(tmp_path / "run")
    teacher, student = plan["stages"]
    unlabeled = plan["images"]["unlabeled"]
    assert sum(plan["images"].values()) == 1797
    assert teacher["steps"] == 1000 // 25 and teacher["batch_sizes"] == [25]
    assert teacher["epochs"] == {"labelled": 20.0}
    assert teacher["parameters"] == 104_042 and student["parameters"] == 317_930
    assert student["steps"] == 3200 // 64 and student["batch_sizes"] == [16, 48]
    assert student["epochs"] == {
        "labelled": 50 * 16 / 50,
        "pseudo": round(50 * 48 / unlabeled, 2),
    }
    assert student["images_seen"] == 3200
    ingested = sum(file.stat().st_size for file in (tmp_path / "run/data").rglob("*.tfrecord"))
    assert plan["disk_bytes"]["images"] >= ingested
    assert plan["disk_bytes"]["models"] == 3 * 4 * (104_042 + 317_930)
    assert plan["disk_bytes"]["scores"] > unlabeled * 2 * 10

    text = capsys.readouterr().out
    for part in ("50 labeled", "100 dev", "104,042", "16 + 48", "mean", "Nothing was trained"):
        assert part in text
    assert "Not counted" not in text
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == ["data"]


def test_union_batches_are_one_stream_and_images_per_class_count(tmp_path):
    plan = run_plan(
        tmp_path / "run", mixing="union", loss_normalization="all", images_per_class=200
    )
    student = plan["stages"][1]
    assert student["batch_sizes"] == [64]
    assert student["epochs"] == {
        "labelled and pseudo-labelled": round(50 * 64 / (50 + 200 * 10), 2)
    }


def test_pre_training_and_training_are_stages_with_the_images_of_the_joint_training(tmp_path):
    joint = plan_placeholders(tmp_path, images_per_class=500)
    plan = plan_placeholders(tmp_path, images_per_class=500, mixing="pretrain")
    _, pretraining, student = plan["stages"]
    assert (pretraining["role"], student["role"]) == ("pretraining", "student")
    assert pretraining["batch_sizes"] == student["batch_sizes"] == [64]
    seen = (pretraining["images_seen"], student["images_seen"])
    assert sum(seen) == joint["stages"][1]["images_seen"] == 3200
    assert seen == (38 * 64, 12 * 64)  # Of 50 steps three quarters, 37.5.
    assert pretraining["epochs"] == {"pseudo": round(38 * 64 / 3500, 2)}
    assert student["epochs"] == {"labelled": round(12 * 64 / 2000, 2)}
    assert pretraining["images_per_class"] == 500 and student["images_per_class"] is None
    assert plan["disk_bytes"]["scores"] == joint["disk_bytes"]["scores"]


def cost(name, num_classes=10):
    return estimate_cost(models.build_model(name, num_classes=num_classes, image_size=8))


def test_cost_of_every_stage(tmp_path):
    plan = run_plan(tmp_path / "run", image_size=["8"])
    for stage, name, images in zip(plan["stages"], ("convnet5", "resnet9"), (25, 64), strict=True):
        assert stage["image_size"] == 8 and stage["unknown_layers"] == {}
        assert stage["multiply_adds"] == cost(name).training
        assert stage["activation_bytes"] == images * cost(name).activation_bytes


def test_activations_are_those_of_a_single_replica(tmp_path):
    single, half = (
        plan_placeholders(tmp_path, labeled_batch_size=["32"], strategy=name, image_size=["8"])[
            "stages"
        ][1]["activation_bytes"]
        for name in ("one", "mirrored")  # The tests split the CPU into two devices.
    )
    assert single == 128 * cost("resnet9", num_classes=7).activation_bytes == 2 * half


def test_accumulation_and_rematerialization_need_less_memory(tmp_path):
    def activations(**settings):
        return plan_placeholders(tmp_path, **settings)["stages"][1]["activation_bytes"]

    assert activations() == 2 * activations(accumulation_steps=["1", "2"])
    assert activations() > activations(rematerialize=True)


def test_fine_tuning_is_a_stage_of_its_own(tmp_path):
    plan = plan_placeholders(
        tmp_path,
        finetune_resolution=["0", "64"],
        finetune_epochs=["2.5"],
        finetune_frozen_blocks=["2"],
    )
    _, student, finetuning = plan["stages"]
    assert [stage["index"] for stage in plan["stages"]] == [0, 1, 1]
    assert finetuning["role"] == "finetune" and finetuning["image_size"] == 64
    assert finetuning["parameters"] == student["parameters"]
    assert finetuning["steps"] == round(2.5 * 2000 / 16) and finetuning["batch_sizes"] == [16]
    assert finetuning["images_per_class"] is None
    # Four times the pixels, but the backward pass of only one of the three blocks.
    assert student["multiply_adds"] < finetuning["multiply_adds"] < 3 * student["multiply_adds"]


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"policy": "paper", "images_per_class": 200}, 200),
        ({"policy": "paper"}, "mean"),
        ({"policy": "labeled_shares", "images_per_class": 200}, 200),
        ({"policy": "gap", "gap_floor": 70}, 70),
        ({"policy": "none"}, None),
    ],
)
def test_images_per_class_of_a_selection(tmp_path, settings, expected):
    teacher, student = plan_placeholders(tmp_path, **settings)["stages"]
    assert teacher["images_per_class"] is None and student["images_per_class"] == expected


def test_a_plan_with_placeholder_counts_reads_nothing(tmp_path, capsys):
    plan = plan_placeholders(tmp_path, images_per_class=500)
    assert plan["images"] == {"labeled": 2000, "unlabeled": 30000, "dev": 0, "test": 0}
    teacher, student = plan["stages"]
    assert teacher["epochs"] == {"labelled": 0.5}
    assert student["epochs"] == {"labelled": 50 * 16 / 2000, "pseudo": round(50 * 48 / 3500, 2)}
    assert teacher["parameters"] == 104_042 - 3 * 129  # Seven classes instead of ten.
    text = capsys.readouterr().out
    assert "2,000 labeled, 30,000 unlabeled; 7 classes. No image was read." in text
    assert "without images and pseudo-label shards" in text
    assert plan["disk_bytes"]["scores"] > 30000 * 2 * 7
    assert not list((tmp_path / "run").iterdir())


def test_a_plan_with_placeholder_counts_is_checked(tmp_path):
    with pytest.raises(UserError, match="cutout_side=32 of images of 32 pixels"):
        plan_placeholders(tmp_path, cutout_side=["32"])


def test_layers_of_unknown_cost_are_listed(tmp_path, capsys, monkeypatch):
    from nsk.models import cost as cost_module

    known = {kind: needs for kind, needs in cost_module.NEEDS.items() if "ReLU" not in str(kind)}
    monkeypatch.setattr(cost_module, "NEEDS", known)
    plan_placeholders(tmp_path, models=["convnet6"], plan_images="2000,30000,9")
    assert "Not counted in the cost of convnet6: 5 layers ReLU" in capsys.readouterr().out


def test_networks_for_small_images_trigger_one_warning_at_large_sizes(tmp_path, caplog):
    models = ["resnet20", "resnet20", "efficientnet_b0"]
    plan_placeholders(tmp_path, models=models, rematerialize=True, image_size=["65", "65", "224"])
    assert caplog.text.count("resnet20 is a network for small images: at 65 pixels") == 1
    assert "efficientnet_b0 is" not in caplog.text and "no effect" not in caplog.text
    caplog.clear()
    plan_placeholders(tmp_path, models=["resnet20"] * 2, image_size=["64"])
    assert "small images" not in caplog.text


def test_rematerialize_triggers_a_warning_if_blocks_are_not_known(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(blocks, "block_names", lambda model: [])
    plan_placeholders(tmp_path, models=["convnet5"], rematerialize=True)
    assert "--rematerialize has no effect on convnet5" in caplog.text


def test_batches_in_main_memory(tmp_path):
    def batches(**settings):
        return plan_placeholders(tmp_path, **settings)["stages"][1]["batch_bytes"]

    assert batches() == bytes_of_batches([16, 48], 32)
    # Large batches are made in pieces, unless their images are mixed with each other.
    large = {"labeled_batch_size": ["64"], "image_size": ["512"], "models": ["convnet5"] * 2}
    assert batches(**large) == bytes_of_batches([64, 192], 512)
    mixed = batches(**large, mixup_alpha=["0.2"])
    assert mixed == bytes_of_batches([64, 192], 512, mixes=True) > batches(**large)
    two = batches(**large, strategy="mirrored")
    assert two == bytes_of_batches([64, 192], 512, Share(0, 1, 2))


def test_disk_space_by_purpose(tmp_path):
    settings = {"finetune_resolution": ["0", "0", "16"], "images_per_class": 300}
    settings["models"] = ["convnet5", "resnet9", "resnet9"]
    plan = run_plan(tmp_path / "run", **settings)
    images = plan["images"]
    parameters = [104_042, 317_930, 317_930, 317_930]
    encoded = sum(path.stat().st_size for path in tmp_path.glob("run/data/*/unlabeled/*"))
    expected = {
        "models": 3 * 4 * sum(parameters),
        "checkpoints": 3 * 4 * 4 * max(parameters),  # Weights, two slots and an average: three.
        "scores": 3 * images["unlabeled"] * (64 + 2 * 10)
        + 3 * (images["dev"] + images["test"]) * (64 + 2 * 10),
        "pseudo-label shards": 2 * encoded * 3000 / images["unlabeled"],
    }
    disk = plan["disk_bytes"]
    assert {name: disk[name] for name in expected} == pytest.approx(expected)


def write_digits(folder, paths):
    """Writes images of digits into folders, {} standing for the digit: dict to their number."""
    images = DigitsSource().images("train")
    for path, count in paths.items():
        for number, image in enumerate(itertools.islice(images, count)):
            file = folder / path.format(image.label) / f"{number}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image.encoded)


@pytest.mark.parametrize(
    ("paths", "settings", "expected"),
    [
        # Keras and torchvision.
        (
            {"train/{}": 200, "val/{}": 60, "test/{}": 60},
            {},
            {"test": 60, "dev": 60, "labeled": 50, "unlabeled": 150},
        ),
        # Ultralytics' classification: val may be missing.
        (
            {"train/{}": 200, "test/{}": 60},
            {"num_dev": 20},
            {"test": 60, "dev": 20, "labeled": 50, "unlabeled": 130},
        ),
        # Tiny-ImageNet.
        (
            {"train/{}/images": 200, "val/images": 60, "test/images": 60},
            {"num_dev": 20, "test_fraction": 0.1},
            {"test": 20, "dev": 20, "labeled": 50, "unlabeled": 110},
        ),
    ],
)
def test_published_layouts_of_folders(tmp_path, capsys, paths, settings, expected):
    write_digits(tmp_path / "archive" / "data", paths)
    (tmp_path / "archive" / ".DS_Store").touch()
    (tmp_path / "archive" / "data" / "words.txt").touch()
    values = {"num_dev": 0, "dataset": f"folder:{tmp_path}/archive", **settings}
    plan = run_plan(tmp_path / "run", **values)
    assert plan["images"] == expected
    text = capsys.readouterr().out
    assert "\nClasses (test/dev/labeled images): 0: " in text
    assert ("Not used: 60 images of dev without class folders" in text) == ("val/images" in paths)
    assert ("Not used: 60 images of test without class folders" in text) == ("val/images" in paths)
    assert "Not read: 1 files that are not images: .txt 1." in text
    assert "Skipped: 1 hidden files or files of an operating system: .DS_Store 1." in text


def test_a_plan_says_things_once_and_the_images_first(tmp_path, capsys, caplog):
    write_digits(tmp_path / "photos", {"train/{}": 200, "val/{}": 60, "test": 60})
    (tmp_path / "photos" / "words.txt").touch()
    values = {"num_dev": 0, "dataset": f"folder:{tmp_path}/photos"}
    with caplog.at_level("INFO", "absl"):
        run_plan(tmp_path / "run", **values, labeled_batch_size=["64", "16"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Images: ") and lines[1].startswith("Classes (")
    everything = [line for line in lines + caplog.messages if line]
    assert len(set(everything)) == len(everything)
    starts = ("Images: ", "Classes (", "Not read: 1", "Not used: 60", "--dataset: Folder")
    for start in (*starts, "--labeled_batch_size=64 exceeds"):
        assert len([line for line in everything if line.startswith(start)]) == 1, start


def test_members_of_an_ensemble_and_distillation_on_labelled_images(tmp_path):
    settings = {"ratio": ["0"], "distillation_alpha": ["0.5"], "num_teachers": 2}
    plan = run_plan(tmp_path / "run", **settings)
    assert [(row["index"], row["role"]) for row in plan["stages"]] == [
        (0, "teacher"),
        (0, "teacher"),
        (1, "student"),
    ]
    assert plan["stages"][-1]["epochs"] == {"labelled": 3200 / 50}
    labelled = sum(
        path.stat().st_size for path in (tmp_path / "run").glob("data/images-*/labeled/*")
    )
    assert plan["disk_bytes"]["scored labelled shards"] == labelled + 50 * 10 * 2
    plan = plan_placeholders(tmp_path, **settings | {"plan_images": "2000,0,7"})
    assert plan["stages"][-1]["images_per_class"] is None
