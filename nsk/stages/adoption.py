"""Adoption: an earlier model as the teacher, generation 0."""

import shutil

from nsk.hashing import sha256_of_file
from nsk.models.files import load_model
from nsk.stages.runner import MODEL_FILE, StageRunner
from nsk.stages.training import trainable_parameters
from nsk.store.folders import StageFolder


def adopt_teacher(runner: StageRunner, images: StageFolder) -> StageFolder:
    """Returns the stage that copies the model of `--teacher` into the workdir."""
    path = runner.config.teacher_path
    model = load_model(path)

    def build(folder):
        shutil.copyfile(path, folder / MODEL_FILE)
        return {
            "model": model.name,
            "parameters": trainable_parameters(model),
            "image_size": model.input_shape[1],
            "class_names": images.counts["class_names"],
        }

    settings = {"sha256": sha256_of_file(path)}
    return runner.build_or_reuse("gen0/teacher", build, settings, images=images)
