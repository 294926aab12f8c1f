"""Fine-tuning at the resolution of the test: a whole chain with it, and what is left alone."""

import json

import keras
import numpy as np
import pytest
from nsk.stages.all_stages import Stages

from nsk import self_training
from nsk.config.config import Config
from nsk.report.terminal import closing_table
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
    return path, keras.models.load_model(path / "model.keras", compile=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finetune") / "run"
    return workdir, self_training.run(Config.from_values({**VALUES, "workdir": str(workdir)}))


def test_each_generation_is_fine_tuned_and_then_used_at_its_resolution(finished):
    workdir, summary = finished
    for generation, (kind, before, after) in enumerate((("teacher", 8, 12), ("student", 10, 16))):
        _, trained = load(workdir, f"gen{generation}/{kind}-*")
        _, tuned = load(workdir, f"gen{generation}/finetune-*")
        assert (trained.input_shape[1], tuned.input_shape[1]) == (before, after)
        told = summary["generations"][generation]
        assert told["stage"].startswith(f"gen{generation}/finetune-")
        assert (told["image_size"], told["finetuned_from"]["image_size"]) == (after, before)
        assert 0 <= told["finetuned_from"]["dev_before"]["accuracy"] <= 1
        assert told["images_seen"] == 12 * 16 * (1 + generation) + 6 * 16
    table = closing_table(summary, workdir)
    assert "Generation 0 was trained at 8 pixels and fine-tuned at 12.\n" in table
    # What comes after is made from the fine-tuned ones.
    for name, source in (
        ("gen0/evaluation-*", "gen0/finetune-"),
        ("gen1/scores-*", "gen0/finetune-"),
        ("gen1/evaluation-*", "gen1/finetune-"),
    ):
        (path,) = workdir.glob(name)
        inputs = json.loads((path / MANIFEST).read_text())["inputs"]
        assert any(one["stage"].startswith(source) for one in inputs.values()), name
    best = summary["best"]["index"]
    _, exported = load(workdir, "export-*")
    assert exported.input_shape[1] == (12, 16)[best]


@pytest.mark.parametrize(("generation", "kind", "blocks"), [(0, "teacher", 1), (1, "student", 2)])
def test_shallow_layers_keep_their_bits_and_the_others_learn(finished, generation, kind, blocks):
    workdir, _ = finished
    _, trained = load(workdir, f"gen{generation}/{kind}-*")
    _, tuned = load(workdir, f"gen{generation}/finetune-*")
    frozen = tuple(f"layer{number}_" for number in range(1, blocks + 1))
    for layer in trained.layers:
        for ours, theirs in zip(
            layer.get_weights(), tuned.get_layer(layer.name).get_weights(), strict=True
        ):
            assert np.array_equal(ours, theirs) == layer.name.startswith(frozen), layer.name


def test_its_images_are_clean_and_its_rate_falls_to_nothing(finished):
    workdir, _ = finished
    (path,) = workdir.glob("gen1/finetune-*")
    settings = json.loads((path / MANIFEST).read_text())["settings"]
    noises = settings["noise"]
    assert not any(
        noises[name]
        for name in ("crop_padding", "min_crop_area", "cutout_side", "mixup_alpha", "cutmix_alpha")
        if name in noises
    )
    assert noises["flip"] is False and "randaugment_num_ops" not in noises
    assert settings["train"]["schedule"] == "cosine" and "targets" not in settings


def test_the_table_tells_what_it_has_brought_and_what_is_unchanged(finished):
    workdir, summary = finished
    config = Config.from_values({**VALUES, "workdir": str(workdir)})
    stages = Stages(config, finished_only=True)
    images, chain = self_training.start_of(config, stages, 2)
    told = summary["generations"][1]
    trained, enlarged, tuned = finetune_table.measure(chain[1], images, 64)
    assert [row["pixels"] for row in (trained, enlarged, tuned)] == [10, 16, 16]
    assert trained["dev"] == pytest.approx(chain[1].trained.counts["dev"]["accuracy"])
    assert enlarged["dev"] == pytest.approx(told["finetuned_from"]["dev_before"]["accuracy"])
    for split in ("dev", "test"):
        assert tuned[split] == pytest.approx(told[split]["accuracy"])
    kept = finetune_table.compare_frozen(chain[1], 2)
    assert kept["unchanged"] == kept["frozen"] == 10 and kept["changed"] == kept["others"] == 12


def test_only_fine_tuning_is_made_again_where_its_settings_change(finished):
    workdir, _ = finished
    made = {path.name for path in workdir.glob("gen*/*-*")}
    changed = {**VALUES, "finetune_learning_rate": [1e-3, 2e-3], "workdir": str(workdir)}
    self_training.run(Config.from_values(changed))
    new = {path.name for path in workdir.glob("gen*/*-*")} - made
    assert sorted(name.partition("-")[0] for name in new) == ["evaluation", "finetune"]
