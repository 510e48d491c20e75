"""Image files: by name, and in folders."""

import os
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from timm.data.readers.img_extensions import is_img_extension

IMAGE_SUFFIXES = frozenset(Image.registered_extensions())


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The images that files and folders (searched whole) stand for, sorted within a folder.

    Raises:
        FileNotFoundError: a path does not exist, or a folder has no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise FileNotFoundError(f"there is no image in the folder {path}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"there is no file or folder {path}")
    return found


TRAIN_NAMES = ("train", "training")


VAL_NAMES = ("val", "valid", "validation", "test")  # the first that exists is the validation split


def is_image(name: str) -> bool:
    """Whether a file's name ends as timm's readers have it."""
    return is_img_extension(os.path.splitext(name)[1].lower())


def is_hidden(name: str) -> bool:
    """Whether a path is what file managers leave behind, as ``.DS_Store``, ``._1.jpg`` or ``__MACOSX/1.jpg``."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
