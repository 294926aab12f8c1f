"""Where the frames of the suite `perturbations` come from: test images, arrays or videos."""

import dataclasses
import io

import av
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nsk.errors import UserError
from nsk.evaluation import perturbations as library
from nsk.evaluation.perturbation_files import write_npy
from nsk.evaluation.prediction_files import read_classes
from nsk.evaluation.subsets import choose_subset
from nsk.evaluation.suites import frames, perturbations
from tests.evaluation.suites.perturbations_test import evaluate, resize
from tests.evaluation.suites.small_classifier import (
    COUNT,
    SIDE,
    CountingPredictor,
    make_images,
    predictor,
)

__all__ = ["predictor"]
NAMES = ("gaussian_noise", "tilt")


class RecordingPredictor(CountingPredictor):
    """Passes predictions on and keeps the images."""

    def __init__(self, predictor):
        super().__init__(predictor)
        self.seen = []

    def log_probabilities(self, images):
        self.seen.append(images)
        return super().log_probabilities(images)

    def frames(self, count):
        """All images seen, uint8 (count, frames, height, width, 3)."""
        images = np.concatenate(self.seen)
        return images.reshape(count, -1, *images.shape[1:])


def write_video(path, pixels):
    """An MP4 file without losses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=1, options={"qp": "0"})
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "rgb24"
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def made_frames(name):
    """The frames of the test images, uint8 (COUNT, frames, SIDE, SIDE, 3)."""
    _, pixels, _, ids = make_images()
    return np.stack(list(library.perturb(pixels, name, ids, seed=5)), axis=1)


def video_ids():
    """The images' ids in the set of videos; their order is not that of the test images."""
    return [f"n0{row % 3}/val_{row:02d}" for row in range(COUNT)]


