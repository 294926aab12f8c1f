"""The command line: flags, exit codes, and errors of one line."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import nsk
from nsk import main
from nsk.commands import COMMANDS
from nsk.config.config import settings
from nsk.store.folders import StageKey, build_or_reuse

ROOT = Path(nsk.__file__).parents[1]
MAIN = ("-m", "nsk.main")
SETTINGS = ("--train_steps=5", "--num_labeled=20", "--num_dev=20")

# Replaces TensorFlow in tests that do not need it: fast to import, and prints to the descriptor
# of stderr as TensorFlow's C++ libraries do.
FAKE_TENSORFLOW = """
    import os
    from types import SimpleNamespace
    os.write(2, b"I0000 native message\\n")
    config = SimpleNamespace(list_physical_devices=lambda: os.write(2, b"E0000 cuInit\\n"))
"""
# Replaces all that commands import after TensorFlow, and runs `nsk.main`. {work} is the body of the
# function that trains.
FAKE_WORK = """
    import runpy, sys
    from types import SimpleNamespace
    from unittest.mock import MagicMock
    from nsk.commands import plan

    def make_runner(config, runtime):
        return MagicMock(config=config, workdir=config.workdir)

    def train_chain(runner):
        config = runner.config
        {work}
        return MagicMock(), [MagicMock()]

    def train_generations(runner, count):
        print("generation", count, "shard", runner.config.command.shard_index)
        return MagicMock(), [MagicMock()]

    heavy = ("decisions", "data.ingest", "distributed.runtime", "models", "report",
             "report.collect", "report.evaluation_report", "report.run_report",
             "report.selection_report", "stages")
    sys.modules |= {{f"nsk.{{name}}": MagicMock() for name in heavy}}
    sys.modules["nsk.decisions"].best_generation = lambda *_: 0
    sys.modules["nsk.stages.runner"] = SimpleNamespace(
        StageRunner=make_runner, ReadOnlyRunner=make_runner, shard_set=MagicMock()
    )
    sys.modules["nsk.self_training"] = SimpleNamespace(
        train_chain=train_chain, train_generations=train_generations
    )
    plan.print_plan = lambda *_: print("planned")
    runpy.run_module("nsk.main", run_name="__main__", alter_sys=True)
"""


def start(*arguments, path=None, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=clean | {"PYTHONPATH": os.fspath(path or ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments, **options):
    """Runs Python in the project's folder; returns exit code, stdout and stderr."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def assert_one_line(code, out, err, *parts):
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("nsk: ") and err.endswith("\n"), err
    for part in parts:
        assert part in err


@pytest.fixture
def fake_tensorflow(tmp_path):
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "tensorflow.py").write_text(textwrap.dedent(FAKE_TENSORFLOW))
    return f"{folder}{os.pathsep}{ROOT}"


def fake_run(work):
    return ("-c", textwrap.dedent(FAKE_WORK.format(work=work)))


# As `python -m nsk.main`, and as the installed command `nsk`.
CONSOLE = ("-c", "import sys; sys.argv[0] = 'nsk'; from nsk.main import console; console()")


@pytest.mark.parametrize("program", [MAIN, CONSOLE], ids=["module", "console"])
def test_help_shows_every_command_and_setting_and_exits_with_0(program):
    code, out, err = run(*program, "--help")
    assert (code, err) == (0, "")
    for field in settings():
        assert f"--{field.name}:" in out or f"--[no]{field.name}:" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for name, command in COMMANDS.items():
        assert f"{name} {command.__doc__.splitlines()[0]}" in lines
    assert "Exit codes: 0: done; 2: a flag, the data or a file is wrong" in out


@pytest.mark.parametrize("arguments", [["-h"], ["help"], ["predict", "-h"], ["help", "plan"]])
def test_other_ways_to_ask_for_help(arguments):
    code, out, err = run(*MAIN, *arguments)
    assert (code, err) == (0, "")
    assert out.startswith("The command line: `nsk [COMMAND]") and "--num_labeled:" in out


