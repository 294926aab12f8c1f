"""What is below a folder: images, other files, and the litter of operating systems.

A file is an image if its suffix is that of an image. The content decides about all others, so that
images without a suffix, or with a wrong one, are found; only their first bytes are read. Images of
formats that nsk does not decode are listed among the other files, with the name of the format.
"""

import collections
import dataclasses
import os
import re
import stat
from collections.abc import Iterable, Iterator

from nsk.errors import UserError, printable

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
        *(".3fr", ".arw", ".cr2", ".cr3", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mos", ".nef"),
        *(".nrw", ".orf", ".pef", ".raf", ".rw2", ".sr2", ".srf", ".srw"),
    }
)
# Formats that are not decoded: their suffixes, if the content does not say more.
UNSUPPORTED_SUFFIXES = {
    **dict.fromkeys((".heic", ".heif", ".hif", ".heics", ".heifs"), "HEIC"),
    ".jxl": "JPEG XL",
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"), "JPEG 2000"),
    **dict.fromkeys((".psd", ".psb"), "Photoshop"),
    **dict.fromkeys((".svg", ".svgz"), "SVG"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM"),
    **dict.fromkeys(RAW_SUFFIXES, "camera raw"),
}
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

_UNSUPPORTED = {
    "HEIC": re.compile(rb".{4}ftyp.{0,20}(hei[cfmsx]|hev[cmx]|mif1|msf1)", re.DOTALL),
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
    "JPEG 2000": re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
    "Photoshop": re.compile(rb"8BPS"),
    "SVG": re.compile(rb"\s*<svg[\s>]"),
    "camera raw": re.compile(rb".{4}ftypcrx |FUJIFILMCCD-RAW|II(RO|RS|U\0)", re.DOTALL),
}


@dataclasses.dataclass
class FolderFiles:
    """Files of a folder.

    Attributes:
        images: paths of the images, and of links to folders, which are not followed: they may be
            circular.
        others: paths of the other files.
        unsupported: dict from those of `others` that are images to the name of their format, which
            is not decoded.
        not_followed: those of `images` that are links to folders.
        litter: dict from the name of a file or folder to the number of files; see `is_litter`.
    """

    images: list[str] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)
    unsupported: dict[str, str] = dataclasses.field(default_factory=dict)
    not_followed: list[str] = dataclasses.field(default_factory=list)
    litter: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add_file(self, path: str) -> None:
        """Adds a file that is not litter."""
        if has_image_suffix(path):
            self.images.append(path)
            return
        is_raw = _suffix(path) in RAW_SUFFIXES
        first_bytes = b"" if is_raw else _first_bytes(path)
        if is_image_content(first_bytes):
            self.images.append(path)
            return
        self.others.append(path)
        if kind := unsupported_format(path, first_bytes):
            self.unsupported[path] = kind

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
        self.unsupported |= other.unsupported
        self.not_followed += other.not_followed
        self.litter += other.litter


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or one of an operating system or archiver."""
    return name.startswith(".") or name.lower() in LITTER


def has_image_suffix(path: str) -> bool:
    """Whether the suffix is one of `IMAGE_SUFFIXES`, in any case."""
    return _suffix(path) in IMAGE_SUFFIXES


def _suffix(path):
    return os.path.splitext(path)[1].lower()


def is_image_content(first_bytes: bytes) -> bool:
    """Whether a file that starts with these bytes (32 suffice) is an image of a known format."""
    return _SIGNATURE.match(first_bytes) is not None


def is_image_file(path: str | os.PathLike) -> bool:
    """Whether the content of a file is that of an image of a known format."""
    return is_image_content(_first_bytes(path))


def unsupported_format(path: str, first_bytes: bytes) -> str:
    """The name of the format of an image that is not decoded; "" if it is none.

    Args:
        path: of the file; its suffix decides if the content does not.
        first_bytes: of the file; 32 suffice.
    """
    if is_image_content(first_bytes) and _suffix(path) not in RAW_SUFFIXES:
        return ""
    for name, pattern in _UNSUPPORTED.items():
        if pattern.match(first_bytes):
            return name
    return UNSUPPORTED_SUFFIXES.get(_suffix(path), "")


def why_unsupported(kind: str) -> str:
    """Why an image of a format that is not decoded has an error, and what to do."""
    return f"{kind} images are not read: convert it to JPEG or PNG"


def describe_unsupported(formats: Iterable[str]) -> str:
    """What to do with images of formats that are not decoded; "" if there are none.

    Args:
        formats: the name of the format of each image.

    Returns:
        Text such as `2 HEIC and 1 SVG images are not read: convert them to JPEG or PNG`.
    """
    counts = collections.Counter(formats)
    if not counts:
        return ""
    named = " and ".join(f"{number:,} {name}" for name, number in counts.most_common())
    if counts.total() == 1:
        return f"{named} image is not read: convert it to JPEG or PNG"
    return f"{named} images are not read: convert them to JPEG or PNG"


def count_suffixes(paths: Iterable[str]) -> dict[str, int]:
    """Number of files by suffix in lower case, the most frequent first."""
    counts = collections.Counter()
    for path in paths:
        suffix = _suffix(path)
        is_suffix = 1 < len(suffix) <= MAX_SUFFIX_LENGTH and suffix[1:].isalnum()
        counts[suffix if is_suffix else "no suffix"] += 1
    return dict(counts.most_common())


def list_files(folder: str | os.PathLike) -> FolderFiles:
    """Lists all files below a folder, folder by folder, each in the order of the names.

    A folder that does not exist has no files.

    Raises:
        UserError: a folder cannot be listed. It is not known how many images are in it.
    """
    found = FolderFiles()
    pending = [os.fspath(folder)]
    while pending:
        path = pending.pop()
        try:
            entries = sorted_entries(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        pending += reversed(list(_add_entries(entries, found)))
    return found


def sorted_entries(folder: str | os.PathLike) -> list[os.DirEntry]:
    """The entries of a folder by name.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        UserError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise UserError(
            f"{printable(os.fspath(folder))} cannot be listed ({error.strerror}): change its "
            "permissions, or move it out of the images."
        ) from None


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
