"""Published sets of corruptions: the same results as from the images that the suite makes."""

import io

import numpy as np
import pytest
from PIL import Image

from nsk.errors import UserError
from nsk.evaluation import corruptions as library
from nsk.evaluation.corruption_files import write_image_folders, write_labels, write_npy_files
from nsk.evaluation.subsets import choose_subset
from nsk.evaluation.suites import relative
from tests.evaluation.suites import corruptions_test
from tests.evaluation.suites.small_classifier import CLASSES, COUNT, SIDE, make_images, predictor

__all__ = ["predictor"]
NAMES = [f"class {label}" for label in range(CLASSES)]


def decode(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.resize((SIDE, SIDE)))


def corrupted(name, severity):
    _, pixels, _, ids = make_images()
    return library.corrupt(pixels, name, severity, ids, seed=5, constants="cifar")


@pytest.fixture
def arrays(tmp_path):
    """Fog and contrast of the test images as arrays."""
    folder = tmp_path / "Small-C"
    folder.mkdir()
    for name in ("contrast", "fog"):
        batches = ([corrupted(name, severity)] for severity in range(1, 6))
        write_npy_files(folder, name, batches, COUNT, (SIDE, SIDE))
    write_labels(folder, make_images()[2])
    return folder


@pytest.fixture
def results(tmp_path):
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def evaluate(predictor, results, files, names=("all",), images=None, **options):
    return corruptions_test.evaluate(
        predictor,
        results,
        images,
        corruptions=names,
        corruption_files=str(files),
        class_names=NAMES,
        **options,
    )


def test_errors_on_a_published_set_are_those_on_the_same_images(
    predictor, tmp_path, results, arrays
):
    found = evaluate(predictor, results, arrays)
    (tmp_path / "made").mkdir()
    made = corruptions_test.evaluate(
        predictor, tmp_path / "made", corruptions=("fog", "contrast"), corruption_constants="cifar"
    )
    for name in ("errors", "mean_error", "mean_error_interval", "clean_error", "images"):
        assert found[name] == made[name]
    described = ("source", "frost", "constants", "clean_note")
    assert [found[name] for name in described] == ["Small-C", "published", "published", None]
    baseline = relative.Baseline("same", {"corruptions": found})
    compared = relative.compare("corruptions", results, found, baseline)
    assert compared["mce"] == pytest.approx(100)
    # Which of the clean images belongs to which row is not known.
    assert compared["relative_mce_interval"] == [None, None]
    assert evaluate(predictor, results, arrays) == found  # From the files.


def test_a_subset_of_a_published_set_is_the_same_for_every_model(predictor, results, arrays):
    found = evaluate(predictor, results, arrays, ("fog",), evaluation_images=9)
    assert found["clean_error"] is None and "subset" in found["clean_note"]
    _, _, labels, _ = make_images()
    rows = choose_subset([f"{row:05d}" for row in range(COUNT)], 9, 5)
    predicted = predictor.log_probabilities(corrupted("fog", 2)[rows]).argmax(axis=1)
    assert found["errors"]["fog"][1] == pytest.approx((predicted != labels[rows]).mean())
    assert (found["images"], list(found["errors"])) == (9, ["fog"])
    with pytest.raises(UserError, match=r"--evaluation_images=99: .*Small-C has 24 images"):
        evaluate(predictor, results, arrays, evaluation_images=99)


def test_other_test_images_have_no_clean_error(predictor, results, arrays):
    found = evaluate(predictor, results, arrays, images=make_images(count=20)[0])
    assert found["clean_error"] is None
    assert found["clean_note"] == "20 test images, but 24 in Small-C"
    assert not (results / "test.parquet").exists()
    baseline = relative.Baseline("same", {"corruptions": found})
    compared = relative.compare("corruptions", results, found, baseline)
    assert (compared["mce"], compared["relative_mce"]) == (pytest.approx(100), None)
    labels = make_images()[2]
    labels[0] = (labels[0] + 1) % CLASSES
    write_labels(arrays, labels)
    found = evaluate(predictor, results, arrays)
    assert "other numbers of test images in each class than Small-C" in found["clean_note"]


def test_class_folders_have_the_models_labels(predictor, tmp_path, results):
    _, _, labels, _ = make_images()
    names = NAMES[::-1]  # The folders' order is another one than the model's.
    for severity in range(1, 6):
        batches = [(CLASSES - 1 - labels, corrupted("fog", severity))]
        write_image_folders(tmp_path / "C" / "weather", "fog", severity, batches, names)
    found = evaluate(predictor, results, tmp_path / "C", decode=decode)
    for severity in (1, 5):
        images = []
        for image in corrupted("fog", severity):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=85)
            images.append(decode(buffer.getvalue()))
        predicted = predictor.log_probabilities(np.stack(images)).argmax(axis=1)
        expected = (predicted != labels).mean()
        assert found["errors"]["fog"][severity - 1] == pytest.approx(expected)
    assert found["clean_note"] is None


def test_arrays_of_another_size_are_resized(predictor, tmp_path, results):
    (tmp_path / "large").mkdir()
    large = corrupted("fog", 1).repeat(2, axis=1).repeat(2, axis=2)
    write_npy_files(tmp_path / "large", "fog", [[large]] * 5, COUNT, (2 * SIDE, 2 * SIDE))
    write_labels(tmp_path / "large", make_images()[2])
    with pytest.raises(UserError, match=r"images of \(24, 24\) pixels: .* model, \(12, 12\)"):
        evaluate(predictor, results, tmp_path / "large")
    found = evaluate(predictor, results, tmp_path / "large", decode=decode)
    resized = np.stack([np.asarray(Image.fromarray(image).resize((12, 12))) for image in large])
    predicted = predictor.log_probabilities(resized).argmax(axis=1)
    expected = (predicted != make_images()[2]).mean()
    assert found["errors"]["fog"] == [pytest.approx(expected)] * 5


def test_corruptions_that_a_set_lacks_are_named(predictor, results, arrays):
    with pytest.raises(UserError, match="has no corruption snow: choose of fog, contrast"):
        evaluate(predictor, results, arrays, ("fog", "snow"))
    (arrays / "speckle_noise.npy").write_bytes((arrays / "fog.npy").read_bytes())
    (arrays / "fog.npy").unlink(), (arrays / "contrast.npy").unlink()
    with pytest.raises(UserError, match=r"none of the corruptions .*: choose of speckle_noise"):
        evaluate(predictor, results, arrays, ("benchmark",))