def test_the_version_is_printed():
    assert run(*MAIN, "--version") == (0, f"nsk {nsk.__version__}\n", "")


def test_help_wrong_flags_and_wrong_settings_do_not_import_tensorflow():
    program = """
        import json, sys
        from absl import app
        from nsk import main
        app.define_help_flags()
        main.define_flags()
        codes = []
        for argv in (["nsk", "--help"], ["nsk", "--nonsense"]):
            try:
                main.parse_flags(argv)
            except SystemExit as stop:
                codes.append(stop.code)
        for argv in (["nsk"], ["nsk", "--train_steps=5"], ["nsk", "nonsense"]):
            codes.append(main.run_main(main.parse_flags(argv)))
        print()
        print(json.dumps([codes, sorted({"tensorflow", "keras", "numpy"} & set(sys.modules))]))
    """
    code, out, _ = run("-c", textwrap.dedent(program))
    assert code == 0
    assert json.loads(out.splitlines()[-1]) == [[0, 2, 2, 2, 2], []]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--nonsense"], ["nonsense"]),
        (["--num_labeled=many"], ["--num_labeled=many", "expected a whole number"]),
        (["--checkpoint_minutes=many"], ["--checkpoint_minutes=many", "expected a number"]),
        (["--calibrate=many"], ["--calibrate=many", "expected true or false"]),
        (["--seed"], ["seed"]),
        (["--flagfile=/not/there.flags"], ["/not/there.flags"]),
        ([f"--flagfile={sys.executable}"], ["--flagfile", "is not text"]),
        (
            ["train", *SETTINGS],
            [
                "'train'",
                "expected run, plan, score, select, predict, evaluate, corrupt, sweep or verify",
            ],
        ),
        (["runn", *SETTINGS], ["'runn' (similar: run)"]),
        (["run", "twice", *SETTINGS], ["Received 'twice' beside the settings"]),
        (
            ["predict", "--images=a/1.jpg", "a/2.jpg", "a/3.jpg"],
            [
                "Received 'a/2.jpg', 'a/3.jpg' beside",
                "quote the pattern, as --images='photos/*.jpg'",
            ],
        ),
        ([], ["Received neither a command nor a setting: see --help", "flags/quickstart.flags"]),
        (["num_labeled=5", *SETTINGS], ["'num_labeled=5'", "--name=value"]),
        (SETTINGS, ["--workdir"]),
        (["--workdir=runs/x"], ["No budget was given", "exactly one of"]),
        ([*SETTINGS, "--workdir=runs/x", "--dataset=cifar"], ["'cifar'", "tfds:NAME"]),
        ([*SETTINGS, "--workdir=runs/x", "--teacher=/not/there.keras"], ["/not/there.keras"]),
        (
            [*SETTINGS, "--workdir=runs/x", "--init_from=/not/there.h5"],
            ["/not/there.h5 does not exist"],
        ),
        ([*SETTINGS, "--workdir=runs/x", "--init_from=~/" + 300 * "x"], ["xxx does not exist"]),
        ([*SETTINGS, "--workdir=runs/x", "--init_from=teacher"], ["--init_from=scratch,teacher"]),
        (["score", *SETTINGS, "--workdir=runs/x", "--shard_index=-1"], ["--shard_index=-1"]),
        (["score", *SETTINGS, "--workdir=runs/x", "--num_shard_workers=0"], ["at least 1"]),
        (
            ["score", *SETTINGS, "--workdir=runs/x", "--shard_index=3", "--num_shard_workers=3"],
            ["--shard_index=3", "--num_shard_workers=3", "expected 0 to 2"],
        ),
        (
            ["select", *SETTINGS, "--workdir=runs/x", "--models=resnet20,resnet20"],
            ["does not exist"],
        ),
        (
            [*SETTINGS, "--workdir=runs/x", "--engine=beam", "--beam_options=--runer=x"],
            ["--runer=x is unknown"],
        ),
        (
            [*SETTINGS, "--workdir=runs/x", "--teacher=" + 300 * "x" + ".keras"],
            ["xxx.keras does not exist"],
        ),
        ([*SETTINGS, f"--workdir={__file__}"], [__file__, "File exists"]),
        ([*SETTINGS, f"--workdir={__file__}/below"], ["Not a directory"]),
        ([*SETTINGS, "--workdir=/proc/nsk"], ["/proc/nsk", "Cannot create the folder"]),
    ],
)
def test_wrong_input_is_reported_in_one_line_and_exits_with_2(arguments, parts):
    assert_one_line(*run(*MAIN, *arguments), *parts)
    assert not (ROOT / "runs" / "x").exists()


