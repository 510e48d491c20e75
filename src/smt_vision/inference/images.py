"""The images that a command is asked about."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

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
