"""Real images for checks and calibration, as tensors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import matplotlib
from PIL import Image
from torch import Tensor

from ..data.decode import decode

T = TypeVar("T")


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of the items, evenly spread: of class folders, some of each class."""
    n = min(count, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def image_to_tensor(image: Path | Image.Image, channels: int, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """A preprocessed image: ``(channels, H, W)``, float32.

    Raises:
        UnreadableImage: It cannot be read; the message names it.
    """
    return transform(decode(image, 1 if channels == 1 else 3, name=str(image)))


def sample_photo_crops() -> list[Image.Image]:
    """Eight crops of the photograph that comes with matplotlib, for want of the caller's own images.

    Raises:
        FileNotFoundError: this installation of matplotlib came without it.
    """
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, matplotlib's sample photograph; name images to check with")
    photograph = decode(path, 3, name=str(path))
    width, height = photograph.size
    side = width // 2
    corners = [((width - side) * i // 3, (height - side) * j) for j in range(2) for i in range(4)]
    return [photograph.crop((x, y, x + side, y + side)) for x, y in corners]


def sample_names(images: Sequence[Path | Image.Image]) -> list[str]:
    """File names of images (their folder does not concern the recipient of an export), or a description of others."""
    names = [image.name for image in images if isinstance(image, Path)]
    return names or [f"{len(images)} crops of matplotlib's grace_hopper.jpg"]