def test_output_without_a_reader_is_not_a_bug(tmp_path):
    """As with `verify | head`, after the first lines."""
    build_or_reuse(StageKey(tmp_path, "gen0/teacher", {}, {}), lambda folder: {})
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as unread:
        outcome = subprocess.run(
            [sys.executable, *MAIN, "verify", f"--workdir={tmp_path}"],
            cwd=ROOT,
            stdout=unread,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (outcome.returncode, outcome.stderr) == (main.UNREAD, "")


def test_wrong_input_found_by_the_work_is_reported_in_one_line_too(tmp_path):
    """Four runs of one process with the real TensorFlow, whose import is the slow part."""
    (tmp_path / "empty").mkdir()
    common = [*SETTINGS, f"--workdir={tmp_path / 'run'}"]
    cases = [
        ["run", *common, "--models=resnet20,resnet21"],
        ["run", *common, "--models=resnet20", "--dataset=folder:/not/there"],
        ["run", *common, "--models=resnet20", f"--dataset=folder:{tmp_path / 'empty'}"],
        ["select", *common, "--models=resnet20,resnet20", "--dataset=digits"],
    ]
    program = f"""
        from nsk import main
        main.define_flags()
        for arguments in {cases!r}:
            print(main.run_main(main.parse_flags(["nsk", *arguments])))
    """
    code, out, err = run("-c", textwrap.dedent(program))
    assert (code, out.split()) == (0, ["2"] * 4), err
    known = ("Devices: 1 CPU", "--dataset: Digits")
    lines = [line for line in err.splitlines() if not any(text in line for text in known)]
    # And no messages of TensorFlow's libraries, which print much when they are loaded.
    assert len(lines) == 4 and all(line.startswith("nsk: ") for line in lines), err
    assert "'resnet21'" in lines[0] and "/not/there" in lines[1] and "empty" in lines[2]
    assert "data/images is not finished" in lines[3]


def test_flags_reach_the_command_and_override_the_flagfile(tmp_path, fake_tensorflow):
    flagfile = tmp_path / "base.flags"
    flagfile.write_text("# A comment.\n--train_steps=5\n--seed=3\n--models=resnet20,resnet26\n")
    work = "print(config.run.seed, config.chain.models, config.train.nesterov, sep='|')"
    code, out, err = run(
        *fake_run(work),
        f"--flagfile={flagfile}",
        f"--workdir={tmp_path / 'new' / 'run'}",
        "--seed=4",
        "--nesterov",
        path=fake_tensorflow,
    )
    assert (code, out, err) == (0, "4|('resnet20', 'resnet26')|True\n", "")
    assert (tmp_path / "new" / "run").is_dir()


def test_plan_does_not_train(tmp_path, fake_tensorflow):
    arguments = ("plan", *SETTINGS, f"--workdir={tmp_path}/run")
    assert run(*fake_run("print('trained')"), *arguments, path=fake_tensorflow) == (
        0,
        "planned\n",
        "",
    )


def test_score_and_select_train_a_part_of_the_chain(tmp_path, fake_tensorflow):
    common = (*SETTINGS, f"--workdir={tmp_path}/run", "--models=convnet5,convnet5,convnet5")
    workers = ("--shard_index=2", "--num_shard_workers=3")
    for arguments, expected in (
        (("score", *common), "generation 1 shard 0\n"),
        (("score", *common, *workers), "generation 1 shard 2\n"),
        (("select", *common, "--generation=2"), "generation 2 shard 0\n"),
    ):
        (tmp_path / "run").mkdir(exist_ok=True)
        outcome = run(*fake_run("print('trained')"), *arguments, path=fake_tensorflow)
        assert outcome == (0, expected, "")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["score", "--generation=0"], ["--generation=0", "expected 1 to 2"]),
        (["score", "--generation=3"], ["--generation=3", "2 students", "expected 1 to 2"]),
        (["select", "--generation=3"], ["--generation=3", "2 students", "expected 1 to 2"]),
        (["select", "--models=convnet5"], ["--generation=1", "--models"]),
        (["run", "--num_shard_workers=2"], ["--num_shard_workers=2", "command score", "run"]),
        (["plan", "--num_shard_workers=2"], ["--num_shard_workers=2", "leave it out of plan"]),
        (["select", "--num_shard_workers=2"], ["--num_shard_workers=2", "leave it out of select"]),
        (["run", "--image_size=32", "--plan_images=9,9,9"], ["--plan_images=9,9,9", "out of run"]),
    ],
)
def test_settings_that_do_not_fit_the_command_are_reported_in_one_line(
    tmp_path, fake_tensorflow, arguments, parts
):
    common = (*SETTINGS, f"--workdir={tmp_path}/run", "--models=convnet5,convnet5,convnet5")
    command, *settings = arguments
    result = run(*fake_run("print('trained')"), command, *common, *settings, path=fake_tensorflow)
    assert_one_line(*result, *parts)


