"""Every kind of damage to every kind of file that a run leaves is noticed, or harms nothing."""

import shutil

import pytest

from nsk import self_training, stage, verify
from nsk.config import Config
from nsk.errors import UserError

SETTINGS = {
    "dataset": "digits",
    "image_size": 8,
    "num_labeled": 50,
    "num_dev": 50,
    "images_per_shard": 300,
    "models": ["convnet5", "convnet5"],
    "train_images": [3000, 200],
    "labeled_batch_size": [25],
    "learning_rate": [0.05],
    "flip": "off",
    "crop_padding": [0],
    "randaugment_num_ops": [0],
    "dropout_rate": [0.0],
    "policy": "gap",
    "min_confidence": [0.1],
    "gap_floor": 150,
}
# Read by nothing in the project: reports for a person, and settings that are written anew.
HARMLESS = ("config.json", "summary.json", "tensorboard/", ".lock")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = Config.from_values({**SETTINGS, "workdir": str(tmp_path_factory.mktemp("run"))})
    self_training.run(config)
    return config


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


def swap(path):
    """Takes the content of another file of the same kind."""
    other = next(
        one for one in path.parent.glob(f"*{path.suffix}") if one.read_bytes() != path.read_bytes()
    )
    path.write_bytes(other.read_bytes())


DAMAGES = (flip, cut, empty, delete, swap)


def test_every_file_belongs_to_a_stage_or_harms_nothing(run):
    assert verify.verify(run.workdir) == len(stage.finished(run.workdir)) == 9
    stages = {path.as_posix() for path in stage.finished(run.workdir)}
    for path in run.workdir.rglob("*"):
        name = path.relative_to(run.workdir).as_posix()
        in_stage = any(path.as_posix().startswith(f"{one}/") for one in stages)
        assert path.is_dir() or in_stage or any(part in name for part in HARMLESS), name


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_a_stage_is_named_exactly(run, capsys, damage):
    damaged = 0
    for folder in stage.finished(run.workdir):
        for path in sorted(one for one in folder.rglob("*") if one.is_file()):
            whole = path.read_bytes()
            try:
                damage(path)
            except StopIteration:  # The only one of its kind has no other to take for it.
                continue
            damaged += 1
            name = folder.relative_to(run.workdir).as_posix()
            if path.name == stage.MANIFEST and damage is delete:
                assert folder not in stage.finished(run.workdir)  # It is made anew.
            else:
                with pytest.raises(UserError, match=f"1 of 9 stages are damaged.*{name} "):
                    verify.verify(run.workdir)
                assert str(path) in capsys.readouterr().out
                with pytest.raises(UserError, match="damaged"):
                    stage._reuse(folder, name)
            path.write_bytes(whole)
    assert damaged > (5 if damage is swap else 30)
    verify.verify(run.workdir)


def test_files_that_are_not_the_stages_are_told_and_harm_nothing(run, capsys, caplog):
    strays = [stage.finished(run.workdir)[0] / "unlabeled/99999.tfrecord"]
    strays += [path / ".DS_Store" for path in stage.finished(run.workdir)]
    (scores,) = run.workdir.glob("gen1/scores-*/unlabeled")
    strays.append(scores / "notes.txt")
    for stray in strays:
        stray.write_bytes(b"more")
    verify.verify(run.workdir)
    assert all(f"{stray}: not of this stage" in capsys.readouterr().out for stray in strays[:1])
    assert len(self_training.run(run)["generations"]) == 2
    assert all(f"{stray} is not of its stage" in caplog.text for stray in strays)
    for stray in strays:
        stray.unlink()


def test_only_the_damaged_stage_is_made_again(run):
    def made():
        """When each finished stage was made."""
        return {
            path: (path / stage.MANIFEST).stat().st_mtime_ns for path in stage.finished(run.workdir)
        }

    before = made()
    (pseudo,) = (path for path in before if path.name.startswith("pseudo-"))
    kept = {path.name: path.read_bytes() for path in (pseudo / "shards").iterdir()}
    flip(pseudo / "shards/00000.tfrecord")
    with pytest.raises(UserError, match=r"is damaged .*00000\.tfrecord: its SHA-256"):
        self_training.run(run)
    shutil.rmtree(pseudo)
    assert len(self_training.run(run)["generations"]) == 2
    after = made()
    assert {path for path in after if after[path] != before[path]} == {pseudo}
    assert {path.name: path.read_bytes() for path in (pseudo / "shards").iterdir()} == kept


def test_a_folder_without_stages_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no finished stage"):
        verify.verify(tmp_path)
