"""Published sets in the suites: the same results as from the images that the suites make."""

import io

import numpy as np
import pytest
from PIL import Image

from nsk.errors import UserError
from nsk.evaluation import corruptions as library
from nsk.evaluation import perturbations as perturbation_library
from nsk.evaluation.corruption_files import write_image_folders, write_labels, write_npy_files
from nsk.evaluation.perturbation_files import write_npy
from nsk.evaluation.subsets import choose_subset
from nsk.evaluation.suites import relative
from tests.evaluation.suites import corruptions_test, perturbations_test
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


@pytest.fixture
def sequences(tmp_path):
    """Two perturbation sets of the test images as arrays."""
    folder = tmp_path / "Small-P"
    folder.mkdir()
    _, pixels, _, ids = make_images()
    for name in ("tilt", "gaussian_noise"):
        frames = perturbation_library.perturb(pixels, name, ids, seed=5)
        write_npy(folder / f"{name}.npy", [frames], (COUNT, 31, SIDE, SIDE, 3))
    return folder


@pytest.mark.parametrize("chosen", [("all",), ("tilt", "gaussian_noise")])
def test_flips_on_a_published_set_are_those_on_the_same_frames(
    predictor, tmp_path, results, sequences, chosen
):
    found = perturbations_test.evaluate(
        predictor, results, perturbations=chosen, perturbation_files=str(sequences)
    )
    (tmp_path / "made").mkdir()
    made = perturbations_test.evaluate(predictor, tmp_path / "made")
    assert found["source"] == "Small-P" and made["source"] == "generated"
    assert {**found, "source": ""} == {**made, "source": ""}


def test_a_subset_of_sequences(predictor, results, sequences):
    found = perturbations_test.evaluate(
        predictor,
        results,
        perturbations=("tilt",),
        perturbation_files=str(sequences),
        evaluation_images=5,
    )
    rows = choose_subset([f"{row:05d}" for row in range(COUNT)], 5, 5)
    frames = np.load(sequences / "tilt.npy")[rows]
    predicted = np.stack(
        [predictor.log_probabilities(image).argmax(axis=1) for image in frames[:, :31]]
    )
    flips = (predicted[:, 1:] != predicted[:, :-1]).mean()
    assert found["mean_flip_probability"] == pytest.approx(flips)
    assert found["images"] == 5


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((COUNT, 21, SIDE, SIDE, 3), r"tilt.npy has the shape \(24, 21, .*expected \(24, 31, 12"),
        ((COUNT, 31, 8, 8, 3), r"expected \(24, 31, 12, 12, 3\)"),
        ((COUNT - 1, 31, SIDE, SIDE, 3), r"expected \(24, 31, 12, 12, 3\)"),
    ],
)
def test_other_sequences_are_refused(predictor, results, sequences, shape, message):
    np.save(sequences / "tilt.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=message):
        perturbations_test.evaluate(predictor, results, perturbation_files=str(sequences))


def test_missing_sequences_are_named(predictor, results, sequences):
    for chosen, message in ((("snow",), "snow.npy does not exist"), (("all",), "no perturbations")):
        folder = sequences if chosen == ("snow",) else results
        with pytest.raises(UserError, match=message):
            perturbations_test.evaluate(
                predictor, results, perturbations=chosen, perturbation_files=str(folder)
            )
