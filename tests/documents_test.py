"""Documents, flagfiles and messages name only flags, files and tools that exist."""

import ast
import functools
import re
from pathlib import Path

import pytest

from nsk.config.config import settings

ROOT = Path(__file__).parents[1]
MARKDOWN = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], key=lambda path: path.relative_to(ROOT)
)
DOCUMENTS = [*MARKDOWN, *sorted((ROOT / "flags").glob("*.flags"))]
SOURCES = sorted((ROOT / "nsk").rglob("*.py"))
TOOLS = {path.stem: path for path in sorted((ROOT / "tools").glob("*.py"))}

MAX_README_LINES = 150
# Flags of other programs, allowed in texts that name the program.
OTHER_FLAGS = {
    "absl": {
        "version",
        "help",
        "helpfull",
        "flagfile",
        "name",
        "noname",
    },  # --name=value: any flag.
    "tensorboard": {"logdir"},
    "xla_flags": {
        "tf_xla_persistent_cache_directory",
        "xla_gpu_autotune_level",
        "xla_gpu_deterministic_ops",
        "xla_gpu_exclude_nondeterministic_ops",
        "xla_gpu_per_fusion_autotune_cache_dir",
    },
    "beam": {
        "runner",
        "flink_master",
        "direct_running_mode",
        "direct_num_workers",
        "pickle_library",
    },
}
FLAG = re.compile(r"(?<![\w-])--([a-z]\w*)")
TOOL = re.compile(r"(?<!\w)tools\.(\w+)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = r"(?:nsk|docs|tests|tools|flags|\.ci|\.github)"
ROOT_FILES = r"(?:[A-Z]+\.md|pyproject\.toml|constraints\.txt|requirements[\w-]*\.txt)"
REPOSITORY_PATH = re.compile(rf"(?<![\w./-])({FOLDERS}/[\w./-]*\w/?|{ROOT_FILES})(?![\w/*<])")
# In a recipe, such as nsk/models/NAME.py.
PLACEHOLDER = re.compile(r"\b[A-Z]{4,}(?=[._])")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


parametrize_documents = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
parametrize_sources = pytest.mark.parametrize("path", SOURCES, ids=name_of)


@functools.cache
def setting_flags():
    """Names of the flags of all settings."""
    names = {field.name for field in settings()}
    return names | {f"no{field.name}" for field in settings() if isinstance(field.default, bool)}


def tool_flags(path):
    """Names of the flags that a tool defines, by argparse or absl."""
    pattern = r"""(?:add_argument\(\s*["']--|DEFINE_\w+\(\s*["'])(\w+)["']"""
    return set(re.findall(pattern, path.read_text()))


def unknown_flags(text):
    """Flags in a text that are neither settings nor flags of a tool or program that it names."""
    known = setting_flags() | OTHER_FLAGS["absl"]
    for program, names in OTHER_FLAGS.items():
        if program in text.lower():
            known |= names
    for tool in set(TOOL.findall(text)) & set(TOOLS):
        known |= tool_flags(TOOLS[tool])
    return sorted(set(FLAG.findall(text)) - known)


def passages(text):
    """Paragraphs, list items and table rows."""
    return re.split(r"\n(?=\s*(?:[-*|]|\d+\.) ?)|\n\s*\n", text)


def missing_paths(text):
    """Paths of the repository that a text names and that do not exist."""
    missing = []
    for passage in passages(text):
        for path in REPOSITORY_PATH.findall(passage):
            name = ROOT / path
            target = name.parent if PLACEHOLDER.search(path) else name
            missing += [] if target.exists() else [path]
    return missing


def anchors(path):
    """GitHub's anchors of the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path):
    """Relative links of a Markdown file whose file or heading does not exist."""
    broken = []
    for link in LINK.findall(path.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def strings(path):
    """Strings of a module: messages, help texts and docstrings, without the values in f-strings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@parametrize_documents
def test_flags_in_documents_exist(path):
    assert unknown_flags(path.read_text()) == []


@parametrize_sources
def test_flags_in_messages_exist(path):
    assert unknown_flags("\n\n".join(strings(path))) == []


@parametrize_documents
def test_paths_in_documents_exist(path):
    assert missing_paths(path.read_text()) == []


@pytest.mark.parametrize("path", [*SOURCES, *TOOLS.values()], ids=name_of)
def test_paths_in_messages_and_docstrings_exist(path):
    assert missing_paths("\n\n".join(strings(path))) == []


@pytest.mark.parametrize("path", [*DOCUMENTS, *SOURCES, *TOOLS.values()], ids=name_of)
def test_tools_exist(path):
    named = set(TOOL.findall(path.read_text()))
    assert named - set(TOOLS) - {"X"} == set()


@pytest.mark.parametrize("path", MARKDOWN, ids=name_of)
def test_links_lead_to_files_and_headings(path):
    assert broken_links(path) == []


def test_readme_is_short_and_links_every_document():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= MAX_README_LINES
    linked = {link.partition("#")[0] for link in LINK.findall(text)}
    assert {name_of(path) for path in MARKDOWN} - linked == {"README.md"}


def test_unknown_names_are_found():
    assert unknown_flags("--seed=1 --no_such_flag") == ["no_such_flag"]
    assert unknown_flags("--kills=3") == ["kills"]
    assert unknown_flags("python -m tools.chaos --kills=3") == []
    text = "see `docs/models.md`, `nsk/models/NAME.py`\n\n- `docs/none.md`\n- `nsk/nowhere/NAME.py`"
    assert missing_paths(text) == ["docs/none.md", "nsk/nowhere/NAME.py"]
