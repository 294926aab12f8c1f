"""What `plan` tells of a run, against the same run's settings worked out by hand."""

from nsk import self_training
from nsk.config import Config


def make_config(workdir, **values):
    return Config.from_values(
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


def test_steps_batches_epochs_and_disk(tmp_path, capsys):
    plan = self_training.plan(make_config(tmp_path / "run"))
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
    assert plan["disk_bytes"] > ingested

    text = capsys.readouterr().out
    for part in ("50 labeled", "100 dev", "104,042", "16 + 48", "Nothing was trained"):
        assert part in text
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == ["data"]


def test_union_batches_are_one_stream_and_a_stated_class_size_counts(tmp_path):
    plan = self_training.plan(
        make_config(
            tmp_path / "run", mixing="union", loss_normalization="all", images_per_class=200
        )
    )
    student = plan["stages"][1]
    assert student["batch_sizes"] == [64]
    assert student["epochs"] == {
        "labelled and pseudo-labelled": round(50 * 64 / (50 + 200 * 10), 2)
    }
