"""The loop over generations: which stages are called with what, and when a chain ends."""

import types
from typing import ClassVar

import pytest

from nsk import self_training
from nsk.config.config import Config
from nsk.errors import GenerationFailedError, UserError

STAGES = {
    "ingestion": "ingest_images",
    "adoption": "adopt_teacher",
    "training": "train",
    "finetuning": "finetune",
    "evaluation": "evaluate",
    "scoring": "score",
    "comparison": "compare",
    "selection": "select",
    "selection_checks": "check_selection",
    "pseudo_shards": "write",
    "pretraining": "pretrain",
}
DECISIONS = {
    "require_better_than_chance": lambda teacher, p_value: None,
    "warn_of_worse_student": lambda chain, decide_by, is_filtered: None,
    "students_without_gain": lambda chain, decide_by: 0,
}


class Images:
    """Ingested images, written as `images`."""

    counts: ClassVar = {}

    def __str__(self):
        return "images"

    def __eq__(self, other):
        return str(self) == other

    __hash__ = None


@pytest.fixture
def calls(monkeypatch):
    """Replaces all stages; each returns its own call as text, and calls are collected here."""
    made = []

    def stage(name):
        def call(runner, *arguments):
            made.append(f"{name}({', '.join(map(str, arguments))})")
            return made[-1]

        return call

    for module, function in STAGES.items():
        monkeypatch.setattr(getattr(self_training, module), function, stage(function))
    for name, function in DECISIONS.items():
        monkeypatch.setattr(self_training.decisions, name, function)
    # Short results, so that the calls can be read.
    monkeypatch.setattr(self_training.ingestion, "ingest_images", lambda runner: Images())
    monkeypatch.setattr(self_training.validation, "check_chain", lambda runner, counts: None)
    monkeypatch.setattr(self_training.distillation, "score_labeled", lambda *arguments: None)
    return made


def make_runner(**values):
    config = Config.from_values({"models": ["convnet5"] * 3, "train_steps": [2], **values})
    return types.SimpleNamespace(config=config)


def names(calls):
    return [call.partition("(")[0] for call in calls]


TEACHER = ["train", "finetune", "evaluate"]
STUDENT = [
    "score",
    "compare",
    "select",
    "check_selection",
    "write",
    "pretrain",
    "train",
    "finetune",
    "evaluate",
]


def test_stages_in_the_order_of_the_data(calls):
    images, chain = self_training.train_chain(make_runner())
    assert images == "images" and len(chain) == 3
    assert names(calls) == TEACHER + 2 * STUDENT
    teacher, student, _ = chain
    assert teacher.trained == "train(0, images)"
    assert teacher.model == f"finetune(0, images, {teacher.trained})"
    assert teacher.evaluation == f"evaluate({teacher.model}, images)"
    assert student.scores == f"score(1, {teacher.model}, images)"
    assert student.comparison == f"compare(1, {student.scores}, images)"
    assert student.selection == f"select(1, {student.scores}, images, {student.comparison})"
    arguments = f"1, images, {student.scores}, {student.selection}"
    assert calls[calls.index(student.pseudo_labels) - 1] == f"check_selection({arguments})"
    assert student.pseudo_labels == f"write(1, images, {student.scores}, {student.selection})"
    arguments = f"1, images, {student.pseudo_labels}, {teacher.model}"
    assert student.pretrained == f"pretrain({arguments})"
    assert student.trained == f"train({arguments}, None, {student.pretrained})"
    assert student.model == f"finetune(1, images, {student.trained})"
    assert student.evaluation == f"evaluate({student.model}, images)"


def test_a_given_teacher_is_adopted_and_not_trained(calls):
    runner = make_runner(teacher="old.keras", models=["convnet5"])
    _, (teacher, student) = self_training.train_chain(runner)
    assert names(calls) == ["adopt_teacher", "evaluate", *STUDENT]
    assert teacher.trained == teacher.model == "adopt_teacher(images)"
    assert student.scores == "score(1, adopt_teacher(images), images)"


def test_select_once_keeps_the_first_selection(calls):
    _, (_, first, second) = self_training.train_chain(make_runner(select="once"))
    assert names(calls).count("select") == names(calls).count("compare") == 1
    assert first.comparison == calls[4] and second.comparison is None
    # A later student may see the same images more often.
    assert f"check_selection(2, images, {second.scores}, {first.selection})" in calls
    assert second.selection == first.selection and second.scores != first.scores


def test_distillation_scores_the_labelled_images_too(calls, monkeypatch):
    scored = []

    def score_labeled(runner, number, teacher, images):
        scored.append((number, teacher, str(images)))
        return f"labeled {number}"

    monkeypatch.setattr(self_training.distillation, "score_labeled", score_labeled)
    _, chain = self_training.train_chain(make_runner())
    assert names(calls) == TEACHER + 2 * STUDENT
    assert scored == [(number + 1, chain[number].model, "images") for number in (0, 1)]
    assert chain[2].scored_labeled == "labeled 2"
    assert chain[1].trained.endswith(f", {chain[0].model}, labeled 1, {chain[1].pretrained})")


