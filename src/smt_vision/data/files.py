"""Image files by file name and in directories."""

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, features

from ..text import get_logger

log = get_logger(__name__)
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test", "testing")  # the first that exists is the validation split
TEST_NAMES = ("test", "testing", "te")  # a test split beside a validation split is usual

# Pillow's names of the formats of photographs, scans and label maps. Its other readers, of some thirty formats, are
# never called: most are rarely used and so rarely tested, and that of EPS runs Ghostscript, whatever a file's suffix.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "DIB", "GIF", "PPM", "TGA")
_LIBRARIES = {"AVIF": "avif", "JPEG": "jpg", "JPEG2000": "jpg_2000", "WEBP": "webp"}

Image.init()  # registers all formats
_OF_PILLOW = frozenset(name for name, (reader, _) in Image.OPEN.items() if reader.__module__.startswith("PIL."))
_DECODED = tuple(f for f in FORMATS if f in Image.OPEN and (f not in _LIBRARIES or features.check(_LIBRARIES[f])))

# Files and folders of file managers, network drives and editors, in lower case. Names that start with a dot, e.g.
# ._1.jpg, .DS_Store, .git and .ipynb_checkpoints, need no entry.
_TOOL_NAMES = frozenset(
    {
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),  # Windows
        *("$recycle.bin", "system volume information"),
        *("@eadir", "@tmp", "#recycle", "#snapshot"),  # Synology
        *("@recycle", "@recently-snapshot"),  # QNAP
        *("lost+found", "__pycache__", "picasa.ini", "photothumb.db"),
    }
)
_SHOWN = 8  # suffixes listed in a message


class Listing(NamedTuple):
    """Files below a directory, without hidden ones; paths are relative to it, with ``/`` as separator.

    Args:
        images: Files with the suffix of an image format.
        others: All other files.
        folders: Directories.
    """

    images: list[str]
    others: list[str]
    folders: list[str]


def image_formats() -> list[str]:
    """Pillow's names of the formats that are read: those of :data:`FORMATS` that this build of Pillow can decode, and
    those that an application has registered with Pillow, e.g. HEIF with pillow-heif.
    """
    return [*_DECODED, *(Image.OPEN.keys() - _OF_PILLOW)]


def is_image(name: str) -> bool:
    """Whether a file name has the suffix, in any case, of a format that is read; see :func:`image_formats`."""
    format = Image.registered_extensions().get(os.path.splitext(name)[1].lower())
    # MPO has no reader of its own: it is read as JPEG.
    format = "JPEG" if format == "MPO" else format
    return format in _DECODED or (format in Image.OPEN and format not in _OF_PILLOW)


def is_hidden(name: str) -> bool:
    """Whether a path is hidden or was made by a tool, e.g. ``.DS_Store``, ``._1.jpg`` or ``__MACOSX/1.jpg``."""
    return any(_is_hidden_part(part) for part in name.split("/"))


def _is_hidden_part(part: str) -> bool:
    if part.startswith("."):
        return part not in (".", "..")
    lower = part.lower()
    return lower in _TOOL_NAMES or lower.endswith(":zone.identifier")  # Windows' mark of downloads, in WSL


def _with_arrays(listing: Listing) -> Listing:
    """NumPy files are images where there are no others; beside images they hold anything."""
    arrays = [] if listing.images else [name for name in listing.others if name.lower().endswith(".npy")]
    if not arrays:
        return listing
    return Listing(arrays, [name for name in listing.others if not name.lower().endswith(".npy")], listing.folders)


def list_files(root: Path) -> Listing:
    """List a directory recursively, in a fixed order.

    Symbolic links are followed, except those to a directory that contains them. A broken link counts as a file.

    Raises:
        OSError: If a directory cannot be read.
    """
    listing = Listing([], [], [])
    loops: list[str] = []
    real = root.resolve()
    pending = [("", str(root), frozenset(map(_identity, (real, *real.parents))))]
    while pending:
        prefix, folder, above = pending.pop()
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
        for entry in visible:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
                identity = _identity(entry.path)
                if identity in above:
                    loops.append(name)
                else:
                    listing.folders.append(name)
                    pending.append((f"{name}/", entry.path, above | {identity}))
            elif is_image(entry.name) and (entry.is_file(follow_symlinks=False) or entry.is_symlink()):
                listing.images.append(name)
            else:
                listing.others.append(name)
    if loops:
        log.warning("%s: ignored %d links to a directory that contains them, e.g. %s", root, len(loops), loops[0])
    return _with_arrays(listing)


