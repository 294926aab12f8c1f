"""The order of the stages and the end of the chain, with stages that only record their calls."""

from types import SimpleNamespace

import pytest

from nsk import self_training
from nsk.config.config import Config
from nsk.errors import CannotTeachError, UserError

CALLS = [
    "ingest",
    *("train 0", "finetune 0", "evaluate 0"),
    *("better than chance 0", "score 1", "select 1", "write 1"),
    *("train 1", "finetune 1", "evaluate 1"),
    *("better than chance 1", "score 2", "select 2", "write 2"),
    *("train 2", "finetune 2", "evaluate 2"),
]


class Stages:
    """Replaces all stages by functions that record their calls.

    Attributes:
        calls: names of the stages with their generations.
        trained: arguments of each training: pseudo-labels and teacher.
        failing: the call that raises, and its error.
        gains: number of students without gain, from the length of the chain.
    """

    def __init__(self, monkeypatch):
        self.calls, self.trained, self.failing, self.gains = [], [], {}, lambda length: 0

        def replace(module, **functions):
            monkeypatch.setattr(self_training, module, SimpleNamespace(**functions))

        replace("ingestion", ingest_images=lambda runner: self._call("ingest"))
        replace("adoption", adopt_teacher=lambda runner, images: self._call("adopt 0"))
        replace("training", train=self._train)
        replace("finetuning", finetune=lambda runner, n, images, trained: self._call("finetune", n))
        replace("evaluation", evaluate=lambda runner, model, images: self._evaluate(model))
        replace("scoring", score=lambda runner, n, teacher, images: self._call("score", n))
        replace("selection", select=lambda runner, n, scores, images: self._call("select", n))
        replace("pseudo_shards", write=self._write)
        replace(
            "decisions",
            require_better_than_chance=self._require,
            warn_of_lower_accuracy=lambda chain: None,
            students_without_gain=lambda chain: self.gains(len(chain)),
        )

    def _call(self, *words):
        name = " ".join(map(str, words))
        self.calls.append(name)
        if name in self.failing:
            error = self.failing[name]
            if error is None:
                return None
            raise error
        return name

    def _train(self, runner, generation, images, pseudo_labels=None, teacher=None):
        self.trained.append((pseudo_labels, teacher))
        return self._call("train", generation)

    def _evaluate(self, model):
        return self._call("evaluate", model[-1])

    def _write(self, runner, generation, images, scores, selected):
        assert scores == f"score {generation}"
        self._call("write", generation)
        return f"pseudo-labels {generation} of {selected}"

    def _require(self, teacher, p_value):
        assert p_value == 0.01
        self._call("better than chance", teacher.model[-1])


@pytest.fixture
def stages(monkeypatch):
    return Stages(monkeypatch)


def make_runner(**values):
    settings = {"models": ["convnet5"] * 3, "train_steps": ["5"], "num_labeled": 5, "num_dev": 5}
    return SimpleNamespace(config=Config.from_values(settings | values))


def test_each_generation_teaches_the_next_one(stages):
    images, chain = self_training.train_chain(make_runner())
    assert stages.calls == CALLS and images == "ingest"
    assert [generation.model for generation in chain] == [f"finetune {n}" for n in range(3)]
    assert [generation.trained for generation in chain] == [f"train {n}" for n in range(3)]
    assert stages.trained == [
        (None, None),
        ("pseudo-labels 1 of select 1", "finetune 0"),
        ("pseudo-labels 2 of select 2", "finetune 1"),
    ]
    assert chain[0].scores is None and chain[2].scores == "score 2"


def test_a_given_teacher_is_adopted_and_not_fine_tuned(stages):
    _, chain = self_training.train_chain(make_runner(teacher="t.keras", models=["convnet5"]))
    assert stages.calls[:3] == ["ingest", "adopt 0", "evaluate 0"]
    assert chain[0].trained == chain[0].model == "adopt 0" and len(chain) == 2


def test_a_single_selection_is_used_by_all_later_generations(stages):
    self_training.train_chain(make_runner(select="once"))
    assert stages.calls == [name for name in CALLS if name != "select 2"]
    assert stages.trained[-1] == ("pseudo-labels 2 of select 1", "finetune 1")


def test_scores_from_records_do_not_need_a_teacher_better_than_chance(stages):
    records = {"first_scores": "records", "unlabeled_dataset": "tfrecord:/records/*"}
    self_training.train_chain(make_runner(**records))
    assert stages.calls == [name for name in CALLS if name != "better than chance 0"]


def test_the_chain_ends_after_students_without_gain(stages, caplog):
    stages.gains = lambda length: length - 1
    _, chain = self_training.train_chain(make_runner(patience=1))
    assert len(chain) == 2 and stages.calls == CALLS[: CALLS.index("evaluate 1") + 1]
    _, chain = self_training.train_chain(make_runner(patience=0))
    assert len(chain) == 3


@pytest.mark.parametrize("call", ["better than chance 1", "select 2", "train 2", "evaluate 2"])
def test_a_later_generation_that_cannot_be_taught_ends_the_chain(stages, caplog, call):
    stages.failing = {call: CannotTeachError("no pseudo-label is kept")}
    _, chain = self_training.train_chain(make_runner())
    assert len(chain) == 2 and stages.calls == CALLS[: CALLS.index(call) + 1]
    assert "The chain ends before generation 2: no pseudo-label is kept" in caplog.text


@pytest.mark.parametrize("call", ["train 0", "better than chance 0", "select 1"])
def test_a_first_generation_that_cannot_be_taught_is_an_error(stages, call):
    stages.failing = {call: CannotTeachError("no pseudo-label is kept")}
    with pytest.raises(CannotTeachError):
        self_training.train_chain(make_runner())


def test_other_errors_end_the_run(stages):
    stages.failing = {"train 2": UserError("a damaged shard")}
    with pytest.raises(UserError, match="a damaged shard"):
        self_training.train_chain(make_runner())


def test_scores_that_other_processes_have_not_finished_end_the_run(stages):
    stages.failing = {"score 1": None}
    with pytest.raises(UserError, match="have not finished the scores for generation 1"):
        self_training.train_chain(make_runner())


def test_a_part_of_the_chain_can_be_trained(stages):
    _, chain = self_training.train_generations(make_runner(), 2)
    assert len(chain) == 2 and stages.calls == CALLS[: CALLS.index("evaluate 1") + 1]
