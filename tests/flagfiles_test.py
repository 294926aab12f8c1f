"""Every flagfile is understood, opens with its command, and uses no value in vain."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from absl import flags
from nsk import main
main.define_flags()
flags.FLAGS(["nsk", "--flagfile=" + sys.argv[1], "--workdir=runs/none"])
config = main.read_config()
print(config.num_students, config.unused_values())
"""


@pytest.mark.parametrize("path", sorted((ROOT / "flags").rglob("*.flags")), ids=lambda p: p.stem)
def test_a_flagfile_makes_a_configuration(path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    students, unused = done.stdout.strip().split(maxsplit=1)
    assert int(students) >= (0 if "fixres" in path.stem else 1) and unused == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "flags").rglob("*.flags")), ids=lambda p: p.stem)
def test_a_flagfile_opens_with_its_command(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    opening = "\n".join(comments[:12])
    assert "make quickstart" in opening or f"--flagfile=flags/{path.name}" in opening
    assert "@@" not in path.read_text()
