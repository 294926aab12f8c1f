import io

import numpy as np
import pytest
from PIL import Image

from nsk.data.image_folders import (
    NUM_FIRST_BYTES,
    count_suffixes,
    describe_unsupported,
    is_image_content,
    is_litter,
    list_files,
    unsupported_format,
)
from nsk.data.normalization import FORMATS

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)


def encoded(kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_all_formats_are_told_by_their_first_bytes(kind):
    assert is_image_content(encoded(kind)[:NUM_FIRST_BYTES])


def test_variants_of_formats_are_told_by_their_first_bytes():
    for options in ({"big_tiff": True}, {"tiffinfo": {270: "x"}}):
        assert is_image_content(encoded("TIFF", **options)[:NUM_FIRST_BYTES])
    assert is_image_content(b"P3 # a comment\n 5 7\n255\n")
    assert is_image_content(b"\0\0\0\x20ftypmif1\0\0\0\0mif1miafavif")
    two = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])]
    for kind in ("GIF", "WEBP", "AVIF"):
        buffer = io.BytesIO()
        two[0].save(buffer, kind, save_all=True, append_images=two[1:])
        assert is_image_content(buffer.getvalue()[:NUM_FIRST_BYTES])


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"id,label\n1,cat\n", b"%PDF-1.7", b"PK\x03\x04", b"\x1f\x8b\x08", b"<svg/>"),
        *(b"BMI,age\n27.4,51,x\n", b"P1 is the first of 3 patients", b"RIFF\0\0\0\0WAVEfmt "),
        *(
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            b"\0\0\0\x20ftypisom\0\0\2\0isomiso2",
            b"IIRO\x08",
        ),
    ],
)
def test_other_files_are_not_images(content):
    assert not is_image_content(content)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        ("a", b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "HEIC"),
        ("a", b"\0\0\0\x20ftypmif1\0\0\0\0mif1miafavif", ""),
        ("a.heic", encoded("JPEG"), ""),
        ("a.HEIC", b"cut", "HEIC"),
        ("a", b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        ("a", b"\xff\x0a\x00", "JPEG XL"),
        ("a", encoded("JPEG2000"), "JPEG 2000"),
        ("a", encoded("JPEG2000", no_jp2=True), "JPEG 2000"),
        ("a", b"8BPS\0\1", "Photoshop"),
        ("a", b"<svg xmlns=", "SVG"),
        ("a.svg", b"<?xml version=", "SVG"),
        ("a.NEF", encoded("TIFF"), "camera raw"),
        ("a", b"\0\0\0\x18ftypcrx \0\0\0\1", "camera raw"),
        ("a.txt", b"text", ""),
        ("a.mp4", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", ""),
    ],
)
def test_images_that_are_not_decoded(tmp_path, name, content, kind):
    assert unsupported_format(name, content[:NUM_FIRST_BYTES]) == kind
    if kind:
        assert not is_image_content(content[:NUM_FIRST_BYTES]) or kind == "camera raw"
        (tmp_path / name).write_bytes(content)
        found = list_files(tmp_path)
        if name != "a.jpg":  # Refused when it is decoded.
            assert found.unsupported == {f"{tmp_path}/{name}": kind}
            assert found.others == [f"{tmp_path}/{name}"]


def test_what_to_do_with_images_that_are_not_decoded():
    assert describe_unsupported([]) == ""
    many = describe_unsupported(["SVG", *["HEIC"] * 1200])
    assert many == "1,200 HEIC and 1 SVG images are not read: convert them to JPEG or PNG"
    assert describe_unsupported(["HEIC"]) == "1 HEIC image is not read: convert it to JPEG or PNG"


def test_litter():
    names = [".DS_Store", "._a.jpg", ".ipynb_checkpoints", "__MACOSX", "Thumbs.db", "thumbs.db"]
    names += ["desktop.ini", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"]
    assert all(map(is_litter, names))
    assert not any(map(is_litter, ["cat", "_cat", "#1", "@home", "MACOSX", "thumbs", "a.DS_Store"]))


def test_suffixes_are_counted():
    paths = ["a/1.txt", "b.d/2.TXT", "3.csv", "b.d/noise", "x.", "1.2 of 3", "y.tar.gz"]
    counts = count_suffixes(paths)
    assert counts == {".txt": 2, "no suffix": 3, ".csv": 1, ".gz": 1}
    assert next(iter(counts)) == "no suffix"


def test_suffixless_files_are_opened_once_and_others_never(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "nsk.data.image_folders._first_bytes",
        lambda path: opened.append(path) or b"\xff\xd8\xff",
    )
    for name in ("1.jpg", "2.PNG", "3", "4.nef", ".hidden"):
        (tmp_path / name).touch()
    found = list_files(tmp_path)
    assert opened == [f"{tmp_path}/3"]
    assert found.images == [f"{tmp_path}/{name}" for name in ("1.jpg", "2.PNG", "3")]
    assert found.others == [f"{tmp_path}/4.nef"] and found.litter == {".hidden": 1}
