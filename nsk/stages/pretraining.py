"""Pre-training: a student on the pseudo-labelled images alone, before the labelled ones.

The other way to learn from both sets; the usual one trains on both at the same time.
"""

from nsk.stages.hyperparameters import training_parts
from nsk.stages.pseudo_shards import SHARDS_FOLDER
from nsk.stages.runner import StageRunner, shard_set
from nsk.stages.training import find_initial_weights, run_training
from nsk.store.folders import StageFolder


def pretrain(
    runner: StageRunner,
    generation: int,
    images: StageFolder,
    pseudo_labels: StageFolder | None,
    teacher: StageFolder,
) -> StageFolder | None:
    """Returns the stage that pre-trains a student with `--mixing=pretrain`; None if it is off.

    Args:
        runner: the runner of stages.
        generation: number of the student, 1 or more.
        images: the ingested images.
        pseudo_labels: its pseudo-label shards; None if it learns from labelled images alone.
        teacher: the model of the generation before.
    """
    settings, *others = training_parts(runner.config, generation, images.counts)
    if not others:
        return None
    start = find_initial_weights(runner, generation, settings, teacher)
    inputs = {"pseudo_labels": pseudo_labels, **start.inputs}
    pseudo = shard_set(pseudo_labels, SHARDS_FOLDER)
    return run_training(runner, start.settings, images, inputs, start.path, pseudo)
