"""docs/configuration.md says what the settings say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nsk.config.config import settings
from nsk.config.fields import ALWAYS
from tools import write_configuration

ROOT = Path(__file__).parents[2]


def rows():
    """Cells of every setting's row in the document as it is rendered, by name."""
    lines = write_configuration.DOCUMENT.read_text(encoding="utf-8").splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| `--")]
    assert {len(row) for row in cells} == {len(write_configuration.HEADER)}
    rendered = [[re.sub(r"\\(.)|`", r"\1", cell).strip() for cell in row] for row in cells]
    return {row[0].removeprefix("--"): row[1:] for row in rendered}


def test_the_document_is_up_to_date():
    written = write_configuration.DOCUMENT.read_text(encoding="utf-8")
    assert written == write_configuration.document(), "run python -m tools.write_configuration"


def test_every_setting_has_one_row_with_its_help_and_condition():
    described = rows()
    assert list(described) == [field.name for field in settings()]
    for field in settings():
        _, _, help_text, used_if = described[field.name]
        assert help_text == field.metadata["help"].partition(" (list: ")[0]
        condition = field.metadata["used_if"]
        assert used_if == ("" if condition is ALWAYS else condition.text)
        # Characters that Markdown interprets and that are not escaped.
        assert not set("`<\\") & set(field.metadata["help"] + condition.text), field.name


def test_defaults_and_allowed_values_are_as_on_the_command_line():
    described = rows()
    assert described["survival_probability"][:2] == ["1,0.8", "number, 0.01 to 1; list"]
    assert described["ratio"][:2] == ["3", "number, at least 0; list, from the first student"]
    assert described["policy"][:2] == ["paper", "paper, labeled_shares, gap, none"]
    assert described["calibrate"][:2] == ["false", "true, false"]
    assert described["teacher"][:2] == ["empty", "text"]
    assert described["fill"][:2] == ["128", "integer, 0 to 255"]


def test_check_rejects_another_document_and_writing_repairs_it(tmp_path, monkeypatch):
    path = tmp_path / "configuration.md"
    monkeypatch.setattr(write_configuration, "DOCUMENT", path)
    monkeypatch.setattr(sys, "argv", ["write_configuration"])
    write_configuration.main()
    monkeypatch.setattr(sys, "argv", ["write_configuration", "--check"])
    write_configuration.main()
    path.write_text(path.read_text(encoding="utf-8").replace("`0.97`", "`0.98`"), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"configuration\.md is out of date: run python -m"):
        write_configuration.main()


def test_the_tool_does_not_import_tensorflow():
    program = (
        "import sys; from tools import write_configuration; print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr
