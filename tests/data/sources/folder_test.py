import json
import os
import unicodedata

import pytest

from nsk.config.data import DataConfig
from nsk.data import sources
from nsk.data.content import ContentDigests
from nsk.data.normalization import normalize_image
from nsk.data.pools import open_pools
from nsk.data.sources.source import SkippedFiles
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
    refused("hollow holds no image", tmp_path / "hollow", "cat/readme.txt")
    refused(r"flat/labeled holds 1 image, but no class folders: .* --labels",
            tmp_path / "flat", "labeled/1.png", "unlabeled/2.png")  # fmt: skip
    refused(r"flat2/train/images holds 2 images, but no class folders",
            tmp_path / "flat2", "train/images/1.png", "train/images/2.png")  # fmt: skip
    refused(r"dev has classes that labeled does not have: dgo\. .* dev \(1 class, 2 images\), "
            r"labeled \(1 class, 1 image\)\.$",
            tmp_path / "typo", "labeled/dog/1.png", "dev/dgo/1.png", "dev/dgo/2.png")  # fmt: skip
    refused("both train and labeled", tmp_path / "both", "train/a/1.png", "labeled/a/1.png")
    refused(r"two folders for dev: VAL \(1 class, 2 images\), valid \(1 image\)",
            tmp_path / "twice", "train/a/1.png", "VAL/a/1.png", "VAL/a/2.png",
            "valid/2.png")  # fmt: skip
    refused(r"mixed has folders of splits .* test \(1 image\) beside a \(2 images\), b \(1 image\)",
            tmp_path / "mixed", "a/1.png", "a/2.png", "b/1.png", "test/3.png")  # fmt: skip
    refused(r"splits beside others: train \(2 classes, 2 images\) beside bird \(1 image\)",
            tmp_path / "mixed2", "train/a/1.png", "train/b/2.png", "bird/3.png")  # fmt: skip
    refused(r"splits inside of classes, cat \(2 classes, 2 images\), dog .* such as train/cat",
            tmp_path / "turned", "cat/Train/1.png", "cat/val/2.png", "dog/Train/1.png",
            "dog/val/2.png")  # fmt: skip
    refused(r"nothing has only test \(2 images\): expected class folders",
            tmp_path / "nothing", "test/1.png", "test/2.png")  # fmt: skip
    refused("train: several class folders have the number 1, such as 1 and 01",
            tmp_path / "numbers", "train/1/1.png", "train/01/2.png")  # fmt: skip
    refused("names: several folders have the same name in different encodings: \u00e4:",
            tmp_path / "names", "\u00e4/1.png", "a\u0308/2.png")  # fmt: skip


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
    source = fill(tmp_path, "train/a/1.png", "train/b/2.png", "train/stray.png", "test/a/x.txt",
                  "test/a/3.png", "README.txt", "data.csv", "notes/4.TXT.txt", "train/a/.hidden",
                  "train/a/._1.png", "train/b/._2.png", "train/a/@eaDir/1.png/small.jpg",
                  "#recycle/a/5.png", "__MACOSX/train/6.png", "test/Thumbs.db",
                  "train/.cache/7.png", "train/.cache/8.png")  # fmt: skip
    assert source.skipped_files() == SkippedFiles(
        others={".txt": 3, ".csv": 1},
        outside=1,
        litter={
            **{"._*": 2, ".cache": 2, ".hidden": 1, "@eaDir": 1},
            **{"#recycle": 1, "__MACOSX": 1, "Thumbs.db": 1},
        },
    )
    assert sum(1 for split in source.splits for _ in source.images(split)) == 3
    assert source.content(ContentDigests())["files"] == 3 + 1 + 4
    assert fill(tmp_path / "flat", "1.png", "2.txt").skipped_files().others == {".txt": 1}


def splits_of(source):
    """For each split, the names of the files by class."""
    found = {}
    for split in source.splits:
        for image in source.images(split):
            name = "" if image.label is None else source.class_names[image.label]
            found.setdefault(split, {}).setdefault(name, []).append(image.id.rpartition("/")[2])
    return found


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        # Keras and torchvision.
        (("train", "val", "test"), ("train", "dev", "test")),
        # Ultralytics: val may be missing.
        (("train", "test"), ("train", "test")),
        (("Training", "Validation", "Testing", "Unsup"), ("train", "dev", "test", "unlabeled")),
        (("TRAIN", "Valid", "extra"), ("train", "dev", "unlabeled")),
        (("labelled", "dev", "Unlabelled"), ("labeled", "dev", "unlabeled")),
        (("training_set", "test_set"), ("train", "test")),
        (("train-images", "TestData", "unlabeled images"), ("train", "test", "unlabeled")),
    ],
)
def test_names_of_splits(tmp_path, fill, folders, expected):
    paths = [f"{folder}/{name}/{name}{n}.png" for folder in folders for name in "ab" for n in "12"]
    source = fill(tmp_path, *paths)
    assert sorted(source.splits) == sorted(expected) and source.class_names == ["a", "b"]
    labelled, unlabelled = {"a": ["a1.png", "a2.png"], "b": ["b1.png", "b2.png"]}, {}
    unlabelled[""] = [name for names in labelled.values() for name in names]
    assert splits_of(source) == {
        split: unlabelled if split == "unlabeled" else labelled for split in expected
    }
    (note,) = source.notes
    assert f"{expected[0]} (4 images of 2 classes)" in note


