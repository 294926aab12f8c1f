"""Files of perturbed images in the published layouts: written here, read back."""

import av
import cv2
import numpy as np
import pytest

from nsk.errors import UserError
from nsk.evaluation.perturbation_files import (
    Video,
    find_videos,
    open_npy,
    read_video,
    read_videos,
    write_npy,
)
from nsk.evaluation.perturbations import perturb
from tests.evaluation.perturbations.photos import photographs


def write_video(path, frames, pixel_format="yuv444p", quality="0"):
    """An MP4 file by x264; quality 0 loses nothing but the conversion of colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1, options={"qp": quality})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def tilted_frames(number=1, constants="imagenet"):
    """Frames (number, 31, 32, 48, 3)."""
    images = photographs(32, 48, number)
    ids = [str(index) for index in range(number)]
    return np.stack(list(perturb(images, "tilt", ids, constants=constants)), axis=1)


def test_npy_files_are_written_by_batches_and_read_as_they_are_published(tmp_path):
    images = photographs(32, 32, number=5)
    ids = list("abcde")
    path = tmp_path / "translate.npy"
    batches = (perturb(images[part], "translate", ids[part]) for part in (slice(3), slice(3, 5)))
    write_npy(path, batches, (5, 16, 32, 32, 3))
    expected = np.stack(list(perturb(images, "translate", ids)), axis=1)
    array = np.load(path)
    assert array.dtype == np.uint8 and array.flags.c_contiguous
    np.testing.assert_array_equal(array, expected)
    opened = open_npy(path)
    assert isinstance(opened, np.memmap) and not opened.flags.writeable
    np.testing.assert_array_equal(opened, expected)
    assert [file.name for file in tmp_path.iterdir()] == ["translate.npy"]


def test_files_with_an_older_header_are_read(tmp_path):
    frames = tilted_frames()
    with open(tmp_path / "tilt.npy", "wb") as file:
        np.lib.format.write_array(file, frames, version=(1, 0))
    np.testing.assert_array_equal(open_npy(tmp_path / "tilt.npy"), frames)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([[np.zeros((2, 4, 4, 3), np.uint8)] * 3], "2 images: expected 3"),
        ([[np.zeros((3, 4, 4, 3), np.uint8)] * 2], "2 frames: expected 3"),
        ([[np.zeros((3, 4, 4, 3), np.uint8)] * 4], "expected 3 frames"),
        ([[np.zeros((4, 4, 4, 3), np.uint8)] * 3], r"expected 3 frames, uint8 \(3, 4, 4, 3\)"),
        ([[np.zeros((3, 4, 5, 3), np.uint8)] * 3], r"\(3, 4, 5, 3\), expected"),
        ([[np.zeros((3, 4, 4, 3))] * 3], "frame 0 of the batch at image 0: float64"),
        ([[np.zeros((size, 4, 4, 3), np.uint8) for size in (3, 2, 2)]], "frame 1 of the batch"),
        ([], "0 images"),
    ],
)
def test_frames_of_another_shape_leave_no_file(tmp_path, batches, message):
    with pytest.raises(ValueError, match=message):
        write_npy(tmp_path / "snow.npy", batches, (3, 3, 4, 4, 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 3, 4, 4, 3), np.float32), r"holds float32 \(2, 3, 4, 4, 3\): expected uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"holds uint8 \(2, 4, 4, 3\)"),
        (np.zeros((2, 3, 4, 4, 1), np.uint8), r"holds uint8 \(2, 3, 4, 4, 1\)"),
        (np.zeros((0, 3, 4, 4, 3), np.uint8), r"holds uint8 \(0, 3, 4, 4, 3\)"),
        (np.array([None]), "not a readable .npy file"),
    ],
)
def test_other_arrays_are_an_error(tmp_path, content, message):
    path = tmp_path / "snow.npy"
    np.save(path, content)
    with pytest.raises(UserError, match=message) as error:
        open_npy(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_arrays_are_an_error(tmp_path):
    path = tmp_path / "snow.npy"
    with pytest.raises(UserError, match="does not exist"):
        open_npy(path)
    for content in (b"", b"text", b"\x93NUMPY\x01\x00"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"not a readable \.npy file"):
            open_npy(path)
    np.save(path, tilted_frames())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"not a readable \.npy file"):
        open_npy(path)
    with open(path, "wb") as file:
        np.savez(file, frames=tilted_frames())
    with pytest.raises(UserError, match="archive of arrays"):
        open_npy(path)
    with pytest.raises(UserError, match=r"not a readable \.npy file"):
        open_npy(tmp_path)


def test_videos_are_read_frame_by_frame(tmp_path):
    frames = tilted_frames()[0]
    path = tmp_path / "image.mp4"
    write_video(path, frames)
    read = read_video(path)
    assert read.dtype == np.uint8 and read.shape == frames.shape == (31, 32, 48, 3)
    assert np.abs(read.astype(int) - frames).max() <= 4
    capture = cv2.VideoCapture(str(path))
    for pixels in read:
        ok, other = capture.read()
        assert ok
        assert np.abs(pixels.astype(int) - other[..., ::-1]).max() <= 4
    assert not capture.read()[0]
    capture.release()


def test_videos_with_halved_colour_and_losses_are_read(tmp_path):
    frames = tilted_frames()[0]
    write_video(tmp_path / "image.mp4", frames, "yuv420p", quality="20")
    difference = np.abs(read_video(tmp_path / "image.mp4").astype(int) - frames)
    assert difference.shape == frames.shape and 0 < difference.mean() < 8


def test_folders_of_videos_in_the_order_of_their_ids(tmp_path):
    frames = tilted_frames(number=3)
    names = ["n02/val_b", "n01/val_c", "n02/val_a"]
    for name, sequence in zip(names, frames, strict=True):
        write_video(tmp_path / "tilt" / f"{name}.mp4", sequence)
    (tmp_path / "tilt" / "n01" / "notes.txt").write_text("no video")
    videos = find_videos(tmp_path / "tilt")
    assert videos[0] == Video("n01/val_c", "n01", tmp_path / "tilt" / "n01" / "val_c.mp4")
    assert [video.image_id for video in videos] == ["n01/val_c", "n02/val_a", "n02/val_b"]
    read = list(read_videos(videos[1:]))
    assert [(image_id, name) for image_id, name, _ in read] == [
        ("n02/val_a", "n02"),
        ("n02/val_b", "n02"),
    ]
    assert np.abs(read[0][2].astype(int) - frames[2]).max() <= 4
    assert np.abs(read[1][2].astype(int) - frames[0]).max() <= 4


def test_folders_without_videos_are_an_error(tmp_path):
    (tmp_path / "tilt" / "n01").mkdir(parents=True)
    for folder in (tmp_path / "tilt", tmp_path / "missing"):
        with pytest.raises(UserError, match="holds no videos: expected the folder of one"):
            find_videos(folder)


def test_files_that_are_no_videos_are_an_error(tmp_path):
    path = tmp_path / "image.mp4"
    with pytest.raises(UserError, match="not a readable video"):
        read_video(path)
    path.write_bytes(b"text")
    with pytest.raises(UserError, match="not a readable video"):
        read_video(path)
    write_video(path, tilted_frames()[0])
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match="not a readable video"):
        read_video(path)
    with av.open(str(path), "w") as container:  # Sound alone.
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="not a readable video"):
        read_video(path)


def test_without_pyav_the_message_says_how_to_install_it(tmp_path, without_pyav):
    with pytest.raises(UserError, match=r"pip install -c constraints\.txt -r requirements-video"):
        read_video(tmp_path / "image.mp4")