def test_distillation_on_labelled_images_alone_labels_no_others(calls, monkeypatch):
    monkeypatch.setattr(self_training.distillation, "score_labeled", lambda *arguments: "labeled")
    _, chain = self_training.train_chain(make_runner(ratio=[0, 3], distillation_alpha=[0.5]))
    assert names(calls) == [*TEACHER, "pretrain", *TEACHER, *STUDENT]
    arguments = f"1, images, None, {chain[0].model}"
    assert chain[1].trained == f"train({arguments}, labeled, pretrain({arguments}))"
    assert chain[1].scores is chain[1].pseudo_labels is None and chain[1].is_student


def test_several_teachers_are_averaged(calls, monkeypatch):
    def stage(name):
        return lambda runner, *inputs, member: calls.append(f"{name}{member}") or calls[-1]

    for module, name in (("training", "train"), ("finetuning", "finetune")):
        monkeypatch.setattr(getattr(self_training, module), name, stage(name))
    monkeypatch.setattr(
        self_training.ensemble, "average", lambda runner, models: f"mean of {', '.join(models)}"
    )
    _, (teacher,) = self_training.start_chain(make_runner(num_teachers=2))
    assert calls[:4] == ["train1", "finetune1", "train2", "finetune2"]
    assert (teacher.trained, teacher.model) == ("train1", "mean of finetune1, finetune2")
    assert teacher.evaluation == "evaluate(mean of finetune1, finetune2, images)"
    members = [(member.trained, member.model) for member in teacher.members]
    assert members == [("train1", "finetune1"), ("train2", "finetune2")]
    assert teacher.networks == teacher.members


def reject_teacher(monkeypatch, index):
    """The generation with this index is no better than chance, all others are."""

    def check(teacher, p_value):
        if teacher.trained.startswith(f"train({index},"):
            raise GenerationFailedError("no better than chance")

    monkeypatch.setattr(self_training.decisions, "require_better_than_chance", check)


def test_a_student_that_cannot_teach_ends_the_chain(calls, monkeypatch, caplog):
    reject_teacher(monkeypatch, 1)
    _, chain = self_training.train_chain(make_runner())
    assert len(chain) == 2
    assert "The chain ends before generation 2: no better than chance" in caplog.text
    reject_teacher(monkeypatch, 0)
    with pytest.raises(GenerationFailedError, match="no better than chance"):
        self_training.train_chain(make_runner())


@pytest.mark.parametrize("failing", [1, 2])
def test_a_selection_that_cannot_teach_ends_the_chain(calls, monkeypatch, caplog, failing):
    """Of the first generation it is an error, as a teacher at chance level is."""

    def check(runner, generation, *stages):
        if generation == failing:
            raise GenerationFailedError("33 of 92,991 unlabelled images")

    monkeypatch.setattr(self_training.selection_checks, "check_selection", check)
    if failing == 1:
        with pytest.raises(GenerationFailedError, match="33 of 92,991"):
            self_training.train_chain(make_runner())
    else:
        assert len(self_training.train_chain(make_runner())[1]) == 2
        assert "The chain ends before generation 2: 33 of 92,991" in caplog.text
    assert names(calls).count("write") == failing - 1


def test_the_first_teacher_need_not_be_better_than_chance_with_scores_of_records(
    calls, monkeypatch
):
    reject_teacher(monkeypatch, 0)
    runner = make_runner(first_scores="records", unlabeled_dataset="tfrecord:*.tfrecord")
    _, chain = self_training.train_chain(runner)
    assert len(chain) == 3


def test_patience_ends_the_chain(calls, monkeypatch):
    decided_by = []

    def students_without_gain(chain, decide_by):
        decided_by.append(decide_by)
        return len(chain) - 1

    monkeypatch.setattr(self_training.decisions, "students_without_gain", students_without_gain)
    for patience, length in ((0, 4), (1, 2), (2, 3)):
        runner = make_runner(models=["convnet5"] * 4, patience=patience)
        assert len(self_training.train_chain(runner)[1]) == length
    assert set(decided_by) == {"accuracy"}
    self_training.train_chain(make_runner(decide_by="nll"))
    assert decided_by[-1] == "nll"


def test_scores_that_other_processes_have_not_finished(calls, monkeypatch):
    monkeypatch.setattr(self_training.scoring, "score", lambda *arguments: None)
    with pytest.raises(UserError, match="have not finished the scores for generation 1"):
        self_training.train_chain(make_runner())


def test_only_the_generations_that_are_asked_for(calls):
    _, chain = self_training.train_generations(make_runner(), 2)
    assert len(chain) == 2 and names(calls) == TEACHER + STUDENT
