"""Folders with a table of labels: which image is in which split, with which label."""

import contextlib
import re
import shutil

import pytest

from nsk.config.data import DataConfig
from nsk.data import sources
from nsk.data.content import ContentDigests
from nsk.data.sources.source import SkippedFiles
from nsk.errors import UserError


@pytest.fixture
def open_labeled(tmp_path, fill):
    """Writes images and a table, and opens the source."""

    def open_source(table, *paths, header="path,label", **settings):
        shutil.rmtree(tmp_path / "photos", ignore_errors=True)
        with contextlib.suppress(UserError):  # Some folders cannot be read without the table.
            fill(tmp_path / "photos", *paths)
        path = tmp_path / "labels.csv"
        path.write_text("\n".join([header, *table]) + "\n")
        config = DataConfig(dataset=f"folder:{tmp_path}/photos", labels=str(path), **settings)
        return sources.open_sources(config)["dataset"]

    return open_source


def listed(source):
    """dict from splits to (id, name of the class)."""
    names = source.class_names
    return {
        split: [
            (image.id, None if image.label is None else names[image.label])
            for image in source.images(split)
        ]
        for split in source.splits
    }


def test_a_flat_folder(open_labeled):
    """Images without a row are unlabelled."""
    source = open_labeled(["a.png,dog", "b.png,cat", "c.png,"], "a.png", "b.png", "c.png", "d.png")
    assert source.class_names == ["cat", "dog"]
    assert listed(source) == {
        "train": [("a.png", "dog"), ("b.png", "cat")],
        "unlabeled": [("c.png", None), ("d.png", None)],
    }
    assert "Labels of 3 images, of 2 classes, from" in source.notes[0]


def test_kaggle(open_labeled):
    """A flat train folder with a table of names without suffix; a flat test without labels."""
    paths = [*(f"train_images/{n}.jpg" for n in "abcd"), "test_images/x.jpg", "test_images/y.jpg"]
    columns = {"path_column": "id_code", "label_column": "diagnosis"}
    table = ["a,2", "b,10", "c,0", "d,2"]
    source = open_labeled(table, *paths, header="id_code,diagnosis", **columns)
    assert source.class_names == ["0", "2", "10"]
    assert listed(source) == {
        "train": [(f"train_images/{n}.jpg", c) for n, c in zip("abcd", ["2", "10", "0", "2"])]  # noqa: B905
    }
    assert source.skipped_files() == SkippedFiles(without_label={"test": 2})


def test_tiny_imagenet(open_labeled, tmp_path):
    """Class folders in train, a table of val, no labels of test."""
    paths = [f"train/{name}/images/{name}_{n}.JPEG" for name in ("n1", "n2") for n in range(3)]
    paths += [*(f"val/images/val_{n}.JPEG" for n in range(3)), "test/images/test_0.JPEG"]
    table = [f"val_{n}.JPEG\tn{1 + n % 2}\t0\t0\t9\t9" for n in range(1, 3)]
    source = open_labeled(table, *paths, header="val_0.JPEG\tn1\t0\t0\t9\t9")
    found = listed(source)
    assert source.splits == ("train", "dev") and source.class_names == ["n1", "n2"]
    assert found["train"][0] == ("train/n1/images/n1_0.JPEG", "n1") and len(found["train"]) == 6
    assert found["dev"] == [(f"val/images/val_{n}.JPEG", f"n{1 + n % 2}") for n in range(3)]
    assert source.skipped_files() == SkippedFiles(without_label={"test": 1})


def test_folders_that_are_no_classes(open_labeled):
    """As HAM10000: two folders of images and a table with other labels."""
    paths = ["part_1/a.jpg", "part_1/b.jpg", "part_2/c.jpg", "part_2/d.jpg"]
    source = open_labeled(["a,nv", "b,mel", "c,nv"], *paths)
    assert listed(source) == {
        "train": [("part_1/a.jpg", "nv"), ("part_1/b.jpg", "mel"), ("part_2/c.jpg", "nv")],
        "unlabeled": [("part_2/d.jpg", None)],
    }


def test_a_table_corrects_class_folders_and_adds_labels(open_labeled):
    paths = ["labeled/cat/1.png", "labeled/dog/2.png", "labeled/dog/3.png"]
    paths += ["unlabeled/4.png", "unlabeled/5.png"]
    source = open_labeled(["labeled/dog/3.png,cat", "4.png,dog"], *paths)
    assert listed(source) == {
        "labeled": [
            ("labeled/cat/1.png", "cat"),
            ("labeled/dog/2.png", "dog"),
            ("labeled/dog/3.png", "cat"),
            ("unlabeled/4.png", "dog"),
        ],
        "unlabeled": [("unlabeled/5.png", None)],
    }


@pytest.mark.parametrize(
    ("paths", "table", "expected"),
    [
        (  # Beside `invalid`, `valid` is a class, whether the table has all images or some.
            ("valid/1.png", "invalid/2.png", "invalid/3.png"),
            ["1.png,valid", "2.png,invalid", "3.png,valid"],
            {"train": ["invalid/2.png", "invalid/3.png", "valid/1.png"]},
        ),
        (
            ("valid/1.png", "valid/2.png", "invalid/3.png"),
            ["2.png,invalid"],
            {"train": ["invalid/3.png", "valid/1.png", "valid/2.png"]},
        ),
        (  # Here the folders are no classes, or splits.
            ("valid/1.png", "part/2.png"),
            ["1.png,cat", "2.png,cat"],
            {"train": ["part/2.png"], "dev": ["valid/1.png"]},
        ),
        (
            ("train/valid/1.png", "train/no/2.png", "valid/valid/3.png", "valid/no/4.png"),
            ["1.png,valid", "4.png,valid"],
            {
                "train": ["train/no/2.png", "train/valid/1.png"],
                "dev": ["valid/no/4.png", "valid/valid/3.png"],
            },
        ),
        (  # Folders of splits inside of others.
            ("a/train/1.png", "a/test/2.png", "b/train/3.png", "b/test/4.png"),
            [f"{number}.png,cat" for number in range(1, 5)],
            {"train": ["a/train/1.png", "b/train/3.png"], "test": ["a/test/2.png", "b/test/4.png"]},
        ),
    ],
)
def test_a_class_folder_is_no_split(open_labeled, paths, table, expected):
    source = open_labeled(table, *paths)
    found = {split: [id for id, _ in rows] for split, rows in listed(source).items()}
    assert found == expected


