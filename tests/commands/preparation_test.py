"""What all commands share: checks before TensorFlow is loaded, and the runner."""

import json
import logging
import subprocess
import sys

import pytest

from nsk.commands import COMMANDS, preparation
from nsk.config.config import check_command
from nsk.distributed import runtime
from nsk.errors import UserError
from nsk.store import manifest
from nsk.store.folders import StageKey, build_or_reuse

VALUES = {"train_steps": ["5"], "num_labeled": 20, "num_dev": 20}


def make_values(workdir, **values):
    return {**VALUES, "workdir": str(workdir), **values}


def test_importing_the_commands_does_not_import_heavy_libraries():
    program = (
        "import json, sys; from nsk.commands import COMMANDS; print(json.dumps(sorted("
        "{'tensorflow', 'keras', 'numpy', 'pyarrow'} & set(sys.modules))), *COMMANDS)"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    commands = [
        "run",
        "plan",
        "score",
        "select",
        "predict",
        "evaluate",
        "corrupt",
        "sweep",
        "verify",
    ]
    assert process.stdout.split() == ["[]", *commands]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_text_of_one_line(name):
    line, blank, *_ = [*COMMANDS[name].__doc__.splitlines(), ""]
    assert 20 < len(line) < 88 and line.endswith(".") and not blank
    assert callable(COMMANDS[name].execute)


OTHER_COMMANDS_SETTINGS = {
    "plan_images": ("2000,30000,7", "plan"),
    "num_shard_workers": (2, "score"),
}


@pytest.mark.parametrize("setting", OTHER_COMMANDS_SETTINGS)
@pytest.mark.parametrize("command", ["run", "plan", "score", "select"])
def test_a_setting_of_another_command_is_refused(tmp_path, setting, command):
    value, own_command = OTHER_COMMANDS_SETTINGS[setting]
    values = make_values(tmp_path / "run", models=["convnet5"] * 2, image_size=["8"])
    values[setting] = value
    if command == own_command:
        check_command(command, values)
        return
    message = f"--{setting}={value} is for the command {own_command}: leave it out of {command}"
    with pytest.raises(UserError, match=message):
        check_command(command, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workdir": ""}, "--workdir is not given"),
        ({"workdir": "a\nb"}, r"--workdir='a\\nb' is not printable text"),
        ({"teacher": "/missing.keras"}, "--teacher=/missing.keras does not exist"),
        ({"init_from": ["/missing.h5"]}, "--init_from=/missing.h5 does not exist"),
        ({"models": ["resnet21"]}, "'resnet21'"),
        (
            {"evaluate": "corruptions", "corruption_files": "/missing"},
            "--corruption_files: /missing does not exist",
        ),
        (
            {"evaluate": "natural", "natural_sets": "photos=/missing"},
            "--natural_sets: /missing does not exist",
        ),
    ],
)
def test_wrong_settings_are_refused(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        preparation.prepare(make_values(tmp_path / "run") | values)


def test_more_checks_run_before_the_workdir_is_created(tmp_path):
    def check(config):
        assert config.data.num_labeled == 20
        raise UserError("refused by the command")

    with pytest.raises(UserError, match="refused by the command"):
        preparation.prepare(make_values(tmp_path / "run"), check)
    assert not (tmp_path / "run").exists()


def test_the_runner_has_the_settings_and_the_devices(tmp_path):
    runner = preparation.prepare(make_values(tmp_path / "new" / "run", strategy="one"))
    assert runner.config.data.num_labeled == 20
    assert runner.runtime.strategy.num_replicas_in_sync == 1
    assert runner.workers.is_chief and runner.all_reused
    assert runner.workdir == tmp_path / "new" / "run" and runner.workdir.is_dir()


def test_workers_compare_all_flags_but_the_workdir(tmp_path, monkeypatch):
    """The workdir may have another name on another machine."""

    def compared_flags(**values):
        flags = []
        with monkeypatch.context() as patch:
            patch.setattr(
                runtime, "start_runtime", lambda run, workdir, text: flags.append(text) or local
            )
            preparation.prepare(make_values(**values))
        return flags[0]

    local = runtime.start_runtime(
        preparation.Config.from_values(make_values(tmp_path)).run, tmp_path, ""
    )
    flags = compared_flags(workdir=tmp_path / "a")
    assert flags == compared_flags(workdir=tmp_path / "b")
    assert len(json.loads(flags)) == len(preparation.Config.__dataclass_fields__)
    for changed in ({"evaluations": 7}, {"num_labeled": 30}, {"seed": 1}):
        assert compared_flags(workdir=tmp_path / "a", **changed) != flags


def test_settings_without_effect_trigger_warnings(tmp_path, caplog):
    preparation.prepare(make_values(tmp_path, beam_options="--runner=x"))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["--beam_options=--runner=x has no effect: it needs --engine=beam."]


def test_stages_of_another_format_trigger_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(manifest, "FORMAT", manifest.FORMAT - 1)
    for name in ("data/images", "gen0/teacher"):
        build_or_reuse(StageKey(tmp_path, name, {}, {}), lambda folder: {})
    monkeypatch.undo()
    caplog.set_level(logging.WARNING)
    runner = preparation.prepare(make_values(tmp_path))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"Not reused: 2 of the stages in {tmp_path}, written by")
    assert "such as data/images-" in line
    stage = runner.build_or_reuse("data/images", lambda folder: {"built": True})
    assert not stage.reused and stage.counts == {"built": True} and not runner.all_reused
    assert len(list(tmp_path.glob("data/images-*"))) == 2
