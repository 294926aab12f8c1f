"""What a whole chain reuses when its images were copied, or some were added."""

import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nsk import self_training


@pytest.fixture
def photos(tmp_path):
    """A folder with the splits labeled, dev, test and unlabeled of digits."""
    digits = load_digits()
    splits = {"labeled": range(40), "dev": range(40, 80), "test": range(80, 110)}
    for split, numbers in splits.items():
        for number in numbers:
            folder = tmp_path / "photos" / split / f"{digits.target[number] % 2}"
            save(folder / f"{number}.png", digits.images[number])
    add_unlabeled(tmp_path / "photos", range(110, 200))
    return tmp_path / "photos"


def add_unlabeled(photos, numbers):
    images = load_digits().images
    for number in numbers:
        save(photos / "unlabeled" / f"{number}.png", images[number])


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * 15).astype(np.uint8)).save(path)


def stages_of(chain):
    images, generations = chain
    stages = {"images": images}
    for number, generation in enumerate(generations):
        for role in ("model", "evaluation", "scores", "selection", "pseudo_labels"):
            stage = getattr(generation, role)
            if stage is not None:
                stages[f"{role} {number}"] = stage
    return stages


def test_a_copy_reuses_everything_and_new_unlabelled_images_only_change_what_uses_them(
    make_runner, tmp_path, photos
):
    def train(folder):
        values = {"models": ["convnet5"] * 2, "min_confidence": ["0"], "chance_p_value": 1.0}
        data = {"dataset": f"folder:{folder}", "num_labeled": 0, "num_dev": 0}
        runner = make_runner(tmp_path / "run", **values, **data)
        return stages_of(self_training.train_chain(runner))

    first = train(photos)
    assert not any(stage.reused for stage in first.values())
    shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(photos)
    assert all(stage.reused for stage in train(tmp_path / "copy").values())
    add_unlabeled(tmp_path / "copy", range(200, 210))
    extended = train(tmp_path / "copy")
    assert extended["images"].counts["images"]["unlabeled"] == 100
    reused = {name for name, stage in extended.items() if stage.reused}
    assert reused == {"model 0", "evaluation 0"}
    (tmp_path / "copy/unlabeled/200.png").unlink()
    for number in range(201, 210):
        (tmp_path / f"copy/unlabeled/{number}.png").unlink()
    assert all(stage.reused for stage in train(tmp_path / "copy").values())
