"""The pools of the benchmark, and its AUROC against scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tools import benchmark_unknown_classes as benchmark


def names(folder):
    return [path.stem for path in sorted(folder.rglob("*.png"))]


@pytest.mark.parametrize("pool", benchmark.POOLS)
def test_pools_hold_what_they_say_and_no_image_twice(pool, tmp_path):
    source = benchmark.load_digits()
    settings = benchmark.write_pool(source, pool, 0, tmp_path)
    classes = {path.name for path in (tmp_path / "labels" / "train").iterdir()}
    assert len(classes) == (7 if pool == "unknown" else 10)
    train, unlabeled = names(tmp_path / "labels" / "train"), names(tmp_path / "unlabeled")
    assert len(train) == settings["num_labeled"] + settings["num_dev"]
    unknown = [name for name in unlabeled if benchmark.is_unknown(f"x/{name}.png")]
    known = [name.removeprefix("known_") for name in unlabeled if name not in unknown]
    labeled = [*train, *names(tmp_path / "labels" / "test")]
    assert len({*labeled, *known}) == len(labeled) + len(known)
    found = set(source.labels[list(map(int, known))].tolist())
    assert len(found) == {"noise": 0, "one_class": 1, "unknown": 7}.get(pool, 10)
    assert bool(unknown) == (pool in ("noise", "unknown"))
    if pool == "many":
        assert len(unlabeled) > 100 * settings["num_labeled"]
    if pool == "unknown":
        hidden = [int(name.rpartition("_")[2]) for name in unknown]
        assert not {str(label) for label in source.labels[hidden]} & classes


def test_auroc_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    negatives, positives = random.normal(0, 1, 50).round(1), random.normal(1, 1, 70).round(1)
    truth = np.repeat([0, 1], [50, 70])
    expected = roc_auc_score(truth, np.concatenate([negatives, positives]))
    assert benchmark.auroc(negatives, positives) == pytest.approx(expected)
