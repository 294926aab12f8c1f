"""Tables of labels: their formats, and the files that their rows name."""

import time
from pathlib import Path

import pandas
import pytest

from nsk.data.sources.label_table import (
    Columns,
    LabelTable,
    Row,
    match_rows,
    read_label_table,
    read_paths,
)
from nsk.errors import UserError

ROWS = [Row("a/1.png", "cat"), Row("2.png", "3", "test", "p 7"), Row("3", "")]


def read(file, content, **columns):
    file.write_text(content, encoding="utf-8")
    return read_label_table(LabelTable(file, Columns(**columns)))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_text(tmp_path, delimiter):
    lines = ["path,label,split,group", "a/1.png,cat,,", "2.png,3,test,p 7", "", "3,,,"]
    content = "\n".join(lines).replace(",", delimiter)
    assert read(tmp_path / "labels.csv", content) == ROWS
    assert read(tmp_path / "labels.csv", "\ufeff" + content.replace("\n", "\r\n")) == ROWS


def test_quotes_other_columns_and_short_rows(tmp_path):
    content = 'n,class,image\n1,"cat, or dog",a.png\n2, bird ,b.png\n3\n'
    found = read(tmp_path / "labels.csv", content, path="image", label="class")
    assert found == [Row("a.png", "cat, or dog"), Row("b.png", "bird"), Row("", "")]


def test_without_a_header(tmp_path):
    """As Tiny-ImageNet's val_annotations.txt: name, class and a box."""
    content = "val_0.JPEG\tn1\t0\t32\t44\t62\nval_1.JPEG\tn2\t5\t5\t9\t9\n"
    found = read(tmp_path / "val_annotations.txt", content)
    assert found == [Row("val_0.JPEG", "n1"), Row("val_1.JPEG", "n2")]


def test_parquet(tmp_path):
    path = tmp_path / "labels.parquet"
    numbers = {"path": ["a.png", "b.png", "c.png"], "label": [1.0, None, 2.0], "other": [1, 2, 3]}
    pandas.DataFrame(numbers).to_parquet(path)
    assert read_label_table(LabelTable(path)) == [
        Row("a.png", "1"),
        Row("b.png", ""),
        Row("c.png", "2"),
    ]
    pandas.DataFrame({"file": ["a.png"], "label": [7]}).to_parquet(path)
    assert read_label_table(LabelTable(path, Columns(path="file"))) == [Row("a.png", "7")]
    with pytest.raises(UserError, match="has the columns file, label, none named 'path'"):
        read_label_table(LabelTable(path))


def test_tables_that_cannot_be_read_are_refused(tmp_path):
    path = tmp_path / "labels.csv"
    with pytest.raises(UserError, match=r"--labels=.*labels.csv cannot be read \(No such file"):
        read_label_table(LabelTable(path))
    with pytest.raises(UserError, match="columns id_code, diagnosis, none named 'path': give -"):
        read(path, "id_code,diagnosis\n0a1b,2\n")
    with pytest.raises(UserError, match="none named 'label': give --label_column"):
        read(path, "path,diagnosis\n0a1b,2\n")
    with pytest.raises(UserError, match="has no rows"):
        read(path, "path,label\n")
    path.write_bytes(b"path,label\na.png,\xff\xfe\n")
    with pytest.raises(UserError, match=r"UnicodeDecodeError.*give a CSV file in UTF-8, or"):
        read_label_table(LabelTable(path))
    (tmp_path / "labels.parquet").write_text("path,label\n")
    with pytest.raises(UserError, match=r"labels.parquet cannot be read \(ArrowInvalid"):
        read_label_table(LabelTable(tmp_path / "labels.parquet"))


FILES = ["train/1.png", "train/x/2.png", "train/y/2.png", "test/5.jpg", "test/b\u00e4r.png"]


def matched(text, root="/data/photos", table="/data/photos/tables/labels.csv"):
    found, missing = match_rows([Row(text, "cat")], FILES, Path(root), Path(table))
    assert len(found) + len(missing) == 1
    return next(iter(found), None)


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("train/1.png", "train/1.png"),
        ("./train/1.png", "train/1.png"),
        ("train\\1.png", "train/1.png"),
        ("/data/photos/train/1.png", "train/1.png"),
        ("../train/1.png", "train/1.png"),
        ("1.png", "train/1.png"),
        ("1", "train/1.png"),
        ("train/1", "train/1.png"),
        ("x/2.png", "train/x/2.png"),
        ("5", "test/5.jpg"),
        ("ba\u0308r.png", "test/b\u00e4r.png"),
        ("5.png", None),
        ("rain/1.png", None),
        ("/elsewhere/train/1.png", None),
        ("", None),
    ],
)
def test_paths_of_rows(text, file):
    assert matched(text) == file


