"""Flagfiles: reading one back gives the same configuration."""

import pytest
from absl import flags

from nsk.config.config import Config, settings
from nsk.config.fields import is_per_generation
from nsk.errors import UserError
from nsk.sweep.flagfiles import flagfile_text


def read(text, path):
    """Values of settings by name from a flagfile, by absl with flags as `nsk.main` defines them."""
    path.write_text(text)
    values = flags.FlagValues()
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in settings():
        if is_per_generation(field):
            default = list(map(str, field.default))
            flags.DEFINE_list(field.name, default, "", flag_values=values)
        else:
            define[field.type](field.name, field.default, "", flag_values=values)
    values(["nsk", f"--flagfile={path}"])
    return {field.name: values[field.name].value for field in settings()}


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
