"""Perturbed images in the published layouts: CIFAR-10-P's .npy files, ImageNet-P's MP4 files.

- `NAME.npy`, uint8 (images, frames, height, width, 3).
- `NAME/CLASS/IMAGE.mp4`, or the same below folders of groups, such as `noise/`.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from nsk.data.image_folders import is_litter
from nsk.errors import UserError, list_names
from nsk.evaluation.class_folders import describe_content, find_folder
from nsk.evaluation.image_files import open_array
from nsk.evaluation.perturbations import PERTURBATIONS
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


class VideoSequence(Sequence):
    """The videos of a perturbation as a sequence of frames; each is read when it is asked for.

    Attributes:
        videos: the files, in order of their ids.

    Args:
        folder: see `find_videos`.
    """

    def __init__(self, folder: Path):
        self.videos = find_videos(folder)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, row: int) -> np.ndarray:
        """The frames of an image, see `read_video`."""
        return read_video(self.videos[row].path)

    @property
    def ids(self) -> list[str]:
        """Ids of the images."""
        return [video.image_id for video in self.videos]


@dataclasses.dataclass(frozen=True)
class PerturbationFiles:
    """A published set of perturbed images.

    Attributes:
        folder: its folder.
        ids: of the images, the same for all perturbations: row numbers such as "00001", or
            "CLASS/NAME".
        sequences: dict from the perturbations, in the published order, to sequences of the images'
            frames: `sequences[name][row]` is uint8 (frames, height, width, 3).
    """

    folder: Path
    ids: list[str]
    sequences: Mapping[str, Sequence[np.ndarray]]

    @property
    def names(self) -> list[str]:
        """The perturbations, in the published order."""
        return list(self.sequences)

    def check(self, constants: str) -> None:
        """Checks the numbers of images and frames of arrays; those of videos `read` checks.

        Args:
            constants: "cifar", "tiny" or "imagenet", on which the numbers of frames depend.

        Raises:
            UserError: they are others.
        """
        for name, sequence in self.sequences.items():
            if isinstance(sequence, np.ndarray):
                expected = (len(self.ids), PERTURBATIONS[name].num_frames(constants))
                if sequence.shape[:2] != expected:
                    raise UserError(
                        f"{self.folder / name}.npy has the shape {sequence.shape}: expected "
                        f"{expected[0]} images, as {self.names[0]}.npy has, and {expected[1]} "
                        f"frames, as with --corruption_constants={constants}."
                    )

    def read(self, name: str, row: int, constants: str) -> np.ndarray:
        """Reads the frames of an image.

        Args:
            name: of the perturbation.
            row: of the image.
            constants: see `check`.

        Returns:
            uint8 (frames, height, width, 3).

        Raises:
            UserError: they cannot be read, or their number is another one.
        """
        frames = self.sequences[name][row]
        expected = PERTURBATIONS[name].num_frames(constants)
        if len(frames) != expected:
            raise UserError(
                f"{self.folder}: {name} of {self.ids[row]} has {len(frames)} frames: expected "
                f"{expected}, as with --corruption_constants={constants}. Is the file complete?"
            )
        return frames


def open_perturbation_files(folder: str | Path, chosen: Sequence[str]) -> PerturbationFiles:
    """Opens the perturbations in a folder; arrays are not read, videos are not opened.

    Args:
        folder: in the layout of arrays if it has at least one, otherwise in that of videos.
        chosen: names of perturbations, which the folder must have; or "all": those that it has.

    Raises:
        UserError: it is not such a folder, or its videos are of different images.
    """
    folder = Path(folder)
    content = describe_content(folder)
    paths = {name: folder / f"{name}.npy" for name in PERTURBATIONS}
    paths = {name: path for name, path in paths.items() if path.exists()}
    are_arrays = bool(paths)
    if not are_arrays:
        paths = {name: find_folder(folder, name) for name in PERTURBATIONS}
        paths = {name: path for name, path in paths.items() if path is not None}
    if not paths:
        name = next(iter(PERTURBATIONS))
        raise UserError(
            f"{folder} has no perturbations: expected files such as {name}.npy, or folders such as "
            f"{name}/CLASS with MP4 files. It holds {content}."
        )
    names = list(paths) if "all" in chosen else [name for name in PERTURBATIONS if name in chosen]
    missing = [name for name in names if name not in paths]
    if missing:
        raise UserError(
            f"{folder} has no perturbation {missing[0]}: choose of {list_names(list(paths))} with "
            "--perturbations."
        )
    if are_arrays:
        arrays = {name: open_npy(paths[name]) for name in names}
        ids = [f"{row:05d}" for row in range(len(arrays[names[0]]))]
        return PerturbationFiles(folder, ids, arrays)
    videos = {name: VideoSequence(paths[name]) for name in names}
    for name in names[1:]:
        _check_same_images(folder, names[0], videos[names[0]].ids, name, videos[name].ids)
    return PerturbationFiles(folder, videos[names[0]].ids, videos)


def _check_same_images(folder, first_name, first_ids, name, ids):
    """UserError if two perturbations have other images."""
    if ids != first_ids:
        more, fewer = set(ids) - set(first_ids), set(first_ids) - set(ids)
        raise UserError(
            f"{folder}: {name} has other images than {first_name}: {len(more)} more and "
            f"{len(fewer)} fewer, such as {min(more or fewer)}: expected the same in all folders."
        )


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

    Hidden files and those with another suffix are left out; their number is logged.

    Args:
        folder: holds CLASS/NAME.mp4 for each image.

    Raises:
        UserError: there is no such file.
    """
    folder = Path(folder)
    files = list(folder.glob("*/*"))
    paths = [path for path in files if path.suffix == ".mp4" and not _is_hidden(path)]
    paths.sort(key=lambda path: (path.parent.name, path.stem))
    if len(paths) < len(files):
        logging.warning("%s: %d files are not read: no videos.", folder, len(files) - len(paths))
    if not paths:
        raise UserError(
            f"{folder} holds no videos: expected the folder of one perturbation with files "
            "CLASS/NAME.mp4."
        )
    return [Video(f"{path.parent.name}/{path.stem}", path.parent.name, path) for path in paths]


def _is_hidden(path):
    """Whether a file is in the folder of an archiver, or is hidden."""
    return is_litter(path.name) or is_litter(path.parent.name)


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
