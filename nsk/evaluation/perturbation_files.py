"""Perturbed images in the published layouts: CIFAR-10-P's .npy files, ImageNet-P's MP4 files."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nsk.errors import UserError
from nsk.evaluation.image_files import open_array
from nsk.store.files import atomic_write

NPY_LAYOUT = "uint8 (images, frames, height, width, 3)"
MISSING_AV = (
    "MP4 files are read with PyAV, which is not installed. Install it: "
    "pip install -c constraints.txt -r requirements-video.txt"
)


class Video(NamedTuple):
    """A perturbed image of ImageNet-P.

    Attributes:
        image_id: "CLASS/NAME", equal for all perturbations of an image.
        class_name: name of the folder, a WordNet ID.
        path: the MP4 file.
    """

    image_id: str
    class_name: str
    path: Path


def open_npy(path: str | Path) -> np.ndarray:
    """Opens a file such as CIFAR-10-P's snow.npy without reading it into memory.

    Returns:
        Read-only memory-mapped array, uint8 (images, frames, height, width, 3).

    Raises:
        UserError: there is no such file, or it is not such an array.
    """
    array = open_array(path, NPY_LAYOUT)
    if array.ndim != 5 or array.shape[-1] != 3 or array.dtype != np.uint8 or not array.size:
        raise UserError(
            f"{path} holds {array.dtype} {array.shape}: expected {NPY_LAYOUT}. Is it a file of a "
            "-P set?"
        )
    return array


def write_npy(
    path: str | Path, batches: Iterable[Iterable[np.ndarray]], shape: tuple[int, ...]
) -> None:
    """Writes frames as a .npy file, one frame of one batch at a time.

    Args:
        path: the file; it appears when it is complete.
        batches: for each batch of images in order its frames in order, each uint8 (batch, height,
            width, 3), as `perturb` yields them.
        shape: (images, frames, height, width, 3).

    Raises:
        ValueError: the frames do not have this shape in total.
    """
    path = Path(path)
    with atomic_write(path) as unfinished:
        array = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
        num_images = 0
        for frames in batches:
            num_images += _write_batch(array, num_images, frames)
        if num_images != shape[0]:
            raise ValueError(f"{num_images} images: expected {shape[0]}, shape {shape}.")
        array.flush()


def _write_batch(array, first, frames):
    """Writes all frames of a batch; returns its number of images."""
    num_frames = num_images = 0
    for position, frame in enumerate(frames):
        num_frames = position + 1
        num_images = num_images or min(len(frame), len(array) - first)
        expected = (num_images, *array.shape[2:])
        if frame.shape != expected or frame.dtype != np.uint8 or num_frames > array.shape[1]:
            raise ValueError(
                f"frame {position} of the batch at image {first}: {frame.dtype} {frame.shape}, "
                f"expected {array.shape[1]} frames, uint8 {expected}."
            )
        array[first : first + num_images, position] = frame
    if num_frames != array.shape[1]:
        raise ValueError(f"{num_frames} frames: expected {array.shape[1]}.")
    return num_images


def find_videos(folder: str | Path) -> list[Video]:
    """Lists the MP4 files of a perturbation, such as ImageNet-P's snow, in order of their ids.

    Args:
        folder: holds CLASS/NAME.mp4 for each image.

    Raises:
        UserError: there is no such file.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*/*.mp4"), key=lambda path: (path.parent.name, path.stem))
    if not paths:
        raise UserError(
            f"{folder} holds no videos: expected the folder of one perturbation with files "
            "CLASS/NAME.mp4."
        )
    return [Video(f"{path.parent.name}/{path.stem}", path.parent.name, path) for path in paths]


def read_videos(videos: Iterable[Video]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields (image id, class name, frames) of each video, see `read_video`."""
    for video in videos:
        yield video.image_id, video.class_name, read_video(video.path)


def read_video(path: str | Path) -> np.ndarray:
    """Reads all frames of a video.

    Returns:
        uint8 (frames, height, width, 3), RGB.

    Raises:
        UserError: PyAV is not installed, or the file is not a readable video.
    """
    try:
        import av
    except ImportError:
        raise UserError(MISSING_AV) from None
    try:
        with contextlib.closing(av.open(str(path))) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{path} is not a readable video ({error}): download it again.") from None
    if not frames:
        raise UserError(f"{path} has no frames: download it again.")
    return np.stack(frames)