@pytest.mark.parametrize("names", [("valid", "invalid"), ("car", "train"), ("dev", "extra", "ops")])
def test_names_of_splits_that_are_classes(tmp_path, fill, names):
    source = fill(tmp_path, *(f"{name}/{name}.png" for name in names))
    assert source.splits == ("train",) and source.class_names == sorted(names)


def test_a_split_beside_a_stray_image(tmp_path, fill):
    source = fill(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png", "overview.png")
    assert source.splits == ("train", "test") and source.skipped_files().outside == 1
    # But images with other folders are all unlabelled, whatever these are called.
    source = fill(tmp_path / "other", "1.png", "test/2.png", "train/3.png", "more/4.png")
    assert source.splits == ("unlabeled",) and len(listed(source, "unlabeled")) == 4


def test_tiny_imagenet(tmp_path, fill):
    root = "archive/tiny-imagenet"
    source = fill(
        tmp_path,
        *(f"{root}/train/{name}/images/{name}_{n}.JPEG" for name in ("n1", "n2") for n in range(3)),
        *(f"{root}/train/{name}/{name}_boxes.txt" for name in ("n1", "n2")),
        *(f"{root}/val/images/val_{number}.JPEG" for number in range(4)),
        *(f"{root}/test/images/test_{number}.JPEG" for number in range(5)),
        *(f"{root}/{name}" for name in ("val/val_annotations.txt", "wnids.txt", "words.txt")),
        "readme.txt",
    )
    assert source.splits == ("train",) and source.class_names == ["n1", "n2"]
    ids = [id for id, _ in listed(source)]
    assert ids[3] == f"{root}/train/n2/images/n2_0.JPEG" and len(ids) == 6
    skipped = source.skipped_files()
    assert skipped == SkippedFiles(others={".txt": 6}, without_class={"dev": 4, "test": 5})
    assert source.notes == (
        f"Folder {tmp_path}: train (6 images of 2 classes); without class folders, so not used: "
        f"dev (4 images), test (5 images); in {root}.",
    )
    # Files that are not read count, too.
    assert source.content(ContentDigests())["files"] == 6 + 9 + 6


def test_a_flat_split_and_folders_in_themselves(tmp_path, fill):
    source = fill(tmp_path, "train/train/a/1.png", "train/train/b/2.png", "test/test/b/3.png",
                  "val/4.png", "val/labels/4.txt")  # fmt: skip
    assert splits_of(source) == {
        "train": {"a": ["1.png"], "b": ["2.png"]},
        "test": {"b": ["3.png"]},
    }
    assert source.skipped_files() == SkippedFiles(others={".txt": 1}, without_class={"dev": 1})


def test_a_class_named_images_is_a_class(tmp_path, fill):
    source = fill(tmp_path, "train/images/1.png", "train/text/2.png", "test/images/3.png")
    assert splits_of(source)["test"] == {"images": ["3.png"]}


def test_classes_that_a_split_lacks(tmp_path, fill):
    (tmp_path / "dev/c").mkdir(parents=True)
    (tmp_path / "test/notes").mkdir(parents=True)
    source = fill(tmp_path, "train/a/1.png", "train/b/2.png", "train/c/3.png", "dev/a/4.png",
                  "dev/b/5.png", "test/c/6.png", "test/notes/7.txt")  # fmt: skip
    assert source.class_names == ["a", "b", "c"] and source.empty_classes == {}
    assert listed(source, "test") == [("test/c/6.png", 2)]
    (note,) = source.notes
    assert note.endswith("dev (2 images of 2 classes), test (1 image of 1 class).")
    assert source.skipped_files().others == {".txt": 1}


def test_classes_without_images_to_train_on(tmp_path, fill):
    source = fill(tmp_path, "a/1.png", "b/2.png", "c/3.txt")
    assert source.class_names == ["a", "b", "c"] and source.empty_classes == {"c": ""}


def test_images_that_are_not_decoded_are_named(tmp_path, fill):
    fill(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "c").mkdir()
    for name in ("1.HEIC", "2", "3.heif"):
        (tmp_path / "c" / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    source = sources.open_source(f"folder:{tmp_path}")
    text = "3 HEIC images are not read: convert them to JPEG or PNG"
    assert source.empty_classes == {"c": text}
    assert source.skipped_files() == SkippedFiles(unsupported={"HEIC": 3})
    with pytest.raises(UserError, match=rf"without images to train on: c \({text}\): fill them"):
        open_pools(DataConfig(dataset=f"folder:{tmp_path}"))
    for path in [*tmp_path.glob("*/*.png")]:
        path.unlink()
    with pytest.raises(
        UserError, match=f"holds no image: .* for each class if they have labels; {text}"
    ):
        sources.open_source(f"folder:{tmp_path}")
    with pytest.raises(
        UserError, match=f"holds no image: .* for each class if they have labels; {text}"
    ):
        sources.open_source(f"folder:{tmp_path}/c")


@pytest.mark.parametrize("names", ["fold0 fold1 fold2", "Part_1 Part_2", "split-1 split-2"])
def test_folds_are_no_classes(tmp_path, fill, names):
    with pytest.raises(UserError, match=r"has folds, .* each with the folders cat, dog: expected"):
        fill(tmp_path, *(f"{fold}/{c}/1.png" for fold in names.split() for c in ("cat", "dog")))


def test_classes_with_the_same_folders_are_asked_about(tmp_path, fill):
    source = fill(tmp_path, *(f"{a}/{b}/1.png" for a in ("cat", "dog") for b in ("left", "right")))
    assert source.class_names == ["cat", "dog"]
    assert source.notes[0].endswith(
        "All have the same folders (left, right): are these the classes?"
    )
    source = fill(tmp_path / "others", "cat/left/1.png", "dog/left/2.png", "dog/right/3.png")
    assert "same folders" not in source.notes[0]


@pytest.mark.parametrize(
    ("flag", "path", "message"),
    [
        ("unlabeled_dataset", "empty", "empty: .*empty holds no image: expected images, in a fol"),
        ("test_dataset", "empty", "--test_dataset=folder:.*empty: .*empty holds no image"),
        ("test_dataset", "flat", "flat has no labels: give images in class folders, .*--labels"),
        ("dataset", "flat", "flat has no labels: give images in class folders, .*--labels"),
    ],
)
def test_messages_name_the_setting_and_what_fits(tmp_path, fill, flag, path, message):
    fill(tmp_path / "photos", "a/1.png", "b/2.png")
    fill(tmp_path / "flat", "1.png", "2.png")
    (tmp_path / "empty").mkdir()
    sources_given = {"dataset": f"folder:{tmp_path}/photos", flag: f"folder:{tmp_path}/{path}"}
    with pytest.raises(UserError, match=message):
        open_pools(DataConfig(**sources_given))


def test_names_are_compared_in_normal_form_c(tmp_path, fill):
    composed, decomposed = unicodedata.normalize("NFC", "ä"), unicodedata.normalize("NFD", "ä")
    source = fill(tmp_path, f"train/{decomposed}/1.png", "train/b/2.png", f"test/{composed}/3.png")
    assert source.class_names == ["b", composed]
    assert listed(source, "train")[1] == (f"train/{decomposed}/1.png", 1)
    assert listed(source, "test") == [(f"test/{composed}/3.png", 1)]


def test_numbers_are_in_numerical_order(tmp_path, fill):
    source = fill(tmp_path, *(f"train/{number}/{number}.png" for number in range(12)),
                  "test/10/a.png")  # fmt: skip
    assert source.class_names == [str(number) for number in range(12)]
    assert listed(source, "test") == [("test/10/a.png", 10)]


def test_images_are_told_by_their_content(tmp_path, fill, encoded_image):
    kinds = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "PPM")
    fill(tmp_path, "a/x.png", "b/readme.txt", "b/2.png")
    for number, kind in enumerate(kinds):
        for name in (kind, f"{number}.{kind.lower()}", f"{number}.dat", f"{number}.v1.0"):
            (tmp_path / "a" / name).write_bytes(encoded_image(number, kind))
        (tmp_path / "a" / f"{number}.NEF").write_bytes(encoded_image(number, kind))
    (tmp_path / "b" / "broken.webp").write_bytes(b"text")
    (tmp_path / "b" / "Makefile").write_bytes(b"P1 is the first patient, BMI 20")
    source = sources.open_source(f"folder:{tmp_path}")
    images = list(source.images("train"))
    assert len(images) == 1 + 4 * len(kinds) + 2
    assert source.skipped_files().others == {".txt": 1, "no suffix": 1}
    assert source.skipped_files().unsupported == {"camera raw": len(kinds)}
    readable = 0
    for image in images:
        try:
            normalize_image(image.encoded)
            readable += 1
        except ValueError:
            assert image.id == "b/broken.webp"
    assert readable == len(images) - 1
