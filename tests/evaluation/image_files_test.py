"""Files of test sets that are hostile or strange, and how class folders are matched."""

import os
import threading

from nsk.evaluation import image_files
from nsk.evaluation.class_folders import list_class_folders
from tests.evaluation.written_images import fill, unreadable

__all__ = ["fill"]


def test_a_pipe_is_unreadable_and_does_not_block(tmp_path, fill):
    fill(b"c/a.png")
    os.mkfifo(tmp_path / "c" / "b.png")
    results = []
    thread = threading.Thread(
        target=lambda: results.append(unreadable(list_class_folders(tmp_path))), daemon=True
    )
    thread.start()
    thread.join(20)
    if thread.is_alive():  # Lets the test end.
        os.close(os.open(tmp_path / "c" / "b.png", os.O_WRONLY | os.O_NONBLOCK))
    assert results == [{"c/b": "a pipe, device or socket, not a file"}]


def test_a_huge_file_is_not_read(tmp_path, fill, monkeypatch):
    fill(b"c/a.png", b"c/b.png")
    with (tmp_path / "c" / "b.png").open("wb") as file:
        file.truncate(2**36)  # Takes no space on disk, but more memory than available.
    found = unreadable(list_class_folders(tmp_path))
    assert found == {"c/b": "68,719,476,736 bytes: expected at most 67,108,864"}
    size = (tmp_path / "c" / "a.png").stat().st_size
    monkeypatch.setattr(image_files, "MAX_IMAGE_BYTES", size)
    assert list(unreadable(list_class_folders(tmp_path))) == ["c/b"]
    monkeypatch.setattr(image_files, "MAX_IMAGE_BYTES", size - 1)
    assert list(unreadable(list_class_folders(tmp_path))) == ["c/a", "c/b"]
