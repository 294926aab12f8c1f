"""What a whole chain needs is checked before its first stage trains."""

import json

import pytest

from nsk import self_training
from nsk.config import Config
from nsk.errors import UserError


def make_config(workdir, **values):
    return Config.from_values(
        {
            "workdir": str(workdir),
            "num_labeled": 50,
            "num_dev": 100,
            "models": ["convnet5", "resnet9"],
            "train_steps": ["2"],
            **values,
        }
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"strategy": "mirrored", "labeled_batch_size": ["2", "3"]},
            "labeled batch of 3 images does not divide over 2 replicas",
        ),
        ({"image_size": 4, "models": ["resnet20", "resnet9"]}, "--image_size=4 is too small"),
        ({"num_labeled": 0, "labeled_fraction": 1.0}, "No unlabelled images are left"),
    ],
)
def test_a_student_that_cannot_be_trained_is_told_before_the_teacher_is(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        self_training.run(make_config(tmp_path / "run", **values))
    assert not (tmp_path / "run" / "gen0").exists()


def test_a_teacher_alone_may_take_every_label(tmp_path):
    summary = self_training.run(
        make_config(tmp_path / "run", models=["convnet5"], num_labeled=0, labeled_fraction=1.0)
    )
    assert summary["num_images"]["unlabeled"] == 0 and summary["best"]["index"] == 0


def test_the_resolved_configuration_is_saved(tmp_path):
    self_training.plan(make_config(tmp_path / "run", temperature=0.5))
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert saved["pseudo"]["temperature"] == 0.5 and saved["train"]["momentum"] == 0.9