def test_links_to_folders_of_splits_and_classes_are_followed(open_labeled, tmp_path, fill):
    """As without a table."""
    with contextlib.suppress(UserError):
        fill(tmp_path / "far", "val/1.png", "cats/2.png")
    paths = ("train/dog/3.png", "train/cow/4.png")
    open_labeled(["3.png,dog"], *paths)
    (tmp_path / "photos" / "val").symlink_to(tmp_path / "far" / "val")
    (tmp_path / "photos" / "train" / "cat").symlink_to(tmp_path / "far" / "cats")
    (tmp_path / "labels.csv").write_text("path,label\nval/1.png,cow\n")
    labels = str(tmp_path / "labels.csv")
    config = DataConfig(dataset=f"folder:{tmp_path}/photos", labels=labels)
    assert listed(sources.open_sources(config)["dataset"]) == {
        "train": [
            ("train/cat/2.png", "cat"),
            ("train/cow/4.png", "cow"),
            ("train/dog/3.png", "dog"),
        ],
        "dev": [("val/1.png", "cow")],
    }


def test_images_without_a_label_are_counted_in_the_split_of_their_row(open_labeled):
    table = ["a.png,cat,train", "b.png,dog,train", "c.png,,dev", "d.png,,dev", "e.png,,test"]
    source = open_labeled(table, *(f"{n}.png" for n in "abcde"), header="path,label,split")
    assert source.skipped_files() == SkippedFiles(without_label={"dev": 2, "test": 1})


def test_splits_and_groups_of_the_table(open_labeled):
    table = ["a.png,cat,Training,p1", "b.png,dog,valid,p2", "c.png,cat,test,", "d.png,dog,,p1"]
    table += ["e.png,cat,unlabeled,p3"]
    source = open_labeled(table, *(f"{n}.png" for n in "abcde"), header="path,label,split,patient",
                          group_column="patient")  # fmt: skip
    assert listed(source) == {
        "train": [("a.png", "cat"), ("d.png", "dog")],
        "unlabeled": [("e.png", "cat")],
        "dev": [("b.png", "dog")],
        "test": [("c.png", "cat")],
    }
    assert source.has_groups and not open_labeled(["a.png,cat"], "a.png").has_groups
    groups = {image.id: image.group for split in source.splits for image in source.images(split)}
    assert groups == {"a.png": "p1", "b.png": "p2", "c.png": "", "d.png": "p1", "e.png": "p3"}


def test_columns_of_splits_and_groups_are_described(open_labeled):
    table = ["a.png,dog,train,p1", "b.png,cat,Val,p2", "c.png,cat,,p1", "d.png,dog,train,"]
    columns = {"group_column": "patient", "split_column": "fold"}
    paths = [row.partition(",")[0] for row in table]
    source = open_labeled(table, *paths, header="path,label,fold,patient", **columns)
    assert source.notes[1:] == (
        "Groups: 2, from column patient (images without a group: 1).",
        "Splits: 2 train, 1 dev, from column fold.",
    )
    assert open_labeled(["a.png,dog"], "a.png").notes[1:] == ()


def test_what_is_wrong_is_named(open_labeled):
    def refused(message, *arguments, **options):
        with pytest.raises(UserError, match=message) as error:
            open_labeled(*arguments, **options)
        assert "\n" not in str(error.value)

    refused(r"1 of 2 rows have no image below .*photos, more than --max_corrupt_fraction=0.01: x\.",
            ["a.png,cat", "x,cat"], "a.png")  # fmt: skip
    refused("'holdout', of a.png, is not a split: expected train, labeled,",
            ["a.png,cat,holdout"], "a.png", header="path,label,split")  # fmt: skip
    refused("dev or test have labels that no training image has: dgo", ["a,cat,", "b,dgo,test"],
            "a.png", "b.png", header="path,label,split")  # fmt: skip
    # Nothing is known of train: neither rows nor classes.
    paths = ["train/x/a.png", "training/y/b.png", "val/c.png"]
    refused("has two folders for train", ["c,x"], *paths)


def test_rows_without_an_image_are_named(open_labeled):
    table = [*(f"{n}.png,cat" for n in range(3)), "gone.png,dog"]
    source = open_labeled(table, *(f"{n}.png" for n in range(3)), max_corrupt_fraction=0.5)
    assert re.search(r"^1 rows of .*labels.csv have no image: gone.png.$", source.notes[1])


def test_the_content_depends_on_the_table(open_labeled):
    first = open_labeled(["a.png,cat"], "a.png", "notes.txt").content(ContentDigests())
    assert first["files"] == 2
    assert open_labeled(["a.png,cat"], "a.png", "notes.txt").content(ContentDigests()) == first
    assert open_labeled(["a.png,dog"], "a.png", "notes.txt").content(ContentDigests()) != first
