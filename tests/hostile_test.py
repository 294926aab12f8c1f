"""Malicious and broken files: no crash, no unbounded memory, and every such file is reported.

Cases of the command line run in a single process, with an `Outcome` for each test; the other tests
call the functions that open such files.
"""

import ast
import collections
import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import nsk
from nsk.commands import verify
from nsk.config.data import DataConfig
from nsk.data import normalization, records, shards, sources
from nsk.data.content import ContentDigests
from nsk.data.ingest import describe, ingest
from nsk.data.sources import folder as folder_source
from nsk.data.sources.source import SkippedFiles
from nsk.errors import UserError
from nsk.models import model_files
from nsk.store.folders import StageKey, build_or_reuse, load_stage
from nsk.store.manifest import MANIFEST
from nsk.store.verification import find_damage
from nsk.training import checkpoint

ROOT = Path(nsk.__file__).parents[1]
MEBIBYTE = 2**20
NOBODY = 65534
MAX_SECONDS = 60
MAX_GROWTH_MEBIBYTES = 200
UNIDENTIFIED = "cannot identify the image: expected JPEG, PNG, GIF, BMP, WEBP, TIFF, AVIF, PPM"
TEXT_BOMB = "ValueError: Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK"


@pytest.fixture(autouse=True)
def limited():
    """Ends a test that blocks on a pipe or never terminates."""

    def stop(*_):
        raise TimeoutError(f"the test takes more than {MAX_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MAX_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def encoded(kind="PNG", number=0, side=8, **options):
    """An image of `side` x `side` pixels, different for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def fill(root, classes=("cat", "dog"), count=12):
    """Readable images, enough for every split."""
    for name in classes:
        for number in range(count):
            write(
                root / name / f"{number}.png",
                encoded(number=zlib.crc32(f"{name} {number}".encode("utf-8", "replace"))),
            )
    return root


def read_all(root, folder, **settings):
    """The result of `ingest` for a folder in which any share of images may be unreadable."""
    common = {"num_labeled": 4, "num_dev": 4, "max_corrupt_fraction": 1.0}
    counts = ingest(DataConfig(dataset=f"folder:{root}", **common, **settings), 0, folder)
    assert all("\n" not in line for line in describe(counts))
    return counts


def reasons(counts):
    """dict from the id of each listed unreadable image to the reason."""
    return {image["id"]: image["reason"] for image in counts["corrupt"]["images"]}


# Images that are much larger than their files.


def zeros(count):
    """Zero bytes, compressed to a thousandth by repeating a block."""

    def block(count):
        compress = zlib.compressobj(9, wbits=-15)
        return compress.compress(bytes(count)) + compress.flush(zlib.Z_FULL_FLUSH)

    checksum = struct.pack(">HH", count % 65_521, 1)
    blocks = block(MEBIBYTE) * (count // MEBIBYTE) + block(count % MEBIBYTE)
    return b"\x78\xda" + blocks + b"\x03\0" + checksum


def chunk(name, data):
    crc = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + crc


def png(width=8, height=8, more=b"", compressed=None):
    """A gray PNG of zeros, or of other compressed content than its header states."""
    compressed = zeros((1 + width) * height) if compressed is None else compressed
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    content = header + more + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def with_header(kind, offset, width_and_height):
    """A small image with another size in its header."""
    content = bytearray(encoded(kind))
    if isinstance(offset, tuple):
        marker, distance = offset
        offset = content.rindex(marker) + distance
    content[offset : offset + len(width_and_height)] = width_and_height
    return bytes(content)


def tiff(sides, tile):
    """A gray TIFF of a single compressed tile, with an image that is a corner of it."""
    width, height = sides
    content = zeros(tile * tile)
    short, long = 3, 4
    tags = [(256, long, width), (257, long, height), (258, short, 8), (259, short, 8)]
    tags += [(262, short, 1), (277, short, 1), (322, long, tile), (323, long, tile)]
    offset = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags += [(324, long, offset), (325, long, len(content))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


def animation(frames, kind, side):
    colours = [(number % 256, number // 256, 0) for number in range(frames)]
    images = [Image.new("RGB", (side, side), colour) for colour in colours]
    buffer = io.BytesIO()
    images[0].save(buffer, kind, save_all=True, append_images=images[1:])
    return buffer.getvalue()


def too_many(width, height):
    return f"{width:,} x {height:,} pixels are more than --max_image_pixels=100000000"


# Name -> content and the reason why it is unreadable; "" if it is readable.
BOMBS = {
    "header.png": (lambda: png(50_000, 50_000, compressed=zeros(9)), too_many(50_000, 50_000)),
    "header.gif": (
        lambda: with_header("GIF", 6, struct.pack("<HH", 65_535, 65_535)),
        too_many(65_535, 65_535),
    ),
    "frame.gif": (
        lambda: with_header("GIF", (b"\x2c\0\0\0\0", 5), struct.pack("<HH", 65_535, 65_535)),
        too_many(65_535, 65_535),
    ),
    "header.jpg": (
        lambda: with_header("JPEG", (b"\xff\xc0", 5), struct.pack(">HH", 60_000, 65_000)),
        too_many(65_000, 60_000),
    ),
    "header.bmp": (
        lambda: with_header("BMP", 18, struct.pack("<ii", 50_000, -50_000)),
        too_many(50_000, 50_000),
    ),
    "webp.png": (
        lambda: with_header("WEBP", 26, struct.pack("<HH", 16_383, 16_383)),
        too_many(16_383, 16_383),
    ),
    "avif.png": (
        lambda: with_header("AVIF", (b"ispe", 8), struct.pack(">II", 16_000, 16_000)),
        too_many(16_000, 16_000),
    ),
    "ppm.png": (lambda: b"P6 50000 50000 255\n" + bytes(99), too_many(50_000, 50_000)),
    "tiff.png": (lambda: tiff((50_000, 50_000), 16), too_many(50_000, 50_000)),
    "tile.png": (lambda: tiff((8, 8), 30_000), too_many(30_000, 30_000)),
    "colours.png": (lambda: png(more=chunk(b"iCCP", b"x\0\0" + zeros(2**29))), TEXT_BOMB),
    "text.png": (lambda: png(more=chunk(b"zTXt", b"x\0\0" + zeros(2**29))), TEXT_BOMB),
    "long_text.png": (lambda: png(more=chunk(b"iTXt", b"x\0\1\0\0\0" + zeros(2**29))), TEXT_BOMB),
    "texts.png": (
        lambda: png(more=100 * chunk(b"zTXt", b"x\0\0" + zeros(1_000_000))),
        "ValueError: Too much memory used in text chunks: 68000000>MAX_TEXT_MEMORY",
    ),
    "pixels.png": (lambda: png(9, 9, compressed=zeros(2**28)), ""),
    "frames.gif": (lambda: animation(3000, "GIF", 4), ""),
    "frames.png": (lambda: animation(300, "PNG", 5), ""),
    "claimed_frames.png": (
        lambda: png(10, 10, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        "",
    ),
}


# Records and models that claim to be larger than they are.


def masked_crc(data):
    """The checksum of TFRecord: CRC-32C, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record_file_claiming(path, length, size=0):
    """Writes a TFRecord file of a valid record and one that claims `length` bytes.

    Args:
        size: of the file, bytes; the rest is a hole.
    """
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(records.image_example("good", encoded(), 0))
    header = struct.pack("<Q", length)
    with path.open("ab") as file:
        file.write(header + struct.pack("<I", masked_crc(header)) + b"some bytes")
        file.truncate(max(size, file.tell()))
    return path


def classifier(side=8):
    images = keras.Input((side, side, 3))
    return keras.Model(images, keras.layers.Dense(2)(keras.layers.Flatten()(images)))


def repacked(path, config=None, additional=(), **options):
    """Writes a `.keras` file with another config, or with additional entries."""
    classifier().save(path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    if config is not None:
        entries["config.json"] = config(entries["config.json"].decode())
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in [*entries.items(), *additional]:
            archive.writestr(name, content)
    return path


# The command line, in a single process for all tests.

PROGRAM = """
    import json, resource, sys
    from nsk import main
    main.define_flags()
    for name, arguments in json.load(sys.stdin):
        code = main.run_main(main.parse_flags(["nsk", *arguments]))
        mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps([name, code, mebibytes]), flush=True)
        print("=== end of", name, file=sys.stderr, flush=True)
"""
Outcome = collections.namedtuple("Outcome", "code lines growth_mebibytes workdir")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """dict from the name of a case to its `Outcome`."""
    base = tmp_path_factory.mktemp("main")
    good = fill(base / "good")
    bombs = fill(base / "bombs")
    for name, (make, _) in BOMBS.items():
        write(bombs / "cat" / name, make())
    os.mkfifo(base / "pipe.tfrecord")
    record_file_claiming(base / "claim.tfrecord", 2**60)
    record_file_claiming(base / "holes.tfrecord", 2**33, 2**33 + 1000)
    deflated = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    repacked(base / "bomb.keras", lambda _: b" " * 2**28, **deflated)
    keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x)]).save(
        base / "lambda.keras"
    )
    folder = f"--dataset=folder:{good}"
    cases = {
        "good": [folder],
        "bombs": [f"--dataset=folder:{bombs}", "--max_corrupt_fraction=0.9"],
        "too many bombs": [f"--dataset=folder:{bombs}", "--max_corrupt_fraction=0.1"],
        "pipe": [folder, f"--unlabeled_dataset=tfrecord:{base}/pipe.tfrecord"],
        "claim": [folder, f"--unlabeled_dataset=tfrecord:{base}/claim.tfrecord"],
        "holes": [folder, f"--unlabeled_dataset=tfrecord:{base}/holes.tfrecord"],
        "lambda": [folder, f"--teacher={base}/lambda.keras"],
        "bomb": [folder, f"--teacher={base}/bomb.keras"],
    }
    common = ["--num_labeled=4", "--num_dev=4", "--image_size=8", "--train_steps=5"]
    common += ["--models=convnet5,convnet5", "--labeled_batch_size=4", "--strategy=one"]
    common += ["--unlabeled_dataset=", "--teacher="]  # Flags keep their values between calls.
    calls = [
        (name, ["plan", *common, f"--workdir={base}/run {name}", *arguments])
        for name, arguments in cases.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=MAX_SECONDS,
    )
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [name for name, _, _ in results] == list(cases), done.stderr
    parts = re.split(r"=== end of .*\n", done.stderr)
    before, outcomes = results[0][2], {}
    for (name, code, mebibytes), text in zip(results, parts, strict=False):
        workdir = base / f"run {name}"
        outcomes[name] = Outcome(code, text.splitlines(), mebibytes - before, workdir)
        before = mebibytes
    return outcomes