def test_rows_that_fit_several_files_or_contradict_each_other_are_refused():
    with pytest.raises(UserError, match=r"'2.png' fits several files, train/x/2.png, train/y/2.pn"):
        matched("2.png")
    rows = [Row("1.png", "cat"), Row("train/1.png", "cat")]
    found, _ = match_rows(rows, FILES, Path("/data"), Path("labels.csv"))
    assert found == {"train/1.png": rows[0]}
    rows = [Row("1.png", "cat"), Row("1", "dog", "test")]
    message = "two rows for train/1.png that differ: label='cat' and label='dog' split='test'"
    with pytest.raises(UserError, match=message):
        match_rows(rows, FILES, Path("/data"), Path("labels.csv"))


def test_many_files_of_one_name_are_found_in_a_short_time():
    """Names of files such as ID/image.png: comparing every row with all files takes minutes."""
    files = [f"train/{number}/image.png" for number in range(20_000)]
    rows = [
        Row(f"{number}/image{suffix}", "cat") for number, suffix in enumerate(["", ".png"] * 10_000)
    ]
    started = time.process_time()
    found, missing = match_rows(rows, files, Path("/data/photos"), Path("labels.csv"))
    assert list(found) == files and not missing
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("name", "content", "paths"),
    [
        ("a.txt", "a/1.png\nb 2.jpg\n\n 3.png\r\n", ["a/1.png", "b 2.jpg", "3.png"]),
        ("a.txt", "cat, or dog.png\na|b.png\n", ["cat, or dog.png", "a|b.png"]),
        ("a.txt", "no_suffix, here\nb\n", ["no_suffix, here", "b"]),
        ("a.txt", "path\n1.png\n", ["1.png"]),
        ("a.txt", "id\tpath\n7\t1.png\n", ["1.png"]),
        ("a.txt", "1.png\tcat\t5\n2.png\tdog\t6\n", ["1.png", "2.png"]),
        ("a.csv", "1.png\n2.png\n", ["1.png", "2.png"]),
        ("a.csv", "1.png,cat\n2.png,dog\n", ["1.png", "2.png"]),
        ("a.csv", "path\nno_suffix\n", ["no_suffix"]),
    ],
)
def test_lists_of_paths(tmp_path, name, content, paths):
    (tmp_path / name).write_bytes(content.encode())
    assert read_paths(tmp_path / name, "path", "images") == paths


def test_lists_that_cannot_be_read_are_refused_with_their_setting(tmp_path):
    path = tmp_path / "list.csv"
    for content, message in (
        (
            "file,label\na.png,cat\n",
            "has the columns file, label, none named 'path': give --path_c",
        ),
        ("", "has no rows: give a table of paths"),
        ("path\n", "has no rows: give a table of paths"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=f"^--images={path} {message}"):
            read_paths(path, "path", "images")
    (tmp_path / "list.txt").write_bytes(b"\xff.png\n")
    with pytest.raises(UserError, match=r"^--images=.*list.txt cannot be read \(UnicodeDecodeErr"):
        read_paths(tmp_path / "list.txt", "path", "images")
    path.write_text("a.png\nb.png\n")
    with pytest.raises(UserError, match=r"^--labels=.*has one column, of paths: give one of label"):
        read_label_table(LabelTable(path))


@pytest.mark.parametrize("column", ["split", "group"])
def test_a_given_column_must_be_there(tmp_path, column):
    """Otherwise a mistyped name would be ignored, and groups would be divided."""
    path = tmp_path / "labels.csv"
    message = f"has the columns path, label, patient, none named 'pateint': give --{column}_column"
    with pytest.raises(UserError, match=message):
        read(path, "path,label,patient\na.png,cat,p1\n", **{column: "pateint"})
    with pytest.raises(UserError, match="has no header, so path and label alone, none named 'p'"):
        read(path, "a.png,cat\n", **{column: "p"})
    pandas.DataFrame({"path": ["a.png"], "label": ["cat"]}).to_parquet(tmp_path / "l.parquet")
    with pytest.raises(UserError, match=f"none named 'p': give --{column}_column"):
        read_label_table(LabelTable(tmp_path / "l.parquet", Columns(**{column: "p"})))
