import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nsk.data import records, shards
from nsk.data.decoding import decode_image
from nsk.errors import UserError
from nsk.store.folders import StageKey, build_or_reuse
from tools import inspect_shards, show_augment

NAMES = [f"digit {digit}" for digit in range(10)]


def png(row):
    buffer = io.BytesIO()
    Image.fromarray(np.round(load_digits().images[row] * (255 / 16)).astype(np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


@pytest.fixture
def workdir(tmp_path):
    """A stage with 10 labelled digits and one with 12 pseudo-labelled ones in shards of 5."""
    target = load_digits().target

    def images(folder):
        with shards.ShardWriter(folder / "labeled", "images", NAMES, 5) as writer:
            for row in range(10):
                writer.write(records.image_example(f"{row}", png(row), int(target[row])))
        return {}

    def pseudo(folder):
        with shards.ShardWriter(folder / "shards", "pseudo", NAMES, 5) as writer:
            for row in range(12):
                scores = np.log(np.full(10, 0.05))
                scores[target[row]] = np.log(0.55)
                row_of = (int(target[row]), 0.55, scores, 1 + row % 3)
                writer.write(records.pseudo_example(f"{row}", png(row), *row_of), 1 + row % 3)
        return {}

    for name, build in (("data/images", images), ("gen1/pseudo", pseudo)):
        build_or_reuse(StageKey(tmp_path / "run", name, {}, {}), build)
    return tmp_path / "run"


def test_sets_are_found_and_described(workdir):
    sets = inspect_shards.find_sets(workdir)
    assert [inspect_shards.describe(shard_set)[1:6] for shard_set in sets] == [
        ("images", "2", "10", "10", "10"),
        ("pseudo", "3", "12", "12", "24"),
    ]
    assert not [line for shard_set in sets for line in inspect_shards.find_damage(shard_set)]


def test_a_folder_without_sets_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no shard set"):
        inspect_shards.find_sets(tmp_path)
    (tmp_path / "unlabeled").mkdir()
    (tmp_path / "unlabeled/00000.parquet").touch()
    with pytest.raises(UserError, match=r"but Parquet files, such as scores, .* pandas or DuckDB"):
        inspect_shards.find_sets(tmp_path)


def test_rows_of_each_class_are_counted(workdir):
    sets = inspect_shards.find_sets(workdir)
    target = load_digits().target
    labeled, pseudo = map(inspect_shards.class_counts, sets)
    assert labeled.tolist() == np.bincount(target[:10], minlength=10).tolist()
    copies = 1 + np.arange(12) % 3
    assert pseudo.tolist() == np.bincount(target[:12], copies, 10).astype(int).tolist()
    lines = list(inspect_shards.class_tables(sets, workdir))
    names = [shard_set.folder.relative_to(workdir).as_posix() for shard_set in sets]
    assert lines[1].split() == ["class", *names]
    assert lines[2].split() == ["digit", "0", str(labeled[0]), str(pseudo[0])]
    assert len(lines) == 12
    (alone,) = inspect_shards.find_sets(sets[1].folder)
    assert list(inspect_shards.class_tables([alone], alone.folder))[1].split() == [
        "class",
        "shards",
    ]


def test_sets_without_labels_have_no_table_and_other_classes_a_separate_one(workdir, tmp_path):
    for name, label, class_names in (("unlabeled", None, NAMES), ("other", 0, ["cat"])):
        with shards.ShardWriter(tmp_path / name, "images", class_names, 5) as writer:
            writer.write(records.image_example("1", png(1), label))
    (unlabeled,) = inspect_shards.find_sets(tmp_path / "unlabeled")
    (other,) = inspect_shards.find_sets(tmp_path / "other")
    assert list(inspect_shards.class_tables([unlabeled], unlabeled.folder)) == []
    sets = [*inspect_shards.find_sets(workdir), other]
    lines = list(inspect_shards.class_tables(sets, tmp_path))
    assert lines.count("") == 2 and [line.split() for line in lines[-2:]] == [
        ["class", "other"],
        ["cat", "1"],
    ]


def test_long_names_stay_within_their_cell(tmp_path):
    """A long class name does not cover the caption of the next image."""
    sheets = []
    for names in (["a" * 60, "b"], ["a", "b"]):
        folder = tmp_path / str(len(names[0]))
        with shards.ShardWriter(folder, "pseudo", names, 5) as writer:
            for row, label in ((0, 0), (1, 1)):
                values = (label, 0.55, np.log([0.5, 0.5]), 2)
                writer.write(records.pseudo_example(f"{row}", png(row), *values), 2)
        (shard_set,) = inspect_shards.find_sets(folder)
        sheets.append(np.asarray(inspect_shards.make_sheet(shard_set, 2)))
    side, top = inspect_shards.CELL_SIDE, show_augment.MARGIN + 2 * show_augment.TEXT_HEIGHT
    right = show_augment.LABEL_WIDTH + side
    assert sheets[0][top + side :, right:].tolist() == sheets[1][top + side :, right:].tolist()
    assert (sheets[0][top + side :, :right] != sheets[1][top + side :, :right]).any()
    cut = show_augment.shortened("a" * 60, side, " 0.550 x2")
    assert cut.startswith("aa") and cut.endswith("... 0.550 x2")


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path):
    """The same number of other, complete records."""
    path.write_bytes(path.with_name("00001.tfrecord").read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [(cut, "cannot be read"), (flip, "cannot be read"), (swap, "bytes, expected")],
)
def test_damaged_files_are_named(workdir, damage, message):
    pseudo = inspect_shards.find_sets(workdir)[1]
    damage(pseudo.paths[0])
    lines = list(inspect_shards.find_damage(pseudo))
    assert len(lines) == 1 and message in lines[0] and "00000.tfrecord" in lines[0]


def test_a_sheet_shows_images_with_labels_confidences_and_copies(workdir):
    labeled, pseudo = inspect_shards.find_sets(workdir)
    target = load_digits().target
    captions = [caption for _, *caption in inspect_shards.examples(pseudo, 4)]
    assert captions == [[f"digit {target[row]}", f" 0.550 x{1 + row % 3}"] for row in (0, 3, 6, 9)]
    assert [caption for _, *caption in inspect_shards.examples(labeled, 40)] == [
        [f"digit {label}", ""] for label in target[:10]
    ]
    sheet = np.asarray(inspect_shards.make_sheet(labeled, 10))
    side = inspect_shards.CELL_SIDE
    first = decode_image(png(0), side).numpy()
    found = [
        (y, x)
        for y in range(40, 60)
        for x in range(100, 140)
        if np.array_equal(sheet[y : y + side, x : x + side], first)
    ]
    assert len(found) == 1


def test_the_command(workdir, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "tools.inspect_shards", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    done = run(workdir, "--verify", "--classes", f"--sheet={tmp_path}/new/sheet.png")
    assert done.returncode == 0, done.stderr
    assert "digit 9" in done.stdout
    assert "2 shard sets: all records and checksums are ok." in done.stdout
    with Image.open(tmp_path / "new/sheet.png") as sheet:
        assert sheet.width > 500
    (path,) = workdir.glob("gen1/pseudo-*/shards/00002.tfrecord")
    cut(path)
    refused = run(workdir, "--verify")
    assert refused.returncode == 2
    assert refused.stderr == "nsk: 1 damaged file in 2 shard sets: rebuild it.\n"


@pytest.mark.parametrize("name", ["sheet.jpg", "sheet", "folder.png", "file/sheet.png"])
def test_a_sheet_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"--sheet=.*{name}"):
        inspect_shards.main([str(tmp_path / "nothing"), f"--sheet={tmp_path / name}"])
