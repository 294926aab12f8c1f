"""Results relative to a baseline, on results and files of real evaluations."""

import numpy as np
import pytest

from nsk.evaluation import alexnet, bootstrap, robustness
from nsk.evaluation.corruptions import BENCHMARK
from nsk.evaluation.prediction_files import read_classes, write_classes
from nsk.evaluation.suites import corruptions, perturbations, relative
from nsk.evaluation.suites.relative import ALEXNET, Baseline
from tests.evaluation.suites import corruptions_test, perturbations_test
from tests.evaluation.suites.small_classifier import make_images, predictor

__all__ = ["predictor"]


@pytest.fixture(scope="module")
def evaluated(predictor, tmp_path_factory):
    """Folder and result of an evaluation, and those of other labels: another model."""
    folders = [tmp_path_factory.mktemp("corruptions") for _ in range(2)]
    images = make_images()[0], make_images(seed=0)[0]
    other = type(images[1])(
        "test", images[1].batches.map(lambda batch: {**batch, "label": 6 - batch["label"]})
    )
    return [
        (folder, corruptions_test.evaluate(predictor, folder, split))
        for folder, split in zip(folders, (images[0], other), strict=True)
    ]


def test_a_model_is_100_relative_to_itself(evaluated):
    folder, result = evaluated[0]
    found = relative.compare("corruptions", folder, result, Baseline("b", {"corruptions": result}))
    assert found["baseline"] == "b" and found["compared"] == list(result["errors"])
    assert found["mce"] == pytest.approx(100)
    assert list(found["corruption_error"].values()) == [pytest.approx(100)] * 3
    low, high = found["mce_interval"]
    assert low < 100 < high


def test_mce_by_hand(evaluated):
    (folder, result), (_, other) = evaluated
    baseline = Baseline("other", {"corruptions": other})
    found = relative.compare("corruptions", folder, result, baseline)
    ratios, relative_ratios = [], []
    for name in result["errors"]:
        mine, theirs = sum(result["errors"][name]), sum(other["errors"][name])
        ratios.append(100 * mine / theirs)
        above = theirs - 5 * other["clean_error"]
        relative_ratios.append(
            100 * (mine - 5 * result["clean_error"]) / above if above >= 0.005 else None
        )
        assert found["denominator"][name] == pytest.approx(theirs / 5)
    assert found["mce"] == pytest.approx(np.mean(ratios))
    if None in relative_ratios:
        assert found["relative_mce"] is None
    else:
        assert found["relative_mce"] == pytest.approx(np.mean(relative_ratios))
    values = corruptions.read_wrong(folder, list(result["errors"]))[1]
    denominators = np.repeat([np.sum(other["errors"][name]) for name in result["errors"]], 5)
    interval = bootstrap.bootstrap_interval(
        values, lambda means: 100 * (means / denominators).sum(axis=1) / len(ratios)
    )
    assert found["mce_interval"] == pytest.approx(interval)


@pytest.mark.parametrize("name", relative.CONDITIONS)
def test_a_baseline_of_other_images_is_not_compared(evaluated, name):
    folder, result = evaluated[0]
    baseline = Baseline("other", {"corruptions": {**result, name: "other"}})
    found = relative.compare("corruptions", folder, result, baseline)
    assert f"has {name}='other'" in found["baseline_note"] and "mce" not in found


def test_alexnet_is_for_imagenet(evaluated):
    folder, result = evaluated[0]
    found = relative.compare("corruptions", folder, result, ALEXNET)
    assert "constants 'cifar'" in found["baseline_note"] and "mce" not in found
    found = relative.compare("corruptions", folder, {**result, "constants": "imagenet"}, ALEXNET)
    expected = robustness.corruption_error(
        result["errors"], alexnet.CORRUPTION_ERRORS, list(result["errors"])
    )
    assert found["mce"] == pytest.approx(expected.mean)
    assert "of 3 corruptions" in found["mce_note"]


def test_intervals_resample_the_baseline_on_the_same_images(evaluated):
    """A model relative to itself is 100 in every resample; as constants it is not."""
    folder, result = evaluated[0]
    baseline = Baseline("b", {"corruptions": result}, folders={"corruptions": folder})
    found = relative.compare("corruptions", folder, result, baseline)
    assert found["mce_interval"] == pytest.approx([100, 100])
    (_, other), other_folder = evaluated[1], evaluated[1][0]
    found = relative.compare(
        "corruptions",
        folder,
        result,
        Baseline("other", {"corruptions": other}, folders={"corruptions": other_folder}),
    )
    mine, theirs = (
        corruptions.read_wrong(path, list(result["errors"]))[1] for path in (folder, other_folder)
    )

    def statistic(means):
        sums = means.reshape(len(means), 2, 3, 5).sum(axis=3)
        return 100 * (sums[:, 0] / sums[:, 1]).mean(axis=1)

    expected = bootstrap.bootstrap_interval(np.concatenate([mine, theirs], axis=1), statistic)
    assert found["mce_interval"] == pytest.approx(expected)


def test_the_benchmark_is_compared_without_the_extras(evaluated, monkeypatch):
    names = (*BENCHMARK, "spatter")
    errors = {name: [0.5] * 5 for name in names}
    result = {**evaluated[0][1], "errors": errors, "clean_error": 0.1}
    wrong = np.eye(2, dtype=bool)[np.zeros(8, int)]

    def read_wrong(folder, names):
        return wrong[:, 1], np.repeat(wrong[:, :1], 5 * len(names), axis=1)

    monkeypatch.setattr(corruptions, "read_wrong", read_wrong)
    found = relative.compare("corruptions", "", result, Baseline("b", {"corruptions": result}))
    assert found["compared"] == list(BENCHMARK) and "mce_of_19" not in found


