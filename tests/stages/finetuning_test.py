"""Fine-tuning at the resolution of the test: a whole chain with it."""

import json

import numpy as np
import pytest

from nsk import self_training
from nsk.commands import run
from nsk.config.config import Config
from nsk.distributed.runtime import Runtime
from nsk.distributed.strategy import make_strategy
from nsk.models.files import load_model
from nsk.report.terminal import closing_table
from nsk.stages.runner import MODEL_FILE, ReadOnlyRunner
from nsk.store.manifest import MANIFEST
from tools import finetune_table

VALUES = {
    "dataset": "digits",
    "num_labeled": 60,
    "num_dev": 60,
    "image_size": [8, 10],
    "models": ["convnet5", "convnet5"],
    "train_steps": [12],
    "labeled_batch_size": [16],
    "ratio": [1.0],
    "min_confidence": [0.0],
    "chance_p_value": 1.0,
    "randaugment_num_ops": [0],
    "evaluations": 1,
    "ema_decay": 0.9,
    "finetune_resolution": [12, 16],
    "finetune_epochs": [1.5],
    "finetune_frozen_blocks": [1, 2],
}


def load(folder, pattern):
    (path,) = folder.glob(pattern)
    return load_model(path / MODEL_FILE)


def manifest(folder, pattern):
    (path,) = folder.glob(f"{pattern}/{MANIFEST}")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Workdir and summary of a run."""
    workdir = tmp_path_factory.mktemp("finetune") / "run"
    return workdir, run.execute({**VALUES, "workdir": str(workdir)})


def test_each_generation_is_fine_tuned_and_then_used_at_its_resolution(finished):
    workdir, summary = finished
    for generation, (kind, before, after) in enumerate((("teacher", 8, 12), ("student", 10, 16))):
        trained = load(workdir, f"gen{generation}/{kind}-*")
        tuned = load(workdir, f"gen{generation}/finetune-*")
        assert (trained.input_shape[1], tuned.input_shape[1]) == (before, after)
        reported = summary["generations"][generation]
        assert reported["stage"].startswith(f"gen{generation}/finetune-")
        assert (reported["image_size"], reported["finetuned_from"]["image_size"]) == (after, before)
        assert 0 <= reported["finetuned_from"]["dev_before"]["accuracy"] <= 1
        assert reported["images_seen"] == 12 * 16 * (1 + generation) + 6 * 16
    table = closing_table(summary, workdir)
    assert "Generation 0 was trained at 8 pixels and fine-tuned at 12.\n" in table
    # Later stages use the fine-tuned networks.
    for name, source in (
        ("gen0/evaluation-*", "gen0/finetune-"),
        ("gen1/scores-*", "gen0/finetune-"),
        ("gen1/evaluation-*", "gen1/finetune-"),
    ):
        inputs = manifest(workdir, name)["inputs"].values()
        assert any(stage["stage"].startswith(source) for stage in inputs), name
    best = summary["best"]["index"]
    assert load(workdir, "export-*").input_shape[1] == (12, 16)[best]


@pytest.mark.parametrize(("generation", "kind", "blocks"), [(0, "teacher", 1), (1, "student", 2)])
def test_frozen_layers_are_equal_bit_for_bit_and_the_others_learn(
    finished, generation, kind, blocks
):
    workdir, _ = finished
    trained = load(workdir, f"gen{generation}/{kind}-*")
    tuned = load(workdir, f"gen{generation}/finetune-*")
    frozen = tuple(f"layer{number}_" for number in range(1, blocks + 1))
    for layer in trained.layers:
        tuned_layer = tuned.get_layer(layer.name)
        for before, after in zip(layer.get_weights(), tuned_layer.get_weights(), strict=True):
            assert np.array_equal(before, after) == layer.name.startswith(frozen), layer.name


def test_fine_tuning_has_clean_images_and_a_learning_rate_that_decays_to_zero(finished):
    workdir, _ = finished
    settings = manifest(workdir, "gen1/finetune-*")["settings"]
    noises = (
        "randaugment_num_ops",
        "crop_padding",
        "min_crop_area",
        "cutout_side",
        "mixup_alpha",
        "cutmix_alpha",
    )
    assert not any(settings[name] for name in noises)
    assert settings["flip"] == "off" and settings["schedule"] == "cosine"
    assert not {"ratio", "pseudo_label", "temperature"} & set(settings)


def test_the_table_shows_accuracies_and_what_is_unchanged(finished):
    workdir, summary = finished
    config = Config.from_values({**VALUES, "workdir": str(workdir)})
    runner = ReadOnlyRunner(config, Runtime.from_strategy(make_strategy("one")))
    images, chain = self_training.train_generations(runner, 2)
    reported = summary["generations"][1]
    trained, enlarged, tuned = finetune_table.measure(chain[1], images, 64)
    assert [row["pixels"] for row in (trained, enlarged, tuned)] == [10, 16, 16]
    assert trained["dev"] == pytest.approx(chain[1].trained.counts["dev"]["accuracy"])
    before = reported["finetuned_from"]["dev_before"]
    assert enlarged["dev"] == pytest.approx(before["accuracy"])
    for split in ("dev", "test"):
        assert tuned[split] == pytest.approx(reported[split]["accuracy"])
    counts = finetune_table.compare_frozen(chain[1], 2)
    assert counts["unchanged"] == counts["frozen"] == 10
    assert counts["changed"] == counts["others"] == 12


def test_only_fine_tuning_is_repeated_if_its_settings_change(finished):
    workdir, _ = finished
    before = {path.name for path in workdir.glob("gen*/*-*")}
    run.execute({**VALUES, "finetune_learning_rate": [1e-3, 2e-3], "workdir": str(workdir)})
    new = {path.name for path in workdir.glob("gen*/*-*")} - before
    assert sorted(name.partition("-")[0] for name in new) == ["evaluation", "finetune"]
