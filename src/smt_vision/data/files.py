"""Image files by file name and in directories."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from timm.data.readers.img_extensions import is_img_extension

IMAGE_SUFFIXES = frozenset(Image.registered_extensions())
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test")  # the first that exists is the validation split


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """List image files: given files, and the images in given directories, searched recursively and sorted.

    A file that is given twice, e.g. by itself and with its directory, is listed once.

    Raises:
        FileNotFoundError: If a path does not exist or a directory has no images.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            in_directory = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not in_directory:
                raise FileNotFoundError(f"{path}: no images in this directory")
            images += in_directory
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


def is_image(name: str) -> bool:
    """Whether a file name has one of timm's image extensions."""
    return is_img_extension(os.path.splitext(name)[1].lower())


def is_hidden(name: str) -> bool:
    """Whether a path is hidden or created by a file manager, e.g. ``.DS_Store``, ``._1.jpg`` or ``__MACOSX/1.jpg``."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
