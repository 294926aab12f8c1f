"""Noisy Student self-training, as a story. Read this first.

    1. Train a teacher on the labelled images.
    2. Let it label the unlabelled images, clean and without noise.
    3. Keep what it is sure of, and balance the classes.
    4. Train an equal or larger student on both, with noise; fine-tune it at a higher resolution.
    5. The student becomes the teacher: go to 2.

Each line below is a stage: a function of the configuration and of earlier stages' folders that
fills a folder of its own, or finds it finished (`nsk/stage.py`). What the stages do is in
`nsk/stages.py`.

Reference: Xie, Luong, Hovy, Le: Self-training with Noisy Student improves ImageNet classification
(2020), arXiv 1911.04252.
"""

from absl import logging

from nsk import chain as deciding
from nsk.commands import plan as plan_module
from nsk.errors import CannotTeachError, UserError
from nsk.generation import Generation
from nsk.report import run_summary as summary
from nsk.report import selection_table as selection
from nsk.stages.all_stages import Stages, shard_set


def run(config):
    """Runs the whole chain, or what is left of it.

    Args:
        config: `nsk.config.config.Config`.

    Returns:
        dict: the summary, as written to `summary.json` in the workdir; None in a worker that is
            not the first of several.

    Raises:
        UserError: settings or data do not allow the run.
    """
    stages = Stages(config)
    stages.save_config()
    images, chain = start(config, stages)

    for generation in range(1, config.num_students + 1):
        try:
            chain.append(teach(config, stages, images, chain))
        except CannotTeachError as error:
            if generation == 1:
                raise
            logging.warning("The chain ends before generation %d: %s", generation, error)
            break
        deciding.warn_of_a_loss(chain)
        if deciding.students_without_gain(chain) >= config.run.patience > 0:
            logging.info(
                "The chain ends after student %d: --patience=%d.", generation, config.run.patience
            )
            break

    best = deciding.best_generation(chain)
    export = stages.export(chain[best].model, images)
    if not stages.workers.is_chief:
        return None
    return summary.report(config, images, chain, best, export, stages.all_reused)


def start(config, stages):
    """Images, and the chain's first `Generation`: a teacher trained on the labelled ones."""
    images = stages.ingest()
    if config.run.teacher:
        trained = teacher = stages.adopt_teacher(images)
    else:
        trained = stages.train(0, images)
        teacher = stages.finetune(0, images, trained)
    return images, [Generation(trained, teacher, stages.evaluate(teacher, images))]


def teach(config, stages, images, chain):
    """The last generation teaches the next one: score, select, write, train; a `Generation`."""
    teacher, number = chain[-1], len(chain)
    if number > 1 or config.pseudo.first_scores == "teacher":
        deciding.refuse_chance(teacher, config.pseudo.chance_p_value)
    scores = stages.score(number, teacher.model, images)
    if scores is None:
        raise UserError(
            f"The scores for generation {number} are left to other workers: finish that generation "
            "before several processes score for a later one."
        )
    if config.pseudo.select == "once" and number > 1:
        selected = chain[1].selection
    else:
        selected = stages.select(number, scores, images)
    pseudo_labels = stages.write(number, images, scores, selected)
    trained = stages.train(number, images, pseudo_labels, teacher.model)
    student = stages.finetune(number, images, trained)
    evaluation = stages.evaluate(student, images)
    return Generation(trained, student, evaluation, scores, selected, pseudo_labels)


def plan(config):
    """Prints what `run` would do; the images are ingested at most."""
    stages = Stages(config)
    images = stages.state_images() if config.run.plan_images else stages.ingest()
    return plan_module.plan(stages, images) if stages.workers.is_chief else None


def score(config):
    """Runs the chain up to the scores for `--generation`; several processes may share the shards.

    Returns:
        The scores' `Stage`; None where shards are left to other processes.
    """
    stages = Stages(config)
    images, chain = start_of(config, stages, config.run.generation)
    scores = stages.score(len(chain), chain[-1].model, images)
    if scores is None:
        shards, worker = len(shard_set(images, "unlabeled").names), config.run.shard_index
        if worker < shards:
            logging.info("This process has scored its shards; others are still to score theirs.")
        else:
            logging.info(
                "This process has no shard to score: of --num_shard_workers=%d only the first %d "
                "have one. Others are still to score theirs.",
                config.run.num_shard_workers,
                shards,
            )
    return scores


def select(config):
    """Prints what the settings keep of the finished scores for `--generation`; trains nothing."""
    stages = Stages(config, finished_only=True)
    images, scores = finished_scores(config, stages)
    stages.finished_only = False
    selected = stages.select(config.run.generation, scores, images)
    return selection.report(images, scores, selected) if stages.workers.is_chief else None


def finished_scores(config, stages):
    """(images, scores for `--generation`), `Stage`s that are finished already."""
    images, chain = start_of(config, stages, config.run.generation)
    return images, stages.score(len(chain), chain[-1].model, images)


def start_of(config, stages, length):
    """Images, and the first `length` generations of the chain."""
    images, chain = start(config, stages)
    while len(chain) < length:
        chain.append(teach(config, stages, images, chain))
    return images, chain