def refused(outcome, pattern):
    """Checks that a case ended with exit code 2, a single line and little memory."""
    assert outcome.code == 2
    (line,) = (line for line in outcome.lines if line.startswith("nsk: "))
    assert line == outcome.lines[-1] and "Traceback" not in "".join(outcome.lines)
    assert re.fullmatch(f"nsk: {pattern}", line), line
    assert outcome.growth_mebibytes < MAX_GROWTH_MEBIBYTES


def test_decompression_bombs_are_counted_and_listed_and_take_no_memory(outcomes):
    assert outcomes["good"].code == outcomes["bombs"].code == 0
    assert outcomes["bombs"].growth_mebibytes < MAX_GROWTH_MEBIBYTES
    (made,) = (outcomes["bombs"].workdir / "data").iterdir()
    expected = {f"cat/{name}": reason for name, (_, reason) in BOMBS.items() if reason}
    counts = load_stage(made).counts
    assert reasons(counts) == expected
    assert counts["corrupt"]["count"] == len(expected) == 14
    assert sum(counts["images"].values()) == 24 + len(BOMBS) - len(expected)
    (line,) = (line for line in describe(counts) if "cannot be read" in line)
    assert "Left out: 14 that cannot be read, listed in stage.json: cat/avif.png (16,000" in line