def test_without_a_baseline_or_a_comparison_nothing_is_added(evaluated):
    folder, result = evaluated[0]
    assert relative.compare("corruptions", folder, result, None) == {}
    found = relative.compare("corruptions", folder, result, Baseline("b", {}))
    assert "is not known" in found["baseline_note"] and "mce" not in found
    assert relative.compare("clean", folder, {}, Baseline("b", {"clean": {}})) == {}


def test_flip_rates(predictor, tmp_path):
    result = perturbations_test.evaluate(predictor, tmp_path)
    half = {name: value / 2 for name, value in result["flip_probability"].items()}
    baseline = Baseline("b", {"perturbations": {**result, "flip_probability": half}})
    found = relative.compare("perturbations", tmp_path, result, baseline)
    assert found["mfr"] == pytest.approx(200) and found["mt5d"] == pytest.approx(100)
    assert found["mfr_denominator"] == pytest.approx(half)


def test_paired_differences(evaluated, predictor, tmp_path):
    (folder, result), (other_folder, other) = evaluated
    found = relative.paired_differences("corruptions", folder, other_folder)
    assert found["mean"] == pytest.approx(other["mean_error"] - result["mean_error"])
    assert found["lower"] <= found["mean"] <= found["upper"]
    perturbations_test.evaluate(predictor, tmp_path)
    same = relative.paired_differences("perturbations", tmp_path, tmp_path)
    assert same == {"mean": 0, "lower": 0, "upper": 0}
    assert perturbations.names_in(tmp_path) == ["gaussian_noise", "tilt"]
    assert relative.paired_differences("clean", folder, folder) == {}


@pytest.fixture
def flips(tmp_path):
    """Folders and results of two models that often change their minds."""
    random, found = np.random.default_rng(4), []
    for model in ("a", "b"):
        (tmp_path / model).mkdir()
        for name in NOISE_AND_TILT:
            classes = np.argsort(random.random((30, 9, 7)), axis=2)[..., :5].astype(np.int32)
            classes[random.random((30, 9)) < 0.6] = np.arange(5)
            ids = [f"i/{row}" for row in range(30)]
            write_classes(tmp_path / model / f"{name}.parquet", ids, np.zeros(30, int), classes)
        found.append((tmp_path / model, perturbations.measure(tmp_path / model, NOISE_AND_TILT)))
    return found


NOISE_AND_TILT = ["gaussian_noise", "tilt"]
FLIP_RATES = {
    "mfr": "flip_probability",
    "mfr_against_first": "flip_probability_against_first",
    "mt5d": "top5_distance",
}


def values_by_hand(folder, metric):
    """The value of each image in gaussian_noise and tilt."""
    columns = []
    for name in NOISE_AND_TILT:
        _, classes = read_classes(folder / f"{name}.parquet")
        is_noise = name == "gaussian_noise" or metric == "flip_probability_against_first"
        if metric == "top5_distance":
            columns.append(robustness.top5_distances(classes, is_noise))
            continue
        earlier = classes[:, :1, 0] if is_noise else classes[:, :-1, 0]
        columns.append((classes[:, 1:, 0] != earlier).mean(axis=1))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(("rate", "metric"), FLIP_RATES.items())
def test_intervals_of_flip_rates_by_hand(flips, rate, metric):
    """Images are drawn with replacement, the same ones for both models and all sets."""
    (folder, result), (other_folder, other) = flips
    baseline = Baseline("b", {"perturbations": other}, folders={"perturbations": other_folder})
    found = relative.compare("perturbations", folder, result, baseline)
    mine, theirs = values_by_hand(folder, metric), values_by_hand(other_folder, metric)
    mean = 100 * np.mean(mine.mean(axis=0) / theirs.mean(axis=0))
    assert found[rate] == pytest.approx(mean)

    def mean_ratio(means):
        return 100 * (means[:, :2] / means[:, 2:]).mean(axis=1)

    paired = bootstrap.bootstrap_interval(np.hstack([mine, theirs]), mean_ratio)
    assert found[f"{rate}_interval"] == pytest.approx(paired)
    low, high = found[f"{rate}_interval"]
    assert low < mean < high
    # Without the baseline's files, or with those of other images, its values are constants.
    constants = theirs.mean(axis=0)
    alone = bootstrap.bootstrap_interval(mine, lambda means: 100 * (means / constants).mean(axis=1))
    others = folder.parent / "others"
    others.mkdir()
    for name in NOISE_AND_TILT:
        _, classes = read_classes(other_folder / f"{name}.parquet")
        ids = [f"other/{row}" for row in range(30)]
        write_classes(others / f"{name}.parquet", ids, np.zeros(30, int), classes)
    for unknown in ({}, {"perturbations": folder.parent}, {"perturbations": others}):
        baseline = Baseline("b", {"perturbations": other}, folders=unknown)
        found = relative.compare("perturbations", folder, result, baseline)
        assert found[f"{rate}_interval"] == pytest.approx(alone)


def test_flip_rates_relative_to_the_model_itself_are_certain(flips):
    folder, result = flips[0]
    baseline = Baseline("b", {"perturbations": result}, folders={"perturbations": folder})
    found = relative.compare("perturbations", folder, result, baseline)
    for rate in FLIP_RATES:
        assert found[f"{rate}_interval"] == pytest.approx([100, 100])


def test_without_flips_of_the_baseline_there_is_no_interval(flips):
    folder, result = flips[0]
    never = {**result["flip_probability"], "tilt": 0.0}
    baseline = Baseline("b", {"perturbations": {**result, "flip_probability": never}})
    found = relative.compare("perturbations", folder, result, baseline)
    assert found["mfr"] is None and found["mfr_interval"] == [None, None]
    assert None not in found["mt5d_interval"]
