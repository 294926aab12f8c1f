"""Adoption: a given teacher is copied, by its content."""

import shutil

from nsk import models
from nsk.stages.adoption import adopt_teacher
from nsk.stages.ingestion import ingest_images
from nsk.stages.runner import MODEL_FILE


def test_a_given_teacher_is_copied_and_found_again_by_its_content(make_runner, tmp_path):
    first, second = tmp_path / "first.keras", tmp_path / "second.keras"
    models.build_model("convnet5", num_classes=10, image_size=8, seed=1).save(first)
    shutil.copyfile(first, second)

    def adopt(path):
        runner = make_runner(tmp_path / "run", models=["convnet5"], teacher=str(path))
        return adopt_teacher(runner, ingest_images(runner))

    teacher = adopt(first)
    assert teacher.path.parent == tmp_path / "run" / "gen0"
    assert (teacher.path / MODEL_FILE).read_bytes() == first.read_bytes()
    assert teacher.counts == {
        "model": "convnet5",
        "parameters": 104_042,
        "image_size": 8,
        "class_names": [str(digit) for digit in range(10)],
    }
    again = adopt(second)
    assert again.reused and again.path == teacher.path
    models.build_model("convnet5", num_classes=10, image_size=8, seed=2).save(second)
    assert adopt(second).path != teacher.path
