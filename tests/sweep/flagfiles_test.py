"""Flagfiles: reading one back gives the same configuration."""

import pytest
from absl import flags

from nsk import main
from nsk.config.config import Config
from nsk.errors import UserError
from nsk.sweep.flagfiles import flagfile_text


def read(text, path):
    """Values of settings by name from a flagfile, as the command line reads it."""
    path.write_text(text)
    values = flags.FlagValues()
    main.define_flags(values)
    values(["nsk", f"--flagfile={path}"])
    return main.flag_values(values)


def test_a_configuration_is_read_back(tmp_path):
    given = {
        "train_images": ["1000", "3000"],
        "models": ["resnet9"] * 2,
        "learning_rate": ["0.1", "1e-05"],
        "nesterov": True,
        "dataset": "folder:/data/my images",
        "temperature": 0.4,
        "seed": 3,
        "workdir": "runs/a",
    }
    text = flagfile_text(given, without=("workdir",))
    assert "--nesterov=true\n" in text and "workdir" not in text and "optimizer" not in text
    expected = Config.from_values({**given, "workdir": ""})
    assert Config.from_values(read(text, tmp_path / "a.flags")) == expected


def test_defaults_are_left_out():
    assert flagfile_text({"models": ["resnet20", "resnet26"], "seed": 0, "ratio": ["3.0"]}) == ""


@pytest.mark.parametrize("dataset", ["folder:a\nb", " a", "folder:a\x00"])
def test_values_that_a_line_cannot_hold_are_refused(dataset):
    with pytest.raises(UserError, match=r"--dataset=.* cannot be written into a flagfile"):
        flagfile_text({"dataset": dataset})
