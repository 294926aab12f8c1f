"""A student that is pre-trained on pseudo-labelled images: a whole chain with it."""

import json

import numpy as np
import pytest

from nsk import self_training
from nsk.commands import run
from nsk.config.config import Config
from nsk.data.shards import ShardSet
from nsk.distributed.runtime import Runtime
from nsk.distributed.strategy import make_strategy
from nsk.evaluation.prediction_files import read_table
from nsk.models.model_files import load_model
from nsk.stages import input_streams
from nsk.stages.hyperparameters import training_parts
from nsk.stages.runner import MODEL_FILE, ReadOnlyRunner, StageRunner
from nsk.store.manifest import MANIFEST

VALUES = {
    "dataset": "digits",
    "num_labeled": 60,
    "num_dev": 60,
    "models": ["convnet5", "convnet5"],
    "init_from": ["scratch", "teacher"],
    "train_steps": [12],
    "labeled_batch_size": [16],
    "ratio": [3.0],
    "mixing": "pretrain",
    "policy": "none",
    "min_confidence": [0.0],
    "chance_p_value": 1.0,
    "randaugment_num_ops": [0],
    "crop_padding": [0],
    "evaluations": 1,
    "strategy": "one",
}


def manifest(folder, pattern):
    (path,) = folder.glob(f"{pattern}/{MANIFEST}")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Workdir and summary of a run."""
    workdir = tmp_path_factory.mktemp("pretraining") / "run"
    return workdir, run.execute({**VALUES, "workdir": str(workdir)})


def test_two_stages_that_have_the_images_of_one(finished):
    workdir, summary = finished
    pretraining, student = (
        manifest(workdir, "gen1/pretraining-*"),
        manifest(workdir, "gen1/student-*"),
    )
    assert set(pretraining["inputs"]) == {"images", "pseudo_labels", "teacher"}
    assert set(student["inputs"]) == {"images", "pretrained"}
    assert set(pretraining["counts"]["streams"]) == {"pseudo"}
    assert set(student["counts"]["streams"]) == {"labeled"}
    assert (pretraining["counts"]["images_seen"], student["counts"]["images_seen"]) == (576, 192)
    described = summary["generations"][1]
    assert described["images_seen"] == 12 * 64
    assert described["pretrained"]["stage"].startswith("gen1/pretraining-")
    assert described["pretrained"]["dev"] == student["counts"]["dev_before"]
    seconds = pretraining["counts"]["seconds"] + student["counts"]["seconds"]
    assert described["seconds"] == pytest.approx(seconds)
    # The second part starts from the model that the first has saved.
    model = load_model(next(workdir.glob("gen1/pretraining-*")) / MODEL_FILE)
    dev = ShardSet.load(next(workdir.glob("data/images-*")) / "dev")
    correct = 0
    for batch in input_streams.pipeline.clean_batches(dev, 8, 64):
        logits = model(np.asarray(batch["image"], np.float32), training=False)
        correct += int(np.sum(np.argmax(logits, axis=1) == batch["label"]))
    assert student["counts"]["dev_before"]["accuracy"] == pytest.approx(correct / 60)


def test_the_first_part_has_pseudo_labels_alone(finished):
    """Its targets are the teacher's probabilities of the unlabelled images."""
    workdir, _ = finished
    config = Config.from_values({**VALUES, "workdir": str(workdir)})
    runner = StageRunner(config, Runtime.from_strategy(make_strategy("one")))
    images, _ = self_training.start_chain(runner)
    settings, _ = training_parts(config, 1, images.counts)
    labeled = ShardSet.load(images.path / "labeled")
    pseudo = ShardSet.load(next(workdir.glob("gen1/pseudo-*")) / "shards")
    settings = settings.with_cache(labeled, ShardSet.load(images.path / "dev"), pseudo)
    (stream,) = input_streams.make_streams(settings, labeled, pseudo, {})
    assert stream.num_images == pseudo.num_images == images.counts["images"]["unlabeled"]
    (batch,) = next(iter(input_streams.make_batches(settings, (stream,))(0, 1)))
    probabilities = np.concatenate(
        [
            np.exp(np.stack(read_table(path)["log_probabilities"].to_pylist()).astype(np.float32))
            for path in sorted(next(workdir.glob("gen1/scores-*")).glob("unlabeled/*"))
        ]
    )
    for target in batch["target"].numpy():
        assert np.abs(probabilities - target).sum(axis=1).min() < 0.01


def test_another_learning_rate_reuses_the_pre_training(finished):
    """The last test: it adds to the workdir."""
    workdir, _ = finished
    values = {**VALUES, "workdir": str(workdir), "labeled_learning_rate": ["0.3"]}
    run.execute(values)
    assert len(list(workdir.glob("gen1/pretraining-*"))) == 1
    assert len(list(workdir.glob("gen1/student-*"))) == 2
    runtime = Runtime.from_strategy(make_strategy("one"))
    _, chain = self_training.train_chain(ReadOnlyRunner(Config.from_values(values), runtime))
    assert chain[1].pretrained.reused
