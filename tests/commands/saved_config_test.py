"""config.json: every setting of the last run, defaults included; plan leaves it alone."""

import json

import pytest

from nsk import self_training
from nsk.commands import plan, run
from nsk.config.config import settings
from nsk.errors import UserError


def test_a_run_saves_every_setting_and_plan_saves_none(tmp_path, monkeypatch):
    def stop(runner):
        raise UserError("the settings were saved before")

    monkeypatch.setattr(self_training, "train_chain", stop)
    values = {"workdir": str(tmp_path), "models": ["convnet5"], "train_steps": ["2"]}
    with pytest.raises(UserError, match="saved before"):
        run.execute({**values, "temperature": 0.5})
    plan.execute({**values, "temperature": 0.7, "plan_images": "50,0,10", "image_size": ["8"]})
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["targets"]["temperature"] == 0.5 and saved["train"]["momentum"] == 0.9
    names = [name for section in saved.values() for name in section]
    assert names == [field.name for field in settings()]
