import numpy as np
import pyarrow.parquet as pq
import pytest

from nsk.evaluation import bootstrap
from nsk.evaluation import corruptions as library
from nsk.evaluation.suites import corruptions
from tests.evaluation.suites.small_classifier import (
    COUNT,
    CountingPredictor,
    make_images,
    predictor,
)

__all__ = ["predictor"]
NAMES = ["gaussian_noise", "fog", "contrast"]


def evaluate(predictor, folder, images=None, **options):
    defaults = {
        "corruptions": ("contrast", "fog", "gaussian_noise"),
        "corruption_constants": "auto",
        "corruption_files": "",
        "frost_textures": "",
        "evaluation_images": 0,
        "evaluation_seed": 5,
    }
    splits = {"test": images or make_images()[0]}
    chosen = corruptions.Options(**{**defaults, **options})
    return corruptions.evaluate(predictor, splits, folder, chosen)


def wrong(predictor, pixels, labels):
    return predictor.log_probabilities(pixels).argmax(axis=1) != labels


def test_errors_of_every_condition_and_its_file(predictor, tmp_path):
    _, pixels, labels, ids = make_images()
    found = evaluate(predictor, tmp_path)
    assert list(found["errors"]) == NAMES  # In the published order.
    columns = []
    for name in NAMES:
        for severity in range(1, 6):
            images = library.corrupt(pixels, name, severity, ids, seed=5, constants="cifar")
            columns.append(wrong(predictor, images, labels))
            assert found["errors"][name][severity - 1] == pytest.approx(columns[-1].mean())
            table = pq.read_table(tmp_path / f"{name}-{severity}.parquet")
            assert table["id"].to_pylist() == ids and table["truth"].to_pylist() == labels.tolist()
            is_wrong = table["label"].to_numpy() != table["truth"].to_numpy()
            np.testing.assert_array_equal(is_wrong, columns[-1])
    assert len(list(tmp_path.iterdir())) == 16
    assert found["clean_error"] == pytest.approx(wrong(predictor, pixels, labels).mean())
    assert found["mean_error"] == pytest.approx(np.mean(columns))
    values = np.stack(columns, axis=1)
    assert found["mean_error_interval"] == list(bootstrap.bootstrap_interval(values))
    assert found["images"] == COUNT and found["constants"] == "cifar"
    assert found["source"] == "generated" and "frost" not in found


def test_results_say_what_frost_is(predictor, tmp_path):
    found = evaluate(predictor, tmp_path, corruptions=("frost",))
    assert found["frost"] == "procedural texture"


def test_an_interrupted_evaluation_resumes_with_the_missing_conditions(predictor, tmp_path):
    expected = evaluate(predictor, tmp_path)
    for name in ("fog-2", "contrast-5"):
        (tmp_path / f"{name}.parquet").unlink()
    counting = CountingPredictor(predictor)
    assert evaluate(counting, tmp_path) == expected
    assert counting.images == 2 * COUNT


def test_the_batch_size_changes_nothing(predictor, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    other = make_images(batch_size=7)[0]
    assert evaluate(predictor, tmp_path / "a") == evaluate(predictor, tmp_path / "b", other)


def test_the_seed_and_the_constants_change_the_images(predictor, tmp_path):
    found = []
    for index, options in enumerate(
        ({}, {"evaluation_seed": 6}, {"corruption_constants": "imagenet"})
    ):
        (tmp_path / str(index)).mkdir()
        evaluate(predictor, tmp_path / str(index), **options)
        path = tmp_path / str(index) / "gaussian_noise-3.parquet"
        found.append(pq.read_table(path)["confidence"].to_numpy())
    assert (found[0] != found[1]).any() and (found[0] != found[2]).any()


def test_a_subset_is_the_same_for_all_conditions(predictor, tmp_path):
    found = evaluate(predictor, tmp_path, evaluation_images=9)
    assert found["images"] == 9
    clean = corruptions.read_condition(tmp_path / "clean.parquet").ids
    assert corruptions.read_condition(tmp_path / "fog-4.parquet").ids == clean
    assert set(clean) < set(make_images()[3])


@pytest.mark.parametrize(
    "chosen, count", [(("benchmark",), 15), (("all",), 19), (("benchmark", "spatter"), 16)]
)
def test_names_of_groups(chosen, count):
    names = corruptions.names_of(chosen)
    assert len(names) == count and names == [name for name in library.CORRUPTIONS if name in names]


def test_files_of_other_images_are_not_mixed(predictor, tmp_path):
    evaluate(predictor, tmp_path)
    (tmp_path / "clean.parquet").unlink()
    with pytest.raises(ValueError, match="other images"):
        evaluate(predictor, tmp_path, make_images(seed=2)[0])