def test_too_many_bombs_stop_the_run_with_a_single_line(outcomes):
    refused(
        outcomes["too many bombs"],
        r"14 of 42 images cannot be decoded, more than --max_corrupt_fraction=0\.1: cat/avif.*",
    )


def test_a_pipe_instead_of_records_is_refused_without_blocking(outcomes):
    refused(outcomes["pipe"], r".*/pipe\.tfrecord is not a file: give a pattern that .*")


def test_records_that_claim_more_bytes_than_the_file_are_refused(outcomes):
    """TensorFlow's reader crashes on the first, and takes 8 GiB for the second."""
    claim, holes, limit = f"{2**60:,}", f"{2**33:,}", f"{65 * MEBIBYTE:,}"
    message = "has a record of {} bytes after 1 others, expected at most {}: rebuild it."
    refused(outcomes["claim"], r".*/claim\.tfrecord " + message.format(claim, r"\d\d\d"))
    refused(outcomes["holes"], r".*/holes\.tfrecord " + message.format(holes, limit))


def test_models_with_code_and_decompression_bombs_are_refused(outcomes):
    message = r"The model .*/{}\.keras cannot be loaded \({}\): give another one\."
    refused(outcomes["lambda"], message.format("lambda", "Requested .* a `Lambda` layer .*"))
    refused(outcomes["bomb"], message.format("bomb", "it unpacks to 268,4.*, expected .* at most"))