@pytest.fixture
def arrays(tmp_path):
    """Two perturbation sets of the test images as arrays."""
    folder = tmp_path / "Small-P"
    folder.mkdir()
    for name in NAMES:
        sequences = made_frames(name)
        write_npy(folder / f"{name}.npy", [sequences.swapaxes(0, 1)], sequences.shape)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The same as videos, one of them in the folder of a group."""
    folder = tmp_path_factory.mktemp("sets") / "Video-P"
    for group, name in zip(("noise", "."), NAMES, strict=True):
        for image_id, sequence in zip(video_ids(), made_frames(name), strict=True):
            write_video(folder / group / name / f"{image_id}.mp4", sequence)
    (folder / "tilt" / "n01" / "._val_01.mp4").write_bytes(b"litter")
    return folder


@pytest.fixture
def results(tmp_path):
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def evaluate_files(predictor, results, folder, names=("all",), **options):
    return evaluate(
        predictor, results, perturbations=names, perturbation_files=str(folder), **options
    )


@pytest.mark.parametrize("chosen", [("all",), ("tilt", "gaussian_noise")])
def test_flips_on_arrays_are_those_on_the_same_frames(predictor, tmp_path, results, arrays, chosen):
    found = evaluate_files(predictor, results, arrays, chosen)
    (tmp_path / "made").mkdir()
    made = evaluate(predictor, tmp_path / "made")
    lacking = [name for name in library.PERTURBATIONS if name not in NAMES]
    assert found.pop("missing") == (lacking if chosen == ("all",) else [])
    assert found["source"] == "Small-P" and made["source"] == "generated"
    assert {**found, "source": ""} == {**made, "source": ""}


def test_a_subset_of_arrays(predictor, results, arrays):
    found = evaluate_files(predictor, results, arrays, ("tilt",), evaluation_images=5)
    rows = choose_subset([f"{row:05d}" for row in range(COUNT)], 5, 5)
    predicted = np.stack(
        [predictor.log_probabilities(image).argmax(axis=1) for image in made_frames("tilt")[rows]]
    )
    flips = (predicted[:, 1:] != predicted[:, :-1]).mean()
    assert found["mean_flip_probability"] == pytest.approx(flips)
    assert found["images"] == 5


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((COUNT, 21, SIDE, SIDE, 3), r"tilt.npy has the shape \(24, 21, .*and 31 frames"),
        ((COUNT - 1, 31, SIDE, SIDE, 3), "expected 24 images, as gaussian_noise.npy has"),
    ],
)
def test_other_arrays_are_refused(predictor, results, arrays, shape, message):
    np.save(arrays / "tilt.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=message):
        evaluate_files(predictor, results, arrays)


def test_missing_perturbations_are_named(predictor, results, arrays, videos):
    for folder in (arrays, videos):
        with pytest.raises(UserError, match="no perturbation snow: choose of gaussian_noise, tilt"):
            evaluate_files(predictor, results, folder, ("snow", "tilt"))
    with pytest.raises(UserError, match=r"has no perturbations: .* It holds nothing"):
        evaluate_files(predictor, results, results)


def test_flips_on_videos_are_those_on_the_same_frames(predictor, tmp_path, results, videos):
    found = evaluate_files(predictor, results, videos)
    (tmp_path / "made").mkdir()
    made = evaluate(predictor, tmp_path / "made")
    assert (found["source"], found["constants"], found["images"]) == ("Video-P", "cifar", COUNT)
    for metric in ("flip_probability", "flip_probability_against_first", "top5_distance"):
        assert found[metric] == pytest.approx(made[metric])
    order = np.argsort(video_ids())
    for name in NAMES:
        ids, classes = read_classes(results / f"{name}.parquet")
        assert ids == sorted(video_ids())
        expected = read_classes(tmp_path / "made" / f"{name}.parquet")[1]
        np.testing.assert_array_equal(classes, expected[order])


def test_an_interrupted_evaluation_of_videos_resumes_with_the_missing_set(
    predictor, results, videos
):
    options = {"evaluation_images": 4}
    expected = evaluate_files(predictor, results, videos, **options)
    (results / "tilt.parquet").unlink()
    counting = CountingPredictor(predictor)
    assert evaluate_files(counting, results, videos, **options) == expected
    assert counting.images == 31 * 4


def test_a_subset_of_videos_is_chosen_by_their_ids(predictor, results, videos):
    evaluate_files(predictor, results, videos, evaluation_images=5)
    ids = sorted(video_ids())
    for name in NAMES:
        found, _ = read_classes(results / f"{name}.parquet")
        assert found == [ids[row] for row in choose_subset(ids, 5, 5)]
    with pytest.raises(UserError, match=r"--evaluation_images=25: .*Video-P has 24 images"):
        evaluate_files(predictor, results, videos, evaluation_images=25)


def test_videos_are_read_in_parts_that_fit_in_memory(predictor, tmp_path, results, monkeypatch):
    """With room for the frames of two images no batch has more of them."""
    sequences = made_frames("tilt")[:7]
    for row, sequence in enumerate(sequences):
        write_video(tmp_path / "P" / "tilt" / "n01" / f"{row}.mp4", sequence)
    monkeypatch.setattr(frames, "MAX_BYTES_OF_FRAMES", 2 * sequences[0].nbytes)
    subset = frames.Subset(0, 0)
    source = frames.PublishedFrames(tmp_path / "P", ("all",), "auto", SIDE, subset, resize)
    batches = [batch["image"] for batch in source.batches("tilt")]
    assert [len(batch) for batch in batches] == [2, 2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), sequences)


def test_cores_share_the_memory(monkeypatch):
    bytes_of_image = 31 * 224 * 224 * 3
    for cores in (1, 2, 16, 64):
        monkeypatch.setattr(frames, "num_cores", lambda cores=cores: cores)
        together = cores * frames.images_in_batch(31, 224) * bytes_of_image
        assert together <= 2**30
    assert frames.images_in_batch(31, 4096) == 1


@pytest.mark.parametrize("layout", ["arrays", "videos"])
def test_frames_of_another_size_are_resized(predictor, tmp_path, results, layout):
    """The constants are those of the frames, which a model of another size keeps."""
    large = made_frames("translate").repeat(6, axis=2).repeat(6, axis=3)[:3]  # 72 pixels: Tiny's.
    large = np.concatenate([large, large[:, :15]], axis=1)
    (tmp_path / "P").mkdir()
    if layout == "arrays":
        np.save(tmp_path / "P" / "translate.npy", large)
    else:
        for row, sequence in enumerate(large):
            write_video(tmp_path / "P" / "translate" / "a" / f"{row}.mp4", sequence)
    found = evaluate_files(predictor, results, tmp_path / "P", resize=resize)
    assert found["constants"] == "tiny" and found["image_size"] == SIDE
    expected = [
        predictor.log_probabilities(np.stack([resize(frame) for frame in sequence])).argmax(axis=1)
        for sequence in large
    ]
    np.testing.assert_array_equal(
        read_classes(results / "translate.parquet")[1][..., 0], np.stack(expected)
    )


def test_videos_with_other_frames_or_of_other_images_are_refused(predictor, tmp_path, results):
    folder = tmp_path / "P"
    sequences = made_frames("tilt")
    for row in range(2):
        write_video(folder / "tilt" / "n01" / f"{row}.mp4", sequences[row][: 31 - row])
    with pytest.raises(UserError, match="tilt of n01/1 has 30 frames: expected 31") as error:
        evaluate_files(predictor, results, folder)
    assert "\n" not in str(error.value)
    write_video(folder / "snow" / "n01" / "0.mp4", sequences[0])
    with pytest.raises(
        UserError, match=r"tilt has other images than snow: 1 more and 0 fewer, such as n01/1"
    ):
        evaluate_files(predictor, results, folder)


def test_without_pyav_one_line_says_how_to_install_it(predictor, results, videos, without_pyav):
    with pytest.raises(UserError, match="requirements-video") as error:
        evaluate_files(predictor, results, videos)
    assert "\n" not in str(error.value)


def decode_uncropped(encoded, shorter_side):
    """Torchvision's Resize: the longer side is rounded down."""
    image = Image.open(io.BytesIO(encoded))
    size = [int(shorter_side * length / min(image.size)) for length in image.size]
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def encoded_images():
    """Photographs of different shapes in PNG files, as a `SplitImages`, and the files."""
    random = np.random.default_rng(1)
    files = []
    for height, width in ((40, 30), (30, 40), (40, 30), (50, 50), (30, 47)):
        small = random.integers(0, 256, (5, 5, 3)).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
        files.append(buffer.getvalue())
    rows = {
        "id": np.array([f"i/{row}" for row in range(5)], "S"),
        "label": np.zeros(5, np.int64),
        "image": tf.constant(files),
    }
    encoded = tf.data.Dataset.from_tensor_slices(rows).batch(3)
    images = dataclasses.replace(make_images()[0], encoded=encoded)
    return images, files


