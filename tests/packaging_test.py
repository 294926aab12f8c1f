"""The package: its dependencies, and the command `nsk` that it installs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nsk.config import config

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIREMENTS = sorted(ROOT.glob("requirements*.txt"))
# What the script does that pip creates for an entry point.
SCRIPT = """
import sys
from {module} import {function}
sys.argv[0] = "/somewhere/bin/nsk"
sys.exit({function}())
"""


def names(path):
    """Names of the packages in a requirements file."""
    lines = path.read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def run_script(*arguments):
    """Runs the installed command; returns exit code, stdout and stderr."""
    module, function = PROJECT["project"]["scripts"]["nsk"].split(":")
    command = [sys.executable, "-c", SCRIPT.format(module=module, function=function), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def run_module(*arguments):
    command = [sys.executable, "-m", "nsk.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def test_dependencies_are_those_of_the_requirements_files():
    dynamic = PROJECT["tool"]["setuptools"]["dynamic"]
    extras = dynamic["optional-dependencies"]
    files = [
        *dynamic["dependencies"]["file"],
        *(file for e in extras.values() for file in e["file"]),
    ]
    assert {path.name for path in REQUIREMENTS} == set(files)
    assert set(PROJECT["project"]["dynamic"]) == {"dependencies", "optional-dependencies"}


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_requirements_are_names_whose_versions_are_pinned(path):
    pins = dict(line.lower().split("==") for line in names(ROOT / "constraints.txt"))
    assert names(path)
    for name in names(path):
        assert re.fullmatch(r"[A-Za-z][\w.-]*", name), "pip's options are not read by setuptools"
        assert name.lower() in pins


def test_every_python_package_is_included_and_has_no_other_files():
    (pattern,) = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert pattern == "nsk*"
    files = [path for path in (ROOT / "nsk").rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts]
    assert {path.suffix for path in files} == {".py"}, "declare package data in pyproject.toml"
    assert all((path.parent / "__init__.py").exists() for path in files)


def test_the_command_shows_the_same_help_as_the_module():
    code, out, err = run_script("--help")
    assert (code, err) == (0, "")
    for field in config.settings():
        assert f"--{field.name}:" in out or f"--[no]{field.name}:" in out
    module_out = re.sub(
        r"^\S*main\.py:$", "/somewhere/bin/nsk:", run_module("--help")[1], flags=re.M
    )
    assert out == module_out


@pytest.mark.parametrize("arguments", [["--nonsense"], ["nonsense"], ["verify", "--workdir=none"]])
def test_the_command_fails_like_the_module(arguments):
    received = run_script(*arguments)
    assert received == run_module(*arguments)
    assert received[0] == 2 and received[2].startswith("nsk: ")
