"""Fine-tuning: a trained network on clean labelled images, at the resolution of the test.

Reference:
    [Touvron et al., 2019](https://arxiv.org/abs/1906.06423)
"""

from nsk.stages.hyperparameters import finetuning_hyperparameters
from nsk.stages.runner import MODEL_FILE, StageRunner
from nsk.stages.training import run_training
from nsk.store.folders import StageFolder


def finetune(
    runner: StageRunner,
    generation: int,
    images: StageFolder,
    trained: StageFolder,
    member: int = 1,
) -> StageFolder:
    """Returns the stage that fine-tunes a trained model; the trained model itself if it is off.

    Args:
        runner: the runner of stages.
        generation: 0 is the teacher.
        images: the ingested images.
        trained: the trained model.
        member: as for `training.train`.
    """
    settings = finetuning_hyperparameters(runner.config, generation, images.counts, member)
    if settings is None:
        return trained
    inputs = {"trained": trained}
    return run_training(runner, settings, images, inputs, trained.path / MODEL_FILE)