def cropped(image):
    """The central square of the model's side, as torchvision's CenterCrop."""
    top, left = (round((length - SIDE) / 2) for length in image.shape[:2])
    return image[top : top + SIDE, left : left + SIDE]


@pytest.mark.parametrize("max_bytes", [2**28, 1])
def test_frames_are_cropped_from_larger_images_with_imagenets_constants(
    predictor, results, monkeypatch, max_bytes
):
    """The shorter side is 14 pixels for 12, as 256 for 224; the longer one is kept."""
    monkeypatch.setattr(frames, "MAX_BYTES_OF_FRAMES", max_bytes)
    images, files = encoded_images()
    large = [decode_uncropped(encoded, 14) for encoded in files]
    assert {image.shape[:2] for image in large} == {(18, 14), (14, 18), (14, 14), (14, 21)}

    def seen(name):
        recording = RecordingPredictor(predictor)
        found = evaluate(
            recording,
            results,
            images,
            perturbations=(name,),
            corruption_constants="imagenet",
            decode_uncropped=decode_uncropped,
        )
        assert (found["constants"], found["uncropped_side"]) == ("imagenet", 14)
        return recording.frames(len(files))

    translated, brightness, noise = map(seen, ("translate", "brightness", "shot_noise"))
    for row, image in enumerate(large):
        # Two pixels to the right: the first column of the crop comes from outside of it.
        moved = np.zeros_like(image)
        moved[:, 2:] = image[:, :-2]
        np.testing.assert_array_equal(translated[row, 22], cropped(moved))
        np.testing.assert_array_equal(noise[row, 0], cropped(image))
        # Of HSV's value: a level may be lost.
        assert np.abs(brightness[row, 15].astype(int) - cropped(image)).max() <= 1
    expected = [
        np.stack(
            list(
                library.perturb(
                    image[None], "snow", [f"i/{row}"], seed=5, constants="imagenet", crop_side=SIDE
                )
            ),
            axis=1,
        )[0]
        for row, image in enumerate(large)
    ]
    np.testing.assert_array_equal(seen("snow"), np.stack(expected))


def test_a_subset_of_images_of_different_shapes(predictor, results):
    images, _ = encoded_images()
    evaluate(
        predictor,
        results,
        images,
        perturbations=("translate",),
        corruption_constants="imagenet",
        decode_uncropped=decode_uncropped,
        evaluation_images=3,
    )
    ids = [f"i/{row}" for row in range(5)]
    found, _ = read_classes(results / "translate.parquet")
    assert found == [ids[row] for row in choose_subset(ids, 3, 5)]


@pytest.mark.parametrize("constants", ["cifar", "tiny"])
def test_without_imagenets_constants_frames_are_the_whole_test_images(
    predictor, results, constants
):
    """All ten sets, to the bit; the stored files are not decoded for them."""
    _, pixels, _, ids = make_images()
    for name in library.PERTURBATIONS:
        recording = RecordingPredictor(predictor)
        found = evaluate(recording, results, perturbations=(name,), corruption_constants=constants)
        assert "uncropped_side" not in found
        expected = list(library.perturb(pixels, name, ids, seed=5, constants=constants))
        np.testing.assert_array_equal(recording.frames(COUNT), np.stack(expected, axis=1))


def test_fingerprints_depend_on_the_crop_alone():
    """Results with other constants, and of published files, are those of earlier versions."""
    settings = {"corruption_constants": "auto", "perturbation_files": ""}
    assert perturbations.variant(32, settings) == perturbations.variant(64, settings) == {}
    assert perturbations.variant(224, settings) == {"uncropped_side": 256}
    assert perturbations.variant(32, {**settings, "corruption_constants": "imagenet"})
    assert perturbations.variant(224, {**settings, "perturbation_files": "P"}) == {}
