import json
import os

import pytest

from nsk.config.data import DataConfig
from nsk.data import sources
from nsk.data.content import ContentDigests
from nsk.errors import UserError


def listed(source, split="train"):
    return [(image.id, image.label) for image in source.images(split)]


def test_little_of_a_too_large_file_is_read(tmp_path, fill, encoded_image):
    fill(tmp_path, "a/0.png", "b/1.png")
    with (tmp_path / "b/huge.png").open("wb") as file:
        file.truncate(2**36)  # Takes no space on disk, but more memory than available.
    source = sources.open_source(f"folder:{tmp_path}", max_image_bytes=1000)
    sizes = {image.id: len(image.encoded) for image in source.images("train")}
    assert sizes == {
        "a/0.png": len(encoded_image(0)),
        "b/1.png": len(encoded_image(1)),
        "b/huge.png": 1001,
    }


def test_folder_of_classes(tmp_path, fill):
    source = fill(
        tmp_path,
        "dog/b.png",
        "dog/deep/er/a.JPG",
        "cat/z.Jpeg",
        "cat/notes.txt",
        "cat/.hidden.png",
        ".cache/x.png",
    )
    assert source.splits == ("train",)
    assert source.class_names == ["cat", "dog"]
    assert listed(source) == [("cat/z.Jpeg", 0), ("dog/b.png", 1), ("dog/deep/er/a.JPG", 1)]
    assert listed(source) == listed(source)
    assert next(source.images("train")).encoded == (tmp_path / "cat/z.Jpeg").read_bytes()


def test_folder_of_splits(tmp_path, fill):
    source = fill(
        tmp_path,
        "labeled/b/1.png",
        "labeled/a/1.png",
        "unlabeled/1.png",
        "unlabeled/b/2.gif",
        "dev/b/1.png",
        "test/a/1.png",
    )
    assert source.splits == ("labeled", "unlabeled", "dev", "test")
    assert source.class_names == ["a", "b"]
    assert listed(source, "labeled") == [("labeled/a/1.png", 0), ("labeled/b/1.png", 1)]
    # Subfolders of unlabelled images are not classes.
    assert listed(source, "unlabeled") == [("unlabeled/1.png", None), ("unlabeled/b/2.gif", None)]
    assert listed(source, "dev") == [("dev/b/1.png", 1)]
    assert listed(source, "test") == [("test/a/1.png", 0)]


def test_folder_of_train_and_test(tmp_path, fill):
    source = fill(tmp_path, "train/a/1.png", "train/b/1.bmp", "test/b/1.png")
    assert source.splits == ("train", "test")
    assert source.class_names == ["a", "b"]


def test_a_folder_with_images_has_no_labels(tmp_path, fill):
    source = fill(tmp_path, "1.png", "more/2.png")
    assert source.splits == ("unlabeled",)
    assert source.class_names is None
    assert listed(source, "unlabeled") == [("1.png", None), ("more/2.png", None)]


def test_folders_that_are_refused(tmp_path, fill):
    def refused(pattern, root, *paths):
        with pytest.raises(UserError, match=pattern):
            fill(root, *paths)

    refused("no_such is not a folder", tmp_path / "no_such")
    (tmp_path / "empty").mkdir()
    refused("empty holds no image", tmp_path / "empty")
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    refused("cat is a class without images", tmp_path / "hollow", "dog/1.png", "cat/readme.txt")
    refused("labeled holds no image", tmp_path / "flat", "labeled/1.png", "unlabeled/2.png")
    refused("dev has classes that .*: dgo", tmp_path / "typo", "labeled/dog/1.png", "dev/dgo/1.png")
    refused("beside val: ", tmp_path / "val", "train/dog/1.png", "val/dog/1.png")
    refused("both train and labeled", tmp_path / "both", "train/a/1.png", "labeled/a/1.png")


def test_content_of_a_folder_changes_with_its_files(tmp_path, fill):
    fill(tmp_path / "images", "a/1.png", "b/2.png")
    config = DataConfig(dataset=f"folder:{tmp_path}/images")
    seen = []

    def changed():
        content = sources.content(config, ContentDigests())
        assert json.loads(json.dumps(content)) == content not in seen
        seen.append(content)

    changed()
    assert seen[0]["dataset"]["files"] == 2
    fill(tmp_path / "images", "b/deep/3.png")  # 3.png has the pixels of 1.png.
    changed()
    path = tmp_path / "images/a/1.png"
    path.write_bytes(path.read_bytes() + b"x")
    changed()
    path.rename(path.with_name("4.png"))
    changed()
    (tmp_path / "images/a/notes.txt").write_text("")
    changed()
    # Classes that are links are included.
    fill(tmp_path / "elsewhere", "5.png")
    (tmp_path / "images/c").symlink_to(tmp_path / "elsewhere")
    changed()
    fill(tmp_path / "elsewhere", "6.png")
    changed()
    assert seen[-1]["dataset"]["files"] == 6


def test_content_does_not_depend_on_the_path_of_the_folder_nor_on_times(tmp_path, fill):
    fill(tmp_path / "before", "a/1.png", "b/2.png", "notes.txt")
    before = sources.open_source(f"folder:{tmp_path}/before").content(ContentDigests())
    (tmp_path / "before").rename(tmp_path / "after")
    os.utime(tmp_path / "after/a/1.png", ns=(1, 1))
    # Only names of files that are not read count.
    (tmp_path / "after/notes.txt").write_text("changed")
    assert sources.open_source(f"folder:{tmp_path}/after").content(ContentDigests()) == before


def test_files_that_are_not_read_are_counted(tmp_path, fill):
    source = fill(tmp_path, "train/a/1.png", "train/b/2.png", "train/stray.png", "test/a/x.webp",
                  "test/a/3.png", "README.txt", ".hidden")  # fmt: skip
    assert source.other_files() == 3
    assert fill(tmp_path / "flat", "1.png", "2.tiff").other_files() == 1
