"""Saving results: helpers that all tasks share."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image

from ..data.decode import UnreadableImage, decode_picture
from ..data.files import relative_names
from ..recipe import Input
from ..text import get_logger

log = get_logger(__name__)
Source = str | Path | Image.Image  # an image as passed to a predictor
DRAWN = "drawn"  # folder of copies of the images with the results drawn over them


@contextmanager
def kept_when_interrupted(path: Path, save: Callable[[Path], bool]) -> Iterator[None]:
    """Save the results so far beside ``path``, e.g. in ``detections.partial.json``, if the block does not finish.

    Args:
        path: The file of all results, which the caller writes after the block.
        save: Writes the results so far to the path that it is called with, atomically; false if there are none.
    """
    partial = path.with_suffix(f".partial{path.suffix}")
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if save(partial):
                log.warning("%s: the results of the images before the interruption", partial)
        raise
    partial.unlink(missing_ok=True)


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


def image_names(images: Sequence[Source]) -> list[str]:
    """Name of each image: its path relative to the images' common folder; PIL images are numbered."""
    names = iter(relative_names([image for image in images if not isinstance(image, Image.Image)]))
    return [str(i) if isinstance(image, Image.Image) else next(names) for i, image in enumerate(images)]


def result_names(images: Sequence[Source]) -> list[Path]:
    """Output path of each image: its name (:func:`image_names`) with suffix ``.png``.

    Where several names differ in their suffix only, it stays, e.g. ``a.jpg.png`` and ``a.tif.png``.

    Raises:
        ValueError: An image is given twice, or two images have the same output path.
    """
    names = image_names(images)
    outputs = [Path(name).with_suffix(".png") for name in names]
    times = Counter(outputs)
    outputs = [
        output if times[output] == 1 else Path(f"{name}.png") for name, output in zip(names, outputs, strict=True)
    ]
    first: dict[Path, int] = {}
    for i, output in enumerate(outputs):
        other = first.setdefault(output, i)
        if other != i and names[other] == names[i]:
            raise ValueError(f"{images[i]} is given twice; pass each image once")
        if other != i:
            raise ValueError(
                f"{images[other]} and {images[i]} would both be written to {output}; rename one or process them in "
                "separate calls"
            )
    return outputs


def decode_source(source: Source, input: Input | None = None) -> Image.Image:
    """Decode a result's image to RGB; ``input`` is that of its model."""
    return decode_picture(
        source if isinstance(source, Image.Image) else Path(source), input or Input(), name=str(source)
    )


def save_drawn(draw: Callable[[], Image.Image], path: Path) -> None:
    """Save what ``draw`` returns; an image that cannot be read again is a warning, since its result is there."""
    try:
        save_image(draw(), path)
    except UnreadableImage as error:
        log.warning("not drawn: %s", error)


def save_image(image: Image.Image, path: Path) -> None:
    """Save an image, creating its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
