"""Real images for checks and calibration, as tensors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import matplotlib
from PIL import Image
from torch import Tensor

from ..data import channels_of, decode
from ..recipes import Input

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of the items, evenly spread: of class folders, some of each class."""
    n = min(count, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def as_tensor(image: Path | Image.Image, input: Input, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """An image as evaluation sees it, by its transform: ``(channels, H, W)``, float32.

    Raises:
        BrokenImage: it cannot be read; the message names it.
    """
    return transform(decode(image, channels_of(input), name=str(image)))


def crops_of_a_photograph() -> list[Image.Image]:
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