def test_every_flagfile_of_the_project_is_valid():
    flagfiles = sorted((ROOT / "flags").rglob("*.flags"))
    assert flagfiles
    program = f"""
        from absl import flags
        from nsk import main
        from nsk.config.config import Config
        main.define_flags()
        for path in {[os.fspath(path) for path in flagfiles]!r}:
            flags.FLAGS.unparse_flags()
            main.parse_flags(["nsk", "--flagfile=" + path])
            Config.from_values(main.flag_values())
            for name in flags.FLAGS:
                flags.FLAGS[name].unparse()
    """
    code, _, err = run("-c", textwrap.dedent(program))
    assert code == 0, err


def wait_for_line(process, line):
    assert process.stdout.readline().strip() == line


# A library that is interrupted inside a callback may raise an error of its own.
INTERRUPTED_LIBRARY = textwrap.dedent(
    """
    import time
    try:
        print('working', flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        raise SystemError('initialization of _pywrap raised unreported exception')
    """
)


@pytest.mark.parametrize(
    "work",
    ["print('working', flush=True); import time; time.sleep(60)", f"exec({INTERRUPTED_LIBRARY!r})"],
)
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_exits_with_75(tmp_path, fake_tensorflow, kind, work):
    process = start(*fake_run(work), *SETTINGS, f"--workdir={tmp_path}/run", path=fake_tensorflow)
    wait_for_line(process, "working")
    process.send_signal(kind)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75
    assert err.count("\n") == 1 and err.startswith("nsk: stopped.") and "same command again" in err


def test_a_message_of_several_lines_becomes_one(tmp_path, fake_tensorflow):
    work = "from nsk.errors import UserError; raise UserError('first\\nsecond')"
    result = run(*fake_run(work), *SETTINGS, f"--workdir={tmp_path}/run", path=fake_tensorflow)
    assert_one_line(*result, "nsk: first second\n")


def test_a_bug_shows_its_traceback_and_exits_with_1(tmp_path, fake_tensorflow):
    work = "raise RuntimeError('a bug')"
    code, _, err = run(
        *fake_run(work), *SETTINGS, f"--workdir={tmp_path}/run", path=fake_tensorflow
    )
    assert code == 1
    assert "Traceback" in err and "RuntimeError: a bug" in err


def test_native_messages_are_hidden_unless_requested(tmp_path, fake_tensorflow):
    arguments = (*fake_run("pass"), *SETTINGS, f"--workdir={tmp_path}/run")
    assert run(*arguments, path=fake_tensorflow) == (0, "", "")
    shown = run(*arguments, path=fake_tensorflow, TF_CPP_MIN_LOG_LEVEL="0")
    assert shown == (0, "", "I0000 native message\nE0000 cuInit\n")


