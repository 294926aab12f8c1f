"""Runs the chain up to the scores for --generation; several processes may share the work."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import logging

from nsk.commands.preparation import prepare
from nsk.config.config import Config
from nsk.errors import UserError

if TYPE_CHECKING:
    from nsk.store.folders import StageFolder


def execute(values: Mapping[str, Any]) -> "StageFolder | None":
    """Runs the chain up to the scores for `--generation`.

    Args:
        values: values of settings by name.

    Returns:
        The scores' `StageFolder`; None if shards remain for other processes.
    """
    runner = prepare(values, _check)
    from nsk import self_training
    from nsk.stages import scoring
    from nsk.stages.runner import shard_set

    images, chain = self_training.train_generations(runner, runner.config.command.generation)
    scores = scoring.score(runner, len(chain), chain[-1].model, images)
    if scores is None:
        _log_remaining(runner.config.command, len(shard_set(images, "unlabeled").names))
    return scores


def _check(config: Config):
    """UserError if processes cannot share the scoring."""
    config.check_generation()
    if config.command.num_shard_workers == 1:
        return
    if config.run.strategy == "multi_worker":
        raise UserError(
            "--strategy=multi_worker shares the scoring already: leave out --num_shard_workers."
        )
    if config.scoring.first_scores == "records":
        raise UserError(
            "--first_scores=records leaves nothing to score: leave out --num_shard_workers."
        )


def _log_remaining(command, num_shards):
    """Logs what this process did of the work that several share."""
    if command.shard_index < num_shards:
        logging.info("This process has scored its shards; other processes have not finished.")
    else:
        logging.info(
            "This process has no shard to score: only the first %d of --num_shard_workers=%d have "
            "one. Other processes have not finished.",
            num_shards,
            command.num_shard_workers,
        )
