"""Saving results: helpers that all tasks share."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image

from ..data.decode import decode

Source = str | Path | Image.Image  # an image as passed to a predictor
DRAWN = "drawn"  # folder of copies of the images with the results drawn over them


class Result(Protocol):
    """A result of any task."""

    @property
    def source(self) -> Source: ...

    @property
    def error(self) -> str | None: ...


R = TypeVar("R", bound=Result)


def with_sources(results: Iterable[R], images: Sequence[Source] | None) -> tuple[Iterable[R], Sequence[Source]]:
    """Results and their images. If ``images`` is ``None``, all results are computed first to collect their images."""
    if images is not None:
        return results, images
    results = list(results)
    return results, [result.source for result in results]


def result_names(images: Sequence[Source]) -> list[Path]:
    """Output path of each image: relative to the images' common folder, with suffix ``.png``; PIL images are numbered.

    Raises:
        ValueError: Two images have the same output path.
    """
    paths = [
        Path(f"{i}") if isinstance(image, Image.Image) else Path(image).resolve() for i, image in enumerate(images)
    ]
    folders = [path.parent for path in paths if path.is_absolute()]
    root = Path(os.path.commonpath(folders)) if folders else Path()
    names = [(path.relative_to(root) if path.is_absolute() else path).with_suffix(".png") for path in paths]
    first: dict[Path, Path] = {}
    for name, path in zip(names, paths, strict=True):
        if first.setdefault(name, path) != path:
            raise ValueError(
                f"{first[name]} and {path} differ only in their suffix, so both would be written to {name}; rename one "
                "or process them in separate calls"
            )
    return names


def decode_source(source: Source) -> Image.Image:
    """Decode a result's image to RGB."""
    return decode(source if isinstance(source, Image.Image) else Path(source), 3, name=str(source))


def save_image(image: Image.Image, path: Path) -> None:
    """Save an image, creating its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