# Broken images.


KINDS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "PPM")


def test_empty_and_truncated_files_are_counted_and_listed(tmp_path):
    root = fill(tmp_path / "images")
    for kind in KINDS:
        whole = encoded(kind, side=30)
        for share in (0, 5, 50, 90):
            write(root / "cat" / f"{kind}-{share}.png", whole[: len(whole) * share // 100])
    counts = read_all(root, tmp_path / "out")
    named = reasons(counts)
    assert named.keys() == {f"cat/{kind}-{share}.png" for kind in KINDS for share in (0, 5, 50, 90)}
    assert counts["corrupt"]["count"] == len(named)
    assert sum(counts["images"].values()) == 24
    assert all(named[f"cat/{kind}-0.png"] == UNIDENTIFIED for kind in KINDS)
    assert all(reason and "\n" not in reason for reason in named.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_or_changed_anywhere_is_read_or_has_a_reason(kind):
    whole = encoded(kind)
    random = np.random.default_rng(0)
    changed = []
    for _ in range(60):
        cut = random.integers(2 * len(whole))  # Half of them keep their length.
        content = bytearray(whole[:cut])
        for position in random.integers(len(content), size=3) if content else ():
            content[position] = random.integers(256)
        changed.append(bytes(content))
    for content in changed:
        try:
            normalization.normalize_image(content, max_pixels=MEBIBYTE)
        except ValueError as error:
            assert str(error) and "\n" not in str(error)


# Folders.


def test_unusual_names_are_read_and_printed_in_a_single_line(tmp_path):
    not_utf8 = os.fsdecode(b"bl\xf6d")
    root = fill(tmp_path / "images", ("a cat", "dog\nfish", not_utf8, "köt ő"))
    names = ["with space.png", "new\nline.png", "\x1b[2Jescape.png", "猫.png", f"{not_utf8}.png"]
    names += ["x" * 251 + ".png"]
    for number, name in enumerate(names):
        write(root / "a cat" / name, encoded(number=1000 + number))
        write(root / "köt ő" / name, b"broken")
    counts = read_all(root, tmp_path / "out")
    assert counts["class_names"] == ["a cat", "bl\\udcf6d", "dog\\nfish", "köt ő"]
    assert sum(counts["images"].values()) == 4 * 12 + len(names)
    printed = ["with space.png", "new\\nline.png", "\\x1b[2Jescape.png", "猫.png", "bl\\udcf6d.png"]
    printed += [names[-1]]
    assert set(reasons(counts)) == {f"köt ő/{name}" for name in printed}
    assert counts["corrupt"]["count"] == len(names)
    assert shards.ShardSet.load(tmp_path / "out/test").class_names == tuple(counts["class_names"])
    json.dumps(counts).encode()


def test_entries_that_are_not_files_are_counted_and_listed(tmp_path, monkeypatch):
    root = fill(tmp_path / "images")
    cat = root / "cat"
    os.mkfifo(cat / "pipe.png")
    monkeypatch.chdir(cat)  # A socket's path must be short.
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
    (cat / "device.png").symlink_to("/dev/zero")
    (cat / "nowhere.png").symlink_to("/not/there.png")
    (cat / "itself.png").symlink_to("itself.png")
    (cat / "long.png").symlink_to("x" * 300)
    (cat / "up").symlink_to("..")
    (cat / "deeper").mkdir()
    (cat / "deeper" / "all.png").symlink_to(root)
    (cat / "folder.png").mkdir()
    write(cat / "folder.png" / "inside.png", encoded(number=999))
    counts = read_all(root, tmp_path / "out")
    not_a_file, folder = "a pipe, device or socket, not a file", "a link to a folder"
    assert reasons(counts) == {
        "cat/pipe.png": not_a_file,
        "cat/socket.png": not_a_file,
        "cat/device.png": not_a_file,
        "cat/nowhere.png": "the file cannot be opened: No such file or directory",
        "cat/itself.png": "the file cannot be opened: Too many levels of symbolic links",
        "cat/long.png": "the file cannot be opened: File name too long",
        "cat/up": folder,
        "cat/deeper/all.png": folder,
    }
    assert counts["corrupt"]["count"] == 8
    assert sum(counts["images"].values()) == 25
    assert counts["other_files"] == 0
    assert sources.open_source(f"folder:{root}").content(ContentDigests())["files"] == 33


@pytest.mark.parametrize("target", [".", "..", "../..", "/"])
def test_a_class_that_is_a_link_to_its_parent_is_refused(tmp_path, target):
    root = fill(tmp_path / "images")
    for folder in (root, fill(root / "train")):
        (folder / "loop").symlink_to(target)
        with pytest.raises(UserError, match="loop is a link to a folder that contains it"):
            if folder != root:
                for name in ("cat", "dog"):
                    (root / name).rename(tmp_path / name)
            sources.open_source(f"folder:{root}")
        (folder / "loop").unlink()


def test_a_class_that_is_a_broken_link_is_refused(tmp_path):
    root = fill(tmp_path / "images")
    (root / "first").symlink_to("second")
    (root / "second").symlink_to("first")
    with pytest.raises(UserError, match=r"images/first is a broken link"):
        sources.open_source(f"folder:{root}")


def test_classes_may_be_links_and_their_files_are_counted_once(tmp_path):
    fill(tmp_path / "elsewhere")
    write(tmp_path / "elsewhere" / "cat" / "notes.txt", b"")
    root = fill(tmp_path / "images", ("bird",))
    (root / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    counts = read_all(root, tmp_path / "out")
    assert counts["class_names"] == ["bird", "cat"]
    assert sum(counts["images"].values()) == 24
    assert (counts["corrupt"]["count"], counts["other_files"]) == (0, 1)


@contextlib.contextmanager
def unprivileged():
    """Without the permissions of root."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_file_without_permission_is_listed(tmp_path, monkeypatch):
    root = fill(tmp_path / "images")
    (root / "cat" / "0.png").chmod(0)
    (root / "cat" / ".closed").mkdir(mode=0)  # Hidden, so skipped.
    monkeypatch.chdir(root)  # The folders above may be closed as well.
    with unprivileged():
        source = sources.FolderSource(Path("."))
        images = list(source.images("train"))
        assert source.content(ContentDigests())["files"] == 24
        assert source.skipped_files() == SkippedFiles()
    unreadable = {image.id: image.unreadable for image in images if image.unreadable}
    assert unreadable == {"cat/0.png": "the file cannot be opened: Permission denied"}
    assert len(images) == 24


@pytest.mark.parametrize("closed", ["", "bird", "cat", "cat/deeper"])
def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch, closed):
    """It may hold many images, or a class."""
    root = fill(tmp_path / "images")
    (root / closed).mkdir(exist_ok=True)
    monkeypatch.chdir(root)
    (root / closed).chmod(0o711)
    message = rf"{closed or '.'} cannot be listed \(Permission denied\): change its permissions"
    with unprivileged(), pytest.raises(UserError, match=message):
        sources.FolderSource(Path("."))
    (root / closed).chmod(0o700)


def test_deeply_nested_folders(tmp_path):
    root = fill(tmp_path / "images")
    deep = root / "cat"
    for _ in range(1100):
        deep = deep / "d"
        os.mkdir(deep)
    write(deep / "deep.png", encoded(number=999))
    try:
        source = sources.open_source(f"folder:{root}")
        ids = [image.id for image in source.images("train")]
        assert len(ids) == 25 and sum(id.endswith("/d/d/deep.png") for id in ids) == 1
        assert source.content(ContentDigests())["files"] == 25
    finally:
        subprocess.run(
            ["rm", "-r", root / "cat"], check=True
        )  # pytest removes folders recursively.


def test_a_name_too_long_for_a_folder_is_refused():
    with pytest.raises(UserError, match="x is not a folder"):
        sources.open_source("folder:" + "x" * 300)


def many_entries(tmp_path, count):
    """Reads a folder with `count` more entries, of which three quarters are empty images."""
    root = fill(tmp_path / "images")
    for number in range(count):
        suffix = "txt" if number % 4 == 3 else "png"
        os.close(os.open(root / "cat" / f"many {number}.{suffix}", os.O_CREAT | os.O_WRONLY))
    assert sources.open_source(f"folder:{root}").content(ContentDigests())["files"] == 24 + count
    counts = read_all(root, tmp_path / "out")
    assert counts["corrupt"]["count"] == count * 3 // 4
    assert len(counts["corrupt"]["images"]) == 100
    assert set(reasons(counts).values()) == {UNIDENTIFIED}
    assert counts["other_files"] == count // 4
    assert sum(counts["images"].values()) == 24
    lines = "\n".join(describe(counts))
    assert f"Not read: {count // 4:,} files" in lines
    assert f"Left out: {count * 3 // 4:,} that cannot be read" in lines


def test_thousands_of_entries_are_counted(tmp_path):
    many_entries(tmp_path, 2_000)


@pytest.mark.slow
def test_a_hundred_thousand_entries_are_counted(tmp_path):
    many_entries(tmp_path, 100_000)


def test_the_files_in_memory_at_the_same_time_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("nsk.data.spool.MAX_BYTES_IN_MEMORY", 1000)
    alive = []
    normalize = normalization.normalize_image

    def counting(content, *limits):
        alive.append(len(read) - len(alive))  # Read, and not yet normalised.
        return normalize(content, *limits)

    read = []
    original = folder_source._read
    monkeypatch.setattr(folder_source, "_read", lambda *a: read.append(original(*a)) or read[-1])
    monkeypatch.setattr(normalization, "normalize_image", counting)
    read_all(fill(tmp_path / "images"), tmp_path / "out")
    assert len(read) == 24 and max(alive) <= -(-1000 // min(map(len, read)))


# Manifests.


OUTSIDE = ["../secret", "/etc/passwd", "..", ".", "", "below/secret", "./secret", "x/../../secret"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_shard_set_may_only_name_files_in_its_folder(tmp_path, name):
    write(tmp_path / "secret", b"")
    folder = tmp_path / "set"
    write(folder / "below" / "secret", b"")
    write(folder / "secret", b"")
    files = [{"name": name, "records": 0, "copies": 0, "images": 0}]
    shards.write_manifest(folder, "images", ["cat", "dog"], files)
    with pytest.raises(UserError, match=r"manifest\.json is not .*not the name of a file beside"):
        shards.ShardSet.load(folder)


GOOD_FILE = {"name": "00000.tfrecord", "records": 0, "copies": 0, "images": 0}
BAD_MANIFESTS = {
    "nested": "[" * 100_000,
    "infinite": json.dumps({"files": [GOOD_FILE | {"records": float("inf")}]}),
    "negative": json.dumps({"files": [GOOD_FILE | {"copies": -1}]}),
    "huge": json.dumps({"files": [GOOD_FILE | {"images": 10**30}]}),
    "digits": '{"files": ' + "9" * 10_000 + "}",
    "number for a name": json.dumps({"files": [GOOD_FILE | {"name": 7}]}),
    "numbers for classes": json.dumps({"files": [GOOD_FILE], "class_names": [1, 2]}),
    "bytes": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("kind", BAD_MANIFESTS)
def test_an_invalid_manifest_is_refused(tmp_path, kind):
    write(tmp_path / "00000.tfrecord", b"")
    given = BAD_MANIFESTS[kind]
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        whole = {"kind": "images", "class_names": ["x"], "top_k": 0, "files": [GOOD_FILE]}
        given = json.dumps(whole | json.loads(given))
    write(tmp_path / "manifest.json", given if isinstance(given, bytes) else given.encode())
    with pytest.raises(UserError, match=r"manifest\.json is not the manifest of a shard set"):
        shards.ShardSet.load(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "null\0", "\udcff"])
def test_a_shard_with_an_impossible_name_is_missing(tmp_path, name):
    shards.write_manifest(tmp_path, "images", ["cat"], [GOOD_FILE | {"name": name}])
    with pytest.raises(UserError, match=r"is missing but .* names it"):
        shards.ShardSet.load(tmp_path)


def test_a_huge_manifest_is_not_read(tmp_path):
    with open(tmp_path / "manifest.json", "wb") as file:
        file.truncate(2**36)
    with pytest.raises(UserError, match="it has more than 268,435,456 bytes"):
        shards.ShardSet.load(tmp_path)


def test_a_stage_may_only_name_files_in_its_folder(tmp_path, capsys):
    """A manifest with a valid seal that names files elsewhere: none of them is opened."""
    secret = write(tmp_path / "secret", b"secret")

    def build(folder):
        write(folder / "inside", b"inside")
        return {}

    made = build_or_reuse(StageKey(tmp_path, "gen0/teacher", {}, {}), build)
    manifest = json.loads((made.path / MANIFEST).read_text())
    described = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    names = ["../../secret", str(secret), "/dev/zero", "../teacher"]
    manifest["files"] |= dict.fromkeys(names, described)
    del manifest["seal"]
    manifest["seal"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (made.path / MANIFEST).write_text(json.dumps(manifest))
    assert {(path, reason) for path, reason in find_damage(made.path)} == {
        (made.path / name, "it is missing") for name in names
    }
    with pytest.raises(UserError, match="1 of 1 stages are damaged"):
        verify.verify_workdir(tmp_path)
    out = capsys.readouterr().out
    assert all(f"{made.path / name}: it is missing" in out for name in names)


# Records.


def record_source(folder, *examples):
    with tf.io.TFRecordWriter(str(folder / "a.tfrecord")) as writer:
        for example in examples:
            writer.write(example)
    return sources.open_source(f"tfrecord:{folder}/a.tfrecord")


def test_a_huge_label_does_not_create_as_many_classes(tmp_path):
    example = records.image_example("x", encoded(), 2**62)
    with pytest.raises(UserError, match=f"labels from {2**62} to {2**62}: expected 0 to 1048575"):
        record_source(tmp_path, example).class_names  # noqa: B018


def test_ids_of_records_are_short_and_printable(tmp_path):
    source = record_source(tmp_path, records.image_example("new\nline\x1b[2J ü", encoded(), 0))
    assert [image.id for image in source.images("train")] == ["new\\nline\\x1b[2J ü"]
    source = record_source(tmp_path, records.image_example("x" * 5000, encoded(), 0))
    with pytest.raises(UserError, match=r"a\.tfrecord has an id of 5,000 characters"):
        list(source.images("train"))


def test_records_in_a_file_with_a_name_that_is_not_utf8(tmp_path):
    record_source(tmp_path, records.image_example("x", encoded(), 0))
    (tmp_path / "a.tfrecord").rename(tmp_path / os.fsdecode(b"\xff.tfrecord"))
    source = sources.open_source(f"tfrecord:{tmp_path}/*.tfrecord")
    assert [image.id for image in source.images("train")] == ["x"]


def test_a_large_record_is_refused_before_it_is_read(tmp_path):
    record_source(tmp_path, records.image_example("x", bytes(2 * MEBIBYTE)))
    source = sources.open_source(f"tfrecord:{tmp_path}/a.tfrecord", max_image_bytes=MEBIBYTE)
    with pytest.raises(UserError, match="expected at most 2,097,152"):
        list(source.images("train"))


# Models and arrays.


def test_a_model_that_unpacks_outside_its_folder_is_refused(tmp_path):
    for name in ("../outside", "/tmp/outside", "assets/../../outside", "..\\outside"):
        path = repacked(tmp_path / "model.keras", additional=[(name, b"x")])
        with pytest.raises(
            UserError, match=r"cannot be loaded \(its entry '.*outside' points outside"
        ):
            model_files.load_model(path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


BAD_CONFIGS = {
    "nested": lambda text: "[" * 100_000,
    "not an object": lambda text: "[1]",
    "other module": lambda text: json.dumps(
        {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
    ),
    "process": lambda text: json.dumps(
        {"module": "subprocess", "class_name": "Popen", "config": {"args": ["touch", "pwned"]}}
    ),
    "too large": lambda text: text.replace('"units": 2', f'"units": {2**62}'),
    "layer": lambda text: json.dumps(keras.saving.serialize_keras_object(keras.layers.Dense(2))),
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_other_files_as_a_model_are_refused_in_a_single_line(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = repacked(tmp_path / "model.keras", BAD_CONFIGS[kind])
    with pytest.raises(UserError, match=r"The model .*model\.keras ") as refusal:
        model_files.load_model(path)
    assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_a_model_of_two_inputs_is_refused(tmp_path):
    inputs = [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]
    keras.Model(inputs, keras.layers.Flatten()(inputs[0])).save(tmp_path / "model.keras")
    with pytest.raises(UserError, match=r"takes .* and returns .*: expected images"):
        model_files.load_model(tmp_path / "model.keras")


def test_class_names_that_are_not_text_are_refused(tmp_path):
    write(tmp_path / "class_names.txt", b"cat\n\xff\n")
    with pytest.raises(UserError, match=r"class_names\.txt cannot be read .*: give UTF-8 text"):
        model_files.read_class_names(tmp_path / "model.keras")


class Opens:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_never_opened(tmp_path):
    trace = tmp_path / "unpickled"
    write(tmp_path / "model.keras", pickle.dumps(Opens(trace)))
    with pytest.raises(UserError, match=r"cannot be loaded \(File is not a zip file\)"):
        model_files.load_model(tmp_path / "model.keras")
    # A checkpoint that is valid except for its arrays.
    folder = tmp_path / "checkpoint"
    buffer = io.BytesIO()
    np.savez(buffer, np.array([Opens(trace)], dtype=object))
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    text = json.dumps(
        {"step": 1, "remembered": {}, "variables": ["x"], "arrays": [], "sha256": digest}
    )
    write(folder / checkpoint.ARRAYS, buffer.getvalue())
    seal = hashlib.sha256(text.encode()).hexdigest()
    write(folder / checkpoint.MANIFEST, f"{text}\n{seal}\n".encode())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoint.read(folder)
    assert not trace.exists()


PICKLING = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def calls(tree, name):
    """Yields (function, keywords) for the calls of functions or methods of this name in a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            yield ast.unparse(node.func), keywords


def test_pickle_is_not_used_and_models_are_loaded_in_a_single_place():
    loaders, saved_model_loaders = set(), set()
    for path in [*(ROOT / "nsk").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not {name.partition(".")[0] for name in names} & PICKLING, path
        for function, keywords in calls(tree, "load"):
            if function.split(".")[0] in ("np", "numpy"):
                assert keywords["allow_pickle"] == "False", path
            if "saved_model" in function.split("."):  # A program, which a user has to trust.
                saved_model_loaders.add(path.relative_to(ROOT).as_posix())
            assert not function.startswith("torch."), path  # It unpickles.
        for function, keywords in calls(tree, "load_model"):
            if function.startswith("keras."):
                assert keywords.get("safe_mode", "True") == "True", path
                loaders.add(path.relative_to(ROOT).as_posix())
    assert loaders == {"nsk/models/model_files.py"}
    assert saved_model_loaders == {"nsk/models/saved_models.py"}