def files_in(folder: str | Path) -> list[str]:
    """Names of all files directly in a directory, hidden ones as well; none if there is no such directory.

    Raises:
        OSError: If the directory cannot be read.
    """
    if not os.path.isdir(folder):  # also where the name is too long for the file system
        return []
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_file()]


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def sort_names(names: Iterable[str], folders: Iterable[str]) -> Listing:
    """The same for the names in an archive, which does not need to have an entry for each folder."""
    listing = Listing([], [], [])
    found = {folder for folder in folders if not is_hidden(folder)}
    for name in names:
        if not is_hidden(name):
            (listing.images if is_image(name) else listing.others).append(name)
            folder = os.path.dirname(name)
            while folder and folder not in found:
                found.add(folder)
                folder = os.path.dirname(folder)
    listing.folders.extend(sorted(found - {"", "."}))
    return _with_arrays(listing)


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """List image files: given files, and the images in given directories, searched recursively and sorted.

    ``~`` is the home directory. Given files are listed whatever their suffix; a file that is given twice, e.g. by
    itself and with its directory, is listed once. In directories, hidden files are passed over, and the number of other
    files without the suffix of an image is logged.

    Raises:
        FileNotFoundError: If a path does not exist or a directory has no images.
    """
    images: list[Path] = []
    for path in (Path(os.path.expanduser(path)) for path in paths):
        if path.is_dir():
            listing = list_files(path)
            if not listing.images:
                raise FileNotFoundError(f"{path}: no images in this directory ({describe_suffixes(listing.others)})")
            warn_ignored(path, listing.others)
            images += sorted(path / name for name in listing.images)
        elif path.is_file():
            images.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or directory")
    first: dict[str, Path] = {}
    for image in images:
        first.setdefault(os.path.abspath(image), image)
    return list(first.values())


def relative_names(paths: Sequence[str | Path]) -> list[str]:
    """Path of each file relative to the common folder of all, with ``/`` as separator; unique for different files.

    Symbolic links are not followed.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    root = os.path.commonpath([path.parent for path in absolute]) if absolute else ""
    return [path.relative_to(root).as_posix() for path in absolute]


def warn_ignored(where: object, names: Collection[str]) -> None:
    """Log how many files of a dataset are not images, by suffix."""
    if names:
        log.warning(
            "%s: ignored %d files that are not images in a supported format: %s",
            where, len(names), describe_suffixes(names),
        )  # fmt: skip


def describe_suffixes(names: Collection[str]) -> str:
    """Number of files per suffix, e.g. ``2 .txt, 1 .heic``, the most frequent first."""
    counts = Counter(os.path.splitext(name)[1].lower() or "without a suffix" for name in names).most_common()
    shown = [f"{count} {suffix}" for suffix, count in counts[:_SHOWN]]
    if len(counts) > _SHOWN:
        shown.append(f"{sum(count for _, count in counts[_SHOWN:])} others")
    return ", ".join(shown) or "no files"


def split_in_name(name: str) -> str | None:
    """The last word of a name that is one of ``TRAIN_NAMES`` or ``VAL_NAMES``, e.g. ``val`` in ``test-set-VAL2-0``."""
    return next((w for w in reversed(re.split(r"[\W\d_]+", name.lower())) if w in TRAIN_NAMES + VAL_NAMES), None)


def first_existing(names: Sequence[str], existing: Collection[str], where: object) -> str | None:
    """The first of alternative names of a split that exists, e.g. of ``VAL_NAMES``; the others are logged as ignored.

    Returns:
        The name, or ``None`` if none exists.
    """
    found = [name for name in names if name in existing]
    if len(found) > 1:
        level = logging.WARNING if set(found[1:]) - set(TEST_NAMES) else logging.INFO
        log.log(level, "%s: uses %s, ignores %s", where, found[0], ", ".join(found[1:]))
    return found[0] if found else None


@cache
def warn_if_test(name: str | None, where: Hashable, *, published: bool = False) -> None:
    """Warn once that the validation split of a run, which selects its best weights, is named like a test split.

    Args:
        name: Name of the split.
        where: The dataset.
        published: Whether it is a published dataset, to which no split can be added.
    """
    if name in TEST_NAMES:
        log.warning(
            "%s: there is no other validation split than %s, so the best weights are selected on it, and metrics on it "
            "are optimistic; %s",
            where,
            name,
            "--input.val_fraction is not used, --folds holds out training images instead"
            if published
            else f"add val/, or train on data without {name}, of which --input.val_fraction is held out",
        )