def test_an_error_while_tensorflow_is_imported_is_shown(tmp_path, fake_tensorflow):
    (tmp_path / "fake" / "tensorflow.py").write_text(
        "raise ImportError('libwhatever.so is missing')"
    )
    code, _, err = run(
        *fake_run("pass"), *SETTINGS, f"--workdir={tmp_path}/run", path=fake_tensorflow
    )
    assert code == 1
    assert "libwhatever.so is missing" in err


def test_only_warnings_of_other_libraries_are_logged(tmp_path, fake_tensorflow):
    work = (
        "from absl import logging; logging.info('chatter'); logging.warning('a warning'); "
        "logging.warning('`dtype` is deprecated')"
    )
    code, _, err = run(
        *fake_run(work), *SETTINGS, f"--workdir={tmp_path}/run", path=fake_tensorflow
    )
    assert code == 0
    assert "a warning" in err and "chatter" not in err and "deprecated" not in err


def test_xla_keeps_compiled_programs_where_the_flag_says(tmp_path, fake_tensorflow):
    folder = tmp_path / "cache"
    work = "import os; print(os.environ['TF_XLA_FLAGS'], os.environ['XLA_FLAGS'], sep='|')"
    arguments = (*SETTINGS, f"--workdir={tmp_path / 'run'}", f"--compilation_cache={folder}")
    code, out, err = run(*fake_run(work), *arguments, path=fake_tensorflow)
    assert (code, err) == (0, "")
    programs, autotuning = out.strip().split("|")
    assert programs.endswith(f"--tf_xla_persistent_cache_directory={folder}")
    assert autotuning.endswith(f"--xla_gpu_per_fusion_autotune_cache_dir={folder}/autotuning")
    assert (folder / "autotuning").is_dir()


def test_deterministic_programs_are_compiled_without_autotuning_and_kept_apart(
    tmp_path, fake_tensorflow
):
    work = "import os; print(os.environ['TF_XLA_FLAGS'], os.environ['XLA_FLAGS'])"
    cache = f"--compilation_cache={tmp_path / 'cache'}"
    arguments = (*SETTINGS, f"--workdir={tmp_path / 'run'}", "--deterministic", cache)
    code, out, err = run(*fake_run(work), *arguments, path=fake_tensorflow)
    assert (code, err) == (0, "")
    assert "--xla_gpu_autotune_level=0" in out and "--xla_gpu_deterministic_ops=true" in out
    assert f"cache_directory={tmp_path / 'cache/deterministic'} " in out


@pytest.mark.slow
def test_a_compiled_program_is_read_by_the_next_process(tmp_path):
    program = f"""
        import pathlib
        from nsk.commands import preparation
        preparation.keep_compiled_programs(pathlib.Path({str(tmp_path)!r}))
        import tensorflow as tf
        double = tf.function(lambda numbers: numbers * 2 + 1, jit_compile=True)
        print(double(tf.constant([1.0, 2.0])).numpy().tolist())
    """
    received = []
    for _ in range(2):
        code, out, _ = run("-c", textwrap.dedent(program))
        (kept,) = tmp_path.glob("*.pb")
        received.append((code, out, kept.name, kept.stat().st_mtime_ns))
    assert received[0] == received[1]
    assert received[0][:2] == (0, "[3.0, 5.0]\n")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "na\\xefve \\u732b.txt"), ("cp1252", "na\u00efve \\u732b.txt")],
)
def test_names_that_a_terminal_cannot_show_are_escaped(tmp_path, encoding, shown):
    stage = build_or_reuse(StageKey(tmp_path, "export", {}, {}), lambda folder: {})
    (stage.path / "na\u00efve \u732b.txt").write_text("")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, *MAIN, "verify", f"--workdir={tmp_path}"]
    verified = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert f"{shown}: does not belong to this stage".encode(encoding) in verified.stdout
