"""What is below a folder: images, other files, and the litter of operating systems.

A file is an image if its suffix is that of an image. The content decides about all others, so that
images without a suffix, or with a wrong one, are found; only their first bytes are read.
"""

import collections
import dataclasses
import os
import re
import stat
from collections.abc import Iterator

# Of the formats in `nsk.data.normalization.FORMATS`.
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp"),
        *(".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
# Camera raw files start like a TIFF, but what can be read of them is a thumbnail.
RAW_SUFFIXES = frozenset(
    {
        *(".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".iiq", ".kdc"),
        *(".mos", ".nef", ".nrw", ".pef", ".sr2", ".srf", ".srw"),
    }
)
# Files and folders of operating systems, archivers and network storage, in lower case; hidden ones
# are litter, too.
LITTER = frozenset(
    {
        *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"),
        *("system volume information", "lost+found", "@eadir", "#recycle", "@recycle"),
        "__pycache__",
    }
)
NUM_FIRST_BYTES = 32
MAX_SUFFIX_LENGTH = 12

_SIGNATURE = re.compile(
    rb"""\xff\xd8\xff | \x89PNG\r\n\x1a\n | GIF8[79]a
    | BM.{4}\0{4}                         # BMP: size, then reserved bytes.
    | RIFF.{4}WEBP
    | II[*+]\0 | MM\0[*+]                 # TIFF and BigTIFF.
    | .{4}ftyp.{0,20}(avif|avis)          # AVIF: the brand or a compatible one.
    | P[1-6]\s+(\#[^\n]*\n\s*)?\d+\s+\d+  # PPM, PGM, PBM: width and height.
    """,
    re.DOTALL | re.VERBOSE,
)


@dataclasses.dataclass
class FolderFiles:
    """Files of a folder.

    Attributes:
        images: paths of the images, and of what is not followed: folders that cannot be listed and
            links to folders, which may be circular.
        others: paths of the other files.
        not_followed: those of `images` that are folders.
        litter: dict from the name of a file or folder to the number of files; see `is_litter`.
    """

    images: list[str] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)
    not_followed: list[str] = dataclasses.field(default_factory=list)
    litter: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add_file(self, path: str) -> None:
        """Adds a file that is not litter."""
        (self.images if is_image(path) else self.others).append(path)

    def add_folder(self, path: str) -> None:
        """Adds a folder that is not followed."""
        self.images.append(path)
        self.not_followed.append(path)

    def add_litter(self, path: str) -> None:
        """Counts a file or all files below a folder."""
        name = os.path.basename(path)
        count = 1
        if os.path.isdir(path) and not os.path.islink(path):
            count = sum(len(files) for _, _, files in os.walk(path))
        self.litter["._*" if name.startswith("._") else name] += count

    def update(self, other: "FolderFiles") -> None:
        """Adds the files of another folder."""
        self.images += other.images
        self.others += other.others
        self.not_followed += other.not_followed
        self.litter += other.litter


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or one of an operating system or archiver."""
    return name.startswith(".") or name.lower() in LITTER


def has_image_suffix(path: str) -> bool:
    """Whether the suffix is one of `IMAGE_SUFFIXES`, in any case."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def is_image(path: str) -> bool:
    """Whether a file is an image by its suffix or else by its content."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    return suffix not in RAW_SUFFIXES and is_image_content(_first_bytes(path))


def is_image_content(first_bytes: bytes) -> bool:
    """Whether a file that starts with these bytes (32 suffice) is an image of a known format."""
    return _SIGNATURE.match(first_bytes) is not None


def count_suffixes(paths: list[str]) -> dict[str, int]:
    """Number of files by suffix in lower case, the most frequent first."""
    counts = collections.Counter()
    for path in paths:
        suffix = os.path.splitext(path)[1].lower()
        is_suffix = 1 < len(suffix) <= MAX_SUFFIX_LENGTH and suffix[1:].isalnum()
        counts[suffix if is_suffix else "no suffix"] += 1
    return dict(counts.most_common())


def list_files(folder: str | os.PathLike) -> FolderFiles:
    """Lists all files below a folder, folder by folder, each in the order of the names.

    A folder that does not exist has no files; of one that cannot be listed see `FolderFiles`.
    """
    found = FolderFiles()
    pending = [os.fspath(folder)]
    while pending:
        path = pending.pop()
        try:
            entries = sorted_entries(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            found.add_folder(path)
            continue
        pending += reversed(list(_add_entries(entries, found)))
    return found


def sorted_entries(folder: str | os.PathLike) -> list[os.DirEntry]:
    """The entries of a folder by name; OSError if it cannot be listed."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _add_entries(entries: list[os.DirEntry], found: FolderFiles) -> Iterator[str]:
    """Adds the files of one folder and yields its subfolders."""
    for entry in entries:
        if is_litter(entry.name):
            found.add_litter(entry.path)
        elif entry.is_dir(follow_symlinks=False):
            yield entry.path
        elif entry.is_symlink() and os.path.isdir(entry.path):
            found.add_folder(entry.path)
        else:
            found.add_file(entry.path)


def _first_bytes(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # Opening a pipe would block.
            return b""
        with open(path, "rb", buffering=0) as file:
            return file.read(NUM_FIRST_BYTES)
    except OSError:
        return b""
