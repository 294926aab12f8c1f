"""Noisy Student self-training in the order of its data. Read this first.

    1. Train a teacher on the labelled images.
    2. Let it label the unlabelled images, without noise.
    3. Keep the confident pseudo-labels, and balance the classes. Before that, compare the images
       with dev, and warn if they are of other classes.
    4. Train an equal or larger student on both, with noise (or on one after the other); fine-tune
       it at a higher resolution.
    5. The student becomes the teacher: go to 2.

Every call below of a function of `nsk.stages` is a stage: it fills a folder from the configuration
and earlier stages' folders, or finds the folder finished and reuses it (`nsk.store.folders`).

Reference: Xie, Luong, Hovy, Le: Self-training with Noisy Student improves ImageNet classification
(2020), arXiv 1911.04252.
"""

from absl import logging

from nsk import decisions
from nsk.decisions import Generation, Network
from nsk.errors import GenerationFailedError, UserError
from nsk.stages import (
    adoption,
    comparison,
    distillation,
    ensemble,
    evaluation,
    finetuning,
    ingestion,
    pretraining,
    pseudo_shards,
    scoring,
    selection,
    selection_checks,
    training,
    validation,
)
from nsk.stages.runner import StageRunner
from nsk.store.folders import StageFolder


def train_chain(runner: StageRunner) -> tuple[StageFolder, list[Generation]]:
    """Trains the teacher and all students, or as many as can be taught.

    Returns:
        The ingested images, and the generations, the teacher first.

    Raises:
        UserError: settings or data do not allow the run.
    """
    config = runner.config
    images, chain = start_chain(runner)
    for generation in range(1, config.num_students + 1):
        try:
            chain.append(teach(runner, images, chain))
        except GenerationFailedError as error:
            if generation == 1:
                raise
            logging.warning("The chain ends before generation %d: %s", generation, error)
            break
        is_filtered = config.selection.at(generation).unknown_classes == "filter"
        decisions.warn_of_worse_student(chain, config.chain.decide_by, is_filtered)
        without_gain = decisions.students_without_gain(chain, config.chain.decide_by)
        if without_gain >= config.chain.patience > 0:
            logging.info(
                "The chain ends after student %d: --patience=%d.", generation, config.chain.patience
            )
            break
    return images, chain


def start_chain(runner: StageRunner) -> tuple[StageFolder, list[Generation]]:
    """Ingests the images and trains the teacher on the labelled ones, or takes a given teacher.

    All generations are validated first, before hours are spent. With `--num_teachers` the teacher
    is an ensemble.
    """
    images = ingestion.ingest_images(runner)
    validation.check_chain(runner, images.counts)
    if runner.config.chain.num_teachers > 1:
        return images, [train_ensemble(runner, images)]
    if runner.config.chain.teacher:
        trained = teacher = adoption.adopt_teacher(runner, images)
    else:
        trained = training.train(runner, 0, images)
        teacher = finetuning.finetune(runner, 0, images, trained)
    return images, [Generation(trained, teacher, evaluation.evaluate(runner, teacher, images))]


def train_ensemble(runner: StageRunner, images: StageFolder) -> Generation:
    """Trains several teachers, whose mean probabilities are those of generation 0."""
    members = []
    for number in runner.config.members(0):
        trained = training.train(runner, 0, images, member=number)
        tuned = finetuning.finetune(runner, 0, images, trained, member=number)
        members.append(Network(trained, tuned))
    teacher = ensemble.average(runner, [member.model for member in members])
    evaluated = evaluation.evaluate(runner, teacher, images)
    return Generation(members[0].trained, teacher, evaluated, members=tuple(members))


def teach(runner: StageRunner, images: StageFolder, chain: list[Generation]) -> Generation:
    """The last generation teaches the next one.

    With distillation it labels the labelled images, too, or (`--ratio=0`) these alone.
    """
    config, teacher, number = runner.config, chain[-1], len(chain)
    if number > 1 or config.scoring.first_scores == "teacher":
        decisions.require_better_than_chance(teacher, config.chain.chance_p_value)
    labels = label(runner, images, chain) if config.learns_unlabeled(number) else {}
    scored = distillation.score_labeled(runner, number, teacher.model, images)
    pseudo_labels, network = labels.get("pseudo_labels"), teacher.networks[0].model
    pretrained = pretraining.pretrain(runner, number, images, pseudo_labels, network)
    trained = training.train(runner, number, images, pseudo_labels, network, scored, pretrained)
    student = finetuning.finetune(runner, number, images, trained)
    evaluated = evaluation.evaluate(runner, student, images)
    return Generation(
        trained, student, evaluated, **labels, scored_labeled=scored, pretrained=pretrained
    )


def label(
    runner: StageRunner, images: StageFolder, chain: list[Generation]
) -> dict[str, StageFolder | None]:
    """The last generation labels unlabelled images for the next one: score, select, write.

    Returns:
        What `Generation` holds of it: `scores`, `comparison`, `selection` and `pseudo_labels`.
    """
    config, teacher, number = runner.config, chain[-1], len(chain)
    scores = scoring.score(runner, number, teacher.model, images)
    if scores is None:
        raise UserError(
            f"Other workers have not finished the scores for generation {number}: finish that "
            "generation before several processes score for a later one."
        )
    if config.chain.select == "once" and number > 1:
        selected, compared = chain[1].selection, None
    else:
        compared = comparison.compare(runner, number, scores, images)
        selected = selection.select(runner, number, scores, images, compared)
    selection_checks.check_selection(runner, number, images, scores, selected)
    return {
        "scores": scores,
        "comparison": compared,
        "selection": selected,
        "pseudo_labels": pseudo_shards.write(runner, number, images, scores, selected),
    }


def train_generations(runner: StageRunner, count: int) -> tuple[StageFolder, list[Generation]]:
    """Images, and the first `count` generations of the chain."""
    images, chain = start_chain(runner)
    while len(chain) < count:
        chain.append(teach(runner, images, chain))
    return images, chain
