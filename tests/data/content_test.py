"""Identity of files by content: what changes it, and what is read again."""

import hashlib
import json
import os

import pytest

from nsk.data import content
from nsk.data.content import ContentDigests


@pytest.fixture
def files(tmp_path):
    found = {}
    for name, text in {"a/1.png": "one", "b/2.png": "two"}.items():
        found[name] = tmp_path / "files" / name
        found[name].parent.mkdir(parents=True)
        found[name].write_text(text)
    return found


def test_names_and_contents_alone_count(files, tmp_path):
    described = ContentDigests().describe(files)
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"one", b"two"))
    expected = hashlib.sha256(f"a/1.png\0{one}\nb/2.png\0{two}\n".encode()).hexdigest()
    assert described == {"files": 2, "sha256": expected}
    os.utime(files["a/1.png"], (1e9, 1e9))
    (tmp_path / "files").rename(tmp_path / "moved")
    moved = {name: tmp_path / "moved" / name for name in reversed(files)}
    assert ContentDigests().describe(moved) == described
    moved["b/2.png"].write_text("TWO")
    assert ContentDigests().describe(moved) != described


def test_files_that_are_not_read_count_by_their_names(files):
    described = ContentDigests().describe(files, unread=["notes.txt"])
    assert described["files"] == 3
    assert described != ContentDigests().describe(files, unread=["other.txt"])


def test_of_large_files_the_size_counts(files):
    small = ContentDigests().describe(files, max_bytes=3)
    large = ContentDigests().describe(files, max_bytes=2)
    files["a/1.png"].write_text("ONE")
    assert ContentDigests().describe(files, max_bytes=2) == large
    assert ContentDigests().describe(files, max_bytes=3) != small


def test_what_cannot_be_read_has_no_content(tmp_path):
    (tmp_path / "broken").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    files = {name: tmp_path / name for name in ("broken", "pipe")}
    assert ContentDigests().describe(files)["files"] == 2
    (tmp_path / "missing").write_text("")
    assert ContentDigests().describe(files) != ContentDigests().describe({})


def test_many_files_in_tasks(tmp_path, monkeypatch):
    files = {f"{number}": tmp_path / f"{number}" for number in range(50)}
    for name, path in files.items():
        path.write_text(name)
    expected = ContentDigests().describe(files)
    monkeypatch.setattr(content, "FILES_PER_TASK", 3)
    assert ContentDigests().describe(files) == expected


def test_unchanged_files_are_not_read_again(files, tmp_path, monkeypatch):
    monkeypatch.setattr(content, "SETTLED_NANOSECONDS", -(10**18))  # Every file is old enough.
    memory = tmp_path / "workdir" / "content.json"
    memory.parent.mkdir()
    described = ContentDigests(memory).describe(files)
    with monkeypatch.context() as patch:
        patch.setattr(content, "sha256_of_file", lambda path: pytest.fail(f"{path} is read"))
        assert ContentDigests(memory).describe(files) == described
    files["a/1.png"].write_text("ONE")
    assert ContentDigests(memory).describe(files) != described
    memory.write_text("[damaged")
    files["a/1.png"].write_text("one")
    assert ContentDigests(memory).describe(files) == described
    assert len(json.loads(memory.read_text())) == 1


def test_the_limit_of_the_size_is_remembered(files, tmp_path, monkeypatch):
    monkeypatch.setattr(content, "SETTLED_NANOSECONDS", -(10**18))
    digests = ContentDigests(tmp_path / "content.json")
    for max_bytes in (None, 2, 3):
        described = digests.describe(files, max_bytes=max_bytes)
        assert described == ContentDigests().describe(files, max_bytes=max_bytes)


def test_files_that_were_just_written_are_read_again(files, tmp_path):
    """They may change once more without a change of their times."""
    memory = tmp_path / "content.json"
    ContentDigests(memory).describe(files)
    assert not memory.exists()


def test_only_the_latest_are_remembered(files, tmp_path, monkeypatch):
    monkeypatch.setattr(content, "SETTLED_NANOSECONDS", -(10**18))
    monkeypatch.setattr(content, "MAX_REMEMBERED", 3)
    for number in range(5):
        ContentDigests(tmp_path / "content.json").describe(files, unread=[f"{number}"])
    assert len(json.loads((tmp_path / "content.json").read_text())) == 3
