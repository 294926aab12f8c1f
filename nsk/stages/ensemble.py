"""An ensemble of teachers: one model whose probabilities are the mean of those of its members.

Reference: Hinton, Vinyals, Dean: Distilling the knowledge in a neural network (2015), arXiv
1503.02531.
"""

from collections.abc import Sequence

import numpy as np

from nsk.models import ensemble
from nsk.models.model_files import load_model
from nsk.stages.runner import MODEL_FILE, StageRunner, resize_mode_of
from nsk.stages.training import save_model, trainable_parameters
from nsk.store.folders import StageFolder


def average(runner: StageRunner, members: Sequence[StageFolder]) -> StageFolder:
    """Returns the stage with the model that averages the probabilities of several.

    Args:
        runner: the runner of stages.
        members: the models, of the same network.
    """

    def build(folder):
        model = ensemble.average([load_model(member.path / MODEL_FILE) for member in members])
        save_model(model, folder / MODEL_FILE)
        first = members[0].counts
        return {
            "model": f"{len(members)} x {first['model']}",
            "members": len(members),
            "parameters": trainable_parameters(model),
            "class_names": first["class_names"],
            "image_size": first["image_size"],
            "resize_mode": resize_mode_of(members[0]),
            "significant_bits": first["significant_bits"],
            "final_loss": float(np.mean([member.counts["final_loss"] for member in members])),
        }

    inputs = {f"member{number}": member for number, member in enumerate(members, start=1)}
    return runner.build_or_reuse("gen0/ensemble", build, **inputs)
