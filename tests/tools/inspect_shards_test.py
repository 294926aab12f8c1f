import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nsk import stage
from nsk.data import records, shards
from nsk.errors import UserError
from tools import inspect_shards

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
        stage.run(tmp_path / "run", name, build, settings={}, inputs={})
    return tmp_path / "run"


def test_sets_are_found_and_described(workdir):
    sets = inspect_shards.find_sets(workdir)
    assert [inspect_shards.describe(one)[1:6] for one in sets] == [
        ("images", "2", "10", "10", "10"),
        ("pseudo", "3", "12", "12", "24"),
    ]
    assert not [line for one in sets for line in inspect_shards.damages(one)]


def test_a_folder_without_sets_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no shard set"):
        inspect_shards.find_sets(tmp_path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path):
    """Records that are whole and as many, but others."""
    path.write_bytes(path.with_name("00001.tfrecord").read_bytes())


@pytest.mark.parametrize(
    ("damage", "told"),
    [(cut, "cannot be read"), (flip, "cannot be read"), (swap, "bytes and not")],
)
def test_damages_are_named(workdir, damage, told):
    pseudo = inspect_shards.find_sets(workdir)[1]
    damage(pseudo.paths[0])
    lines = list(inspect_shards.damages(pseudo))
    assert any(told in line and "00000.tfrecord" in line for line in lines)
    assert not any("00001.tfrecord" in line for line in lines)


def test_a_sheet_shows_images_with_labels_confidences_and_copies(workdir):
    labeled, pseudo = inspect_shards.find_sets(workdir)
    target = load_digits().target
    captions = [caption for _, caption in inspect_shards.examples(pseudo, 4)]
    assert captions == [f"digit {target[row]} 0.550 x{1 + row % 3}" for row in (0, 3, 6, 9)]
    assert [caption for _, caption in inspect_shards.examples(labeled, 40)] == [
        f"digit {one}" for one in target[:10]
    ]
    sheet = np.asarray(inspect_shards.make_sheet(labeled, 10))
    side = inspect_shards.CELL_SIDE
    first = records.decode_image(png(0), side).numpy()
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

    done = run(workdir, "--verify", f"--sheet={tmp_path}/sheet.png")
    assert done.returncode == 0, done.stderr
    assert "2 shard sets: every record and checksum is right." in done.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 500
    (path,) = workdir.glob("gen1/pseudo-*/shards/00002.tfrecord")
    cut(path)
    refused = run(workdir, "--verify")
    assert refused.returncode == 2
    assert refused.stderr == "nsk: 2 damages in 2 shard sets: make them again.\n"
